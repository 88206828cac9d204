"""A generation that stands by: all of it is there but the application.

A swap that waits for its turn starts one. Its socket is open, and its runner, a Python that has its
modules, waits at a FIFO, run/app.N.word; at the word it becomes the application. So none of the release's
code runs before, and in its turn the swap has only the application's own start to wait for.

It is on record as any generation that the public never reached, so whoever comes first may stop it
(the next swap, `swap --reap`), and the swap that it was meant for starts another. No lock is held while it
waits: whoever resumes or aborts a run elsewhere must not wait for a laptop that is gone.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from hostlib.program import Config, Failure
from hostlib.releasing import manifest
from hostlib.swapping import generations, processes
from hostlib.swapping.generations import Record
from hostlib.swapping.managers import Managers
from hostlib.swapping.swaplock import one_swap_at_a_time


@dataclass
class Standby:
    """The one that a waiting swap has, or none."""

    config: Config
    record: Record | None = None
    _told: int | None = field(default=None, init=False)

    @property
    def generation(self) -> int | None:
        return self.record.generation if self.record else None

    def take(self, release: str) -> Record | None:
        """Give it the word and return it; None where none is there for `release`. The caller has the lock."""
        record = self.record
        if record is None or record.release != release or not self._is_there(record):
            return None
        self.record = None
        word = generations.word_path(self.config, record.generation)
        # For reading, too, so that it doesn't wait for the runner, who may not have come that far; and open
        # as long as we live, so that the runner finds the word there.
        self._told = os.open(word, os.O_RDWR | os.O_CLOEXEC)
        word.unlink()
        os.write(self._told, b"\n")
        return replace(record, started_at=round(time.time(), 3))

    def _is_there(self, record: Record) -> bool:
        there = processes.first_process(record) is not None
        return there and record in generations.records(self.config)


@contextlib.contextmanager
def standing_by(config: Config, managers: Managers, release: str | None) -> Iterator[Standby]:
    """Have a generation of `release` stand by; what nobody took is stopped at the end.

    Where that can't be, none stands by: what is in its way shows in the swap's turn.
    """
    standby = Standby(config)
    if release is not None:
        with contextlib.suppress(Failure, OSError), one_swap_at_a_time(config):
            app, _ = manifest.read(config, release)
            standby.record = managers.start(release, app, standing_by=True)
    try:
        yield standby
    finally:
        if standby.record is not None:
            with contextlib.suppress(Failure, OSError), one_swap_at_a_time(config, reaping=True):
                if standby.record in generations.records(config):
                    managers.stop(standby.record)
