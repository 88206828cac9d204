"""Who is connected to a unix socket, as the kernel lists it in /proc/net/unix.

A connection carries the path that its listener was bind(2)-ed to, whatever symbolic link the client
came by. Connections that wait in the listener's queue are listed too (state 02), which is what tells a
drained listener from a busy one; established rows alone, as `ss` shows them, miss those.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

TABLE = Path("/proc/net/unix")
ACCEPTS = 0x10000  # __SO_ACCEPTCON in the flags column: a listener
QUEUED, ACCEPTED = "02", "03"
# sun_path has 108 bytes, the last of which is the NUL.
LONGEST_PATH = 107
NEVER = 1  # an access time, in nanoseconds since 1970; with relatime it is replaced because it is so old
PAUSE = 0.02  # seconds between two samples


@dataclass(frozen=True)
class Connections:
    """Connections to one listener: not yet accepted, and accepted (with their inodes, which are unique)."""

    queued: int
    accepted: int
    inodes: frozenset[int]

    @property
    def total(self) -> int:
        return self.queued + self.accepted


def connections(path: str, table: Path = TABLE) -> Connections:
    """The connections whose listener was bound to `path`. One sample, and not an atomic one."""
    wanted = path.encode()
    queued, inodes = 0, []
    for line in table.read_bytes().splitlines()[1:]:
        # Num RefCount Protocol Flags Type St Inode Path; most sockets have no path.
        columns = line.split(None, 7)
        if len(columns) < 8 or columns[7] != wanted or int(columns[3], 16) & ACCEPTS:
            continue
        state = columns[5].decode()
        if state == QUEUED:
            queued += 1
        elif state == ACCEPTED:
            inodes.append(int(columns[6]))
    return Connections(queued, len(inodes), frozenset(inodes))


def listeners(table: Path = TABLE) -> dict[int, str]:
    """The path that each listening unix socket was bound to, by its inode."""
    rows = (line.split(None, 7) for line in table.read_bytes().splitlines()[1:])
    return {
        int(columns[6]): os.fsdecode(columns[7])
        for columns in rows
        if len(columns) == 8 and int(columns[3], 16) & ACCEPTS
    }


def forget_access(path: str) -> None:
    """Make `was_accessed` false until somebody connects to the socket `path`.

    A link is not followed: the application may have put one there, and we may be root.
    """
    os.utime(path, ns=(NEVER, os.lstat(path).st_mtime_ns), follow_symlinks=False)


def was_accessed(path: str) -> bool:
    """True where somebody has connected since `forget_access`; false for ever on a noatime file system."""
    return os.lstat(path).st_atime_ns != NEVER


def wait_idle(
    path: str,
    timeout: float,
    *,
    sample: Callable[[str], Connections] = connections,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Connections:
    """Wait at most `timeout` seconds for the last connection to end; return what was seen last.

    Nothing may lead to the socket any more. A read of the table is not atomic, so idle takes two empty
    samples in a row; a result with total 0 always stands for two.
    """
    deadline = clock() + timeout
    empty = 0
    while True:
        seen = sample(path)
        empty = 0 if seen.total else empty + 1
        if empty == 2 or (seen.total and clock() >= deadline):
            return seen
        sleep(PAUSE)
