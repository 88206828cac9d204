"""A thread that calls a function every few seconds while an operation is at work, and when asked to."""

from __future__ import annotations

import threading
from collections.abc import Callable

# Seconds between two signs of life; hostlib.runs.deploylock takes three of them missing for the end.
EVERY = 5.0


class Heartbeat:
    """Calls `beat` between `__enter__` and `__exit__`."""

    def __init__(self, beat: Callable[[], None], every: float = EVERY) -> None:
        self._beat, self._every = beat, every
        self._now, self._over = threading.Event(), False

    def __enter__(self) -> Heartbeat:
        # A daemon: one that hangs on a dead link must not keep the program from ending.
        threading.Thread(target=self._work, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._now.set()

    def soon(self) -> None:
        """Have it called at once."""
        self._now.set()

    def _work(self) -> None:
        while True:
            self._now.wait(self._every)
            self._now.clear()
            if self._over:
                return
            self._beat()
