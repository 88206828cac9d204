"""The disks that the hosts start from: Debian, in layers, cached outside of the checkout.

    layers = images.ready("trixie", ["postgresql"])    # directories for overlayfs, topmost first

A suite's *base* is a small Debian with what every web host has. A set of further packages is a *layer* over
it: what apt changed. Both are made once and used by all fleets.

An image is made anew when its recipe changes (its name holds a digest of it: suite, packages, steps, and for
a layer the base it stands on) or when it is older than MAX_AGE, so that Debian's updates come in. It is made
in a temporary directory and renamed when it is whole, under a lock, so several test processes make it once.
Images that are in use are locked and stay; others are removed once they are older than MAX_AGE.

Archive, proxy and certificates are those of this machine's own apt, read when an image is made. apt runs
on this machine and only dpkg runs in the image, so nothing of that gets into it.

The cache is $DEPLOYTOOLS_FLEET_CACHE, or /var/cache/deploytools-fleet.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

SUITES = ("bookworm", "trixie")
# What a host has after a set-up by hand as the README describes it, for an application in PHP. strace is for
# tests that let a system call fail.
PACKAGES = [
    *("systemd", "systemd-sysv", "dbus", "openssh-server", "sudo", "iproute2", "python3", "strace"),
    *("lighttpd", "lighttpd-modules-lua", "lighttpd-mod-openssl", "php-cgi"),
]
# In seconds: how late a security update of Debian may reach the hosts.
MAX_AGE = 30 * 86400.0
# Steps inside a new base; $1 is its root directory.
FINISH = """
chroot "$1" useradd --create-home --shell /bin/bash --password '*' deploy
chroot "$1" install -d -m 700 -o deploy -g deploy /home/deploy/.ssh
install -d -m 700 "$1/root/.ssh"
# Every host gets its own of these.
rm -f "$1"/etc/ssh/ssh_host_* "$1/etc/hostname"
: >"$1/etc/machine-id"
# Left of this machine.
rm -f "$1/etc/apt/apt.conf.d/99mmdebstrap"
: >"$1/etc/resolv.conf"
# Nothing to update at the first boot.
touch "$1/etc/.updated" "$1/var/.updated"
# Nobody sits at a console, and timers that ask the network for updates would only fail.
for unit in console-getty.service getty.target apt-daily.timer apt-daily-upgrade.timer; do
  ln -sf /dev/null "$1/etc/systemd/system/$unit"
done
"""
# $1: the base's layers for overlayfs, $2: the directory for the changes, $3: a directory to work in, $4: a
# file of apt's settings; then the packages.
LAYER = """
lower=$1 changes=$2 scratch=$3 settings=$4; shift 4
root=$scratch/root
mkdir "$root" "$scratch/work"
mount -t overlay -o "lowerdir=$lower,upperdir=$changes,workdir=$scratch/work" overlay "$root"
mount -t proc proc "$root/proc"
printf 'exit 101\\n' >"$root/usr/sbin/policy-rc.d"
chmod 755 "$root/usr/sbin/policy-rc.d"
export APT_CONFIG=$settings DEBIAN_FRONTEND=noninteractive
apt-get -qq -o Dir="$root" -o Dpkg::Chroot-Directory="$root" update
apt-get -qq -o Dir="$root" -o Dpkg::Chroot-Directory="$root" -o Dpkg::Use-Pty=0 \\
  install --no-install-recommends "$@"
apt-get -qq -o Dir="$root" clean
rm -r "$root/usr/sbin/policy-rc.d" "$root"/var/lib/apt/lists
touch "$root/etc/.updated" "$root/var/.updated"
umount "$root/proc" "$root"
"""


@dataclass(frozen=True)
class Image:
    """A directory with a root file system in it, or with the changes of one. Not removed while it is open."""

    directory: Path
    descriptor: int = field(compare=False)

    @property
    def tree(self) -> Path:
        return self.directory / "tree"


def cache() -> Path:
    """Where the images are."""
    return Path(os.environ.get("DEPLOYTOOLS_FLEET_CACHE") or "/var/cache/deploytools-fleet")


def ready(suite: str, packages: Sequence[str] = ()) -> list[Image]:
    """The images of a host, topmost first, made where they are missing or too old. The caller closes them.

    Raises CalledProcessError where Debian's archive can't be reached or has no such package; what apt said
    stands on stderr.
    """
    with alone():
        recipe = {"suite": suite, "packages": PACKAGES, "finish": FINISH}
        base = cached(f"{suite}-base", recipe, lambda place: _make_base(suite, place))
        extra = sorted(set(packages) - set(PACKAGES))
        if not extra:
            return [base]
        recipe = {"base": base.directory.name, "packages": extra, "steps": LAYER}
        make = partial(_make_layer, base, extra)
        return [cached(f"{suite}-layer", recipe, make), base]


@contextmanager
def alone() -> Iterator[None]:
    """One process at a time looks for images, makes them, and removes the old ones."""
    cache().mkdir(parents=True, exist_ok=True)
    with (cache() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for directory in cache().iterdir():
            if directory.name.startswith("making-") or (_too_old(directory) and _unused(directory)):
                shutil.rmtree(directory)
        yield


def cached(kind: str, recipe: Mapping[str, object], make: Callable[[Path], None]) -> Image:
    """The image of this recipe. Where there is none, `make` gets a directory and fills `tree` in it.

    Only for who is `alone`.
    """
    digest = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:12]
    fresh = [path for path in cache().glob(f"{kind}-{digest}-*") if not _too_old(path)]
    if not fresh:
        print(f"making {kind} in {cache()}: about a minute", file=sys.stderr)
        temporary = Path(tempfile.mkdtemp(prefix="making-", dir=cache()))
        temporary.chmod(0o755)
        try:
            (temporary / "recipe.json").write_text(json.dumps(recipe, indent=2))
            (temporary / "tree").mkdir()
            make(temporary)
            fresh = [cache() / f"{kind}-{digest}-{int(time.time())}"]
            temporary.rename(fresh[0])
        except BaseException:
            shutil.rmtree(temporary)
            raise
    descriptor = os.open(fresh[0], os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return Image(fresh[0], descriptor)


def _too_old(directory: Path) -> bool:
    made = directory.name.rpartition("-")[2]
    return made.isdigit() and time.time() - int(made) > MAX_AGE


def _unused(directory: Path) -> bool:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def _make_base(suite: str, place: Path) -> None:
    (place / "apt.conf").write_text(_apt_settings())
    finish = place / "finish"
    finish.write_text(f"#!/bin/sh\nset -eu\n{FINISH}")
    finish.chmod(0o755)
    argv = ["mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", f"--aptopt={place}/apt.conf"]
    argv += [f"--include={','.join(PACKAGES)}", f"--customize-hook={finish}"]
    _apart([*argv, suite, str(place / "tree"), *_sources(suite)])


def _make_layer(base: Image, packages: Sequence[str], place: Path) -> None:
    scratch = place / "scratch"
    scratch.mkdir()
    (scratch / "apt.conf").write_text(_apt_settings())
    argv = [base.tree, place / "tree", scratch, scratch / "apt.conf", *packages]
    _apart(["sh", "-euc", LAYER, "sh", *map(str, argv)])
    shutil.rmtree(scratch)


def _apart(argv: Sequence[str]) -> None:
    """Run it so that no process and no mount of it stays, whatever happens."""
    separate = ["--pid", "--mount", "--kill-child=KILL", "--mount-proc", "--propagation", "private"]
    subprocess.run(["unshare", *separate, *argv], check=True, stdin=subprocess.DEVNULL, stdout=sys.stderr)


def _apt_settings() -> str:
    """How this machine's apt reaches the archive: proxy, certificates, checks."""
    dump = subprocess.run(["apt-config", "dump"], check=True, capture_output=True, text=True).stdout
    wanted = ("Acquire::http", "Acquire::Check", "Acquire::Retries", "Acquire::ForceIP")
    return "".join(f"{line}\n" for line in dump.splitlines() if line.startswith(wanted))


def _sources(suite: str) -> list[str]:
    """Lines for sources.list: the archive of this machine's own Debian, and its security updates."""
    format_ = "$(RELEASE) $(REPO_URI)"
    argv = ["apt-get", "indextargets", "--format", format_, "Identifier: Packages", "Component: main"]
    targets = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    own = platform.freedesktop_os_release()["VERSION_CODENAME"]
    archives = dict(reversed([line.split(" ", 1) for line in targets.splitlines()]))
    if own not in archives:
        raise RuntimeError(f"apt of this machine knows no archive of {own}: see apt-get indextargets")
    lines = [f"deb {archives[own]} {suite} main"]
    if f"{own}-security" in archives:
        lines.append(f"deb {archives[f'{own}-security']} {suite}-security main")
    return lines
