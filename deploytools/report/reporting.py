"""What a task tells of its run: lines or a live view for people, JSON for machines; then the summary."""

from __future__ import annotations

import json as json_
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType

from deploytools import operation, streams
from deploytools.commands import Answer
from deploytools.errors import DeployError
from deploytools.journal import Estimate, Record
from deploytools.plan import Plan, Step
from deploytools.probe import Sample, Seen, seen
from deploytools.report.events import EventsReporter, Recorder
from deploytools.report.plain import PlainReporter, to_stderr
from deploytools.report.runs import described, summary
from deploytools.report.text import addressed
from deploytools.reporter import Reporter


class Reporting(Reporter):
    """A reporter for one task. Left as a context, it prints the result of the run, if there was one.

    That is the summary, or with `json` one object; of a run that failed, what it had come to. Commands in it
    are for the `environment` that `fab on` chose.
    """

    def __init__(self, *, json: bool = False, environment: str | None = None) -> None:
        self._json, self._environment = json, environment
        self._kept = Recorder(operation.journals)
        self._estimate: Estimate | None = None
        self._all: tuple[Reporter, ...] = (self._shown(), self._kept)

    def expect(self, estimate: Estimate | None) -> None:
        """Say what past windows make expect of this one, before it begins."""
        self._estimate = estimate

    def _shown(self) -> Reporter:
        if self._json:
            return EventsReporter(to_stderr)
        if not on_terminal():
            return PlainReporter(to_stderr)
        from deploytools.report.live import LiveReporter

        return LiveReporter(lambda: self._estimate)

    def __enter__(self) -> Reporting:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._kept.records or (error is not None and not isinstance(error, DeployError)):
            return
        visitors = self.visitors()
        run = described(self._kept.records, visitors)
        if isinstance(error, DeployError):
            error.run = run
        if not self._json:
            told = summary(self._kept.records, visitors, error.next if error else None)
            print(addressed(told, self._environment))
        elif error is None:
            print(json_.dumps({"ok": True, "exit_code": 0, "run": run}))

    def visitors(self) -> Seen | None:
        return seen(self._kept.samples)

    def begin(self, plan: Plan, records: Sequence[Record]) -> None:
        self._each(lambda reporter: reporter.begin(plan, records))

    def end(self) -> None:
        self._each(lambda reporter: reporter.end())

    def step(self, plan: Plan, step: Step, hosts: Sequence[str], *, undo: bool) -> None:
        self._each(lambda reporter: reporter.step(plan, step, hosts, undo=undo))

    def progress(self, step: Step, host: str, done: int, total: int) -> None:
        self._each(lambda reporter: reporter.progress(step, host, done, total))

    def heard(self, step: Step, host: str) -> None:
        self._each(lambda reporter: reporter.heard(step, host))

    def answers(self, step: Step, answers: Mapping[str, Answer], seconds: Mapping[str, float]) -> None:
        self._each(lambda reporter: reporter.answers(step, answers, seconds))

    def line(self, host: str, text: str) -> None:
        self._each(lambda reporter: reporter.line(host, text))

    def note(self, text: str) -> None:
        told = addressed(text, self._environment)
        self._each(lambda reporter: reporter.note(told))

    def sample(self, sample: Sample) -> None:
        self._each(lambda reporter: reporter.sample(sample))

    def unmeasured(self, why: str) -> None:
        self._each(lambda reporter: reporter.unmeasured(why))

    def _each(self, tell: Callable[[Reporter], None]) -> None:
        """Tell whoever listens. One whose stream fails isn't told any more: a run must not end by that."""
        for reporter in self._all:
            try:
                tell(reporter)
            except OSError:
                self._all = tuple(other for other in self._all if other is not reporter)
                streams.give_up(sys.stderr)


def on_terminal(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether to draw: on a terminal that can, for somebody who doesn't mind."""
    plain = environ.get("NO_COLOR") or environ.get("CI") or environ.get("TERM", "dumb") == "dumb"
    return sys.stderr.isatty() and not plain
