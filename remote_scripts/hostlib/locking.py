"""flock(2) on a descriptor: let go by the kernel when its last holder ends, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from hostlib.program import BUSY, Failure

POLL = 0.05


@contextlib.contextmanager
def exclusive(directory: Path, *, wait: float) -> Iterator[int]:
    """Hold the lock of `directory` and yield its descriptor; Failure (exit code 5) after `wait` seconds.

    A child process that is to keep the lock past our own death gets the descriptor by pass_fds.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        deadline = time.monotonic() + wait
        while not _try(descriptor, fcntl.LOCK_EX):
            if time.monotonic() >= deadline:
                raise Failure(
                    f"another program has been working in {directory} for {wait:.0f} s",
                    state="nothing was changed",
                    next="wait for it, then run the same command again",
                    exit_code=BUSY,
                )
            time.sleep(POLL)
        yield descriptor
    finally:
        os.close(descriptor)


def held(path: Path) -> bool:
    """True while any process holds the exclusive lock of the file `path`; False where there is no file."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return not _try(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def _try(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
