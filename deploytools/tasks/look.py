"""Read-only tasks: where the hosts stand, what is on them, what happened."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from deploytools.tasks.task import operation, remedy_in

if TYPE_CHECKING:
    from deploytools.fleet import Fleet
    from deploytools.settings import Settings

_JSON = {"json": "print JSON for a machine"}
# How long a host may take to read all files of a release, in seconds.
VERIFIED_WITHIN = 3600.0


@operation(help=_JSON)
def status(c: Any, json: bool = False) -> None:
    """Say where every host stands.

    Maintenance, release, process, schema, open window; who holds the lock. Exit code 6 when a host has no
    answer, 3 when the application is not running or hosts disagree.
    """
    from deploytools import operation as op
    from deploytools import survey
    from deploytools.errors import OperationFailed
    from deploytools.executor import current_settings
    from deploytools.report.hosts import status_text
    from deploytools.report.text import addressed, terminal_width

    settings = current_settings(c)
    hosts = [str(host) for host in settings.hosts]
    with op.opened(settings) as fleet:
        told, silent = survey.statuses(fleet, settings)
    lock = told.get(str(settings.lock_host), {}).get("lock")
    statuses = {host: told[host] for host in hosts if host in told}
    outdated = op.outdated(statuses, settings)
    why = {host: reason.what for host, reason in silent.items()}
    if json:
        answers = {host: {**told, "outdated": outdated.get(host)} for host, told in statuses.items()}
        silence = {host: {"error": what} for host, what in why.items() if host in hosts}
        print(_dump({"application": settings.application, "lock": lock, "hosts": {**answers, **silence}}))
    else:
        width = terminal_width(sys.stdout)
        told_all = status_text(settings.application, statuses, lock, why, outdated, width)
        print(addressed(told_all, settings.environment))
    if silent:
        raise survey.silence("status", silent, len(told) + len(silent))
    dead = survey.not_running(statuses)
    if dead:
        raise OperationFailed(
            f"the application is not running on {len(dead)} of {len(statuses)} hosts",
            state="nothing was changed by asking",
            next="fab hotswap starts it on the release it had;"
            f" why it died: {settings.root}/log/app.log on the host",
            details=dead,
        )
    differing = survey.disagreements(statuses)
    if differing:
        raise OperationFailed(
            "the hosts disagree",
            state="nothing was changed by asking",
            next="fab deploy brings all of them to one release; fab maint-up brings all of them back",
            details=differing,
        )


@operation(
    aliases=("check",),
    help={
        **_JSON,
        "as-user": "connect as somebody else, such as root, where the deploy user can't log in yet",
    },
)
def doctor(c: Any, json: bool = False, as_user: str | None = None) -> None:
    """Check all hosts for what would stop a deploy.

    And this computer; each finding has its remedy. Exit code 3 if one would stop it, 6 when a host has no
    answer.
    """
    from dataclasses import asdict, replace

    from deploytools import examination, laptop
    from deploytools import operation as op
    from deploytools.errors import OperationFailed, Unreachable
    from deploytools.examination import Examined
    from deploytools.executor import current_settings, runs_once
    from deploytools.hostnames import names
    from deploytools.report.hosts import doctor_text
    from deploytools.report.text import addressed

    settings = current_settings(c)
    here = tuple(laptop.findings(settings, once=runs_once(c), state=op.journals()))
    users, unknown = laptop.deploy_users(settings)
    with op.opened(settings, as_user=as_user) as fleet:
        found = examination.examine(fleet, settings, users)
    found, clock = examination.compare_clocks(found, settings.window.expected)
    found.update({host: Examined((finding,), reached=False) for host, finding in unknown.items()})
    here += clock
    for host, each in found.items():
        findings = (replace(one, remedy=remedy_in(settings.environment, one.remedy)) for one in each.findings)
        found[host] = replace(each, findings=tuple(findings))
    if json:
        told = {"application": settings.application, "this_computer": [asdict(one) for one in here]}
        print(_dump({**told, "hosts": {host: asdict(each) for host, each in found.items()}}))
    else:
        print(addressed(doctor_text(here, found), settings.environment))
    silent = [host for host, each in found.items() if not each.reached]
    if silent:
        raise Unreachable(
            f"no answer from {names(silent, list(found))}",
            state="nothing was changed",
            next="as said above" + ("; or deploy without it: --exclude HOST" if len(found) > 1 else ""),
        )
    if examination.stops([*here, *(finding for each in found.values() for finding in each.findings)]):
        raise OperationFailed(
            "something would stop a deploy", state="nothing was changed", next="as said above"
        )


@operation(
    help={"verify": "read every file of what the hosts serve, and compare it with what was sent", **_JSON}
)
def releases(c: Any, verify: bool = False, json: bool = False) -> None:
    """List the releases on the hosts, newest first."""

    from deploytools import operation as op
    from deploytools import survey
    from deploytools.executor import current_settings
    from deploytools.report.runs import release_state
    from deploytools.report.text import local, table, terminal_width

    settings = current_settings(c)
    with op.connected(settings) as fleet:
        if verify:
            _verify(fleet, settings, json)
            return
        listed = survey.ask(fleet, settings, "release", "list")
    if json:
        print(_dump({host: result["releases"] for host, result in listed.items()}))
        return
    rows = [
        {
            "host": host,
            "release": item["id"],
            "ref": item.get("ref"),
            "made": local(item.get("created_at")),
            "state": release_state(item),
        }
        for host, result in listed.items()
        for item in result["releases"]
    ]
    width = terminal_width(sys.stdout)
    print(table(rows, ["host", "release", "ref", "made", "state"], width) if rows else "no releases yet")


def _verify(fleet: Fleet, settings: Settings, json: bool) -> None:
    """Tell what each host says of the files that it serves. Raises what survey.silence makes of the bad."""
    from deploytools import survey

    hosts = [str(host) for host in settings.hosts]
    sound, damaged = survey.each(fleet, settings, "release", "verify", hosts=hosts, timeout=VERIFIED_WITHIN)
    if json:
        print(_dump(sound))
    else:
        print("\n".join(f"{host}: {told['message']}" for host, told in sound.items()))
    if damaged:
        raise survey.silence("release verify", damaged, len(hosts))


@operation(help=_JSON)
def history(c: Any, json: bool = False) -> None:
    """List past runs with their measured downtime."""
    from deploytools import operation as op
    from deploytools import survey
    from deploytools.executor import current_settings
    from deploytools.report.runs import history_text, past
    from deploytools.report.text import clean, terminal_width

    settings = current_settings(c)
    with op.connected(settings) as fleet:
        journals, damaged = survey.past_runs(fleet, settings)
    runs, unreadable = past(journals)
    for run_id, why in {**damaged, **unreadable}.items():
        print(clean(f"left out, because its journal can't be read: run {run_id}: {why}"), file=sys.stderr)
    print(_dump(runs) if json else history_text(runs, terminal_width(sys.stdout)))


@operation(
    help={
        "run": "which run, as fab history shows it: fab report RUN_ID does as well (default: the newest)",
        "output": "the file to write (default: report-RUN_ID.html in this directory)",
    }
)
def report(c: Any, run: str | None = None, output: str | None = None) -> None:
    """Write a run as one HTML page, to look at or send.

    What each host did when, what visitors got per second, every step with what came of it, the migration's
    log and the plan. The page needs no network. What visitors got, and what programs said, is known on the
    computer that the run was started from.
    """
    from pathlib import Path

    from deploytools import operation as op
    from deploytools import pastrun
    from deploytools.errors import UsageError
    from deploytools.executor import current_settings
    from deploytools.report.page import page

    settings = current_settings(c)
    with op.opened(settings) as fleet:
        records, events = pastrun.read(fleet, settings, run, lambda text: print(text, file=sys.stderr))
    file = Path(output or f"report-{records[0]['plan']['run_id']}.html")
    try:
        file.write_text(page(records, events), encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise UsageError(
            f"{file} can't be written: {error.strerror}", where="--output", state="nothing was changed"
        ) from error
    print(file)


@operation(name="status", help={"status": "say what is pending (the default)", **_JSON})
def migrations(c: Any, status: bool = True, json: bool = False) -> None:
    """Say which migrations are pending, of this release."""
    from deploytools import operation as op
    from deploytools import survey
    from deploytools.errors import UsageError
    from deploytools.executor import current_settings
    from deploytools.report.text import shown

    settings = current_settings(c)
    if settings.migrate is None:
        raise UsageError(
            "fabric.yaml says of no migrations",
            where="deploy.migrate",
            state="nothing was changed",
            next="name the tool that runs them: deploy.migrate.adapter",
        )
    with op.connected(settings) as fleet:
        release = survey.ask_one(fleet, settings, "status")["release"]
        if release is None:
            raise UsageError("there is no release on the hosts yet", next="fab deploy --with-downtime")
        found = survey.ask_one(fleet, settings, "migrate", "check", f"--release={release}")
    print(_dump(found) if json else shown(found["message"]))


@operation(
    name="resolve",
    help={
        "as": "applied or not-applied: what you found the schema to be",
        "reason": "how you know; kept with the migration's outcome",
        "run-id": "whose migration, where that run holds the lock no more (default: the run that does)",
    },
)
def resolve(c: Any, as_: str, reason: str, run_id: str | None = None) -> None:
    """Say how a migration ended of which nobody knows.

    Your word on the open run's migration, where its outcome is unknown or it failed half-way; then
    fab deploy --resume goes on by it. With --run-id on that of a run whose lock was dropped; then a new
    deploy.
    """
    from deploytools import operation as op
    from deploytools import survey
    from deploytools.errors import UsageError
    from deploytools.executor import current_settings
    from deploytools.report.text import addressed

    if as_ not in ("applied", "not-applied"):
        raise UsageError(
            f"{as_!r} is neither applied nor not-applied",
            where="--as",
            next="say what you found: --as applied",
        )
    settings = current_settings(c)
    with op.connected(settings) as fleet:
        run_id = run_id or survey.open_lock(fleet, settings)["run_id"]
        word = [f"--as={as_}", f"--by={op.operator()[0]}", f"--reason={reason}"]
        told = survey.ask_one(fleet, settings, "migrate", "resolve", run_id, *word)
    print(addressed(told["message"], settings.environment))


def _dump(value: object) -> str:
    return json.dumps(value, indent=2, sort_keys=True)
