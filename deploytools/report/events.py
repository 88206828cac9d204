"""A run as JSON lines: for machines with --json, and kept on this computer for `fab report`."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from deploytools.commands import Answer
from deploytools.journal import Record
from deploytools.plan import Plan, Step
from deploytools.probe import KINDS, Sample
from deploytools.reporter import Reporter

# Between two lines that tell how far a host has come within a step, in seconds.
PROGRESS = 1.0
# Of the events that are read again, what each has to have.
WORDS: dict[str, set[str]] = {
    "step": {"at", "step"},
    "line": {"at", "text"},
    "note": {"at", "text"},
    "sample": {"event", *Sample._fields},
}


class EventsReporter(Reporter):
    """Gives each event to `write` as a line of JSON, as docs/reference.md lists them.

    Args:
        clock: seconds since the epoch.
    """

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float] = time.time) -> None:
        self._write, self._clock = write, clock
        self._lock = threading.RLock()  # Ctrl-C's note may come in the middle of another event
        self._told: dict[tuple[str, str], float] = {}

    def begin(self, plan: Plan, records: Sequence[Record]) -> None:
        self._event(
            "begin",
            run_id=plan.run_id,
            operation=plan.operation,
            application=plan.application,
            release=plan.release,
            hosts=plan.hosts,
            steps=[step.name for step in plan.steps],
        )

    def step(self, plan: Plan, step: Step, hosts: Sequence[str], *, undo: bool) -> None:
        number, title = plan.steps.index(step) + 1, step.undo if undo and step.undo else step.title
        self._event("step", step=step.name, title=title, number=number, undo=undo, hosts=list(hosts))

    def progress(self, step: Step, host: str, done: int, total: int) -> None:
        now, key = self._clock(), (step.name, host)
        if done < total and now - self._told.get(key, 0.0) < PROGRESS:
            return
        self._told[key] = now
        self._event("progress", step=step.name, host=host, done=done, total=total)

    def answers(self, step: Step, answers: Mapping[str, Answer], seconds: Mapping[str, float]) -> None:
        for host, answer in answers.items():
            self._event(
                "answer",
                step=step.name,
                host=host,
                state=answer.mark.state.value,
                message=answer.mark.value.get("message"),
                error=dict(answer.error) or None,
                seconds=round(seconds[host], 3),
            )

    def line(self, host: str, text: str) -> None:
        self._event("line", host=host, text=text.rstrip())

    def note(self, text: str) -> None:
        self._event("note", text=text)

    def sample(self, sample: Sample) -> None:
        self._event("sample", **{**sample._asdict(), "at": sample.at})

    def _event(self, name: str, **about: Any) -> None:
        event = {"event": name, "at": round(self._clock(), 3), **about}
        with self._lock:
            self._write(json.dumps(event))


class Recorder(EventsReporter):
    """Keeps the events of a run in `directory`, beside its journal, and has its samples at hand.

    What can't be kept is missing in the report and changes nothing about the run.
    """

    def __init__(self, directory: Callable[[], Path], clock: Callable[[], float] = time.time) -> None:
        super().__init__(self._append, clock)
        self._directory = directory
        self._file: Path | None = None
        self.records: Sequence[Record] = ()
        self.samples: list[Sample] = []

    def begin(self, plan: Plan, records: Sequence[Record]) -> None:
        self._file, self.records = events_file(self._directory(), plan.run_id), records
        self.samples = samples(read(self._file))
        super().begin(plan, records)

    def sample(self, sample: Sample) -> None:
        self.samples.append(sample)
        super().sample(sample)

    def _append(self, line: str) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError), self._file.open("a") as file:
                file.write(f"{line}\n")


def events_file(directory: Path, run_id: str) -> Path:
    """Where the events of a run are kept."""
    return directory / f"{run_id}.events"


def read(file: Path) -> list[dict[str, Any]]:
    """The events in a file; none where it isn't there. What was cut off, or is no event, is left out."""
    events: list[dict[str, Any]] = []
    with contextlib.suppress(OSError), file.open(errors="replace") as lines:
        for line in lines:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                event = json.loads(line)
                if WORDS.get(event["event"], set()) <= event.keys():
                    events.append(event)
    return events


def samples(events: Iterable[Mapping[str, Any]]) -> list[Sample]:
    """What the probe got, of all events."""
    told = (event for event in events if event["event"] == "sample" and event["kind"] in KINDS)
    return [Sample(*(event[field] for field in Sample._fields)) for event in told]
