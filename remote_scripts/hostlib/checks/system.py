"""The machine: its Python, its disks, its memory, and limits of its kernel."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hostlib.checks.finding import WARNING, Finding, Subject, judged
from hostlib.program import TOOLS
from hostlib.swapping import unixsockets
from hostlib.swapping.managers import Managers
from hostlib.swapping.processes import find as find_process

OLDEST_PYTHON = (3, 9)
MIB = 1 << 20
BACKLOG = 1024  # what a queue of requests is worth while a generation starts slowly or is swapped
SYSCTL = "/etc/sysctl.d/zz-deploytools.conf"
SPARE = 64 * MIB  # bytes of memory that stay free while two generations run


@dataclass(frozen=True)
class Need:
    """What a deploy writes below `path`: bytes and inodes, generously."""

    path: Path
    room: int
    inodes: int


def python(_: Subject) -> Iterator[Finding]:
    oldest = ".".join(map(str, OLDEST_PYTHON))
    yield judged(
        "python",
        sys.version_info >= OLDEST_PYTHON,
        f"{sys.executable} is Python {platform.python_version()}",
        f"apt install python3, which has to be Python {oldest} or later",
    )


def disk(subject: Subject) -> Iterator[Finding]:
    """Room on every file system that a deploy writes to; it may be full for us, and not for root."""
    config = subject.config
    needs = [
        Need(config.root, 200 * MIB, 2000),
        Need(config.releases, 200 * MIB, 2000),
        Need(config.log, 50 * MIB, 50),
        Need(config.maintenance_dir, 4 * MIB, 50),
        Need(Path("/tmp"), 16 * MIB, 50),  # noqa: S108 - programs that root runs make temporary files there
        Need(Path("/run"), MIB, 50),
        Need(Path("/var/tmp"), 0, 0),  # noqa: S108
    ]
    by_device: dict[int, list[Need]] = {}
    for need in needs:
        place = _existing(need.path)
        by_device.setdefault(place.stat().st_dev, []).append(Need(place, need.room, need.inodes))
    for there in by_device.values():
        yield from _file_system(max(there, key=lambda need: need.room))


def _existing(path: Path) -> Path:
    """`path`, or what there is on the way to it."""
    return next(place for place in (path, *path.parents) if place.exists())


def _file_system(need: Need) -> Iterator[Finding]:
    found, path = os.statvfs(need.path), need.path
    free = found.f_bavail * found.f_frsize
    if found.f_flag & os.ST_RDONLY and need.room:
        yield Finding(
            "disk",
            False,
            f"{path} is on a file system that is mounted read-only",
            f"mount -o remount,rw $(findmnt -no TARGET -T {path})",
        )
        return
    yield judged(
        "disk",
        free >= need.room,
        f"{path} has {free // MIB} MiB free",
        f"make room: du -xh --max-depth=2 {path} | sort -h | tail",
        bad=f"{path} has {free // MIB} MiB free, and a deploy may need {need.room // MIB}",
    )
    if found.f_files:  # btrfs has no fixed number of inodes
        yield judged(
            "disk",
            found.f_favail >= need.inodes,
            f"{path} has {found.f_favail} inodes free",
            f"make room: du -x --inodes --max-depth=2 {path} | sort -n | tail",
            bad=f"{path} has {found.f_favail} inodes free, and a deploy may need {need.inodes}",
        )


def programs(_: Subject) -> Iterator[Finding]:
    """The host programs can be run from where they are."""
    place = _existing(TOOLS)
    yield judged(
        "programs",
        not os.statvfs(place).f_flag & os.ST_NOEXEC,
        f"programs in {TOOLS} can be run",
        f"mount -o remount,exec $(findmnt -no TARGET -T {place}); or another tools_dir in fabric.yaml",
        bad=f"{TOOLS} is on a file system that is mounted noexec",
    )


def memory(subject: Subject) -> Iterator[Finding]:
    """A swap runs two generations at a time."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith("kB")}
    free = sizes.get("MemAvailable", 0) + sizes.get("SwapFree", 0)
    used = _memory_of_the_application(subject)
    yield judged(
        "memory",
        free >= used + SPARE,
        f"{free // MIB} MiB of memory are free",
        "ps -eo rss,args --sort=-rss | head, which shows what uses it; or fewer processes of the application",
        bad=f"{free // MIB} MiB of memory are free; the application uses {used // MIB} MiB, and a swap runs"
        " it twice at a time",
        level=WARNING,
    )


def _memory_of_the_application(subject: Subject) -> int:
    """Bytes that the serving generation has for itself: what its processes share counts once at most."""
    record = subject.serving
    first = Managers(subject.config).look(record).pid if record else None
    if first is None:
        return 0
    used = 0
    for name in filter(str.isdigit, os.listdir("/proc")):
        process = find_process(int(name))
        if process is not None and process.session == first:
            try:
                found = re.search(r"^RssAnon:\s+(\d+) kB", Path(f"/proc/{name}/status").read_text(), re.M)
            except OSError:  # it has ended
                continue
            used += int(found[1]) * 1024 if found else 0
    return used


def backlog(_: Subject) -> Iterator[Finding]:
    """Every queue of connections is cut to this length, and lighttpd answers 500 where one is full."""
    limit = int(Path("/proc/sys/net/core/somaxconn").read_text())
    yield judged(
        "backlog",
        limit >= BACKLOG,
        f"net.core.somaxconn is {limit}",
        f"echo net.core.somaxconn=4096 > {SYSCTL} && systemctl restart systemd-sysctl; then fab hotswap,"
        " because the queue is made with the socket",
        bad=f"net.core.somaxconn is {limit}: more requests than that can't wait for the application,"
        " and are answered 500",
        level=WARNING,
    )


def socket_path(subject: Subject) -> Iterator[Finding]:
    # The longest that a generation's socket is bound to: the application's own, in a directory of root's.
    length = len(os.fsencode(subject.config.run / "app.9999999.d" / "app.sock"))
    yield judged(
        "socket path",
        length <= unixsockets.LONGEST_PATH,
        f"a socket's path in {subject.config.run} has {length} bytes of at most {unixsockets.LONGEST_PATH}",
        "choose a shorter root in fabric.yaml; then fab setup",
        bad=f"a socket's path in {subject.config.run} would have {length} bytes, and can't have more than"
        f" {unixsockets.LONGEST_PATH}",
    )


def processes(_: Subject) -> Iterator[Finding]:
    """What `status` says of the application's process is to be seen by the deploy user, too."""
    hidden = os.geteuid() != 0 and not os.access("/proc/1/stat", os.R_OK)
    yield judged(
        "processes",
        not hidden,
        "the processes of other accounts can be seen",
        "mount -o remount,hidepid=0 /proc; then take hidepid out of /etc/fstab",
        bad="/proc is mounted with hidepid: `status` can't see whether the application runs",
        level=WARNING,
    )
