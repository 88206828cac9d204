"""One operation from the laptop: connect, plan for what the hosts serve, carry it out to its end.

What the tasks have in common: a task decides what is wanted, this module brings it about. What the hosts
are asked before is in `survey`, what an end means in `conclusion`.
"""

from __future__ import annotations

import getpass
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploytools import commands, journal, notification, probe, saga, survey
from deploytools.conclusion import LastLook, conclude, is_looked_at, seen, standing
from deploytools.engine import Engine, JournalLost, Stop, run
from deploytools.errors import (
    DeployError,
    InMaintenance,
    Interrupted,
    LockHeld,
    OperationFailed,
    Unreachable,
    UsageError,
)
from deploytools.fleet import Fleet, Ok
from deploytools.heartbeat import Heartbeat
from deploytools.journal import Journal, Record
from deploytools.plan import Plan, Target
from deploytools.remote import Remote, connector
from deploytools.report.text import address, addressed
from deploytools.reporter import Reporter
from deploytools.saga import Progress, Verdict
from deploytools.settings import Host, Settings
from deploytools.survey import Status

if TYPE_CHECKING:  # as in engine
    from deploytools.releasing.packing import Parcel
    from deploytools.releasing.source import Shipped

# Among how many past runs windows are looked for, to tell how long this one may take.
LATELY = 50
# Why a run can't be backed out of, by the step that it is beyond.
NO_WAY_BACK = {
    "migrate": "its migration may have changed the schema",
    "swap": "a host that served nothing before has no release to go back to",
    "maintenance-off": "visitors may have been let in",
}


@dataclass(frozen=True)
class Finished:
    """A run that came to its end: what was planned, and everything that was journaled."""

    plan: Plan
    records: Sequence[Record]


def operator() -> tuple[str, str]:
    """Who is typing, and on which machine."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # an account without a name, as in some containers
        name = f"uid {os.getuid()}"
    return name, socket.gethostname()


def new_run_id() -> str:
    """A name for a run that sorts by time and doesn't repeat."""
    return f"{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


@contextmanager
def opened(
    settings: Settings, exclude: Sequence[str] | None = None, *, as_user: str | None = None
) -> Iterator[Fleet]:
    """The hosts, and the lock host, each connected to when it is first asked; all closed at the end.

    With `as_user` the connections are made as somebody else than the deploy user.
    Raises UsageError where `exclude` names a host that isn't there, or leaves none.
    """
    exclude = exclude or ()
    unknown = [name for name in exclude if name not in map(str, settings.hosts)]
    if unknown:
        raise UsageError(
            f"--exclude: no such host: {', '.join(unknown)}",
            where="deploy.hosts",
            next=f"name some of: {', '.join(map(str, settings.hosts))}",
        )
    hosts = [host for host in settings.hosts if str(host) not in exclude]
    if not hosts:
        raise UsageError("every host is excluded, so there is nothing to do", next="leave a host in")
    if str(settings.lock_host) not in map(str, hosts):
        hosts.append(settings.lock_host)
    if as_user is not None:
        hosts = [_as_user(host, as_user) for host in hosts]
    make = connector(settings.ssh_config, settings.fleet.connect_timeout)
    with Fleet(hosts, make, settings.fleet.parallel) as fleet:
        yield fleet


@contextmanager
def connected(
    settings: Settings, exclude: Sequence[str] | None = None, *, as_user: str | None = None
) -> Iterator[Fleet]:
    """The hosts as `opened` has them, all of them connected to.

    Raises Unreachable with a line per host that can't be reached. Nothing has been done then.
    """
    with opened(settings, exclude, as_user=as_user) as fleet:
        connect(fleet, fleet.names, settings if exclude is not None else None)
        yield fleet


def connect(fleet: Fleet, hosts: Sequence[str], settings: Settings | None = None) -> None:
    """Connect to these hosts. Raises what `unreachable` makes of those that can't be reached."""
    outcomes = fleet.map(lambda remote: None, hosts=hosts)
    lost = {host: outcome.error for host, outcome in outcomes.items() if not isinstance(outcome, Ok)}
    if lost:
        raise unreachable(lost, settings)


def base_plan(
    operation: str,
    settings: Settings,
    statuses: Mapping[str, Status] | None = None,
    *,
    exclude: Sequence[str] | None = None,
    **about: Any,
) -> Plan:
    """Given what the hosts serve now, if that is known, return a plan without steps: who, where, on what.

    Raises LockHeld where a run has its lock on another host than ours would.
    """
    _no_other_lock(statuses or {}, settings)
    by, laptop = operator()
    names = [str(host) for host in settings.hosts if str(host) not in (exclude or ())]
    return Plan(
        operation=operation,
        run_id=new_run_id(),
        application=settings.application,
        targets=tuple(_target(name, statuses[name]) if statuses else Target(name) for name in names),
        lock_host=str(settings.lock_host),
        steps=(),
        by=by,
        laptop=laptop,
        **about,
    )


def _no_other_lock(statuses: Mapping[str, Status], settings: Settings) -> None:
    """A colleague's fabric.yaml may name another host first, or another `migrate.host`, where its lock is."""
    here = str(settings.lock_host)
    for host, status in statuses.items():
        if (lock := status.get("lock")) and host != here:
            raise LockHeld(
                f"run {lock['run_id']} by {lock['by']} on {lock['laptop']} has its lock on {host},"
                f" and by this fabric.yaml it would be on {here}",
                where=host,
                state="nothing was changed",
                next=f"have one fabric.yaml; by `migrate.host: {host}` fab deploy --resume finds that run",
            )


def _target(name: str, status: Status) -> Target:
    window = status["maintenance"]
    down = window["state"] == "down"
    return Target(name, status["release"], down, window.get("run_id"), window.get("since") if down else None)


def outdated(statuses: Mapping[str, Status], settings: Settings) -> dict[str, str]:
    """Given what hosts say of themselves, say by host how its set-up differs from what ours would make."""
    from deploytools import setup

    users = {str(status["deploy_user"]) for status in statuses.values() if status.get("deploy_user")}
    return survey.outdated(statuses, {user: setup.digest(settings, user) for user in users})


def expectation(fleet: Fleet, settings: Settings) -> journal.Estimate | None:
    """How long past windows make expect that the site is down; None where there is none."""
    try:
        runs, _ = survey.past_runs(fleet, settings, last=LATELY)
        return journal.estimate(runs.values())
    except (DeployError, ValueError, KeyError, TypeError):  # what can't be read is no reason not to deploy
        return None


def shipped_elsewhere(fleet: Fleet, settings: Settings, plan: Plan) -> Shipped | None:
    """What was sent to the hosts that `plan` leaves out; None where it leaves out none, or nobody knows."""
    from deploytools.releasing import source

    if set(map(str, settings.all_hosts)) <= set(plan.hosts):
        return None
    try:
        runs, _ = survey.past_runs(fleet, settings, last=LATELY)
        found = journal.latest_elsewhere(runs.values(), plan.hosts)
        if found is None:
            return None
        listed = survey.ask_one(fleet, settings, "release", "list")["releases"]
        ref = next(item["ref"] for item in listed if item["id"] == found.release)
        return source.Shipped(str(found.release), str(found.digest), found.by, ref)
    except (DeployError, ValueError, KeyError, TypeError, StopIteration):  # it gets a name of its own then
        return None


def get_ready(plan: Plan, settings: Settings, fleet: Fleet) -> Plan:
    """Connect to every host, start what can wait there for its turn; return the plan for what they serve now.

    That takes no longer than to ask them. A host where nothing can be started is asked by `status`.
    Raises Unreachable with a line per host that can't be reached, and what `survey.ask` raises. Nothing
    has been changed then.
    """

    def begin(remote: Remote) -> Status | None:
        programs = commands.ahead(plan, remote.name, settings)
        remote.start(programs)
        if remote.name not in plan.hosts:
            return {}  # only the lock and the journal are there
        status = commands.greeting(remote.greeting(programs[0]))
        if status is None:
            remote.dismiss(programs[0])
        return status

    found, lost, silent = {}, {}, []
    for host, outcome in fleet.map(begin).items():
        if not isinstance(outcome, Ok):
            lost[host] = outcome.error
        elif outcome.value is None:
            silent.append(host)
        else:
            found[host] = outcome.value
    if lost:
        raise unreachable(lost, settings)
    if silent:
        found.update(survey.ask(fleet, settings, "status", hosts=silent))
    return replace(plan, targets=tuple(_target(host, found[host]) for host in plan.hosts))


def start_ahead(plan: Plan, settings: Settings, fleet: Fleet) -> None:
    """Start what can wait for its turn, on every host; what can't is started in its turn."""
    fleet.map(lambda remote: remote.start(commands.ahead(plan, remote.name, settings)))


def carry_out(
    plan: Plan, settings: Settings, fleet: Fleet, reporter: Reporter, parcel: Parcel | None = None
) -> Finished:
    """Carry out a new plan. Raises the DeployError that its end deserves.

    UsageError where this computer can't keep its copy of the journal, unless it is the switch alone.
    """
    log = Journal(_mirror(plan.run_id), time.time)
    try:
        log.append(journal.begin(plan))
    except OSError as error:
        if not plan.repeatable:
            raise UsageError(
                f"this computer can't keep its copy of the journal: {error}",
                where=str(journals()),
                next="make room there (df -h), or name another directory by XDG_STATE_HOME; then again",
            ) from error
        log.without_mirror(journal.begin(plan))
    return _run(plan, settings, fleet, reporter, log, parcel=parcel)


def resume(
    records: list[Record],
    settings: Settings,
    fleet: Fleet,
    reporter: Reporter,
    *,
    abort: bool = False,
    exclude: Sequence[str] = (),
) -> Finished:
    """Go on with an interrupted run, or back out of it. Raises the DeployError that its end deserves.

    The hosts in `exclude` stay as they are, and are none of this run's any more, which its journal says.
    UsageError where the run needs another that isn't in the fleet.
    """
    plan = _without(journal.plan_of(records), exclude, fleet)
    settings = replace(settings, hooks=journal.hooks(records, settings.hooks))
    connect(fleet, plan.hosts, settings)
    for line in parted_with(records, exclude):
        reporter.note(line)
    by, laptop = operator()
    more = [journal.resumed(by, laptop, exclude)]
    if abort and not journal.fold(records).reverting:
        more += _turning_back(plan, records, settings, fleet)
        more.append(journal.turn_back(f"aborted by {by}"))
    log = Journal(_mirror(plan.run_id), time.time, records=list(records), stored=len(records))
    try:
        log.append(*more)
    except OSError as error:
        log.without_mirror(*more)
        reporter.note(f"{error}; going on without a copy of the journal on this computer")
    return _run(plan, settings, fleet, reporter, log, aborting=abort)


def _turning_back(plan: Plan, records: Sequence[Record], settings: Settings, fleet: Fleet) -> list[Record]:
    """What there is to journal before an abort: how the migration ended, where the journal doesn't tell.

    Raises InMaintenance where the run can't be backed out of.
    """
    progress, found = journal.fold(records), []
    mark = progress.marks.get(("migrate", plan.lock_host))
    if not saga.may_abort(plan, progress) and mark is not None and mark.state is not saga.State.OK:
        command, host = commands.renounce(plan, settings), plan.lock_host
        outcome = fleet.map(lambda remote: run(remote, command), hosts=(host,))[host]
        # An exit code alone speaks of this question, not of the migration: of an older host program, say.
        if isinstance(outcome, Ok) and not outcome.value.by_code:
            found = [journal.outcome("migrate", host, outcome.value, undo=False, seconds=0.0)]
            progress = journal.fold([*records, *found])
    if barred := saga.barring(plan, progress):
        raise InMaintenance(
            f"run {plan.run_id} can't be aborted any more: {NO_WAY_BACK.get(barred[-1], barred[-1])}",
            state=standing(plan, progress),
            next="fab deploy --resume",
        )
    return found


def _run(
    plan: Plan,
    settings: Settings,
    fleet: Fleet,
    reporter: Reporter,
    log: Journal,
    *,
    parcel: Parcel | None = None,
    aborting: bool = False,
) -> Finished:
    with (
        _reported(reporter, plan, log.records),
        _visited(plan, settings, reporter),
        _interruptible(reporter) as stop,
    ):
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
            parcel=parcel,
        )
        if log.stored:
            engine.attach()
        try:
            with Heartbeat(engine.beat) as heart:
                engine.pulse = heart.soon
                progress = engine.run()
        except JournalLost as error:
            progress = journal.fold(log.records)
            kind = InMaintenance if saga.in_maintenance(plan, progress) else Interrupted
            raise kind(
                error.what, where=error.where, state=standing(plan, progress), next="fab deploy --resume"
            ) from error
    with suppress(OSError):
        journal.prune(journals())
    with _notified(settings, progress, log.records, reporter):
        if not (aborting and progress.verdict is Verdict.REVERTED):
            look = _last_look(plan, progress, settings, fleet) if is_looked_at(plan, progress) else None
            conclude(plan, progress, log.records, look)
    return Finished(plan, log.records)


def _last_look(plan: Plan, progress: Progress, settings: Settings, fleet: Fleet) -> LastLook | None:
    """How all hosts stand after a run that was undone; None where another one is at work on them already."""
    hosts = dict.fromkeys((*plan.hosts, plan.lock_host))
    statuses, _ = survey.each(fleet, settings, "status", hosts=list(hosts))
    if statuses.get(plan.lock_host, {}).get("lock"):
        return None
    return seen(plan, progress, {host: statuses[host] for host in plan.hosts if host in statuses})


def parted_with(records: Sequence[Record], exclude: Sequence[str] = ()) -> list[str]:
    """Given a run's records, say where each host stands that it goes on without."""
    whole, progress = journal.plan_of(records[:1]), journal.fold(records)
    lines = []
    for host in dict.fromkeys((*journal.left_out(records), *exclude)):
        if host not in whole.hosts:
            continue
        down = "in maintenance" if host in saga.in_maintenance(whole, progress) else "not in maintenance"
        swapped = progress.marks.get(("swap", host))
        release = f"on {whole.previous(host) or 'nothing'}"
        if swapped is not None and swapped.value.get("unchanged") is not True:
            release = f"on {whole.release}" if swapped.state is saga.State.OK else "on nobody knows what"
        lines.append(
            f"without {host}, which was last seen {down}, {release}: when it is back, keep visitors away by"
            f" fab -H {host} maint-down until fab deploy has brought all hosts to one release"
        )
    return lines


def _without(plan: Plan, exclude: Sequence[str], fleet: Fleet) -> Plan:
    targets = tuple(target for target in plan.targets if target.host not in exclude)
    missing = [target.host for target in targets if target.host not in fleet.names]
    if missing or not targets:
        raise UsageError(
            f"run {plan.run_id} works on {', '.join(missing or plan.hosts)} too",
            where="-H and --exclude",
            state="nothing was changed",
            next="leave out -H; a host that is gone is left out by --exclude",
        )
    return replace(plan, targets=targets)


@contextmanager
def _notified(
    settings: Settings, progress: Progress, records: Sequence[Record], reporter: Reporter
) -> Iterator[None]:
    """Tell hooks.notify how the run ended, after the body. What becomes of that changes nothing about it."""
    ended: DeployError | None = None
    try:
        yield
    except DeployError as error:
        address(error, settings.environment)
        ended = error
        raise
    finally:
        if settings.hooks.notify is not None and progress.verdict is not None:
            about = notification.message(records, reporter.visitors(), ended)
            about["text"] = addressed(about["text"], settings.environment)
            try:
                wrong = notification.tell(settings.hooks.notify, about, place=settings.project)
            except KeyboardInterrupt:  # meant for the hook: the run is over
                wrong = "hooks.notify was ended by Ctrl-C"
            if wrong:
                reporter.note(wrong)


@contextmanager
def _reported(reporter: Reporter, plan: Plan, records: Sequence[Record]) -> Iterator[None]:
    reporter.begin(plan, records)
    try:
        yield
    finally:
        reporter.end()


@contextmanager
def _visited(plan: Plan, settings: Settings, reporter: Reporter) -> Iterator[None]:
    """See what visitors get meanwhile; unless it is the switch alone, or nobody is served yet.

    To ask for what isn't there yet would make lighttpd give the application up for 2 to 3 s.
    """
    url = probe.address(settings.webserver.public_url, settings.webserver.url)
    served = any(target.release for target in plan.targets)
    if url is None or plan.repeatable or not served:
        switch, none = "for the switch alone it never is", "nothing is served yet"
        why = switch if plan.repeatable else none if not served else "webserver.public_url is not set"
        reporter.unmeasured(why)
        yield
        return
    with probe.Probe(url, reporter.sample):
        yield


@contextmanager
def _interruptible(reporter: Reporter) -> Iterator[Stop]:
    """Ctrl-C asks the engine to stop after the barrier in hand; a second one stops waiting."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def pressed(signum: int, frame: object) -> None:
        stop.press()
        text = (
            "stopping as soon as the step in hand is done; Ctrl-C again stops waiting for it"
            if not stop.cancel.is_set()
            else "not waiting any longer; what runs on a host goes on there"
        )
        try:
            reporter.note(text)
        except RuntimeError:  # it came while we were writing to a stream whose reader is slow
            threading.Thread(target=reporter.note, args=(text,), daemon=True).start()

    before = signal.signal(signal.SIGINT, pressed)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def unreachable(lost: Mapping[str, Exception], settings: Settings | None = None) -> DeployError:
    """Given why each of some hosts can't be worked on, return the one error to tell it by.

    With `settings` its remedy says how to go on without them, where that is possible. Where one of them
    could be reached, it isn't Unreachable. Raises an exception that can only be a bug.
    """
    errors = list(lost.values())
    for error in errors:
        if not isinstance(error, (DeployError, OSError)):
            raise error
    kind: type[DeployError] = Unreachable
    if not all(isinstance(error, (Unreachable, OSError)) for error in errors):
        usage = all(isinstance(error, UsageError) for error in errors)
        kind = UsageError if usage else OperationFailed
    what = "could not be reached" if kind is Unreachable else "can't be worked on"
    steps = [error.next for error in errors if isinstance(error, DeployError) and error.next]
    step = steps[0] if steps else "mend the connection"
    if settings and str(settings.lock_host) not in lost and len(lost) < len(settings.hosts):
        step += f"; or go on without: {' '.join(f'--exclude {host}' for host in lost)}"
    return kind(
        f"{len(lost)} host{'s' if len(lost) > 1 else ''} {what}",
        state="nothing was changed",
        next=step,
        details=[line for host, error in lost.items() for line in _told(host, error)],
    )


def _told(host: str, error: Exception) -> list[str]:
    """What is known of one host's error; a fingerprint to compare, for instance, is in its details."""
    details = error.details if isinstance(error, DeployError) else ()
    return [f"{host}: {error}", *(f"  {line}" for line in details)]


def _as_user(host: Host, user: str) -> Host:
    try:
        return replace(host, user=user)
    except ValueError:
        raise UsageError(
            f"{user!r} is no account's name", where="--as-user", next="--as-user root, say"
        ) from None


def journals() -> Path:
    """Where the laptop's copies of journals are."""
    return _state() / "journal"


def builds() -> Path:
    """Where the laptop keeps what builds have printed."""
    return _state() / "builds"


def _state() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "deploytools"


def _mirror(run_id: str) -> Path:
    """The laptop's copy of a run's journal."""
    return journals() / f"{run_id}.jsonl"
