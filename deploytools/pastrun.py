"""One past run, as the lock host and this computer remember it: its journal, and what was seen from here."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from deploytools import operation, survey
from deploytools.errors import Unreachable, UsageError
from deploytools.fleet import Fleet
from deploytools.journal import Record
from deploytools.report import events
from deploytools.settings import Settings


def read(
    fleet: Fleet, settings: Settings, run_id: str | None, note: Callable[[str], None]
) -> tuple[list[Record], list[Mapping[str, Any]]]:
    """Return the records and the events of a run, the newest one where none is named.

    The events are those that this computer kept: none, where the run was started from another. Where the lock
    host is away, or lacks the end of the journal, this computer's copy stands in. Raises UsageError where
    there is no such run, Unreachable where nobody can be asked.
    """
    try:
        records = _newest(fleet, settings) if run_id is None else _told(fleet, settings, run_id)
    except Unreachable as error:
        records = _copy(run_id) if run_id else []
        if not records:
            raise
        note(f"{error.what}; this is told from the copy on this computer")
    survey.readable(records, run_id or "the newest", str(settings.lock_host))
    run_id = str(records[0]["plan"]["run_id"])
    records = max(records, _copy(run_id), key=len)
    kept = events.read(events.events_file(operation.journals(), run_id))
    if lacking := _lacking(records, kept):
        note(lacking)
    return records, list(kept)


def _lacking(records: Sequence[Record], kept: Sequence[Mapping[str, Any]]) -> str | None:
    """What to say where this computer hasn't seen all of a run, which begins where it is worked on."""
    laptops = [str(records[0]["plan"]["laptop"])]
    laptops += [str(record["laptop"]) for record in records if record["kind"] == "resumed"]
    if sum(event["event"] == "begin" for event in kept) >= len(laptops):
        return None
    has = "only a part" if kept else "none"
    return (
        f"this computer has {has} of what visitors got and programs said; the rest is where it was worked"
        f" on: {', '.join(dict.fromkeys(laptops))}. The page is from the journal"
    )


def _told(fleet: Fleet, settings: Settings, run_id: str) -> list[Record]:
    try:
        return list(survey.ask_one(fleet, settings, "journal", "read", run_id)["records"])
    except UsageError as error:
        if records := _copy(run_id):  # of a run that ended before it had the lock
            return records
        raise UsageError(
            f"there is no run {run_id}",
            where=str(settings.lock_host),
            state="nothing was changed",
            next="fab history lists them",
        ) from error


def _newest(fleet: Fleet, settings: Settings) -> list[Record]:
    runs, _ = survey.past_runs(fleet, settings, last=1)
    if not runs:
        raise UsageError("there is no run yet", state="nothing was changed", next="fab deploy")
    return next(iter(runs.values()))


def _copy(run_id: str) -> list[Record]:
    """This computer's copy of a journal, if it has its beginning; a line that was cut off ends it."""
    records: list[Record] = []
    with suppress(OSError, ValueError), (operation.journals() / f"{run_id}.jsonl").open() as lines:
        for line in lines:
            records.append(json.loads(line))
    return records if records and records[0].get("kind") == "begin" else []
