"""Nothing of a fleet outlives its owner, whatever dies: where a fleet lives, who watches it, and how it goes.

A fleet is a number N from 1 to 254, and all that it has on this machine is named by it:

    /run/deploytools-fleet/N/       its place: keys, the operator's project, the hosts' console output
    .../deploytools-fleet-N/        a cgroup in every hierarchy that systemd uses, with one in it per host
    dtfleetN                        the end of the network cable that this machine holds
    blackhole 10.77.N.0/24          where packets for its hosts go once they are gone

and, as long as there are fleets, a higher limit of inotify instances.

Everything else (the hosts' processes, disks, mounts, network namespaces, bridge and cables) is inside a pid,
a mount and a network namespace. The *holder* is the first process of that pid namespace: when it dies, the
kernel kills every other process in it, and the mounts and the network go with the last of them.

The owner (pytest, or `make fleet`) starts a *keeper*, which starts the holder and waits for the end of its
standard input. That comes however the owner dies, and then the keeper takes the fleet down. If the keeper
is killed, the kernel kills the holder, and what is left lies still: an empty cgroup, a route, a directory.
A fleet's place is locked as long as its owner or its keeper lives; `sweep` takes down every fleet whose lock
is free.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PLACES = Path("/run/deploytools-fleet")
REPOSITORY = Path(__file__).parents[2]
# The hosts' disks and network namespaces, as a process inside the holder's namespaces sees them.
INSIDE = Path("/run/fleet")
# 10.77.N.0/24 is the network of fleet N.
NUMBERS = range(1, 255)
# root has one allowance for all hosts, and a host takes seven of the usual 128.
INOTIFY_INSTANCES = Path("/proc/sys/fs/inotify/max_user_instances")
ENOUGH_INOTIFY_INSTANCES = 8192
LIMIT_BEFORE = PLACES / "max_user_instances"


@dataclass(frozen=True)
class Place:
    """A fleet's number, and with it the names of all that it has. Locked while `descriptor` is open."""

    number: int
    descriptor: int = field(default=-1, compare=False)

    @property
    def directory(self) -> Path:
        return PLACES / str(self.number)

    @property
    def name(self) -> str:
        return f"deploytools-fleet-{self.number}"

    @property
    def cable(self) -> str:
        """The interface by which this machine reaches the hosts."""
        return f"dtfleet{self.number}"

    @property
    def subnet(self) -> str:
        return f"10.77.{self.number}.0/24"

    def address(self, last: int) -> str:
        """1 is this machine, the hosts come after it."""
        return f"10.77.{self.number}.{last}"

    def cgroups(self, below: str = "") -> list[Path]:
        """Its cgroup (or the one `below` it) in every hierarchy that systemd uses."""
        return [hierarchy / self.name / below for hierarchy in hierarchies()]


def hierarchies() -> list[Path]:
    """Where cgroups of systemd live: cgroup v2 first, then the named hierarchy of v1 where there is one."""
    unified, named = [], []
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, path, kind, options, *_ = line.split()
        if kind == "cgroup2":
            unified.append(Path(path))
        elif kind == "cgroup" and "name=systemd" in options.split(","):
            named.append(Path(path))
    return unified[:1] + named[:1]


def claim() -> Place:
    """A number that no living fleet has, locked. What a dead one left under it is removed first."""
    with _registry():
        for number in NUMBERS:
            directory = PLACES / str(number)
            directory.mkdir(parents=True, exist_ok=True)
            if (place := _locked(directory)) is not None:
                dismantle(place)
                _raise_limit()
                return place
    raise RuntimeError(f"all {len(NUMBERS)} networks for fleets are taken: python -m tests.fleet down")


def sweep() -> list[int]:
    """Take down every fleet whose owner and keeper are dead; returns their numbers."""
    with _registry():
        dead = [place for directory in _directories() if (place := _locked(directory)) is not None]
        for place in dead:
            dismantle(place)
            _give_back(place)
    return [place.number for place in dead]


def living() -> list[int]:
    """The numbers of the fleets that somebody owns."""
    sweep()
    return [int(directory.name) for directory in _directories()]


def remove(place: Place) -> None:
    """Take down all that the fleet has on this machine, the place itself last, and give its number back."""
    dismantle(place)
    with _registry():
        _give_back(place)


def dismantle(place: Place) -> None:
    """All of it but the place's directory, whose content goes."""
    for cgroup in place.cgroups():
        _remove_cgroup(cgroup)
    # The far end is gone with its namespace, and this one with it, but the kernel takes its time.
    for gone in (["link", "delete", place.cable], ["route", "delete", "blackhole", place.subnet]):
        subprocess.run(["ip", *gone], stderr=subprocess.DEVNULL, check=False)
    for path in place.directory.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


class Keeper:
    """The process that takes a fleet down when its owner is gone.

    Args:
        place: what `claim` gave.
        keep_open: descriptors that it has to hold for as long as the hosts run.
    """

    def __init__(self, place: Place, keep_open: Sequence[int] = ()) -> None:
        self.place = place
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import main; main({place.number}, {place.descriptor})"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            pass_fds=[place.descriptor, *keep_open],
            start_new_session=True,
        )
        self.pid = self._process.pid
        assert self._process.stdout is not None
        told = self._process.stdout.readline()
        if not told:
            self.end()
            raise RuntimeError("the keeper of the fleet could not start; what it said stands above")
        self.holder = int(told)

    def end(self) -> None:
        """Let it take the fleet down, and wait until it has; does it itself where the keeper was killed."""
        self._process.communicate()
        # The number may be somebody else's by now, who made the directory anew.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(self.place.directory.stat(), os.fstat(self.place.descriptor)):
                remove(self.place)
                return
        os.close(self.place.descriptor)


def inside(holder: int, *argv: str) -> list[str]:
    """The argv of a command in the namespaces of a fleet."""
    return ["nsenter", "--target", str(holder), "--pid", "--mount", "--net", "--", *argv]


def joining(cgroups: Sequence[Path], argv: Sequence[str]) -> list[str]:
    """The argv of a command that moves into the cgroups before it begins."""
    script = 'while [ "$1" != -- ]; do echo $$ >"$1/cgroup.procs"; shift; done; shift; exec "$@"'
    return ["sh", "-euc", script, "sh", *map(str, cgroups), "--", *argv]


def processes(cgroup: Path) -> Iterator[int]:
    """The ids of all processes in a cgroup and below it."""
    for path, _, _ in os.walk(cgroup):
        with contextlib.suppress(OSError):  # it was removed at this moment
            yield from map(int, Path(path, "cgroup.procs").read_text().split())


def main(number: int, descriptor: int) -> None:
    """Be the keeper: start the holder, tell its id, wait for the owner's end, take the fleet down."""
    for asked in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(asked, signal.SIG_IGN)  # the owner's business
    place = Place(number, descriptor)
    try:
        for cgroup in place.cgroups("holder"):
            cgroup.mkdir(parents=True)
        with _holder(place) as holder:
            print(holder, flush=True)
            sys.stdin.read()
    finally:
        remove(place)


@contextlib.contextmanager
def _holder(place: Place) -> Iterator[int]:
    # dash waits for any child, so orphans of the namespace don't stay zombies.
    idle = f"mount -t tmpfs -o mode=755,size=75% tmpfs /run && mkdir {INSIDE} && echo ready"
    idle += " && while :; do sleep 3600; done"
    unshare = ["unshare", "--pid", "--mount", "--net", "--kill-child=KILL", "--mount-proc", "--propagation"]
    argv = ["setpriv", "--pdeathsig", "KILL", *unshare, "private", "sh", "-c", idle]
    with subprocess.Popen(
        joining(place.cgroups("holder"), argv),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                raise RuntimeError("no namespaces for the fleet")
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
            yield int(children)
        finally:
            process.kill()


@contextlib.contextmanager
def _registry() -> Iterator[None]:
    """Only one process at a time gives numbers out or takes them back."""
    descriptor = os.open(PLACES.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _directories() -> list[Path]:
    found = PLACES.iterdir() if PLACES.is_dir() else ()
    return sorted(path for path in found if path.name.isdigit())


def _locked(directory: Path) -> Place | None:
    """The place, if nobody else has it."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return Place(int(directory.name), descriptor)


def _give_back(place: Place) -> None:
    with contextlib.suppress(FileNotFoundError):
        place.directory.rmdir()
    os.close(place.descriptor)
    if PLACES.is_dir() and not _directories():
        _restore_limit()
        PLACES.rmdir()


def _raise_limit() -> None:
    if int(INOTIFY_INSTANCES.read_text()) < ENOUGH_INOTIFY_INSTANCES:
        shutil.copy(INOTIFY_INSTANCES, LIMIT_BEFORE)
        INOTIFY_INSTANCES.write_text(str(ENOUGH_INOTIFY_INSTANCES))


def _restore_limit() -> None:
    if LIMIT_BEFORE.exists():
        INOTIFY_INSTANCES.write_text(LIMIT_BEFORE.read_text())
        LIMIT_BEFORE.unlink()


def _remove_cgroup(cgroup: Path, seconds: float = 60) -> None:
    """Kill what is in it until nothing is, and remove it with all that are below it."""
    deadline = time.monotonic() + seconds
    while cgroup.is_dir():
        for pid in processes(cgroup):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(OSError):  # EBUSY while a process in it is dying
            for path, _, _ in os.walk(cgroup, topdown=False):
                os.rmdir(path)
        if time.monotonic() > deadline:
            raise TimeoutError(f"{cgroup} still has processes: {list(processes(cgroup))}")
        time.sleep(0.01)
