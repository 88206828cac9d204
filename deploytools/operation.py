"""One operation from the laptop: connect, look, plan, carry out, conclude.

What the tasks have in common. A task decides what is wanted; this module brings it to an end and
turns the end into a result or into an error with an exit code.
"""

from __future__ import annotations

import getpass
import json
import os
import secrets
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NoReturn

from deploytools import commands, journal, saga, setup
from deploytools.commands import Command
from deploytools.engine import Engine, JournalLost, Reporter, Stop, answers_of, run
from deploytools.errors import (
    DeployError,
    InMaintenance,
    Interrupted,
    LockHeld,
    OperationFailed,
    Unfinished,
    Unreachable,
    UsageError,
)
from deploytools.fleet import Fleet, Ok
from deploytools.journal import Journal, Record
from deploytools.plan import Plan, Target
from deploytools.remote import Remote, connector
from deploytools.report import described
from deploytools.saga import Progress, State, Verdict
from deploytools.settings import Host, Settings
from deploytools.ssh import options

Status = Mapping[str, Any]

# How long hooks.notify may take, in seconds.
NOTIFY = 30.0


@dataclass(frozen=True)
class Finished:
    """A run that came to its end: what was planned, and everything that was journaled."""

    plan: Plan
    records: Sequence[Record]


def operator() -> tuple[str, str]:
    """Who is typing, and on which machine."""
    return getpass.getuser(), socket.gethostname()


def new_run_id() -> str:
    """A name for a run that sorts by time and doesn't repeat."""
    return f"{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


@contextmanager
def connected(
    settings: Settings, exclude: Sequence[str] = (), *, as_user: str | None = None
) -> Iterator[Fleet]:
    """Connect to every host, and to the lock host; close them all at the end.

    With `as_user` the connections are made as somebody else than the deploy user.

    Raises Unreachable with a line per host that can't be reached. Nothing has been done then.
    """
    unknown = [name for name in exclude if name not in map(str, settings.hosts)]
    if unknown:
        raise UsageError(f"--exclude: no such host: {', '.join(unknown)}", where="deploy.hosts")
    hosts = [host for host in settings.hosts if str(host) not in exclude]
    if not hosts:
        raise UsageError("every host is excluded, so there is nothing to do")
    if str(settings.lock_host) not in map(str, hosts):
        hosts.append(settings.lock_host)
    if as_user is not None:
        hosts = [_as_user(host, as_user) for host in hosts]
    make = connector(settings.ssh_config, settings.fleet.connect_timeout)
    with Fleet(hosts, make, settings.fleet.parallel) as fleet:
        lost = {
            host: outcome.error for host, outcome in fleet.connect().items() if not isinstance(outcome, Ok)
        }
        if lost:
            raise _unreachable(lost)
        yield fleet


def ask(
    fleet: Fleet, settings: Settings, name: str, *arguments: str, hosts: Sequence[str] | None = None
) -> dict[str, Any]:
    """Run a read-only host program everywhere and return its result by host.

    Raises OperationFailed where one can't answer: nothing was changed by asking.
    """
    command = Command(commands.program(settings, name, *arguments))
    results: dict[str, Any] = {}
    problems: list[str] = []
    steps: list[str] = []
    for host, outcome in fleet.map(lambda remote: run(remote, command), hosts=hosts).items():
        if not isinstance(outcome, Ok):
            problems.append(f"{host}: {outcome.error}")
        elif outcome.value.error and outcome.value.exit_code not in (0, 7):
            problems.append(f"{host}: {outcome.value.error.get('what')}")
            steps.append(outcome.value.error.get("next", ""))
        else:
            results[host] = dict(outcome.value.mark.value)
    if problems:
        raise OperationFailed(
            f"{name} has no answer from {len(problems)} of {len(problems) + len(results)} hosts",
            state="nothing was changed",
            next=next((step for step in steps if step), "fab doctor"),
            details=problems,
        )
    return results


def examine(fleet: Fleet, settings: Settings) -> dict[str, list[dict[str, Any]]]:
    """Run doctor everywhere and return its checks by host; a finding is no error here."""
    command = Command(commands.program(settings, "doctor"))
    checks: dict[str, list[dict[str, Any]]] = {}
    for host, outcome in fleet.map(lambda remote: remote.run(command)).items():
        if isinstance(outcome, Ok):
            answer = commands.read(
                command.argv, outcome.value.exit_code, outcome.value.stdout, outcome.value.stderr
            )
            found = answer.mark.value.get("checks") or [_finding(answer.error)]
        else:
            found = [_finding({"what": str(outcome.error)})]
        checks[host] = list(found)
    return checks


def past_runs(settings: Settings, fleet: Fleet) -> list[list[Record]]:
    """Return the records of every run in the lock host's journal, the newest first."""
    host = str(settings.lock_host)
    listed = ask(fleet, settings, "journal", "list", hosts=(host,))[host]["runs"]
    return [
        ask(fleet, settings, "journal", "read", run["run_id"], hosts=(host,))[host]["records"]
        for run in listed
    ]


def disagreements(statuses: Mapping[str, Status]) -> list[str]:
    """Given what every host says of itself, return a line for each thing that they don't agree on."""
    lines = []
    for key, word in (("maintenance", "maintenance"), ("release", "release"), ("toolkit", "toolkit version")):
        values = {host: _plain(status.get(key)) for host, status in statuses.items()}
        if len(set(values.values())) > 1:
            lines.append(f"{word}: " + ", ".join(f"{host} {value}" for host, value in values.items()))
    return lines


def set_up(settings: Settings, fleet: Fleet, *, plan_only: bool) -> dict[str, list[dict[str, str]]]:
    """Put the host side in place everywhere, or only say what would change; returns the changes by host.

    Raises OperationFailed where a host refuses; such a host is as it was.
    """

    users = {
        str(host): options.resolve(host.host, host.user, host.port, config=settings.ssh_config).user
        for host in settings.hosts
    }

    def install(remote: Remote) -> commands.Answer:
        return run(remote, setup.install_command(settings, users[remote.name], plan_only=plan_only))

    changes: dict[str, list[dict[str, str]]] = {}
    problems = []
    for host, outcome in fleet.map(install, hosts=list(users)).items():
        if not isinstance(outcome, Ok):
            problems.append(f"{host}: {outcome.error}")
        elif outcome.value.mark.state is not State.OK:
            problems.append(f"{host}: {outcome.value.error.get('what')}")
        else:
            changes[host] = list(outcome.value.mark.value["changes"])
    if problems:
        raise OperationFailed(
            f"set-up failed on {len(problems)} of {len(problems) + len(changes)} hosts",
            state="a host named here is as it was before",
            next="mend the cause, then fab setup",
            details=problems,
        )
    return changes


def base_plan(
    operation: str,
    settings: Settings,
    statuses: Mapping[str, Status],
    *,
    exclude: Sequence[str] = (),
    **about: Any,
) -> Plan:
    """Given what the hosts serve now, return a plan without steps: who, where, on what."""
    by, laptop = operator()
    names = [str(host) for host in settings.hosts if str(host) not in exclude]
    return Plan(
        operation=operation,
        run_id=new_run_id(),
        application=settings.application,
        targets=tuple(Target(name, statuses[name]["release"]) for name in names),
        lock_host=str(settings.lock_host),
        steps=(),
        by=by,
        laptop=laptop,
        **about,
    )


def carry_out(
    plan: Plan, settings: Settings, fleet: Fleet, reporter: Reporter, archive: Path | None = None
) -> Finished:
    """Carry out a new plan. Raises the DeployError that its end deserves."""
    log = Journal(_mirror(plan.run_id), time.time)
    log.append(journal.begin(plan))
    return _run(plan, settings, fleet, reporter, log, archive=archive)


def open_run(settings: Settings, fleet: Fleet) -> list[Record]:
    """Return the records of the run that holds the lock. Raises UsageError where none does."""
    host = str(settings.lock_host)
    lock = ask(fleet, settings, "lock", "show", hosts=(host,))[host].get("lock")
    if not lock:
        raise UsageError("no run is open: there is nothing to resume or abort", next="fab status")
    records: list[Record] = ask(fleet, settings, "journal", "read", lock["run_id"], hosts=(host,))[host][
        "records"
    ]
    return records


def resume(
    records: list[Record], settings: Settings, fleet: Fleet, reporter: Reporter, *, abort: bool = False
) -> Finished:
    """Go on with an interrupted run, or back out of it. Raises the DeployError that its end deserves."""
    plan = journal.plan_of(records)
    progress = journal.fold(records)
    if abort and not progress.reverting and not saga.may_turn_back(plan, progress):
        raise InMaintenance(
            f"run {plan.run_id} can't be aborted any more: its migration may have changed the schema",
            state=_standing(plan, progress),
            next="fab deploy --resume",
        )
    log = Journal(_mirror(plan.run_id), time.time, records=list(records), stored=len(records))
    by, laptop = operator()
    log.append(journal.resumed(by, laptop))
    if abort and not progress.reverting:
        log.append(journal.turn_back(f"aborted by {by}"))
    return _run(plan, settings, fleet, reporter, log, aborting=abort)


def _run(
    plan: Plan,
    settings: Settings,
    fleet: Fleet,
    reporter: Reporter,
    log: Journal,
    *,
    archive: Path | None = None,
    aborting: bool = False,
) -> Finished:
    with _interruptible(reporter) as stop:
        fleet.cancel = stop.cancel
        engine = Engine(
            plan=plan,
            settings=settings,
            fleet=fleet,
            journal=log,
            reporter=reporter,
            stop=stop,
            clock=time.monotonic,
            wait=stop.cancel.wait,
            archive=archive,
        )
        if log.stored:
            engine.attach()
        try:
            progress = engine.run()
        except JournalLost as error:
            progress = journal.fold(log.records)
            error.state = _standing(plan, progress)
            error.next = "fab deploy --resume"
            raise (
                error
                if not saga.in_maintenance(plan, progress)
                else InMaintenance(error.what, where=error.where, state=error.state, next=error.next)
            ) from error
    if progress.verdict is not None:
        _notify(settings, log.records, reporter)
    if not (aborting and progress.verdict is Verdict.REVERTED):
        _conclude(plan, progress, log.records)
    return Finished(plan, log.records)


def _notify(settings: Settings, records: Sequence[Record], reporter: Reporter) -> None:
    """Tell hooks.notify how the run ended. What becomes of that changes nothing about the run."""
    if settings.hooks.notify is None:
        return
    try:
        told = subprocess.run(
            ["sh", "-c", settings.hooks.notify],
            input=json.dumps(described(records)),
            capture_output=True,
            text=True,
            timeout=NOTIFY,
            check=False,
        )
    except subprocess.TimeoutExpired:
        reporter.note(f"hooks.notify took longer than {NOTIFY:.0f} s and was ended")
        return
    if told.returncode != 0:
        reporter.note(f"hooks.notify ended with exit code {told.returncode}: {told.stderr.strip()[-500:]}")


@contextmanager
def _interruptible(reporter: Reporter) -> Iterator[Stop]:
    """Ctrl-C asks the engine to stop after the barrier in hand; a second one stops waiting."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def pressed(signum: int, frame: object) -> None:
        stop.press()
        reporter.note(
            "stopping as soon as the step in hand is done; Ctrl-C again stops waiting for it"
            if not stop.cancel.is_set()
            else "not waiting any longer; what runs on a host goes on there"
        )

    before = signal.signal(signal.SIGINT, pressed)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def _conclude(plan: Plan, progress: Progress, records: Sequence[Record]) -> None:
    """Raise what the end of a run deserves; return where everything is done."""
    answers = answers_of(records)
    bad = {
        key: record
        for key, record in answers.items()
        if record["state"] != State.OK.value or record["exit_code"] == 7
    }
    details = [
        f"{host}: {'undoing ' if undo else ''}{step}: {record['error'].get('what', record['state'])}"
        for (step, host, undo), record in bad.items()
    ]
    match progress.verdict:
        case Verdict.DONE if not bad:
            return
        case Verdict.DONE:
            raise Unfinished(
                f"{plan.operation} is done, but something is left over",
                state="the new version serves everywhere",
                next=_next(bad, "fab status"),
                details=details,
            )
        case Verdict.REVERTED:
            _reverted(plan, bad, details or [progress.because or ""])
        case Verdict.HELD:
            raise InMaintenance(
                f"{plan.operation} can't go on by itself, and holds",
                state=_standing(plan, progress),
                next=_next(bad, "fab deploy --resume" if plan.operation == "deploy" else "fab status"),
                details=details,
            )
        case None:
            raise Interrupted(
                f"{plan.operation} was interrupted; it can be resumed",
                state=_standing(plan, progress),
                next="fab deploy --resume, or fab deploy --abort",
                details=details,
            )


def _reverted(plan: Plan, bad: Mapping[Any, Record], details: Sequence[str]) -> NoReturn:
    codes = {record["exit_code"] for record in bad.values()}
    if any(step == "lock" and record["exit_code"] == 5 for (step, _, _), record in bad.items()):
        record = bad["lock", plan.lock_host, False]
        raise LockHeld(
            record["error"]["what"],
            where=plan.lock_host,
            state="nothing was changed",
            next=record["error"].get("next"),
        )
    if codes == {6}:
        raise Unreachable(
            f"{plan.operation} stopped: a host could not be reached",
            state="what had been done was undone; the site is up on what it ran before",
            next="mend the host, or go on without it: --exclude HOST",
            details=details,
        )
    raise OperationFailed(
        f"{plan.operation} failed and was undone",
        state="the site is up on what it ran before",
        next=_next(bad, "mend the cause, then run it again"),
        details=details,
    )


def _standing(plan: Plan, progress: Progress) -> str:
    """Where the hosts stand, in words."""
    down = saga.in_maintenance(plan, progress)
    if not down:
        return f"no host is in maintenance by this run; the lock is held by run {plan.run_id}"
    return f"in maintenance: {', '.join(down)}; the lock is held by run {plan.run_id}"


def _next(bad: Mapping[Any, Record], default: str) -> str:
    return next((record["error"]["next"] for record in bad.values() if record["error"].get("next")), default)


def _unreachable(lost: Mapping[str, Exception]) -> DeployError:
    errors = list(lost.values())
    steps = [error.next for error in errors if isinstance(error, DeployError) and error.next]
    return Unreachable(
        f"{len(lost)} host{'s' if len(lost) > 1 else ''} could not be reached",
        state="nothing was changed",
        next=steps[0] if steps else "mend the connection, or go on without it: --exclude HOST",
        details=[f"{host}: {error}" for host, error in lost.items()],
    )


def _as_user(host: Host, user: str) -> Host:
    try:
        return replace(host, user=user)
    except ValueError:
        raise UsageError(f"{user!r} is no account's name", where="--as-user") from None


def _finding(error: Mapping[str, str]) -> dict[str, Any]:
    return {
        "name": "doctor",
        "ok": False,
        "level": "error",
        "message": error.get("what", "no answer"),
        "remedy": error.get("next") or "fab setup",
    }


def _plain(value: Any) -> str:
    """A status value as one word: what differs in a detail (since when, say) is no disagreement."""
    return str(value.get("state") if isinstance(value, Mapping) else value)


def _mirror(run_id: str) -> Path:
    """The laptop's copy of a run's journal."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "deploytools" / "journal" / f"{run_id}.jsonl"
