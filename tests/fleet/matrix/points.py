"""Where the operator's own process is to die, to be interrupted, or to wait: loaded by a trial's fabfile.

$MATRIX_POINT names a moment of the run, $MATRIX_ACT what happens at it:

    intend:STEP     the intent of the step is about to be written
    send:STEP       the intent is written (on the lock host, if the step changes anything); nothing was sent
    first:STEP      the first host is done with the step; the others may be, or still be at it
    record:STEP     every host is done with the step, and nothing of that was written
    wrote:STEP      the outcome is on this computer, and not on the lock host

    kill            SIGKILL to this process
    interrupt       SIGINT, as Ctrl-C sends it
    wait:FILE       say so in FILE.here, and go on when FILE.go is there
    freeze:FILE     say so in FILE.here, and stop until SIGCONT, as a laptop does whose lid is closed

`undo-STEP` is the step's compensation. It happens once. $MATRIX_REACHED is a file that tells that it did.
Nothing of the product knows of it: what it calls is watched from outside.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def arrange() -> None:
    """Watch for the moment that the environment names; without one, do nothing."""
    if wanted := os.environ.get("MATRIX_POINT"):
        _Watch(wanted, os.environ["MATRIX_ACT"], Path(os.environ["MATRIX_REACHED"])).begin()


class _Watch:
    def __init__(self, wanted: str, act: str, reached: Path) -> None:
        self._wanted, self._act, self._reached = wanted, act, reached
        self._lock = threading.Lock()
        self._step = ""  # the one that is under way

    def begin(self) -> None:
        from deploytools.journal import Journal
        from deploytools.remote import Remote
        from deploytools.report.plain import PlainReporter

        append, run, step = Journal.append, Remote.run, PlainReporter.step

        def watched_append(journal: Journal, *records: Any) -> None:
            intents = [_name(record) for record in records if record["kind"] == "intent"]
            outcomes = [_name(record) for record in records if record["kind"] == "outcome"]
            for name in intents:
                self._at(f"intend:{name}")
            for name in outcomes[:1]:
                self._at(f"record:{name}")
            append(journal, *records)
            for name in outcomes[:1]:
                self._step = ""
                self._at(f"wrote:{name}")

        def watched_step(reporter: PlainReporter, plan: Any, step_: Any, hosts: Any, *, undo: bool) -> None:
            step(reporter, plan, step_, hosts, undo=undo)
            self._step = _name({"step": step_.name, "undo": undo})
            self._at(f"send:{self._step}")

        def watched_run(remote: Remote, *args: Any, **options: Any) -> Any:
            result = run(remote, *args, **options)
            if self._step:
                self._at(f"first:{self._step}")
            return result

        _replace(Journal, "append", watched_append)
        _replace(PlainReporter, "step", watched_step)
        _replace(Remote, "run", watched_run)

    def _at(self, point: str) -> None:
        with self._lock:
            if point != self._wanted or self._reached.exists():
                return
            self._reached.write_text(point)
            if self._act == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
        if self._act == "interrupt":
            os.kill(os.getpid(), signal.SIGINT)
            return
        act, _, file = self._act.partition(":")
        Path(f"{file}.here").touch()
        if act == "freeze":
            os.kill(os.getpid(), signal.SIGSTOP)
            return
        while not Path(f"{file}.go").exists():
            time.sleep(0.01)


def _name(record: Any) -> str:
    return f"{'undo-' if record['undo'] else ''}{record['step']}"


def _replace(of: type, name: str, by: Callable[..., Any]) -> None:
    setattr(of, name, by)
