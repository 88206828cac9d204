"""One swap at a time, by a lock on run/swap.lock; the kernel lets go of it however its holder ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from hostlib.program import BUSY, USAGE, Config, Failure

REAPING = 1  # the size of swap.lock while `swap --reap` holds it
REAPING_TAKES = 60.0  # seconds at most, with applications that don't end when they are asked to
POLL = 0.05  # seconds


@contextlib.contextmanager
def one_swap_at_a_time(config: Config, *, reaping: bool = False) -> Iterator[None]:
    """Hold the lock of `swap`.

    `swap --reap` comes by itself when a soak time is over: it waits its turn, and nobody is sent away because
    of it. Raises Failure where another swap holds the lock, or anyone for too long, and where run/ is not
    as `fab setup` makes it.
    """
    _check_directory(config.run)
    descriptor = os.open(config.run / "swap.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        deadline = time.monotonic() + REAPING_TAKES
        while not _locked(descriptor):
            waits = reaping or os.fstat(descriptor).st_size == REAPING
            if not waits or time.monotonic() >= deadline:
                raise Failure(
                    "another swap is at work on this host",
                    state="this one changed nothing",
                    next="wait for it, then run the same command again",
                    exit_code=BUSY,
                )
            time.sleep(POLL)
        with contextlib.suppress(OSError):  # the size tells who holds it; then somebody waits in vain
            os.ftruncate(descriptor, REAPING if reaping else 0)
        yield
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _check_directory(run: Path) -> None:
    """What lies in run/ tells whom to end, and where visitors are led: so nobody else may write there.

    And the web server has to get in.
    """
    try:
        found = run.stat()
    except FileNotFoundError:
        what = f"there is no directory {run}"
    else:
        mode, wanted = stat.S_IMODE(found.st_mode), 0o711 if os.geteuid() == 0 else 0o700
        if found.st_uid == os.geteuid() and mode & 0o022 == 0 and mode & wanted == wanted:
            return
        what = f"{run} belongs to uid {found.st_uid} and has mode {mode:o}, not uid {os.geteuid()} and 755"
    raise Failure(what, state="nothing was changed", next="fab setup", exit_code=USAGE)
