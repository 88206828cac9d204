"""One run as one self-contained HTML page: `fab report`. Pure, but for reading the template beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from deploytools import __version__, plan
from deploytools.hostnames import FEW, names
from deploytools.journal import Record, plan_of
from deploytools.probe import KINDS, Sample, seen
from deploytools.report.events import samples
from deploytools.report.runs import described, ended, facts
from deploytools.report.text import clean, seconds, when
from deploytools.saga import State

# What a step is for, which decides its colour; the rest is "after".
PHASES = {
    "look": ("lock", "compare", "preflight", "check-migrations", "same-database"),
    "ship": ("stage", "arm"),
    "down": ("maintenance-on", "quiesce", "drain"),
    "data": ("backup", "migrate"),
    "swap": ("swap", "swap-back", "verify"),
    "up": ("maintenance-off",),
}
LEGEND = {
    "look": "looks",
    "ship": "ships",
    "down": "takes the site down",
    "data": "backs up, migrates",
    "swap": "swaps and verifies",
    "up": "lets visitors in",
    "after": "tidies up",
    "undo": "undoes",
    "bad": "failed or unknown",
}
# The chart has at most so many columns.
COLUMNS = 240


@dataclass(frozen=True)
class Bar:
    """A step on a host: when it began and ended, in seconds since the run did."""

    step: str
    phase: str
    begin: float
    end: float
    state: str
    message: str


@dataclass(frozen=True)
class Line:
    """A step on all of its hosts, as a row of the table."""

    title: str
    hosts: str
    at: float
    took: str
    state: str
    message: str


@dataclass(frozen=True)
class Column:
    """Some seconds of the chart: `at` since the run began, and answers per second of each kind."""

    at: float
    width: float
    counts: Mapping[str, float]


def page(records: Sequence[Record], events: Sequence[Mapping[str, Any]] = ()) -> str:
    """Given a run's journal and the events that this computer kept of it, return the page."""
    whole = plan_of(records[:1])
    got = samples(events)
    run, visitors = described(records, seen(got)), seen(got)
    began = records[0]["at"]
    end = max([record["at"] for record in records] + [sample.at + sample.seconds for sample in got])
    span = max(end - began, 0.001)
    bars, columns = timeline(records), chart(got, began, span)
    environment = Environment(
        loader=PackageLoader("deploytools", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["share"] = lambda at: f"{100 * max(0.0, at) / span:.3f}%"
    environment.filters["seconds"] = seconds
    environment.filters["clock"] = when
    environment.filters["mark"] = lambda at: f"{at:g} s" if at < 60 else seconds(at)
    return environment.get_template("page.html").render(
        version=__version__,
        run=run,
        ended=ended(run),
        facts=facts(records, visitors),
        began=began,
        span=span,
        ticks=ticks(span),
        rows=rows(bars, whole.hosts),
        down=downtimes(records),
        legend={
            phase: LEGEND[phase]
            for phase in LEGEND
            if any(bar.phase == phase for each in bars.values() for bar in each)
        },
        lines=lines(records, whole),
        visitors=visitors,
        chart=columns,
        most=max((sum(column.counts.values()) for column in columns), default=0.0),
        kinds=KINDS,
        log=log(records, events),
        notes=[
            (event["at"] - began, clean(str(event["text"])))
            for event in events
            if event["event"] == "note" and event["at"] <= end + 1
        ],
        plan="\n".join(plan.describe(whole)),
    )


def timeline(records: Sequence[Record]) -> dict[str, list[Bar]]:
    """What each host was at work on, in its order. What has no outcome lasts until the next record."""
    began = records[0]["at"]
    bars: dict[str, list[Bar]] = {}
    for number, record in enumerate(records):
        if record["kind"] != "intent":
            continue
        outcomes = _outcomes(records[number + 1 :], record)
        after = records[min(number + 1, len(records) - 1)]["at"]
        for host in record["hosts"]:
            outcome = outcomes.get(host)
            state = outcome["state"] if outcome else State.INTENDED.value
            begin = record["at"] - began
            bars.setdefault(host, []).append(
                Bar(
                    step=record["step"],
                    phase=_phase(record, state),
                    begin=begin,
                    end=begin + outcome["seconds"] if outcome else after - began,
                    state=state,
                    message=_message(outcome),
                )
            )
    return bars


def rows(bars: Mapping[str, Sequence[Bar]], order: Sequence[str]) -> list[tuple[str, list[Bar]]]:
    """A row per host; of more than FEW, one for all on which it went alike, drawn as the slowest."""
    every = [*order, *(host for host in bars if host not in order)]
    groups: dict[Any, list[str]] = {}
    for host in every:
        if host in bars:
            alike = tuple((bar.step, bar.phase, bar.state) for bar in bars[host])
            groups.setdefault(alike if len(every) > FEW else host, []).append(host)
    return [
        (
            names(hosts, every),
            [_slowest([bars[host][at] for host in hosts]) for at in range(len(bars[hosts[0]]))],
        )
        for hosts in groups.values()
    ]


def _slowest(bars: Sequence[Bar]) -> Bar:
    return max(bars, key=lambda bar: bar.end)


def lines(records: Sequence[Record], whole: plan.Plan) -> list[Line]:
    """The steps as a table: one row for each time that one was taken."""
    began, every = records[0]["at"], [*whole.hosts, whole.lock_host]
    titles = {step.name: step for step in whole.steps}
    table = []
    for number, record in enumerate(records):
        if record["kind"] != "intent":
            continue
        outcomes = _outcomes(records[number + 1 :], record)
        step = titles.get(record["step"])
        title = (step.undo if record["undo"] and step.undo else step.title) if step else record["step"]
        bad = [one for one in outcomes.values() if one["state"] != State.OK.value]
        silent = [host for host in record["hosts"] if host not in outcomes]
        took = [one["seconds"] for one in outcomes.values()]
        shown = (bad or list(outcomes.values()))[:1]
        message = _message(shown[0]) if shown else "no answer is on record"
        if bad and len(record["hosts"]) > 1:
            message = f"{names([one['host'] for one in bad], every)}: {message}"
        table.append(
            Line(
                title=f"undo: {title}" if record["undo"] else title,
                hosts=names(record["hosts"], list(dict.fromkeys(every))),
                at=record["at"] - began,
                took=seconds(max(took)) if took else "",
                state=bad[0]["state"] if bad else State.INTENDED.value if silent else State.OK.value,
                message=message,
            )
        )
    return table


def downtimes(records: Sequence[Record]) -> list[tuple[float, float]]:
    """When the site was in maintenance by this run: from the first host told to go down to the last up."""
    began = records[0]["at"]
    downs = [one["at"] for one in records if _is(one, "intent", "maintenance-on", undo=False)]
    ups = [
        one["at"]
        for one in records
        if _is(one, "outcome", "maintenance-off", undo=False)
        or _is(one, "outcome", "maintenance-on", undo=True)
    ]
    if not downs:
        return []
    return [(min(downs) - began, (max(ups) if ups else records[-1]["at"]) - began)]


def chart(got: Sequence[Sample], began: float, span: float) -> list[Column]:
    """What visitors got per second, in at most COLUMNS columns; empty where nothing was measured."""
    if not any(sample.status for sample in got):
        return []
    width = max(1, -(-int(span + 1) // COLUMNS))
    columns: dict[int, dict[str, float]] = {}
    for sample in got:
        at = int(max(0.0, sample.at - began)) // width * width
        columns.setdefault(at, dict.fromkeys(KINDS, 0.0))[sample.kind] += 1 / width
    return [Column(float(at), float(width), counts) for at, counts in sorted(columns.items())]


def log(records: Sequence[Record], events: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the migration said, as this computer heard it; otherwise its end, as the journal has it."""
    heard, step = [], ""
    for event in events:
        step = event["step"] if event["event"] == "step" else step
        if event["event"] == "line" and step == "migrate":
            heard.append(clean(str(event["text"])))
    if heard:
        return heard
    outcomes = [one for one in records if one["kind"] == "outcome" and one["step"] == "migrate"]
    return [clean(str(line)) for one in outcomes for line in one["value"].get("details", ())]


def ticks(span: float) -> list[float]:
    """Where the axis of time has its marks, in seconds: at most seven, at round figures."""
    for each in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 43200):
        if span / each <= 6:
            marks = [each * number for number in range(int(span / each) + 1)]
            return [
                mark for mark in marks if mark <= 0.94 * span
            ]  # further on there is no room for its label
    return [0.0, span]


def _is(record: Record, kind: str, step: str, *, undo: bool) -> bool:
    return (record["kind"], record.get("step"), record.get("undo")) == (kind, step, undo)


def _outcomes(after: Sequence[Record], intent: Record) -> dict[str, Record]:
    """By host, what came of an intent: the outcomes before the next one."""
    found: dict[str, Record] = {}
    for record in after:
        if record["kind"] == "intent":
            break
        if _is(record, "outcome", intent["step"], undo=intent["undo"]):
            found[record["host"]] = record
    return found


def _phase(intent: Record, state: str) -> str:
    if state != State.OK.value:
        return "bad"
    if intent["undo"]:
        return "undo"
    return next((phase for phase, steps in PHASES.items() if intent["step"] in steps), "after")


def _message(outcome: Record | None) -> str:
    if outcome is None:
        return "no answer is on record"
    said = outcome["error"].get("what") or outcome["value"].get("message") or "done"
    return clean(str(said).replace("\n", "; "))
