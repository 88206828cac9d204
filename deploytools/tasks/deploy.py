"""deploy, hotswap, rollback, unlock: what changes the release or the process that serves."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from deploytools.tasks.task import EVENTS, confirm, operation

if TYPE_CHECKING:
    from deploytools.journal import Estimate
    from deploytools.plan import Plan
    from deploytools.report.reporting import Reporting
    from deploytools.settings import Settings

# How long a window will take, where no past one tells.
UNMEASURED = "nobody knows: no window was measured here lately"
_EXCLUDE = "a HOST to leave out; may be given several times"
_LOCK_WAIT = "how long to wait for another run that is at work, before the plan is made: 90s, 30m"
_BATCH = "how many hosts at a time, after the first one: a number, or a share like 25%"


@operation(
    run=True,
    help={
        "ref": "what to deploy: a branch, tag or commit (default: source.ref of fabric.yaml)",
        "with-downtime": "the whole window: maintenance, drain, migrate, swap, verify, back",
        "plan": "print the steps, the hosts and the failure policy; touch nothing",
        "yes": "don't ask",
        "reason": "why, for `fab status` and the colleagues",
        "until": "when the window is expected to end: +30m, HH:MM or an ISO 8601 time",
        "batch": _BATCH,
        "exclude": _EXCLUDE,
        "lock-wait": _LOCK_WAIT,
        "no-rollback": "where a host fails, don't swap back those before it: stop there and wait",
        "resume": "go on with the interrupted run, from any laptop",
        "abort": "back out of the interrupted run, from any laptop",
        **EVENTS,
    },
    iterable=["exclude"],
)
def deploy(
    c: Any,
    ref: str | None = None,
    with_downtime: bool = False,
    plan: bool = False,
    yes: bool = False,
    reason: str | None = None,
    until: str | None = None,
    batch: str | None = None,
    exclude: Any = None,
    lock_wait: str = "0",
    no_rollback: bool = False,
    resume: bool = False,
    abort: bool = False,
    json: bool = False,
) -> None:
    """Ship a release and swap to it, dropping nothing.

    Without downtime, unless --with-downtime is given: on one host, then --batch hosts at a time. It migrates
    what is labelled online-safe, and refuses while anything else is pending. Where a host fails, all go back;
    with --no-rollback those that are on the new release stay there, and the run waits (exit code 4).
    With --with-downtime it is the whole window. The first deploy always is: nobody is served yet.

    --resume goes on with the run that holds the lock, --abort backs out of it, from any laptop; not while its
    operator's process is at work. With --exclude HOST for good without that host; a migration that is done is
    taken back only by `migrate.rollback`.
    """
    from dataclasses import replace
    from datetime import datetime, timezone

    from deploytools import operation as op
    from deploytools import plan as plans
    from deploytools import releasing, survey
    from deploytools.errors import NeedsWindow
    from deploytools.executor import current_settings
    from deploytools.moments import parse_until, parse_wait
    from deploytools.report.reporting import Reporting

    if resume or abort:
        _refuse_beside(
            "--resume" if resume else "--abort",
            {
                "--abort": resume and abort,
                "--ref": ref,
                "--with-downtime": with_downtime,
                "--plan": plan,
                "--reason": reason,
                "--until": until,
                "--batch": batch,
                "--no-rollback": no_rollback,
            },
        )
    settings = current_settings(c)
    reporter = Reporting(json=json, environment=settings.environment)
    if resume or abort:
        with op.opened(settings, exclude) as fleet, reporter:
            lock = survey.open_lock(fleet, settings)
            survey.wait_until_gone(fleet, settings, lock, reporter.note)
            records = survey.read_journal(fleet, settings, lock["run_id"])
            op.resume(records, settings, fleet, reporter, abort=abort, exclude=exclude or ())
        return
    now, expected_end = datetime.now(timezone.utc), f"+{settings.window.expected:.0f}s"
    ends, patience = parse_until(until or expected_end, now), parse_wait(lock_wait)
    with (
        releasing.exported(settings, ref, now) as exported,
        op.connected(settings, exclude) as fleet,
        reporter,
    ):
        survey.wait_for_lock(fleet, settings, patience, reporter.note)
        statuses = survey.ask(fleet, settings, "status")
        _tell_outdated(statuses, settings, reporter)
        export = exported.unlike({status["release"] for status in statuses.values()})
        base = op.base_plan(
            "deploy", settings, statuses, exclude=exclude, release=export.source.id, reason=reason, until=ends
        )
        base = replace(base, force=plans.open_window({host: statuses[host] for host in base.hosts}))
        wanted = _shape(
            base,
            settings,
            with_downtime,
            {"batch": _batch(batch or "1", base), "exclude": exclude or (), "rollback": not no_rollback},
        )
        if wanted.window and base.force:
            reporter.note(f"this takes over the window of run {base.force}")
        if wanted.window and settings.migrate and not wanted.has("migrate"):
            others = ", ".join(plans.left_out(base, settings, exclude or ()))
            reporter.note(f"{others} would go on with the old code, so nothing may be pending")
        expected = op.expectation(fleet, settings) if wanted.window else None
        if plan:
            _show(wanted, expected, json, export.lines)
            return
        _confirm(wanted, yes, json, expected, export.lines)
        for line in export.told if yes else ():
            reporter.note(line)
        reporter.expect(expected)
        with releasing.packed(
            export,
            settings,
            base.by,
            logs=op.builds(),
            say=reporter.note,
            online=not wanted.window,
            earlier=op.shipped_elsewhere(fleet, settings, base),
        ) as (release, parcel):
            # An end that nobody named counts from here on: to read the plan, or to build, may take long.
            ends = ends if until else parse_until(expected_end)
            shipped = replace(wanted, release=release, digest=parcel.digest, until=ends)
            try:
                op.carry_out(shipped, settings, fleet, reporter, parcel)
            except NeedsWindow as error:
                _tell_of_window(plans.downtime_plan(base, settings, exclude=exclude or ()), reporter)
                error.next = _with_downtime(ref)
                raise


@operation(
    run=True,
    aliases=("swap", "restart"),
    help={
        "back": "back to the generation that is still warm (app.soak_time)",
        "batch": _BATCH,
        "exclude": _EXCLUDE,
        "lock-wait": _LOCK_WAIT,
        **EVENTS,
    },
    iterable=["exclude"],
)
def hotswap(
    c: Any,
    back: bool = False,
    batch: str = "1",
    exclude: Any = None,
    lock_wait: str = "0",
    json: bool = False,
) -> None:
    """Replace the app's process, dropping nothing.

    A new process on the same release; with --back the one that is still warm, if its release fits the schema.
    """
    from dataclasses import replace

    from deploytools import operation as op
    from deploytools import plan as plans
    from deploytools import survey
    from deploytools.executor import current_settings
    from deploytools.moments import parse_wait
    from deploytools.report.reporting import Reporting

    settings, patience = current_settings(c), parse_wait(lock_wait)
    with (
        op.connected(settings, exclude) as fleet,
        Reporting(json=json, environment=settings.environment) as reporter,
    ):
        survey.wait_for_lock(fleet, settings, patience, reporter.note)
        statuses = survey.ask(fleet, settings, "status")
        _tell_outdated(statuses, settings, reporter)
        base = op.base_plan("hotswap", settings, statuses, exclude=exclude)
        if back:
            base = replace(base, release=plans.warm_release({host: statuses[host] for host in base.hosts}))
        wanted = plans.hotswap_plan(base, settings, batch=_batch(batch, base), back=back)
        op.carry_out(wanted, settings, fleet, reporter)


@operation(
    run=True,
    help={
        "to": "the release to go back to, as `fab releases` shows it (default: the one before)",
        "yes": "don't ask",
        "batch": f"{_BATCH} (default: all at once)",
        "exclude": _EXCLUDE,
        "lock-wait": _LOCK_WAIT,
        **EVENTS,
    },
    iterable=["exclude"],
)
def rollback(
    c: Any,
    to: str | None = None,
    yes: bool = False,
    batch: str | None = None,
    exclude: Any = None,
    lock_wait: str = "0",
    json: bool = False,
) -> None:
    """Go back to an earlier release.

    To the one that served before the current one, or one that every host still has; skips what failed;
    refuses when the schema doesn't fit it.
    """
    from dataclasses import replace

    from deploytools import operation as op
    from deploytools import plan as plans
    from deploytools import survey
    from deploytools.executor import current_settings
    from deploytools.moments import parse_wait
    from deploytools.report.reporting import Reporting

    settings, patience = current_settings(c), parse_wait(lock_wait)
    with (
        op.connected(settings, exclude) as fleet,
        Reporting(json=json, environment=settings.environment) as reporter,
    ):
        survey.wait_for_lock(fleet, settings, patience, reporter.note)
        statuses = survey.ask(fleet, settings, "status")
        _tell_outdated(statuses, settings, reporter)
        on_hosts = survey.ask(fleet, settings, "release", "list")
        base = op.base_plan("rollback", settings, statuses, exclude=exclude)
        target = plans.rollback_target({host: on_hosts[host] for host in base.hosts}, to)
        base = replace(base, release=target)
        wanted = plans.rollback_plan(base, settings, batch=_batch(batch, base) if batch else None)
        _confirm(wanted, yes, json)
        op.start_ahead(wanted, settings, fleet)
        op.carry_out(wanted, settings, fleet, reporter)


@operation(help={"force": "the run whose lock is to be freed, as `fab status` shows it"})
def unlock(c: Any, force: str) -> None:
    """Free the lock that a dead run left behind.

    Refuses while its operator's process is at work, or its migration still runs; says so where its migration
    then waits for fab migrate.resolve.
    """
    from deploytools import operation as op
    from deploytools import survey
    from deploytools.executor import current_settings
    from deploytools.report.text import addressed, shown

    settings = current_settings(c)
    with op.connected(settings) as fleet:
        result = survey.free_lock(fleet, settings, force, lambda text: print(text, file=sys.stderr))
        statuses, silent = survey.each(
            fleet, settings, "status", hosts=[str(host) for host in settings.hosts]
        )
    lines = [result.get("message", "unlocked"), *survey.still_down(statuses, silent, force)]
    print(addressed(shown("\n".join(lines)), settings.environment))


def _tell_outdated(statuses: Mapping[str, Any], settings: Settings, reporter: Reporting) -> None:
    """What was changed in fabric.yaml since the hosts were set up has no effect there: say so."""
    from deploytools import operation as op
    from deploytools.report.hosts import outdated_lines

    for line in outdated_lines(op.outdated(statuses, settings), list(statuses)):
        reporter.note(line)


def _tell_of_window(plan: Plan, reporter: Reporting) -> None:
    from deploytools import plan as plans

    reporter.note("with --with-downtime this would be:")
    for line in plans.describe(plan):
        reporter.note(line)


def _with_downtime(ref: str | None) -> str:
    return f"fab deploy{f' --ref {shlex.quote(ref)}' if ref is not None else ''} --with-downtime"


def _refuse_beside(option: str, others: Mapping[str, object]) -> None:
    """Raise UsageError where an option was given that an open run has decided already."""
    from deploytools.errors import UsageError

    given = [name for name, value in others.items() if value]
    if given:
        raise UsageError(
            f"{option} goes on with a run as it was planned, so it can't be combined with {', '.join(given)}",
            state="nothing was changed",
            next=f"fab deploy {option}",
        )


def _shape(base: Plan, settings: Settings, with_downtime: bool, rolling: Mapping[str, Any]) -> Plan:
    """The window where it was asked for, and for the first release: nobody is served yet."""
    from deploytools import plan as plans

    first = all(target.release is None for target in base.targets)
    if with_downtime or first:
        return plans.downtime_plan(base, settings, exclude=rolling["exclude"])
    return plans.rolling_plan(base, settings, **rolling)


def _batch(text: str, base: Plan) -> int:
    from deploytools import plan as plans
    from deploytools.errors import UsageError

    try:
        return plans.batch_size(text, len(base.targets))
    except ValueError:
        raise UsageError(
            f"can't read {text!r}: give a number of hosts or a share like 25%",
            where="--batch",
            next="--batch 2, or --batch 25%",
        ) from None


def _show(plan: Plan, expected: Estimate | None, json: bool, about: Sequence[str]) -> None:
    """Print what --plan wants, as text or as JSON: the plan, and what there is to say `about` the release."""
    from dataclasses import asdict
    from json import dumps

    if json:
        steps = {**asdict(plan), "hooks": None}  # there may be a password in one, and this goes into logs
        shown = {"plan": steps, "about": list(about), "expected": expected and asdict(expected)}
        print(dumps({"ok": True, **shown}))
    else:
        print(_described(plan, expected, about, sys.stdout))


def _confirm(
    plan: Plan, yes: bool, json: bool, expected: Estimate | None = None, about: Sequence[str] = ()
) -> None:
    """Show the plan and ask, unless --yes was given. A machine isn't asked: UsageError without it."""
    from deploytools.errors import UsageError

    if json and not yes:
        raise UsageError("with --json nobody is asked", state="nothing was changed", next="add --yes")
    if not yes:
        print(_described(plan, expected, about, sys.stderr), file=sys.stderr)
    confirm(yes)


def _described(plan: Plan, expected: Estimate | None, about: Sequence[str], out: TextIO) -> str:
    """The plan in words, as wide as `out` where that is a terminal."""
    from deploytools import plan as plans
    from deploytools.report.text import shown, terminal_width, wrapped

    text = shown("\n".join(plans.describe(plan, str(expected or UNMEASURED), about)))
    return "\n".join(wrapped(text.split("\n"), terminal_width(out)))
