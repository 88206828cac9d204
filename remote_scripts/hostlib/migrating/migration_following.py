"""Following a migration to its end, telling how it ended, and whether the next one may begin."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from hostlib.files import read_json, write_json
from hostlib.migrating import adapters, masking, migration_runs, migrations
from hostlib.migrating.migration_runner import Order, judge, until_its_session_ends
from hostlib.migrating.migration_runs import back_id, is_running, is_settled
from hostlib.migrating.migrations import Check
from hostlib.names import local, timestamp
from hostlib.program import IN_MAINTENANCE, TOOLS, UNFINISHED, USAGE, Config, Failure, Result
from hostlib.runs import deploylock

# Seconds between two looks at a running migration, for whom visitors may wait; and after a minute.
POLL, LATER = 0.005, 0.05
LOG_LINES = 20  # of a failed migration's log, in its result
WORD = "--as applied|not-applied --reason TEXT"
RESOLVE = f"look at the schema, then: fab migrate.resolve {WORD}"


def run(config: Config, order: Order, timeout: float | None) -> Result:
    """Start the migration, unless that was done before, and follow it to its end.

    Raises Failure as `outcome` does.
    """
    place = config.migrations / order.run_id
    if not place.exists():
        migration_runs.start(config, order)
    if not place.exists():
        nothing = {"before": [], "after": [], "applied": [], "seconds": 0.0}
        return {"outcome": "applied", **nothing, "message": f"release {order.release} has no migrations"}
    if not _was_started(config, order.run_id):
        raise _never_started(order.run_id, "never was started, and the run was aborted since")
    return _follow(config, order.run_id, timeout, sys.stderr.buffer)


def back(config: Config, run_id: str, timeout: float | None) -> Result:
    """Take back what the migration of `run_id` has applied, once, and follow that to its end.

    It is a run of its own, `back_id(run_id)`. Raises Failure as `outcome` does; exit code 2 where the release
    has no command for it.
    """
    started = read_json(config.migrations / run_id / "started.json")
    ended = read_json(config.migrations / run_id / "outcome.json")
    if started is None or (ended is not None and (ended.get("unchanged") or ended.get("applied") == [])):
        return {"outcome": "applied", "applied": [], "message": f"run {run_id} has applied nothing"}
    adapter = adapters.of_release(config, started["release"])
    if adapter is None or not adapter.settings.get("rollback"):
        raise Failure(
            f"release {started['release']} has no command that takes a migration back",
            state="nothing was changed",
            next="fab deploy --resume",
            exit_code=USAGE,
        )
    order = Order(back_id(run_id), started["release"], tuple(started["before"]), back=run_id)
    return run(config, order, timeout)


def outcome(config: Config, run_id: str, timeout: float, *, renounce: bool = False) -> Result:
    """How the migration of `run_id` ended, after waiting at most `timeout` seconds; never starts it.

    With `renounce` nobody will start it any more, if that wasn't done before.

    Raises Failure: exit code 3 where it failed or never was started, 4 where nobody knows how it ended,
    7 while it runs. The result says "outcome", and "unchanged" where the database is proved to be at
    the revision it had.
    """
    if renounce:
        migration_runs.renounce(config, run_id)
    if not _was_started(config, run_id):
        raise _never_started(run_id, "never was started here")
    return _follow(config, run_id, timeout, None)


def _was_started(config: Config, run_id: str) -> bool:
    return (config.migrations / run_id / "started.json").exists()


def _never_started(run_id: str, how: str) -> Failure:
    return Failure(
        f"the migration of run {run_id} {how}",
        state="the database was not touched by this run",
        next="fab deploy --resume, or --abort",
        outcome="not-started",
        unchanged=True,
    )


@dataclass(frozen=True)
class Word:
    """The operator's word on a migration: "applied" or "not-applied", who says so, and how they know."""

    verdict: str
    by: str
    reason: str


def resolve(config: Config, run_id: str, word: Word) -> Result:
    """Take the operator's word for the outcome of `run_id`, where nobody else knows it.

    A word can be taken back by another. Raises Failure with exit code 2 where the outcome is known, or the
    migration still runs.
    """
    if (config.migrations / back_id(run_id)).exists():  # then it is that of which nobody knows how it ended
        run_id = back_id(run_id)
    place = config.migrations / run_id
    started = read_json(place / "started.json")
    backwards = started is not None and bool(started.get("back"))
    of_run = started["back"] if started is not None and backwards else run_id
    is_open = (deploylock.holder(config) or {}).get("run_id") == of_run
    ended: dict[str, Any] = {"outcome": "unknown"}
    known = None
    if started is None:
        known = "it was never started"
    elif is_running(config, run_id) or _look(config, started).ours:
        known = "it still runs"
    else:
        ended = _ended(config, run_id, started)
        if is_settled(ended) and "by" not in ended:
            known = ended["outcome"]
    if started is None or known is not None:
        raise Failure(
            f"the migration of run {run_id} needs nobody's word: {known}",
            state="nothing was changed",
            next="fab deploy --resume" if is_open else "fab migrate --status",
            exit_code=USAGE,
        )
    applied = (word.verdict == "applied") is not backwards
    write_json(
        place / "outcome.json",
        {
            "outcome": "applied" if applied else "failed",
            "applied": started["target"] if applied and not backwards else [],
            "unchanged": not applied,
            "before": started["before"],
            "after": started["target"] if applied else started["before"],
            "by": word.by,
            "reason": f"{word.by} says it was {word.verdict}: {word.reason}",
            "seconds": ended.get("seconds", 0.0),
            "ended_at": timestamp(),
        },
    )
    next = "fab deploy --resume" if is_open else "fab deploy, with --with-downtime where that needs a window"
    return {"message": f"the migration of {run_id} counts as {word.verdict} now; next: {next}"}


def with_unsettled(config: Config, found: Check) -> Check:
    """`found`, and the run of which the operator has to say first how its migration ended, if there is one.

    Where anything is pending the state is "unsettled" then: what failed half-way may be in the schema, so
    that to run it again isn't ours to decide. Its lock may long be freed; that it is not known stays.
    """
    told = _unsettled(config, found) if found.known else None
    if told is None:
        return found
    state = "unsettled" if found.pending else found.state
    return replace(found, state=state, message=f"{found.message}; {told['what']}", unsettled=told)


def _unsettled(config: Config, found: Check) -> dict[str, Any] | None:
    """The latest run that may have changed something, if what it has changed is not settled."""
    for started in migration_runs.newest_first(config):
        run_id = started["run_id"]
        if is_running(config, run_id):
            wait = f"{TOOLS}/migrate outcome {run_id} --timeout 600"
            return _told_of(started, found, "still runs", wait)
        ended = _ended(config, run_id, started)
        resolve = f"fab migrate.resolve --run-id {started.get('back') or run_id}"
        if not is_settled(ended):
            how = "failed half-way" if ended["outcome"] == "failed" else "ended nobody knows how"
            next = f"look at the schema, then: {resolve} {WORD}"
            return _told_of(started, found, f"{how} ({ended['reason']})", next)
        again = {step["revision"] for step in found.pending} & set(started.get("pending", ()))
        if "by" in ended and ended.get("applied") and again:
            next = "have the tool itself note them as applied (alembic stamp, migrate --fake)"
            how = f"was applied, as {ended['by']} says, but the database doesn't say so"
            return _told_of(started, found, how, f"{next}; or {resolve} --as not-applied --reason TEXT")
        if ended.get("applied") or "by" in ended or started.get("back"):
            return None
    return None


def _told_of(started: dict[str, Any], now: Check, how: str, next: str) -> dict[str, Any]:
    what = ", ".join(started.get("pending", ())) or f"to {migrations.revisions(started['target'])}"
    if started.get("back"):
        what = f"back to {migrations.revisions(started['target'])}"
    return {
        "run_id": started["run_id"],
        "release": started["release"],
        "since": started["started_at"],
        "before": started["before"],
        "now": list(now.current),
        "what": f"the migration of run {started['run_id']} ({what}, release {started['release']}), begun"
        f" {local(started['started_at'])}, {how}; the database was at"
        f" {migrations.revisions(started['before'])} before, and is at"
        f" {migrations.revisions(now.current)} now",
        "next": next,
    }


def _follow(config: Config, run_id: str, timeout: float | None, echo: BinaryIO | None) -> Result:
    """Wait for the outcome, passing on the log to `echo`; Failure as `outcome` says."""
    place = config.migrations / run_id
    began = time.monotonic()
    deadline = None if timeout is None else began + timeout
    try:
        with (place / "log").open("rb") as log:
            passed_on = _PassedOn(log, echo, _mask(config, run_id)) if echo else None
            while True:
                # Looked at before the log is read, so that the log is complete when it is over.
                over = not is_running(config, run_id)
                if passed_on is not None:
                    passed_on.go_on(last=over)
                if over:
                    break
                if deadline is not None and time.monotonic() >= deadline:
                    raise _going_on(f"the migration of run {run_id} is still running", run_id, UNFINISHED)
                time.sleep(POLL if time.monotonic() < began + 60 else LATER)
    except KeyboardInterrupt:
        raise _going_on("stopped waiting for the migration", run_id, 130) from None
    return _told(config, run_id)


class _PassedOn:
    """A log that is shown while it grows, line by line and without passwords."""

    def __init__(self, log: BinaryIO, echo: BinaryIO, mask: Callable[[str], str]) -> None:
        self._log, self._mask, self._rest = log, mask, b""
        self._echo: BinaryIO | None = echo

    def go_on(self, *, last: bool) -> None:
        """Show what is new; with `last` a line that has no end, too."""
        data = self._rest + self._log.read()
        end = len(data) if last else max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
        self._rest = data[end:]
        if self._echo is None or not end:
            return
        try:
            shown = self._mask(data[:end].decode("utf-8", "surrogateescape"))
            self._echo.write(shown.encode("utf-8", "surrogateescape"))
            self._echo.flush()
        except BrokenPipeError:  # nobody reads it any more, which is no reason to stop waiting
            self._echo = None


def _mask(config: Config, run_id: str) -> Callable[[str], str]:
    started = read_json(config.migrations / run_id / "started.json") or {}
    return masking.of_release(config, started.get("release", ""))


def _going_on(what: str, run_id: str, exit_code: int) -> Failure:
    return Failure(
        what,
        state="the migration goes on by itself",
        next=f"{TOOLS}/migrate outcome {run_id} --timeout 600",
        exit_code=exit_code,
        outcome="running",
    )


def _told(config: Config, run_id: str) -> Result:
    """The outcome of a run that is over."""
    place = config.migrations / run_id
    started = read_json(place / "started.json") or {}
    ended = _ended(config, run_id, started)
    if ended["outcome"] == "unknown":
        raise _unknown(config, run_id, started, ended["reason"])
    if ended["outcome"] == "failed":
        raise _failed(ended, place / "log", _mask(config, run_id))
    now = migrations.revisions(ended["after"])
    did = "nothing was pending"
    if started.get("back"):
        did = f"what run {started['back']} had applied is taken back"
    elif ended["applied"]:
        did = f"{len(ended['applied'])} applied in {ended['seconds']} s"
    return {**ended, "message": f"{did}; the database is at {now}"}


def _ended(config: Config, run_id: str, started: dict[str, Any]) -> dict[str, Any]:
    """The outcome of a run that is over: as its runner told it, otherwise as the database does now.

    What the database tells is kept where it is certain. "unknown" where it isn't.
    """
    path = config.migrations / run_id / "outcome.json"
    ended = read_json(path)
    if ended is not None and ended["after"] is not None:
        return ended
    # The runner died, the database didn't answer, or a session was at work there.
    now = until_its_session_ends(lambda: _look(config, started))
    told = ended or {"answer": None, "seconds": 0.0}
    found = {"ended_at": timestamp(), **told, **judge(started, told["answer"], now)}
    if ended is None and not (found["outcome"] == "applied" or found.get("unchanged")):
        return {**found, "outcome": "unknown", "reason": "the runner died before it could tell"}
    if found["after"] is not None:
        write_json(path, found)
    return found


def _failed(ended: dict[str, Any], log: Path, mask: Callable[[str], str]) -> Failure:
    answer = ended.get("answer") or {}
    if "error" in answer:
        ended = {**ended, "answer": {**answer, "error": mask(answer["error"])}}
    ended = {**ended, "reason": mask(ended["reason"])}
    where = "nobody knows where the database is"
    if ended["after"] is not None:
        where = f"the database says it is at {migrations.revisions(ended['after'])}"
    state, next = f"{where}, as before; nothing was changed", "mend the migration and deploy again"
    if not ended["unchanged"]:
        state, next = f"{where}; the schema may be half changed", f"{log} tells more; {RESOLVE}"
    return Failure(ended["reason"], state=state, next=next, **ended, details=_last_lines(log, mask))


def _unknown(config: Config, run_id: str, started: dict[str, Any], reason: str) -> Failure:
    now, mask = _look(config, started), _mask(config, run_id)
    if not now.known:
        where = now.message
    elif now.state == "current":
        where = f"the database is at {migrations.revisions(now.current)}, which is the target"
    elif sorted(now.current) == sorted(started["before"]):
        where = f"the database is at {migrations.revisions(now.current)}, as it was before"
    else:
        where = f"the database is at {migrations.revisions(now.current)}, between where it was and the target"
    next = RESOLVE
    if now.ours:
        where += (
            f"; but its session {now.ours['id']} is still at work there, since {local(now.ours['since'])}"
        )
        next = f"wait until that session has ended: {TOOLS}/migrate outcome {run_id}"
    return Failure(
        f"nobody knows how the migration of run {run_id} ended: {mask(reason)}",
        state=where,
        next=next,
        session=now.ours,
        exit_code=IN_MAINTENANCE,
        outcome="unknown",
        before=started["before"],
        after=list(now.current) if now.known else None,
        details=_last_lines(config.migrations / run_id / "log", mask),
    )


def _look(config: Config, started: dict[str, Any]) -> Check:
    try:
        return migrations.check(config, started["release"], started["run_id"])
    except Failure as failure:  # the release is gone
        return Check("unknown", message=failure.what)


def _last_lines(log: Path, mask: Callable[[str], str]) -> list[str]:
    return mask(log.read_text(errors="replace")).splitlines()[-LOG_LINES:]
