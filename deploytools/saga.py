"""The failure policy: decide(plan, progress) -> what to do next. Pure.

The rules, in order:

1. A failure before a pivot is compensated: everything attempted is undone in reverse order.
2. A pivot is passed as soon as it is intended, unless its outcome *proves* that nothing changed. What
   expands bars the way back in the same way, but only until it is done.
3. At or after a passed pivot a failure holds: nothing is undone, the operator decides.
4. An intent without an outcome is repeated: host programs are idempotent under a run id, so
   repeating is asking.
5. Undoing stops at the first compensation that fails and matters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from deploytools.plan import Kind, Plan, Scope, Step


class State(str, Enum):
    """How far a step has come on a host."""

    INTENDED = "intended"
    OK = "ok"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Mark:
    """A step's state on one host, and what the host program answered."""

    state: State
    value: Mapping[str, Any] = field(default_factory=dict)

    @property
    def bad(self) -> bool:
        """True where it failed or nobody knows."""
        return self.state in (State.FAILED, State.UNKNOWN)


Marks = Mapping[tuple[str, str], Mark]


@dataclass(frozen=True)
class Progress:
    """What is known of a run: the fold of its journal.

    Args:
        marks: by (step name, host), how far the step came.
        undone: the same for compensations.
        reverting: True once undoing has begun; it never turns forward again.
        because: why undoing began.
        verdict: how the run ended; None while it is open.
    """

    marks: Marks = field(default_factory=dict)
    undone: Marks = field(default_factory=dict)
    reverting: bool = False
    because: str | None = None
    verdict: Verdict | None = None

    def mark(self, step: Step, host: str, *, undo: bool = False) -> Mark | None:
        return (self.undone if undo else self.marks).get((step.name, host))

    def value(self, name: str, host: str) -> Mapping[str, Any]:
        """What the host answered to the step `name`; empty where it hasn't."""
        mark = self.marks.get((name, host))
        return mark.value if mark else {}

    def done(self, step: Step, host: str) -> bool:
        """Whether the step is known to be done on the host."""
        mark = self.mark(step, host)
        return mark is not None and mark.state is State.OK

    def with_mark(self, step: str, host: str, mark: Mark, *, undo: bool) -> Progress:
        if undo:
            return replace(self, undone={**self.undone, (step, host): mark})
        return replace(self, marks={**self.marks, (step, host): mark})

    def forget_failures(self) -> Progress:
        """What a resumed run starts from: whatever isn't known to be done is to be asked again.

        The intents stay, so that a pivot which may have been passed is not taken for untouched. On the way
        back no step is repeated, so what a host has proved not to have changed stays proved. That nothing was
        in flight is no longer true where somebody has ended maintenance meanwhile.
        """
        marks = self.marks if self.reverting else _asked(self.marks)
        marks = {key: _without(mark, "in_flight") for key, mark in marks.items()}
        return replace(self, marks=marks, undone=_asked(self.undone), verdict=None)


class Verdict(str, Enum):
    """How a run ends."""

    DONE = "done"
    REVERTED = "reverted"
    HELD = "held"


@dataclass(frozen=True)
class Act:
    """Run `step` (or its compensation) on `hosts`."""

    step: Step
    hosts: tuple[str, ...]
    undo: bool = False


@dataclass(frozen=True)
class TurnBack:
    """Begin to undo."""

    because: str


@dataclass(frozen=True)
class End:
    """Nothing is left to do, or nothing may be done."""

    verdict: Verdict


Action = Act | TurnBack | End


def decide(plan: Plan, progress: Progress) -> Action:
    """Given a plan and what came of it so far, return the next action."""
    if progress.reverting:
        return _backward(plan, progress)
    for step in plan.steps:
        hosts = plan.hosts_of(step)
        marks = {host: progress.mark(step, host) for host in hosts}
        bad = [host for host, mark in marks.items() if mark and mark.bad]
        if bad and step.required:
            if may_turn_back(plan, progress):
                return TurnBack(f"{step.title}: failed on {', '.join(bad)}")
            return End(Verdict.HELD)
        left = tuple(host for host, mark in marks.items() if not mark or mark.state is State.INTENDED)
        if left:
            return Act(step, left[: _at_once(step, first=len(left) == len(hosts))])
    return End(Verdict.DONE)


def _at_once(step: Step, *, first: bool) -> int | None:
    """How many hosts are worked on at a time; None for all."""
    if step.scope in (Scope.ROLLING, Scope.ONE_FIRST) and first:
        return 1
    return step.batch if step.scope is Scope.ROLLING else None


def may_turn_back(plan: Plan, progress: Progress) -> bool:
    """True until a pivot may have changed something."""
    return not any(
        _bars_the_way_back(step, progress.mark(step, host))
        for step in plan.steps
        for host in plan.hosts_of(step)
    )


def may_abort(plan: Plan, progress: Progress) -> bool:
    """True where everything can be undone that was done, if the operator asks for it.

    That is more than `may_turn_back`: a pivot that has a way back. It was passed on purpose, so nothing but
    the operator's word takes it back.
    """
    return not barring(plan, progress)


def barring(plan: Plan, progress: Progress) -> tuple[str, ...]:
    """The names of the steps that no abort can take back."""
    return tuple(
        step.name
        for step in plan.steps
        if any(
            _bars_the_way_back(step, mark) and not _has_a_way_back(step, mark)
            for mark in (progress.mark(step, host) for host in plan.hosts_of(step))
        )
    )


def in_maintenance(plan: Plan, progress: Progress) -> tuple[str, ...]:
    """The hosts that this run put into maintenance, or may have, and hasn't proved to be back."""

    def back(host: str) -> bool:
        marks = (progress.marks.get(("maintenance-off", host)), progress.undone.get(("maintenance-on", host)))
        return any(mark is not None and mark.state is State.OK for mark in marks)

    return tuple(
        host
        for host in plan.hosts
        if _may_have_changed(progress.marks.get(("maintenance-on", host))) and not back(host)
    )


def down_before(plan: Plan, progress: Progress) -> tuple[str, ...]:
    """The hosts that were in maintenance before this run.

    That was looked at before the lock was taken, so a host's own word counts for more: that this run
    has put it there. (That it has not is no such word: it may be the answer to the second call.)
    """
    return tuple(
        host for host in plan.down_before if progress.value("maintenance-on", host).get("changed") is not True
    )


def _may_have_changed(mark: Mark | None) -> bool:
    return mark is not None and mark.value.get("unchanged") is not True


def _bars_the_way_back(step: Step, mark: Mark | None) -> bool:
    if step.kind is Kind.EXPAND and mark is not None and mark.state is State.OK:
        return False
    return step.kind in (Kind.PIVOT, Kind.EXPAND) and _may_have_changed(mark)


def _has_a_way_back(step: Step, mark: Mark | None) -> bool:
    """What runs once, a migration, is taken back only if it is known to be done. A host goes back to its
    release whatever became of its swap.
    """
    known = mark is not None and mark.state is State.OK
    return step.undo is not None and (known or step.scope is not Scope.ONCE)


def _backward(plan: Plan, progress: Progress) -> Action:
    # The schema first: the code that is swapped back to has to find the one that it knows.
    backwards = plan.steps[::-1]
    for step in sorted(backwards, key=lambda step: step.kind is not Kind.PIVOT):
        if step.undo is None:
            continue
        attempted = [host for host in plan.hosts_of(step) if _may_have_changed(progress.mark(step, host))]
        undone = {host: progress.mark(step, host, undo=True) for host in attempted}
        if step.undo_required and any(mark and mark.bad for mark in undone.values()):
            return End(Verdict.HELD)
        left = tuple(host for host, mark in undone.items() if not mark or mark.state is State.INTENDED)
        if left:
            return Act(step, left, undo=True)
    return End(Verdict.REVERTED)


def _without(mark: Mark, key: str) -> Mark:
    return Mark(mark.state, {name: said for name, said in mark.value.items() if name != key})


def _asked(marks: Marks) -> Marks:
    return {key: Mark(State.INTENDED) if mark.bad else mark for key, mark in marks.items()}
