"""Questions to the hosts: what they say of themselves, what was journaled; and who holds the lock."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deploytools import __version__, commands, journal
from deploytools.commands import Command
from deploytools.engine import run
from deploytools.errors import DeployError, LockHeld, OperationFailed, Unreachable, UsageError
from deploytools.fleet import Failed, Fleet, Ok, Outcome, Unreached
from deploytools.hostnames import names
from deploytools.journal import Record
from deploytools.remote import Remote
from deploytools.settings import Settings

Status = Mapping[str, Any]
# Between two looks at a lock, in seconds; and after how many without a sign of life its holder has gone,
# as hostlib.runs.deploylock has it.
LOOK, SILENCE = 1.0, 20.0


@dataclass(frozen=True)
class Silence:
    """Why a host has no answer: what, and what to type next; `exit_code` as in docs/reference.md.

    `details` are further lines, such as the fingerprint of a key that was refused.
    """

    what: str
    next: str
    exit_code: int
    details: tuple[str, ...] = ()


def each(
    fleet: Fleet,
    settings: Settings,
    name: str,
    *arguments: str,
    hosts: Sequence[str] | None = None,
    timeout: float = Command.timeout,
) -> tuple[dict[str, dict[str, Any]], dict[str, Silence]]:
    """Run a host program that changes only what it is asked to; return results and silences by host."""
    command = Command(commands.program(settings, name, *arguments), timeout=timeout)
    return _answers(fleet.map(lambda remote: run(remote, command), hosts=hosts))


def statuses(fleet: Fleet, settings: Settings) -> tuple[dict[str, dict[str, Any]], dict[str, Silence]]:
    """What the hosts and the lock host say of themselves, in one round trip; the latter of the schema too."""
    lock_host = str(settings.lock_host)
    plain = Command(commands.program(settings, "status"))
    whole = Command(commands.program(settings, "status", "--schema"), timeout=120)

    def look(remote: Remote) -> commands.Answer:
        asks_database = remote.name == lock_host and settings.migrate is not None
        return run(remote, whole if asks_database else plain)

    hosts = dict.fromkeys([*map(str, settings.hosts), lock_host])
    return _answers(fleet.map(look, hosts=list(hosts)))


def _answers(
    outcomes: Mapping[str, Outcome[commands.Answer]],
) -> tuple[dict[str, dict[str, Any]], dict[str, Silence]]:
    results: dict[str, dict[str, Any]] = {}
    silent: dict[str, Silence] = {}
    for host, outcome in outcomes.items():
        match outcome:
            case Ok(answer) if not answer.error:
                results[host] = dict(answer.mark.value)
            case Ok(answer):
                what, next_step = answer.error.get("what", "it failed"), answer.error.get("next", "")
                details = tuple(answer.mark.value.get("details", ()))
                silent[host] = Silence(what, next_step, answer.exit_code, details)
            case Unreached(error):
                told = error if isinstance(error, DeployError) else Unreachable(str(error), next="fab doctor")
                silent[host] = Silence(told.what, told.next or "", Unreachable.exit_code, told.details)
            case Failed(DeployError() as error):
                silent[host] = Silence(error.what, error.next or "", error.exit_code, error.details)
            case _:
                silent[host] = Silence(str(outcome.error), "", OperationFailed.exit_code)
    return results, silent


def ask(
    fleet: Fleet, settings: Settings, name: str, *arguments: str, hosts: Sequence[str] | None = None
) -> dict[str, Any]:
    """Run a host program as `each` does, and return its result by host.

    Raises what `silence` makes of the hosts that have no answer, or refuse.
    """
    results, silent = each(fleet, settings, name, *arguments, hosts=hosts)
    if silent:
        raise silence(name, silent, len(results) + len(silent))
    return results


def silence(name: str, silent: Mapping[str, Silence], hosts: int) -> DeployError:
    """Given why hosts don't do what the program `name` was asked for, return the one error to tell it by.

    That is Unreachable where a host is; or else of the exit code that they have in common (UsageError,
    LockHeld), otherwise OperationFailed. A refusal of the only host that was asked is told in its words.
    """
    codes = {each.exit_code for each in silent.values()}
    kinds: dict[int, type[DeployError]] = {
        kind.exit_code: kind for kind in (UsageError, LockHeld, Unreachable)
    }
    away = Unreachable.exit_code in codes
    kind = (
        Unreachable
        if away
        else kinds.get(max(codes), OperationFailed)
        if len(codes) == 1
        else OperationFailed
    )
    if hosts == 1 and not away:
        (host, only), *_ = silent.items()
        return kind(
            only.what,
            where=host,
            state="nothing was changed",
            next=only.next or "fab doctor",
            details=only.details,
        )
    steps = list(dict.fromkeys(each.next for each in silent.values() if each.next))
    details = []
    for host, each in silent.items():
        details += [f"{host}: {each.what}", *(f"  {more}" for more in each.details)]
        details += [f"  next: {each.next}"] if each.next and len(steps) > 1 else []
    return kind(
        f"{name} {'has no answer from' if away else 'failed on'} {len(silent)} of {hosts} hosts",
        state="nothing was changed",
        next="as said above, host by host" if len(steps) > 1 else (*steps, "fab doctor")[0],
        details=details,
    )


def ask_one(fleet: Fleet, settings: Settings, name: str, *arguments: str) -> dict[str, Any]:
    """Ask the lock host alone. Raises as `ask` does."""
    host = str(settings.lock_host)
    result: dict[str, Any] = ask(fleet, settings, name, *arguments, hosts=(host,))[host]
    return result


def open_lock(fleet: Fleet, settings: Settings) -> dict[str, Any]:
    """Return who holds the lock, and for which run. Raises UsageError where nobody does.

    It names the host that has one, where fabric.yaml says that it would be on another.
    """
    lock: dict[str, Any] | None = ask_one(fleet, settings, "lock", "show").get("lock")
    if lock:
        return lock
    others, _ = each(fleet, settings, "lock", "show")
    elsewhere = {host: told["lock"] for host, told in others.items() if told.get("lock")}
    if not elsewhere:
        raise UsageError("no run is open", state="nothing was changed", next="fab status")
    host, lock = next(iter(elsewhere.items()))
    raise UsageError(
        f"no run is open on {settings.lock_host}, where the lock is by this fabric.yaml; run {lock['run_id']}"
        f" by {lock['by']} on {lock['laptop']} has it on {host}",
        where="deploy.migrate.host, or the first of deploy.hosts",
        state="nothing was changed",
        next=f"the same in a checkout whose fabric.yaml has {host} there",
    )


def wait_for_lock(
    fleet: Fleet,
    settings: Settings,
    seconds: float,
    note: Callable[[str], None],
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Return when nobody holds the lock, or after `seconds`: then whoever takes it is told who has it."""
    deadline, told = clock() + seconds, None
    while seconds and (lock := ask_one(fleet, settings, "lock", "show").get("lock")):
        if lock["run_id"] != told:
            note(f"waiting for run {lock['run_id']} by {lock['by']} on {lock['laptop']}: {lock['operation']}")
        told = lock["run_id"]
        if clock() >= deadline:
            return
        sleep(min(LOOK, max(0.0, deadline - clock())))


def wait_until_gone(
    fleet: Fleet,
    settings: Settings,
    lock: Mapping[str, Any],
    note: Callable[[str], None],
    *,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Return when the process that carried out the run which holds the lock is known to have gone.

    That is at once where it ended while its host could see it, and after SILENCE seconds otherwise.
    Raises LockHeld where it gives another sign of life.
    """
    if lock.get("heard") is None or lock["heard"] >= SILENCE:
        return
    note(
        f"looking for up to {SILENCE - lock['heard']:.0f} s whether {lock['by']} on {lock['laptop']} is still"
        f" at work on run {lock['run_id']}: the last that was heard of it is {lock['heard']:.0f} s old"
    )
    before = lock["heard"]
    while lock and lock.get("heard") is not None and lock["heard"] < SILENCE:
        if lock["heard"] < before:
            raise LockHeld(
                f"run {lock['run_id']} is at work: {lock['by']} on {lock['laptop']}",
                where=str(settings.lock_host),
                state="nothing was changed by this command",
                next=f"wait for it, or ask {lock['by']} to end it by Ctrl-C; fab status tells how far it is",
            )
        before = lock["heard"]
        sleep(LOOK)
        lock = ask_one(fleet, settings, "lock", "show").get("lock") or {}


def free_lock(
    fleet: Fleet,
    settings: Settings,
    run_id: str,
    note: Callable[[str], None],
    *,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, Any]:
    """Free the lock of a run that is dead, and return what the lock host tells of that.

    Raises LockHeld while its operator's process or its migration is at work, and where another run has it.
    """
    lock = ask_one(fleet, settings, "lock", "show").get("lock")
    if lock and lock["run_id"] == run_id:
        wait_until_gone(fleet, settings, lock, note, sleep=sleep)
    return ask_one(fleet, settings, "lock", "break", f"--run-id={run_id}")


def read_journal(fleet: Fleet, settings: Settings, run_id: str) -> list[Record]:
    """Return the records of the run that holds the lock. Raises UsageError where nobody can go on by them."""
    try:
        records = list(ask_one(fleet, settings, "journal", "read", run_id)["records"])
    except UsageError as error:
        raise UsageError(
            f"run {run_id} holds the lock, but has no journal: it was taken by hand, or the journal was lost",
            where=str(settings.lock_host),
            state="nothing was changed by this command",
            next=f"fab status; if nothing is under way, fab unlock --force {run_id}",
            details=error.details,
        ) from error
    return readable(records, run_id, str(settings.lock_host))


def readable(records: list[Record], run_id: str, where: str) -> list[Record]:
    """`records`, where this version of the toolkit can read them. Otherwise raises UsageError."""
    try:
        journal.check(records)
    except ValueError as error:
        raise UsageError(
            f"the journal of run {run_id} can't be read by deploytools {__version__}",
            where=where,
            state="nothing was changed by this command",
            next=f"the same from a computer with the deploytools that began that run, by {_began(records)}",
            details=[str(error)],
        ) from error
    return records


def _began(records: Sequence[Record]) -> str:
    """Who began a run, as far as its first record says so."""
    plan = records[0].get("plan") if records else None
    told = plan if isinstance(plan, Mapping) else {}
    return f"{told.get('by', 'nobody knows whom')} on {told.get('laptop', 'nobody knows which')}"


def past_runs(
    fleet: Fleet, settings: Settings, last: int | None = None
) -> tuple[dict[str, list[Record]], dict[str, str]]:
    """Return the records of every run by its id, the newest run first; and why others can't be read.

    With `last` only of so many.
    """
    only = () if last is None else (f"--last={last}",)
    listed = ask_one(fleet, settings, "journal", "list", "--records", *only)
    runs = {entry["run_id"]: entry["records"] for entry in listed["runs"]}
    return runs, {entry["run_id"]: entry["error"] for entry in listed["damaged"]}


def disagreements(statuses: Mapping[str, Status]) -> list[str]:
    """Given what every host says of itself, return a line for each thing that they don't agree on."""
    lines = []
    for key, word in (("maintenance", "maintenance"), ("release", "release"), ("toolkit", "toolkit version")):
        hosts: dict[str, list[str]] = {}
        for host, status in statuses.items():
            hosts.setdefault(_plain(status.get(key)), []).append(host)
        if len(hosts) > 1:
            told = "; ".join(f"{value} on {names(some, list(statuses))}" for value, some in hosts.items())
            lines.append(f"{word}: {told}")
    return lines


def outdated(statuses: Mapping[str, Status], digests: Mapping[str, str]) -> dict[str, str]:
    """Given what every host says of itself, say by host how its set-up differs from the laptop's.

    `digests` is what a host's digest should be, by its deploy user.
    """
    found = {}
    for host, status in statuses.items():
        if status.get("toolkit") != __version__:
            found[host] = f"deploytools is {status.get('toolkit')} there, and {__version__} here"
        elif status.get("digest") != digests.get(str(status.get("deploy_user")), status.get("digest")):
            found[host] = "fabric.yaml or the toolkit has changed since it was set up"
    return found


def still_down(statuses: Mapping[str, Status], silent: Mapping[str, Silence], run_id: str) -> list[str]:
    """Given what hosts say once a run has lost its lock, name those that its window has, and the way on."""
    every = [*statuses, *silent]
    windows = {host: status.get("maintenance") or {} for host, status in statuses.items()}
    down = [
        host
        for host, window in windows.items()
        if window.get("state") == "down" and window.get("run_id") == run_id
    ]
    away = names(list(silent), every)
    lines = [f"no answer from {away}: it may still be in maintenance"] if silent else []
    if down:
        lines += [
            f"still in maintenance: {names(down, every)}",
            f"next: fab deploy --with-downtime takes the window over; fab maint-up --force {run_id} ends it,"
            " where what serves fits the schema (fab migrate --status)",
        ]
    return lines


def not_running(statuses: Mapping[str, Status]) -> list[str]:
    """Given what every host says of itself, return a line for each whose application has died."""
    return [
        f"{host}: the application is not running (release {status['release']}); visitors get an error"
        for host, status in statuses.items()
        if status.get("serving") and not status["serving"].get("alive")
    ]


def _plain(value: Any) -> str:
    """A status value as one word: what differs in a detail (since when, say) is no disagreement."""
    return str(value.get("state") if isinstance(value, Mapping) else value)
