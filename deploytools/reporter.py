"""What an operation tells while it works, to whoever shows or records it: see the package `report`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from deploytools.commands import Answer
from deploytools.journal import Record
from deploytools.plan import Plan, Step
from deploytools.probe import Sample, Seen


class Reporter:
    """Heeds nothing. `progress`, `heard`, `line`, `note` and `sample` may be called by any thread."""

    def begin(self, plan: Plan, records: Sequence[Record]) -> None:
        """A run begins, or goes on; `records` is its journal, which grows with it."""

    def end(self) -> None:
        """The run is over, or left as it is."""

    def step(self, plan: Plan, step: Step, hosts: Sequence[str], *, undo: bool) -> None:
        """A step begins on these hosts."""

    def progress(self, step: Step, host: str, done: int, total: int) -> None:
        """A host has come so far within the step, in whatever unit: the bytes of an upload, say."""

    def heard(self, step: Step, host: str) -> None:
        """A host has said something to the step; what comes of it is for `answers`, once all have."""

    def answers(self, step: Step, answers: Mapping[str, Answer], seconds: Mapping[str, float]) -> None:
        """Every host is done with the step, one way or the other, so many `seconds` after it began."""

    def line(self, host: str, text: str) -> None:
        """A host program says something while it runs."""

    def note(self, text: str) -> None:
        """Anything else worth knowing."""

    def visitors(self) -> Seen | None:
        """What visitors saw of the run, as far as a probe told; None where it told nothing."""
        return None

    def sample(self, sample: Sample) -> None:
        """What a visitor got."""

    def unmeasured(self, why: str) -> None:
        """Nobody measures what visitors get of this run, and why that is."""
