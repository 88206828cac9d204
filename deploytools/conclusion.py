"""How a run ended, as a result or as the error that its end deserves. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from deploytools import saga
from deploytools.engine import answers_of
from deploytools.errors import (
    InMaintenance,
    Interrupted,
    LockHeld,
    NeedsWindow,
    OperationFailed,
    Unfinished,
    Unreachable,
)
from deploytools.journal import Record
from deploytools.plan import Plan
from deploytools.saga import Progress, State, Verdict

# The steps whose effect stays where nothing undoes them.
LASTING = ("swap", "maintenance-off")


@dataclass(frozen=True)
class LastLook:
    """How all hosts were seen to stand once a run was undone.

    Args:
        otherwise: what is not as it was before the run, a line each.
        silent: the hosts that gave no answer.
    """

    otherwise: tuple[str, ...] = ()
    silent: tuple[str, ...] = ()


def is_looked_at(plan: Plan, progress: Progress) -> bool:
    """Whether the hosts have to be as they were when the run was planned, which is looked at then.

    Not where a run never had the lock, or found them otherwise: they are as somebody else has them.
    """
    compared = [progress.marks.get(("compare", host)) for host in plan.hosts]
    as_planned = all(mark is not None and mark.state is State.OK for mark in compared)
    return plan.operation in ("deploy", "rollback") and progress.verdict is Verdict.REVERTED and as_planned


def seen(plan: Plan, progress: Progress, statuses: Mapping[str, Mapping[str, Any]]) -> LastLook:
    """Given what those hosts say of themselves that answer, compare it with what they were before the run."""
    down_before, otherwise = saga.down_before(plan, progress), []
    for host, status in statuses.items():
        before, serving = plan.previous(host), status.get("serving")
        if status["release"] != before:
            otherwise.append(
                f"{host}: it is on {status['release'] or 'nothing'}, not on {before or 'nothing'}"
            )
        elif before is not None and serving is not None and not serving["alive"]:
            otherwise.append(f"{host}: the application is not running, so visitors get an error")
        if status["maintenance"]["state"] != "up" and host not in down_before:
            otherwise.append(f"{host}: maintenance is {status['maintenance']['state']}")
    return LastLook(tuple(otherwise), tuple(host for host in plan.hosts if host not in statuses))


def conclude(plan: Plan, progress: Progress, records: Sequence[Record], look: LastLook | None = None) -> None:
    """Raise what the end of a run deserves; return where everything is done.

    Args:
        look: how the hosts stand, where the run was undone and that was looked at.
    """
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
        case Verdict.DONE if any(step == "drain" for step, _, _ in bad):
            raise InMaintenance(
                f"{plan.operation}: what was accepted before is still being worked on",
                state=f"every host is in maintenance: {', '.join(plan.hosts)}",
                next="fab maint-down --drain waits on; fab maint-up ends maintenance",
                details=details,
            )
        case Verdict.DONE:
            raise Unfinished(
                f"{plan.operation} is done, but something is left over",
                state=f"what was wanted is done on {', '.join(plan.hosts)}",
                next=_next(bad, "fab status"),
                details=details,
            )
        case Verdict.REVERTED:
            _reverted(plan, progress, bad, details or [progress.because or ""], look)
        case Verdict.HELD:
            raise InMaintenance(
                f"{plan.operation} can't go on by itself, and holds",
                state=standing(plan, progress),
                next=_out_of_hold(plan, bad),
                details=details,
            )
        case None:
            how = "; it can be resumed"
            if plan.has("lock") and ("lock", plan.lock_host) not in progress.marks:
                how = " before it began"
            elif not _is_staged(plan, progress):
                how = "; its release is not on the hosts yet"
            raise Interrupted(
                f"{plan.operation} was interrupted{how}",
                state=standing(plan, progress),
                next=_way_on(plan, progress),
                details=details,
            )


def _reverted(
    plan: Plan,
    progress: Progress,
    bad: Mapping[Any, Record],
    details: Sequence[str],
    look: LastLook | None,
) -> NoReturn:
    codes = {record["exit_code"] for record in bad.values()}
    if any(step == "lock" and record["exit_code"] == 5 for (step, _, _), record in bad.items()):
        record = bad["lock", plan.lock_host, False]
        raise LockHeld(
            record["error"]["what"],
            where=plan.lock_host,
            state="nothing was changed",
            next=record["error"].get("next"),
        )
    if look is not None:
        _not_as_before(plan, progress, details, look)
    looked = bad.get(("check-migrations", plan.lock_host, False))
    if (
        plan.operation == "deploy"
        and not plan.window
        and looked
        and looked["value"].get("state") == "pending"
    ):
        raise NeedsWindow(
            "migrations are pending that need a window",
            where=plan.lock_host,
            state=_as_before(plan, progress),
            next="fab deploy --with-downtime",
            details=looked["value"].get("details") or [looked["error"]["what"]],
        )
    if plan.operation == "maint-up" and bad and all(map(_is_anothers, bad.values())):
        raise _anothers(plan, progress, bad, details)
    if plan.operation == "maint-up":
        raise InMaintenance(
            "maint-up did not bring every host up",
            state=f"up: {', '.join(_done(plan, progress)) or 'none'}; the others may still be in maintenance",
            next=_next(bad, "mend the cause, then fab maint-up again"),
            details=details,
        )
    before = saga.down_before(plan, progress)
    down = [host for host in saga.in_maintenance(plan, progress) if host not in before]
    if plan.operation == "maint-down" and down:
        raise InMaintenance(
            "maint-down failed, and not every host was seen to come back up",
            state=f"may still be in maintenance: {', '.join(down)}; every other host is as before",
            next="mend the cause, then fab maint-up",
            details=details,
        )
    if codes == {6}:
        raise Unreachable(
            f"{plan.operation} stopped: a host could not be reached",
            state=f"what had been done was undone; {_as_before(plan, progress)}",
            next="mend the host, or go on without it: --exclude HOST",
            details=details,
        )
    # Where nobody has looked afterwards.
    away = dict.fromkeys(
        host
        for (step, host, _), record in bad.items()
        if (record["exit_code"] == 6 or record["state"] == State.UNKNOWN.value)
        and not _was_undone(progress, step, host)
    )
    without = f", as far as can be told without {', '.join(away)}, which can't be reached"
    raise OperationFailed(
        f"{plan.operation} failed and was undone",
        state=_as_before(plan, progress) + (without if away and look is None else ""),
        next=_next(bad, "mend the cause, then run it again"),
        details=details,
    )


def _not_as_before(plan: Plan, progress: Progress, details: Sequence[str], look: LastLook) -> None:
    """Raise where a host was not seen to be as it was: exit code 3 promises that of all of them."""
    if look.otherwise:
        raise InMaintenance(
            f"{plan.operation} failed and was undone, but not every host is as it was",
            state="as below; every other host is on what it ran before",
            next="fab status; mend what it says, then fab deploy",
            details=[*look.otherwise, *details],
        )
    if look.silent:
        away = ", ".join(look.silent)
        raise Unreachable(
            f"{plan.operation} failed and was undone, and then there was no answer from {away}",
            state=f"{_as_before(plan, progress)}, as far as can be told without {away}",
            next=f"fab status, once {away} can be reached",
            details=details,
        )


def _was_undone(progress: Progress, step: str, host: str) -> bool:
    mark = progress.undone.get((step, host))
    return mark is not None and mark.state is State.OK


def _is_anothers(record: Record) -> bool:
    """Whether a host refuses for somebody else's window; another program at work there is a reason, too."""
    return record["exit_code"] == LockHeld.exit_code and bool(record["value"].get("by"))


def _anothers(plan: Plan, progress: Progress, bad: Mapping[Any, Record], details: Sequence[str]) -> LockHeld:
    """A window that is somebody else's, who is asked first."""
    held = next(iter(bad.values()))["value"]
    whose, up = held.get("run_id") or held.get("by"), _done(plan, progress)
    first = f"once run {whose} is known to be over:" if held.get("run_id") else f"ask {whose}, then"
    return LockHeld(
        "somebody else's maintenance is not lifted",
        where=", ".join(host for _, host, _ in bad),
        state=f"up: {', '.join(up)}; the others are in maintenance" if up else "nothing was changed",
        next=f"{first} fab maint-up --force {shlex.quote(str(whose))}",
        details=details,
    )


def _done(plan: Plan, progress: Progress) -> list[str]:
    """The hosts on which a step was done that nothing takes back: a plain swap, or maintenance off."""
    lasting = [step for step in plan.steps if step.undo is None and step.name.startswith(LASTING)]
    marks = {host: [progress.mark(step, host) for step in lasting] for host in plan.hosts}
    return [host for host, found in marks.items() if any(mark and mark.state is State.OK for mark in found)]


def _as_before(plan: Plan, progress: Progress) -> str:
    return f"{_serving_as_before(plan, progress)}{_expanded(plan, progress)}"


def _expanded(plan: Plan, progress: Progress) -> str:
    """What an online migration has left in the schema, in words; nothing where it has left nothing."""
    told = progress.value("migrate", plan.lock_host)
    if plan.window or not told.get("applied") or told.get("outcome") != "applied":
        return ""
    return f", on a schema with {', '.join(told['applied'])}, which is labelled online-safe and stays"


def _serving_as_before(plan: Plan, progress: Progress) -> str:
    done = _done(plan, progress)
    if done:
        return f"swapped already: {', '.join(done)}; every other host is up on what it ran before"
    down = saga.down_before(plan, progress)
    if not down:
        return "the site is up on what it ran before"
    lift = f"fab maint-up --force {plan.run_id}" if plan.window else "fab maint-up"
    return f"as before, with {', '.join(down)} in maintenance ({lift} brings them up)"


def standing(plan: Plan, progress: Progress) -> str:
    """Where the hosts stand, in words."""
    down = saga.in_maintenance(plan, progress)
    lock = f"the lock is held by run {plan.run_id}" if _may_hold_lock(plan, progress) else "it has no lock"
    if not down:
        swapped = [host for host in plan.hosts if _on_the_new(plan, progress, host)]
        new = f"on {plan.release}: {', '.join(swapped)}; " if swapped and plan.release else ""
        return f"no host is in maintenance by this run; {new}{lock}"
    return f"in maintenance: {', '.join(down)}; {lock}"


def _on_the_new(plan: Plan, progress: Progress, host: str) -> bool:
    """Whether the host was swapped to the run's release and, for all that is known, is on it still."""
    swapped, back = progress.marks.get(("swap", host)), progress.undone.get(("swap", host))
    return swapped is not None and swapped.state is State.OK and (back is None or back.state is not State.OK)


def _may_hold_lock(plan: Plan, progress: Progress) -> bool:
    """False where the run goes without: `fab deploy --resume` would go on with somebody else's then."""
    lock = progress.marks.get(("lock", plan.lock_host))
    return lock is not None and not lock.value.get("without")


def _way_on(plan: Plan, progress: Progress) -> str:
    if not _may_hold_lock(plan, progress):
        force = f" --force {shlex.quote(plan.force)}" if plan.force else ""
        return f"fab {plan.operation}{force}, the same command again"
    if not _is_staged(plan, progress):
        return f"fab deploy --abort, then fab {plan.operation} as before: the release is made anew then"
    back = ", or fab deploy --abort" if saga.may_abort(plan, progress) else ""
    return f"fab deploy --resume{back}"


def _is_staged(plan: Plan, progress: Progress) -> bool:
    """Whether it can go on, or only back: what was packed has gone with the process that packed it."""
    left = [
        host
        for step in plan.steps
        for host in plan.hosts_of(step)
        if step.name == "stage" and not progress.done(step, host)
    ]
    return progress.reverting or not left


def _out_of_hold(plan: Plan, bad: Mapping[Any, Record]) -> str:
    """What a host says to mend, and what goes on with the run afterwards: the host doesn't know of that."""
    if plan.repeatable:
        return _next(bad, "fab status")
    told = _next(bad, "")
    return told if "--resume" in told else f"{told}; then fab deploy --resume".removeprefix("; then ")


def _next(bad: Mapping[Any, Record], default: str) -> str:
    """What the first host says to do that says anything; a log that it names is told of with that host."""
    steps = [(record["host"], record["error"].get("next")) for record in bad.values()]
    for host, step in steps:
        if step:
            return re.sub(r"(/\S+/app\.log)\b", rf"\1 on {host}", step)
    return default
