"""The processes of this host, as /proc lists them, and the one that a generation began with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hostlib.swapping.generations import Record


@dataclass(frozen=True)
class Process:
    """A row of /proc: see proc_pid_stat(5)."""

    pid: int
    state: str
    parent: int
    session: int
    threads: int
    start_time: int

    @property
    def dead(self) -> bool:
        """It only waits for its parent to take notice. While other threads of it end, it is not yet dead."""
        return self.state in "ZX" and self.threads < 2


def first_process(record: Record) -> Process | None:
    """The process that `start` began with; None where it has ended."""
    process = find(record.pid) if record.pid else None
    if process is None or process.dead or process.start_time != record.start_time:
        return None
    return process if is_of_this_life(record) else None


def find(pid: int) -> Process | None:
    try:
        # The second field is the program's name in parentheses, which may itself contain anything.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, parent, session, threads, start_time = (fields[at] for at in (0, 1, 3, 17, 19))
    return Process(pid, state, int(parent), int(session), int(threads), int(start_time))


def every() -> Iterator[Process]:
    for name in os.listdir("/proc"):
        if name.isdigit() and (process := find(int(name))):
            yield process


def is_of_this_life(record: Record) -> bool:
    """Whether its pid still means anything.

    Not after a reboot; and in a container that is started again pids begin anew, while the kernel goes on.
    """
    if record.start_time is None or record.boot_id != boot_id():
        return False
    first = find(1)
    return first is None or record.start_time >= first.start_time


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
