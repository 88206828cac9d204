"""Past runs, and the one that has just ended, in a few lines. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from deploytools import saga
from deploytools.hostnames import folded
from deploytools.journal import Record, fold, left_out, plan_of, times
from deploytools.probe import Seen
from deploytools.report.text import seconds, shown, table, when
from deploytools.saga import Verdict


def summary(records: Sequence[Record], visitors: Seen | None = None, next_: str | None = None) -> str:
    """A run in a few lines to paste into a chat: what, who, what it cost visitors, what to do `next_`."""
    run = described(records, visitors)
    end = ended(run) if run["verdict"] else "interrupted, and open"
    first = f"{run['operation']} of {run['application']}: {end}{_why(run)}{_change(run)}"
    told = [*facts(records, visitors), ("next", next_ or _next(run, records))]
    return shown("\n".join([first, *(f"  {word:10} {text}" for word, text in told if word != "release")]))


def facts(records: Sequence[Record], visitors: Seen | None = None) -> list[tuple[str, str]]:
    """What is known of a run, each by a word; what nobody measured is told as that."""
    run = described(records, visitors)
    told = [("release", _change(run).lstrip(", "))] if run["release"] else []
    told += [("hosts", folded(run["hosts"]))]
    told += [("left out", ", ".join(left_out(records)))] if left_out(records) else []
    told += [("who", f"{run['by']} on {run['laptop']}")]
    told += [("why", run["reason"])] if run["reason"] else []
    if not run["operation"].startswith("maint-"):
        told += [("downtime", _downtime(run, visitors))]
        if run["migration_seconds"] is not None:
            told += [("migration", seconds(run["migration_seconds"]))]
        lost = f"{visitors.lost} of the probe's {visitors.sent} requests" if visitors else "not measured"
        told += [("lost", lost)]
    elif run["downtime_seconds"] is not None:
        told += [("downtime", f"{seconds(run['downtime_seconds'])} until the last host was proved up")]
    return [*told, ("took", seconds(run["seconds"])), ("run", run["run_id"])]


def _downtime(run: Mapping[str, Any], visitors: Seen | None) -> str:
    told = "not measured as visitors see it"
    if visitors is not None and visitors.downtime is None:
        told = "none seen by the probe"
    elif visitors is not None:
        least = "at least " if visitors.from_start or visitors.to_end else ""
        told = f"{least}{seconds(visitors.downtime)} seen by the probe"
        told += ", and it was not back at the end" if visitors.to_end else ""
    if run["downtime_seconds"] is None:
        return told
    whole = f"{seconds(run['downtime_seconds'])} from the first host told to go down to the last proved up"
    return f"{told}; {whole}" if visitors else f"{whole}; {told}"


def _change(run: Mapping[str, Any]) -> str:
    if not run["release"]:
        return ""
    same = run["from"] == run["release"]
    if run["verdict"] == Verdict.REVERTED.value and not same:
        return f", still on {run['from'] or 'nothing'}, not on {run['release']}"
    return f", on {run['release']}" if same else f", {run['from'] or 'nothing'} -> {run['release']}"


def _why(run: Mapping[str, Any]) -> str:
    return f" ({run['because']})" if run["because"] else ""


def _next(run: Mapping[str, Any], records: Sequence[Record]) -> str:
    """What is left to do where no error says so."""
    if run["operation"] == "maint-down":
        return "fab maint-up ends maintenance"
    plan = plan_of(records)
    down = () if plan.window or run["operation"] == "maint-up" else saga.down_before(plan, fold(records))
    return f"{folded(down)} in maintenance as before: fab maint-up ends that" if down else "nothing"


def ended(run: Mapping[str, Any]) -> str:
    """How a run ended, in words."""
    words = {
        Verdict.DONE.value: "done",
        Verdict.REVERTED.value: "undone",
        Verdict.HELD.value: "holds, and needs the operator",
    }
    return words.get(str(run["verdict"]), "open")


def described(records: Sequence[Record], visitors: Seen | None = None) -> dict[str, Any]:
    """A run as a machine reads it: `fab history --json` is a list of these. `visitors`: what a probe saw."""
    plan, measured = plan_of(records), times(records)
    ends = [record["verdict"] for record in records if record["kind"] == "end"]
    turns = [record["because"] for record in records if record["kind"] == "turn-back"]
    return {
        "run_id": plan.run_id,
        "operation": plan.operation,
        "application": plan.application,
        "release": plan.release,
        "from": next((target.release for target in plan.targets if target.release), None),
        "hosts": list(plan.hosts),
        "by": plan.by,
        "laptop": plan.laptop,
        "reason": plan.reason,
        "started": measured.started,
        "verdict": ends[-1] if ends else None,
        "because": turns[-1] if turns else None,
        "seconds": round((measured.ended or records[-1]["at"]) - measured.started, 3),
        "downtime_seconds": None if measured.downtime is None else round(measured.downtime, 3),
        "migration_seconds": measured.migration,
        "visitors": None if visitors is None else asdict(visitors),
    }


def past(journals: Mapping[str, Sequence[Record]]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Given the records of runs by id, return the runs as `described`; and by id why some can't be."""
    runs, bad = [], {}
    for run_id, records in journals.items():
        try:
            runs.append(described(records))
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            bad[run_id] = f"it is no journal of ours: {error!r}"
    return runs, bad


def history_text(runs: Sequence[Mapping[str, Any]], width: int | None = None) -> str:
    """Past runs, one per line; where they don't fit into `width` characters, one after the other."""
    if not runs:
        return "no runs yet"
    rows = [
        {
            "when": when(run["started"]),
            "what": run["operation"],
            "result": ended(run),
            "release": run["release"],
            "who": run["by"],
            "downtime": seconds(run["downtime_seconds"]),
            "migration": seconds(run["migration_seconds"]),
            "run": run["run_id"],
        }
        for run in runs
    ]
    return table(rows, list(rows[0]), width)


def release_state(item: Mapping[str, Any]) -> str:
    """What a person needs to know of a release on a host: that it serves, served before, or can't be used."""
    told = ["current"] if item["current"] else ["previous"] if item.get("previous") else []
    told += {
        "failed": ["failed"],
        "staged": ["never deployed whole"],
        "damaged": ["damaged: its .deploytools.json can't be read"],
    }.get(str(item.get("state")), [])
    return ", ".join(told)
