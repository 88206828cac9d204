"""Which processes belong to a sandbox, and how they are ended: by pid and start time, never by name.

A process is the sandbox's own when
- its record in `.sandbox/run/` names its pid and start time: lighttpd and sshd;
- it carries the mark that sshd gives to every command: a `swap`, an operator's shell;
- a generation's record names it: the application;
- it holds one of the files that only these hold, see `_holds`: what is left when the others were killed;
- or it descends from one of these.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from deploytools.errors import OperationFailed
from deploytools.sandbox.layout import Layout

# In the environment of every command that sshd runs; its value is `.sandbox`'s path.
MARK = "DEPLOYTOOLS_SANDBOX"
SERVER_PROGRAMS = {"lighttpd", "sshd", "sshd-session", "sshd-auth"}
PATIENCE = 4.0  # seconds from SIGTERM to SIGKILL, and again until we give up


@dataclass(frozen=True)
class Process:
    """One process, for good: the kernel uses a pid again, but not with the same start time.

    Args:
        started: clock ticks after boot.
        parent: its parent's pid, which changes when that one ends.
    """

    pid: int
    started: int
    parent: int = field(compare=False)


def parse(stat: str) -> Process | None:
    """Given the text of /proc/PID/stat, return the process; None where that is a zombie, or no such text."""
    pid, _, rest = stat.partition(" (")
    # The name may hold anything, parentheses and spaces too.
    fields = rest.rpartition(") ")[2].split()
    try:
        return None if fields[0] in "ZX" else Process(int(pid), int(fields[19]), int(fields[1]))
    except (IndexError, ValueError):
        return None


def read(pid: int | str) -> Process | None:
    """The process that has this pid now, if any."""
    try:
        return parse(Path("/proc", str(pid), "stat").read_text(errors="replace"))
    except OSError:
        return None


def recorded(record: Path) -> Process | None:
    """The process of a record that it wrote itself at its start, as long as it lives."""
    try:
        then = parse(record.read_text(errors="replace"))
    except OSError:
        return None
    now = read(then.pid) if then else None
    return now if now == then else None


def everything() -> dict[int, Process]:
    """All processes of this machine."""
    found = (read(name) for name in os.listdir("/proc") if name.isdigit())
    return {process.pid: process for process in found if process}


def of(layout: Layout) -> set[Process]:
    """Every process of the sandbox; never this one, nor one that it descends from."""
    processes = everything()
    mark = f"{MARK}={layout.base}".encode()
    servers = (recorded(record) for record in layout.run.glob("*.stat"))
    ours = {process.pid for process in servers if process}
    ours.update(_generations(layout, processes))
    ours.update(pid for pid in processes if mark in _environment(pid) or _holds(pid, layout))
    spared = set(_line(os.getpid(), processes))
    ours -= spared
    return {
        process
        for pid, process in processes.items()
        if pid not in spared and not ours.isdisjoint(_line(pid, processes))
    }


def _line(pid: int, processes: Mapping[int, Process]) -> Iterator[int]:
    """The process, its parent, that one's parent and so on."""
    for _ in processes:
        if pid not in processes:
            return
        yield pid
        pid = processes[pid].parent


def _generations(layout: Layout, processes: Mapping[int, Process]) -> Iterator[int]:
    """The processes that the application's generation records name, see hostlib/swapping/generations.py."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    for path in (layout.application / "run").glob("app.*.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            record = json.loads(path.read_text())
            process = processes.get(record["pid"])
            if process and (process.started, boot) == (record["start_time"], record["boot_id"]):
                yield process.pid


def _environment(pid: int) -> list[bytes]:
    try:
        return Path("/proc", str(pid), "environ").read_bytes().split(b"\0")
    except OSError:
        return []


def _holds(pid: int, layout: Layout) -> bool:
    """Whether a process has a file open that tells what it is.

    A server its log; the application its log, as output; a migration and its runner the lock of their run.
    """
    try:
        server = Path(os.readlink(f"/proc/{pid}/exe")).name in SERVER_PROGRAMS
        for entry in os.scandir(f"/proc/{pid}/fd"):
            file = Path(os.readlink(entry.path))
            if server and file.parent == layout.logs:
                return True
            if entry.name in ("1", "2") and file == layout.application / "log/app.log":
                return True
            if file.name == "lock" and file.parent.parent == layout.application / "migrations":
                return True
    except OSError:
        pass  # Another user's process, or one that just ended.
    return False


def stop(
    layout: Layout,
    *,
    find: Callable[[Layout], set[Process]] = of,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """End every process of the sandbox: SIGTERM, then SIGKILL. Return how many there were.

    Raises OperationFailed where one is still there after that.
    """
    began = clock()
    told: dict[Process, int] = {}
    while living := find(layout):
        late = clock() - began
        if late > 2 * PATIENCE:
            raise OperationFailed(
                "some processes of the sandbox can't be ended",
                where=str(layout.base),
                state="the others are ended",
                next="fab sandbox.down",
                details=[f"pid {process.pid}" for process in sorted(living, key=lambda one: one.pid)],
            )
        for process in living:
            kind = signal.SIGKILL if late > PATIENCE else signal.SIGTERM
            if told.get(process) != kind:
                told[process] = kind
                _send(process, kind)
        sleep(0.02)
    return len(told)


def _send(process: Process, kind: signal.Signals) -> None:
    """Signal exactly this process: its pid may be another's by now."""
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    try:
        now = read(process.pid)
        if now == process:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, kind)
    finally:
        os.close(handle)


def listener_on(port: int) -> str | None:
    """Who listens on a local TCP port, in words; None where it can't be told."""
    sockets = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for row in Path(table).read_text().splitlines()[1:]:
                fields = row.split()
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                    sockets.add(f"socket:[{fields[9]}]")
    for pid in sorted(everything()):
        with contextlib.suppress(OSError):
            if any(os.readlink(entry.path) in sockets for entry in os.scandir(f"/proc/{pid}/fd")):
                return f"{Path('/proc', str(pid), 'comm').read_text().strip()} (pid {pid}) listens on it"
    return "another user's process listens on it" if sockets else None
