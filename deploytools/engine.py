"""The loop: decide -> journal the intent -> act on the hosts -> journal the outcome.

The engine knows no step by name. What comes next is `saga`'s to say, how it is spelt is `commands`'.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from deploytools import commands, journal
from deploytools.commands import Answer, Command, Ship
from deploytools.errors import DeployError, LockHeld, OperationFailed
from deploytools.fleet import Cancel, Failed, Fleet, Lost, Ok, Outcome, Unreached
from deploytools.journal import Journal, Record
from deploytools.moments import has_passed
from deploytools.plan import Plan, Step
from deploytools.remote import Remote
from deploytools.reporter import Reporter
from deploytools.saga import (
    Act,
    End,
    Mark,
    Progress,
    State,
    TurnBack,
    Verdict,
    decide,
    in_maintenance,
    may_turn_back,
)
from deploytools.settings import Settings
from deploytools.ssh.channel import Talk

if TYPE_CHECKING:  # most operations ship nothing, and its modules are a twentieth of what `fab` imports
    from deploytools.releasing.packing import Parcel

# How long an operation keeps asking a host that it lost in the middle of a step, in seconds.
RECONNECT = 60.0
# Exit code of a host program that found another one at work, perhaps an earlier call of ours.
BUSY = 5
# Between two such attempts, in seconds.
RETRY = 0.5


@dataclass
class Stop:
    """What Ctrl-C sets: the first asks to stop after the barrier in hand, the second stops waiting."""

    asked: bool = False
    cancel: Cancel = field(default_factory=Cancel)

    def press(self) -> None:
        """Count one Ctrl-C."""
        if self.asked:
            self.cancel.set()
        self.asked = True


@dataclass
class Engine:
    """Carries out one plan.

    Args:
        parcel: the packed release; None where the plan ships nothing or a run is resumed.
        stop: set by the operator's Ctrl-C.
        clock: monotonic seconds.
        wait: waits the given seconds, or less when something happens.
        pulse: has `beat` called at once, by another thread.
    """

    plan: Plan
    settings: Settings
    fleet: Fleet
    journal: Journal
    reporter: Reporter
    stop: Stop
    clock: Callable[[], float]
    wait: Callable[[float], object]
    parcel: Parcel | None = None
    pulse: Callable[[], None] = lambda: None
    _ready: bool = field(default=False, init=False)
    _phase: str = field(default="", init=False)
    _overrun: bool = field(default=False, init=False)
    _down: bool = field(default=False, init=False)
    _locked: bool = field(default=False, init=False)
    _storing: threading.Lock = field(default_factory=threading.Lock, init=False)

    def attach(self) -> None:
        """Write to the lock host from the start: a resumed run holds its lock already."""
        self.journal.store = self._store

    def run(self) -> Progress:
        """Carry the plan on from wherever its journal stands until it ends or is interrupted.

        The progress that is returned has no verdict where the operator interrupted it.
        Raises JournalLost where an intent can't be made durable: then nothing more is done.
        """
        progress = journal.fold(self.journal.records)
        self._locked = self._has_the_lock(progress)
        if not self.plan.has("lock"):
            self.attach()
        while True:
            action = decide(self.plan, progress)
            held_by_ctrl_c = self.stop.cancel.is_set() and action == End(Verdict.HELD)
            if isinstance(action, End) and not held_by_ctrl_c:
                progress = self._record(progress, journal.end(action.verdict))
                self._explain()
                return progress
            if isinstance(action, End) or self.stop.asked:
                self._append(journal.interrupted())
                self._explain()
                return progress
            if isinstance(action, TurnBack):
                self.reporter.note(f"{action.because}; undoing")
                progress = self._record(progress, journal.turn_back(action.because))
            else:
                progress = self._carry_out(progress, action)

    def _carry_out(self, progress: Progress, act: Act) -> Progress:
        step, undo = act.step, act.undo
        attempted = {host for host in act.hosts if progress.mark(step, host, undo=undo) is not None}
        if commands.in_window(self.plan, step) and not undo and not self._ready:
            self._get_ready(progress)
        self._phase = f"undoing {step.name}" if undo else step.name
        intent = journal.intent(step.name, act.hosts, undo=undo)
        takes_lock = self._takes_lock(act)
        progress = self._record(progress, intent, flush=undo or not (step.looks or takes_lock))
        known = {} if undo else self._known(progress, act)
        if step.looks and len(known) < len(act.hosts):
            self.pulse()
        self.reporter.step(self.plan, step, act.hosts, undo=undo)
        begun, sent = self.clock(), len(self.journal.unstored())
        asked = replace(act, hosts=tuple(host for host in act.hosts if host not in known))
        given, arrived = self._ask(progress, asked, attempted)
        answers = {host: known[host] if host in known else given[host] for host in act.hosts}
        arrived |= dict.fromkeys(known, begun)
        seconds = {host: arrived.get(host, self.clock()) - begun for host in act.hosts}
        self.reporter.answers(step, answers, seconds)
        records = [
            journal.outcome(step.name, host, answers[host], undo=undo, seconds=seconds[host])
            for host in act.hosts
        ]
        progress = self._record(progress, *records)
        if takes_lock:
            lock = answers[self.plan.lock_host].mark
            if lock.state is State.OK and not lock.value.get("without"):
                self.journal.stored += sent
                self.attach()
        return progress

    def beat(self) -> None:
        """Give the lock host a sign of life, and what it doesn't have of the journal; from another thread.

        What comes of that is for the next intent to find out. Tells, too, when the window lasts too long.
        """
        if self._down and not self._overrun and has_passed(self.plan.until, self.journal.clock()):
            self._overrun = True
            self.reporter.note(
                f"the window was to end at {self.plan.until}, and goes on;"
                " visitors are told to come back in two minutes"
            )
        with contextlib.suppress(StoreLost, DeployError), self._storing:
            if self.journal.store is None:
                return
            if self.journal.unstored():
                self.journal.flush()
            else:
                self.journal.store([], self.journal.stored)

    def _get_ready(self, progress: Progress) -> None:
        """Start the programs of the whole window, before visitors wait for it.

        What can't be started here is started in its turn, and what stands in its way shows then.
        """
        self._ready = True
        hosts = tuple(dict.fromkeys((*self.plan.hosts, self.plan.lock_host)))
        self.fleet.map(
            lambda remote: remote.get_ready(commands.ahead(self.plan, remote.name, self.settings, progress)),
            hosts=hosts,
        )

    def _ask(
        self, progress: Progress, act: Act, attempted: set[str]
    ) -> tuple[dict[str, Answer], dict[str, float]]:
        """Run the step on its hosts; ask again where the link was lost, until RECONNECT has passed since.

        Returns the answers, and when each arrived by `clock`; in the order of the hosts.

        A host that isn't reached at all has failed while the run can turn back; later it is asked again, too.
        Asking again is safe because host programs are idempotent under the run id; a hook is not asked
        again. On the `attempted` hosts an earlier call for this step may have happened, or still be at it.
        """
        answers: dict[str, Answer] = {}
        todo = {host: self._todo(progress, act, host) for host in act.hosts}
        left: tuple[str, ...] = act.hosts
        deadline: float | None = None  # from the first loss on: a step may take long before
        asked = set(attempted)
        forward_only = not act.undo and not may_turn_back(self.plan, progress)
        arrived: dict[str, float] = {}

        def work(remote: Remote) -> Answer:
            if act.undo and act.step.name == "stage":
                self._stand_down(progress, remote)
            try:
                return self._run(act.step, remote, todo[remote.name])
            finally:
                arrived[remote.name] = self.clock()
                self.reporter.heard(act.step, remote.name)

        while left:
            outcomes = self.fleet.map(work, hosts=left)
            again = []
            for host, outcome in outcomes.items():
                away = forward_only and isinstance(outcome, Unreached)
                answer = None if away else _answer(outcome, attempted=host in asked)
                sent_a_hook = isinstance(outcome, Lost) and not _repeatable(todo[host])
                if answer is not None:
                    answers[host] = answer
                elif sent_a_hook or self.stop.cancel.is_set() or (deadline and self.clock() >= deadline):
                    answers[host] = _unknown(outcome)
                else:
                    again.append(host)
            asked.update(again)
            left = tuple(again)
            if left:
                at_most = RECONNECT + commands.goes_on_for(self.plan, act.step, self.settings)
                deadline = deadline or self.clock() + at_most
                self.reporter.note(f"no certain answer from {', '.join(left)}; asking again")
                self.wait(RETRY)
        return {host: answers[host] for host in act.hosts}, arrived

    def _known(self, progress: Progress, act: Act) -> dict[str, Answer]:
        """What needn't be asked."""
        found = ((host, commands.known(act.step, progress, host)) for host in act.hosts)
        return {host: answer for host, answer in found if answer is not None}

    def _stand_down(self, progress: Progress, remote: Remote) -> None:
        """Let a swap end that waits for a turn which won't come: what it has ready runs on that release."""
        for step in self.plan.steps:
            if step.name == "swap" and remote.name in self.plan.hosts_of(step):
                for item in commands.do(self.plan, step, progress, self.settings, remote.name):
                    if isinstance(item, Command):
                        remote.dismiss(item)

    def _takes_lock(self, act: Act) -> bool:
        """Whether the lock, and with it the run's journal, isn't there yet; a resumed run has both."""
        return act.step.name == "lock" and not act.undo and self.journal.store is None

    def _todo(self, progress: Progress, act: Act, host: str) -> list[Command | Ship]:
        if act.undo:
            return commands.undo(self.plan, act.step, progress, host, self.settings)
        todo = commands.do(self.plan, act.step, progress, self.settings, host)
        if self._takes_lock(act):  # the run's first records are on its disk before the lock is
            first = "".join(f"{line}\n" for line in self.journal.unstored()).encode()
            todo = [replace(item, stdin=first) for item in todo if isinstance(item, Command)]
        return todo

    def _run(self, step: Step, remote: Remote, todo: Sequence[Command | Ship]) -> Answer:
        """Run a step's commands on one host, up to the first that fails; the last one's answer counts."""
        answer = Answer(Mark(State.OK, {"message": "nothing to do"}), {}, 0)

        def on_line(text: str) -> None:
            self.reporter.line(remote.name, text)

        for item in todo:
            if isinstance(item, Ship):
                answer = run(remote, item.command, on_line, self._shipping(step, remote))
            else:
                answer = run(remote, item, on_line)
            if answer.mark.state is not State.OK:
                break
        return answer

    def _shipping(self, step: Step, remote: Remote) -> Callable[[Talk], None]:
        """The laptop's half of the conversation in which a release goes to a host."""
        from deploytools.releasing import transfer

        def told(sent: int, size: int) -> None:
            self.reporter.progress(step, remote.name, sent, size)

        return lambda talk: transfer.send(talk, self.parcel, told)

    def _record(self, progress: Progress, *records: Record, flush: bool = False) -> Progress:
        self._append(*records)
        if flush:
            self._flush()
        progress = functools.reduce(journal.advance, records, progress)
        self._down = self.plan.window and bool(in_maintenance(self.plan, progress))
        self._locked = self._has_the_lock(progress)
        return progress

    def _has_the_lock(self, progress: Progress) -> bool:
        """Whether the run must have its lock: from the moment it got it until it begins to let it go."""
        host, marks = self.plan.lock_host, progress.marks
        got = marks.get(("lock", host))
        lets_go = ("unlock", host) in marks or ("lock", host) in progress.undone
        return got is not None and got.state is State.OK and not got.value.get("without") and not lets_go

    def _append(self, *records: Record) -> None:
        """Add records to the journal. The laptop's own disk is no reason to leave a run where it is."""
        try:
            self.journal.append(*records)
        except OSError as error:
            self.journal.without_mirror(*records)
            self.reporter.note(f"{error}; going on without a copy of the journal on this computer")

    def _explain(self) -> None:
        """Give the lock host a last record. It only explains: nothing is done after it."""
        try:
            self._flush()
        except JournalLost as error:
            self.reporter.note(f"{error}; fab history won't tell how this run ended")

    def _flush(self) -> None:
        try:
            self._give_to_the_lock_host()
        except JournalLost as error:
            if not self.plan.repeatable:
                raise
            self.reporter.note(f"{error}; going on, as the same command again is all it takes")
            self.journal.store = None

    def _give_to_the_lock_host(self) -> None:
        deadline = self.clock() + RECONNECT
        while True:
            try:
                with self._storing:
                    return self.journal.flush()
            except StoreLost as error:
                if self.plan.repeatable or self.stop.cancel.is_set() or self.clock() >= deadline:
                    raise self._journal_lost(error) from error
                self.wait(RETRY)

    def _journal_lost(self, why: object) -> JournalLost:
        host = self.plan.lock_host
        return JournalLost(
            f"the journal on {host} can't be written: {why}",
            where=host,
            state="nothing more was begun; how the hosts stand is for `fab status` to say",
            next="fab doctor names the trouble there; then fab deploy --resume",
        )

    def _store(self, lines: Sequence[str], expect: int) -> None:
        host = self.plan.lock_host
        command, line = commands.journal(
            self.plan, self.settings, lines, expect, self._phase, locked=self._locked
        )
        outcome = self.fleet.map(lambda remote: remote.ask(command, line), hosts=(host,))[host]
        if not isinstance(outcome, Ok):
            raise StoreLost(str(outcome.error))
        refused = commands.refusal(outcome.value)
        if refused is not None and refused.superseded:
            raise Superseded(
                f"run {self.plan.run_id} isn't this laptop's any more",
                where=host,
                state="this one does nothing more; how the hosts stand is for fab status to say",
                next="fab status",
                details=[refused.what],
            )
        if refused is not None:
            raise self._journal_lost(refused.what)


def run(
    remote: Remote,
    command: Command,
    on_line: Callable[[str], None] | None = None,
    dialog: Callable[[Talk], None] | None = None,
) -> Answer:
    """Run a host program and read its answer. Raises what Remote.run raises."""
    result = remote.run(command, on_line, dialog)
    return commands.read(command.argv, result.exit_code, result.stdout, result.stderr)


class StoreLost(Exception):
    """One attempt to write the journal on the lock host did not succeed."""


class Superseded(LockHeld):
    """The run is in somebody else's hands, who resumed it, or freed its lock."""


class JournalLost(OperationFailed):
    """What happens next can't be made durable, so nothing more may happen."""


def _answer(outcome: Outcome[Answer], *, attempted: bool) -> Answer | None:
    """What an outcome says of the step; None where the host has to be asked (again).

    Where the step was `attempted` before, a call that changed nothing doesn't say that the step didn't.
    """
    match outcome:
        case Ok(answer):
            return _of_the_step(answer) if attempted and answer.by_code else answer
        case Failed(DeployError() as error) if not attempted:
            return _failed(str(error))
        case Failed():  # ours: it says nothing of what became of what was sent
            return _unknown(outcome)
        case Unreached(error) if not attempted:
            return _failed(f"could not be reached: {error}", exit_code=6)
    return None


def _of_the_step(answer: Answer) -> Answer | None:
    """What a call that changed nothing says of a step that an earlier call may have done."""
    if answer.exit_code == BUSY:
        return None  # perhaps that earlier call
    value = {key: said for key, said in answer.mark.value.items() if key != "unchanged"}
    return replace(answer, mark=Mark(answer.mark.state, value))


def _repeatable(todo: Sequence[Command | Ship]) -> bool:
    return all(item.repeatable for item in todo if isinstance(item, Command))


def _failed(what: str, exit_code: int = 3) -> Answer:
    return Answer(Mark(State.FAILED, {"unchanged": True}), {"what": what}, exit_code)


def _unknown(outcome: Outcome[Answer]) -> Answer:
    if isinstance(outcome, Ok):
        return replace(outcome.value, mark=Mark(State.UNKNOWN))
    what = f"no answer, so nobody knows whether it happened: {_error(outcome)}"
    return Answer(Mark(State.UNKNOWN), {"what": what}, 4)


def _error(outcome: Outcome[Answer]) -> Exception | None:
    match outcome:
        case Lost(error) | Unreached(error) | Failed(error):
            return error
    return None


def answers_of(records: Sequence[Record]) -> Mapping[tuple[str, str, bool], Record]:
    """Given a run's records, return the newest outcome by (step, host, undo)."""
    return {
        (record["step"], record["host"], record["undo"]): record
        for record in records
        if record["kind"] == "outcome"
    }
