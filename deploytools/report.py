"""What a person sees: progress on stderr, the result on stdout. What a machine reads: --json."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TextIO

from deploytools import __version__
from deploytools.commands import Answer
from deploytools.errors import DeployError
from deploytools.hostnames import names
from deploytools.journal import Record, left_out, plan_of, times
from deploytools.plan import Plan, Scope, Step
from deploytools.saga import State
from deploytools.settings import Settings
from deploytools.setup.command import Work


@dataclass
class PlainReporter:
    """One line per step and one per host: fit for a terminal, a log file and CI alike."""

    out: TextIO
    width: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def step(self, plan: Plan, step: Step, hosts: Sequence[str], *, undo: bool) -> None:
        self.width = max(len(host) for host in plan.hosts)
        title = step.undo if undo and step.undo else step.title
        number = "undo" if undo else f"{plan.steps.index(step) + 1}/{len(plan.steps)}"
        where = f" ({', '.join(hosts)})" if step.scope in (Scope.ROLLING, Scope.ONE_FIRST) else ""
        self._say(f"[{number}] {title}{where}")

    def answer(self, step: Step, host: str, answer: Answer, seconds: float) -> None:
        state = answer.mark.state
        said = answer.error.get("what") or answer.mark.value.get("message") or "done"
        word = "" if state is State.OK else f"{state.value.upper()}: "
        self._say(f"  {host:{self.width}}  {word}{said} ({seconds:.1f} s)")
        for line in answer.mark.value.get("details", ()):  # of `swap`: what the application printed
            self.line(host, line)

    def line(self, host: str, text: str) -> None:
        self._say(f"  {host:{self.width}}  | {text.rstrip()}")

    def note(self, text: str) -> None:
        self._say(f"  {text}")

    def _say(self, text: str) -> None:
        with self._lock:
            print(text, file=self.out, flush=True)


def error_text(error: DeployError) -> str:
    """The five questions of every failure: what, where, details, state, next."""
    lines = [f"error: {error.what}"]
    if error.where:
        lines.append(f"  where: {error.where}")
    lines += [f"    {line}" for line in error.details]
    if error.state:
        lines.append(f"  state: {error.state}")
    if error.next:
        lines.append(f"  next:  {error.next}")
    return "\n".join(lines)


def summary(records: Sequence[Record]) -> str:
    """A finished run in a few lines that can be pasted into a chat."""
    run = described(records)
    first = f"{run['operation']} of {run['application']}: {run['verdict'] or 'open'}"
    if run["release"]:
        first += f", {run['from'] or 'nothing'} -> {run['release']}"
    lines = [first, f"  hosts      {', '.join(run['hosts'])}"]
    if run["downtime_seconds"] is not None:
        lines.append(
            f"  downtime   {run['downtime_seconds']:.1f} s,"
            " from the first host told to go down to the last proved up"
        )
    if run["migration_seconds"] is not None:
        lines.append(f"  migration  {run['migration_seconds']:.1f} s")
    if left_out(records):
        lines.append(f"  left out   {', '.join(left_out(records))}")
    lines.append(f"  run        {run['run_id']} by {run['by']}, {run['seconds']:.1f} s")
    return "\n".join(lines)


def described(records: Sequence[Record]) -> dict[str, Any]:
    """A run as a machine reads it: `fab history --json` is a list of these."""
    plan, measured = plan_of(records), times(records)
    ends = [record["verdict"] for record in records if record["kind"] == "end"]
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
        "seconds": round((measured.ended or records[-1]["at"]) - measured.started, 3),
        "downtime_seconds": None if measured.downtime is None else round(measured.downtime, 3),
        "migration_seconds": measured.migration,
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


def alike(works: Mapping[str, Work]) -> list[tuple[str, Work]]:
    """Hosts on which set-up changes the same, as one name each, in their order: a hundred are read as one."""
    groups: list[tuple[list[str], Work]] = []
    for host, work in works.items():
        same = next((hosts for hosts, other in groups if other == work), None)
        if same is None:
            groups.append(([host], work))
        else:
            same.append(host)
    return [(names(hosts, list(works)), work) for hosts, work in groups]


def setup_text(host: str, work: Work, settings: Settings, *, diffs: bool, removal: bool = False) -> str:
    """What set-up changes on a host: our own programs as a number, all else by name; with `diffs` in full.

    Programs on a host that had none have no diff: they are what this toolkit ships.
    """
    if not work.changes:
        nothing = f"nothing of {settings.application} is there" if removal else "nothing to change"
        return "\n".join([f"{host}: {nothing}", *(f"  {note}" for note in work.notes)])
    lines, programs = [], 0
    for change in work.changes:
        programs += change["program"]
        shown = diffs and change["diff"] if change["program"] else True
        if shown:
            lines.append(f"  {change['what']}: {change['path']}")
            lines += [f"    {line}" for line in change["diff"].splitlines() if diffs]
    if programs:
        lines.insert(0, f"  deploytools {__version__}: {programs} files in {settings.tools_dir}")
    return "\n".join([f"{host}:", *lines, *(f"  note: {note}" for note in work.notes)])


def history_text(runs: Sequence[Mapping[str, Any]]) -> str:
    """Past runs, one per line."""
    if not runs:
        return "no runs yet"
    rows = [
        {
            "when": when(run["started"]),
            "operation": run["operation"],
            "release": run["release"],
            "by": run["by"],
            "result": run["verdict"] or "open",
            "downtime": _seconds(run["downtime_seconds"]),
            "migration": _seconds(run["migration_seconds"]),
            "run": run["run_id"],
        }
        for run in runs
    ]
    return table(rows, list(rows[0]))


def release_state(item: Mapping[str, Any]) -> str:
    """What a person needs to know of a release on a host: that it serves, served before, or failed."""
    told = ["current"] if item["current"] else ["previous"] if item.get("previous") else []
    told += {"failed": ["failed"], "staged": ["never deployed whole"]}.get(str(item.get("state")), [])
    return ", ".join(told)


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Rows as aligned text under their column names; None and "" show as a dash."""
    cells = [list(columns)] + [[_cell(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(row[index]) for row in cells) for index in range(len(columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )


def when(seconds: float) -> str:
    """Seconds since the epoch in the reader's own time zone."""
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _seconds(value: float | None) -> str | None:
    return None if value is None else f"{value:.1f} s"


def _cell(value: object) -> str:
    return "-" if value in (None, "") else str(value)
