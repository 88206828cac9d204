"""What `doctor` looks at, each check with its remedy. Changes nothing.

A check is a function of the configuration that yields findings; one finding says one thing.
"""

from __future__ import annotations

import os
import platform
import pwd
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hostlib import generations, maintenance, web
from hostlib.program import TOOLS, Config, Failure

ERROR, WARNING = "error", "warning"
OLDEST_PYTHON = (3, 9)
# They drop the body and the headers of a Lua script's own answer, so the maintenance page is lost.
BROKEN_LIGHTTPD = ("1.4.83", "1.4.84")
OLDEST_LIGHTTPD = (1, 4, 60)
# sun_path of a unix socket has 108 bytes, one of which ends the string.
LONGEST_SOCKET_PATH = 107
ROOM = 200 << 20  # bytes that a deploy should find free at least
INODES = 2000
BACKLOG = 128  # what a queue of requests is worth during a swap, at least
PRIVILEGED = ("swap", "drain", "verify", "migrate")


@dataclass(frozen=True)
class Finding:
    """One thing that is as it should be, or isn't: then `level` says whether it would stop a deploy."""

    name: str
    ok: bool
    message: str
    remedy: str = ""
    level: str = ERROR

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def judged(
    name: str, ok: bool, good: str, remedy: str, *, bad: str | None = None, level: str = ERROR
) -> Finding:
    """A finding that says `good` where it is ok; otherwise `bad`, if it reads differently, and the remedy."""
    return Finding(name, ok, good if ok or bad is None else bad, "" if ok else remedy, level)


def findings(config: Config) -> Iterator[Finding]:
    """Run every check; one that can't be carried out is a finding too."""
    for check in CHECKS:
        name = check.__name__.replace("_", " ")
        try:
            yield from check(config)
        except (OSError, Failure, subprocess.SubprocessError) as error:
            yield Finding(name, False, str(error), "fab setup")


def python(_: Config) -> Iterator[Finding]:
    oldest = ".".join(map(str, OLDEST_PYTHON))
    yield judged(
        "python",
        sys.version_info >= OLDEST_PYTHON,
        f"{sys.executable} is Python {platform.python_version()}",
        f"install Python {oldest} or later as /usr/bin/python3",
    )


def account(config: Config) -> Iterator[Finding]:
    try:
        pwd.getpwnam(config.user)
    except KeyError:
        there = False
    else:
        there = True
    good, bad = f"the application runs as {config.user}", f"there is no account {config.user}"
    yield judged("account", there, good, f"adduser --system {config.user}", bad=bad)


def directories(config: Config) -> Iterator[Finding]:
    """The deploy user's own can be written; the others are there, and root's where root trusts them."""
    me = pwd.getpwuid(os.geteuid()).pw_name
    for path in (config.releases, config.shared, config.state):
        mine = os.access(path, os.W_OK | os.X_OK)
        yield judged(
            "directories", mine, f"{me} can write {path}", "fab setup", bad=f"{me} can't write {path}"
        )
    for path in (config.root, config.run, config.log, config.migrations, config.maintenance_dir):
        yield judged("directories", path.is_dir(), f"{path} is there", "fab setup", bad=f"{path} is missing")
    if config.privileged:
        programs = [TOOLS, *TOOLS.glob("*"), *(TOOLS / "hostlib").rglob("*.py")]
        yield from map(
            _trusted, [config.root, config.run, config.migrations, config.maintenance_dir, *programs]
        )


def _trusted(path: Path) -> Finding:
    """What root runs, or where root writes, is nobody else's to change."""
    found = path.stat()
    safe = found.st_uid == 0 and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    good, bad = f"only root can change {path}", f"others than root can change {path}"
    return judged("directories", safe, good, f"chown root {path}; chmod go-w {path}", bad=bad)


def disk(config: Config) -> Iterator[Finding]:
    for path in dict.fromkeys((config.root, config.maintenance_dir)):
        found = os.statvfs(path)
        free = found.f_bavail * found.f_frsize
        yield judged("disk", free >= ROOM, f"{path} has {free >> 20} MiB free", "make room: df -h")
        if found.f_files:  # btrfs has no fixed number of inodes
            enough = found.f_favail >= INODES
            yield judged("disk", enough, f"{path} has {found.f_favail} inodes free", "make room: df -i")


def socket_path(config: Config) -> Iterator[Finding]:
    length = len(os.fsencode(config.run / "app.9999999.sock"))
    yield judged(
        "socket path",
        length <= LONGEST_SOCKET_PATH,
        f"the path of a socket in {config.run} has {length} bytes of at most {LONGEST_SOCKET_PATH}",
        "choose a shorter root in fabric.yaml, then fab setup",
    )


def lighttpd_version(_: Config) -> Iterator[Finding]:
    program = _lighttpd()
    if program is None:
        yield Finding(
            "lighttpd", False, "lighttpd is not installed", "apt install lighttpd lighttpd-modules-lua"
        )
        return
    said = _output([program, "-v"])
    version = re.search(r"lighttpd/(\d+\.\d+\.\d+)", said)
    if version is None:
        yield Finding("lighttpd", False, f"lighttpd doesn't tell its version: {said}", "reinstall lighttpd")
        return
    yield version_finding(version[1])


def version_finding(version: str) -> Finding:
    """Given lighttpd's version, tell whether maintenance mode works with it."""
    good = version not in BROKEN_LIGHTTPD and tuple(map(int, version.split("."))) >= OLDEST_LIGHTTPD
    return judged(
        "lighttpd", good, f"lighttpd is {version}", "upgrade it: this one loses the maintenance page"
    )


def lighttpd_configuration(config: Config) -> Iterator[Finding]:
    program, file = _lighttpd(), _configuration(config)
    if program is None:
        return
    tested = subprocess.run([program, "-tt", "-f", str(file)], capture_output=True, text=True, check=False)
    if tested.returncode != 0:
        said = (tested.stdout + tested.stderr).strip().splitlines()
        # Without root its keys and logs may be out of reach, which says nothing of the configuration.
        level = ERROR if os.geteuid() == 0 else WARNING
        reason = said[-1] if said else f"exit code {tested.returncode}"
        message = f"lighttpd refuses {file}: {reason}"
        yield Finding("configuration", False, message, f"lighttpd -tt -f {file}", level)
        return
    yield from configuration_findings(_output([program, "-p", "-f", str(file)]), config.maintenance_dir)


def configuration_findings(printed: str, maintenance_dir: Path) -> Iterator[Finding]:
    """Given what `lighttpd -p` printed, tell whether the maintenance switch sees every request."""
    modules = re.search(r"server\.modules\s*=\s*\((.*?)\)", printed, re.S)
    yield judged(
        "configuration",
        modules is not None and '"mod_magnet"' in modules[1],
        "mod_magnet is loaded",
        'server.modules += ("mod_magnet"), or fab setup',
        bad="mod_magnet is not loaded, so silently there is no maintenance mode",
    )
    scripts = re.findall(r"magnet\.attract-raw-url-to\s*=\s*\((.*?)\)", printed, re.S)
    script = maintenance_dir / "maint.lua"
    yield judged(
        "configuration",
        any(f'"{script}"' in names for names in scripts),
        f"{script} runs for every request",
        f'magnet.attract-raw-url-to = ("{script}"), or fab setup',
        bad=f"{script} is not asked, so silently there is no maintenance mode",
    )
    engine = re.search(r'server\.stat-cache-engine\s*=\s*"(\w+)"', printed)
    name = engine[1] if engine else "the default"
    yield judged(
        "configuration",
        name not in ("inotify", "fam"),
        f"server.stat-cache-engine is {name}",
        'server.stat-cache-engine = "disable"',
        bad=f"with server.stat-cache-engine {name} lighttpd misses a flipped switch for some 16 s",
    )


def maintenance_script(config: Config) -> Iterator[Finding]:
    state, script = maintenance.read_state(config).state, config.maintenance_dir / "maint.lua"
    yield judged(
        "maintenance script",
        state != "unknown",
        f"{script} says that the site is {state}",
        f"{config.maintenance_dir}/up",
        bad=f"{script} is missing, empty or not ours; without a script every request is answered 500",
    )


def site(config: Config) -> Iterator[Finding]:
    """Some answer must come. A bad one stops no deploy: it may be what the deploy is for."""
    try:
        answer = web.request(config, timeout=5)
    except OSError as error:
        yield Finding("site", False, f"{config.url} gives no answer: {error}", "systemctl start lighttpd")
        return
    fine = answer.status < 500 or maintenance.is_marked(answer)
    serving = generations.serving(config)
    if serving is None:
        remedy = "fab deploy: nothing is deployed yet"
    elif generations.alive(serving):
        remedy = f"see {config.log}/app.log"
    else:
        remedy = f"fab hotswap: the application is not running; see {config.log}/app.log"
    yield judged("site", fine, f"{config.url} answers {answer.status}", remedy, level=WARNING)


def backlog(_: Config) -> Iterator[Finding]:
    limit = int(Path("/proc/sys/net/core/somaxconn").read_text())
    remedy = "sysctl net.core.somaxconn=4096 (and in /etc/sysctl.d)"
    yield judged("backlog", limit >= BACKLOG, f"net.core.somaxconn is {limit}", remedy, level=WARNING)


def sudo(config: Config) -> Iterator[Finding]:
    """The deploy user may run what needs root, without a password."""
    if not config.privileged or os.geteuid() == 0:
        return
    programs = [TOOLS / name for name in PRIVILEGED]
    for program in [*programs, config.maintenance_dir / "down", config.maintenance_dir / "up"]:
        argv = ["sudo", "-n", "-l", str(program)]
        ran = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        allowed = ran.returncode == 0
        bad = f"sudo -n {program} is not allowed"
        yield judged("sudo", allowed, f"sudo -n {program} is allowed", "fab setup, as one who may", bad=bad)


CHECKS: Sequence[Callable[[Config], Iterator[Finding]]] = (
    python,
    account,
    directories,
    disk,
    socket_path,
    lighttpd_version,
    lighttpd_configuration,
    maintenance_script,
    site,
    backlog,
    sudo,
)


def _lighttpd() -> str | None:
    """Debian's deploy users don't have the sbin directories on their PATH."""
    return shutil.which("lighttpd", path=f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin")


def _configuration(config: Config) -> Path:
    own = config.maintenance_dir / "lighttpd.conf"
    return own if own.exists() else Path("/etc/lighttpd/lighttpd.conf")


def _output(argv: Sequence[str]) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout
