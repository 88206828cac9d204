"""The memory of a run: append-only JSON lines, fsynced, kept on the lock host and mirrored on the laptop.

fold() turns records back into Progress: that, and the plan in the first record, is all that another
laptop needs to go on with a run or to back out of it.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from deploytools.commands import Answer
from deploytools.plan import Plan, step_names
from deploytools.saga import Mark, Progress, State, Verdict
from deploytools.settings import Hooks

Record = Mapping[str, Any]
# How many runs that are over this computer remembers; the lock host as many (hostlib.runs.journals).
KEEP = 200
# Puts lines on the lock host, at position `expect` (the number of lines that are there already).
Store = Callable[[Sequence[str], int], None]
# Which hook a step runs, and which one its compensation does.
_HOOKS = {
    ("quiesce", False): "quiesce",
    ("quiesce", True): "resume",
    ("backup", False): "backup",
    ("resume-workers", False): "resume",
}


def begin(plan: Plan) -> Record:
    return {"kind": "begin", "plan": asdict(plan)}


def intent(step: str, hosts: Sequence[str], *, undo: bool) -> Record:
    return {"kind": "intent", "step": step, "hosts": list(hosts), "undo": undo}


def outcome(step: str, host: str, answer: Answer, *, undo: bool, seconds: float) -> Record:
    return {
        "kind": "outcome",
        "step": step,
        "host": host,
        "undo": undo,
        "state": answer.mark.state.value,
        "value": dict(answer.mark.value),
        "error": dict(answer.error),
        "exit_code": answer.exit_code,
        "seconds": round(seconds, 3),
    }


def turn_back(because: str) -> Record:
    return {"kind": "turn-back", "because": because}


def resumed(by: str, laptop: str, without: Sequence[str] = ()) -> Record:
    """Somebody goes on with the run, for good `without` these hosts."""
    return {"kind": "resumed", "by": by, "laptop": laptop, "without": list(without)}


def interrupted() -> Record:
    return {"kind": "interrupted"}


def end(verdict: Verdict) -> Record:
    return {"kind": "end", "verdict": verdict.value}


def fold(records: Iterable[Record]) -> Progress:
    """Given a run's records, return how far it came."""
    progress = Progress()
    for record in records:
        progress = advance(progress, record)
    return progress


def advance(progress: Progress, record: Record) -> Progress:
    """Given the progress so far and one more record, return the progress after it."""
    match record["kind"]:
        case "intent":
            for host in record["hosts"]:
                progress = progress.with_mark(record["step"], host, Mark(State.INTENDED), undo=record["undo"])
        case "outcome":
            mark = Mark(State(record["state"]), record["value"])
            progress = progress.with_mark(record["step"], record["host"], mark, undo=record["undo"])
        case "turn-back":
            progress = replace(progress, reverting=True, because=record["because"])
        case "resumed":
            progress = progress.forget_failures()
        case "end":
            progress = replace(progress, verdict=Verdict(record["verdict"]))
    return progress


def plan_of(records: Sequence[Record]) -> Plan:
    """Given a run's records, return the plan it follows, for the hosts that it wasn't resumed without.

    Raises ValueError where the first isn't one.
    """
    from pydantic import TypeAdapter

    if not records or records[0]["kind"] != "begin":
        raise ValueError("a journal begins with its plan")
    plan = TypeAdapter(Plan).validate_python(records[0]["plan"])
    gone = left_out(records)
    return replace(plan, targets=tuple(target for target in plan.targets if target.host not in gone))


def check(records: Sequence[Record]) -> None:
    """Raise ValueError where this version can't go on with these records, or tell of them."""
    from pydantic import ValidationError

    try:
        plan, fields = plan_of(records), {field.name for field in dataclasses.fields(Plan)}
        more = {*records[0]["plan"]} - fields | {step.name for step in plan.steps} - step_names()
        if more:
            raise ValueError(f"unknown: {', '.join(sorted(more))}")
        fold(records)
        times(records)
    except ValidationError as error:
        wrong = (f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise ValueError("; ".join(wrong)) from error
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(repr(error)) from error


def left_out(records: Sequence[Record]) -> tuple[str, ...]:
    """Given a run's records, return the hosts that it was resumed without."""
    named = (host for record in records if record["kind"] == "resumed" for host in record.get("without", ()))
    return tuple(dict.fromkeys(named))


def hooks(records: Sequence[Record], now: Hooks) -> Hooks:
    """Given a run's records, and the hooks of this checkout, return those that the run goes on with.

    They are those that it was begun with, whatever the checkout has, but for one that has failed in it: that
    may have been mended. `notify` is this computer's own.
    """
    planned = plan_of(records).hooks
    if planned is None:  # begun by an older version
        return now
    failed = {
        _HOOKS.get((record["step"], record["undo"]))
        for record in records
        if record["kind"] == "outcome" and record["state"] == State.FAILED.value
    }
    return replace(planned, notify=now.notify, **{name: getattr(now, name) for name in failed if name})


def latest_elsewhere(runs: Iterable[Sequence[Record]], hosts: Container[str]) -> Plan | None:
    """Given runs, newest first, return the deploy that brought what others than `hosts` run, if known."""
    done = [records for records in runs if records and fold(records[-1:]).verdict is Verdict.DONE]
    plans = [plan_of(records) for records in done if records[0]["kind"] == "begin"]
    serving = next((plan.release for plan in plans if plan.release and not _only_on(plan, hosts)), None)
    return next((plan for plan in plans if plan.digest and plan.release == serving), None)


def _only_on(plan: Plan, hosts: Container[str]) -> bool:
    return all(host in hosts for host in plan.hosts)


@dataclass
class Journal:
    """Where the records of one run go.

    An append is on the laptop's disk when it returns, and on the lock host's after the next flush():
    so the outcome of one step and the intent of the next share a round trip.

    Args:
        mirror: the file on the laptop.
        clock: seconds since the epoch.
        records: what is there already, where a run is resumed.
        stored: how many of them the lock host has.
        mirrored: False once the laptop's disk has failed.
    """

    mirror: Path
    clock: Callable[[], float]
    records: list[Record] = field(default_factory=list)
    store: Store | None = None
    stored: int = 0
    mirrored: bool = True

    def append(self, *records: Record) -> None:
        """Write `records` to the mirror, fsynced. Raises OSError, and has added none then."""
        stamped = [{"at": round(self.clock(), 3), **record} for record in records]
        if self.mirrored:
            self.mirror.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # What was begun on another laptop is copied whole.
            whole = stamped if self.mirror.exists() else [*self.records, *stamped]
            with self.mirror.open("a") as file:
                file.writelines(_line(record) + "\n" for record in whole)
                file.flush()
                os.fsync(file.fileno())
        self.records += stamped

    def without_mirror(self, *records: Record) -> None:
        """As `append`, from now on without the laptop's disk, which failed."""
        self.mirrored = False
        self.append(*records)

    def flush(self) -> None:
        """Give the lock host what it doesn't have yet, in one round trip. Raises what `store` raises."""
        if self.store is not None and self.stored < len(self.records):
            count = len(self.records)  # another thread may append meanwhile
            self.store([_line(record) for record in self.records[self.stored : count]], self.stored)
            self.stored = count

    def unstored(self) -> list[str]:
        """The lines that the lock host doesn't have yet."""
        return [_line(record) for record in self.records[self.stored :]]


def prune(directory: Path, keep: int = KEEP) -> list[str]:
    """Remove the copies of journals, and the events, of runs that are over, but for the newest `keep`.

    Returns their runs. Raises OSError. What was begun and not ended, or is held, stays.
    """
    copies = sorted(directory.glob("*.jsonl"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    removed = []
    for copy in copies[keep:]:
        if _is_over(copy):
            for file in (copy.with_suffix(".events"), copy):
                file.unlink(missing_ok=True)
            removed.append(copy.stem)
    return removed


def _is_over(copy: Path) -> bool:
    last = copy.read_bytes().rstrip(b"\n").rpartition(b"\n")[2]
    try:
        record = json.loads(last)
        return bool(record["kind"] == "end" and record["verdict"] != Verdict.HELD.value)
    except (ValueError, KeyError, TypeError):  # cut off
        return False


def _line(record: Record) -> str:
    return json.dumps(record, sort_keys=True, separators=(",", ":"))


@dataclass(frozen=True)
class Times:
    """What a run measured of itself, in seconds; None where it did not come to that."""

    started: float
    ended: float | None
    downtime: float | None
    migration: float | None


@dataclass(frozen=True)
class Estimate:
    """What past windows make expect, in seconds: how long the site is down, the migration and `beyond`."""

    windows: int
    least: float
    median: float
    most: float
    beyond: float

    def __str__(self) -> str:
        if self.windows == 1:
            return f"down for about {self.median:.1f} s, as in the last window"
        return (
            f"down for about {self.median:.1f} s, as in the last {self.windows} windows"
            f" ({self.least:.1f} to {self.most:.1f} s, of which {self.beyond:.1f} s beside the migration)"
        )


def estimate(runs: Iterable[Sequence[Record]], count: int = 5) -> Estimate | None:
    """Given the records of past runs, the newest first, return what the last windows make expect, if any.

    Windows that were held or interrupted, or were open before, don't count: a person's time is in those.
    """
    found: list[Times] = []
    for records in runs:
        ends = [record["verdict"] for record in records if record["kind"] == "end"]
        alone = not any(record["kind"] == "resumed" for record in records)
        plan = plan_of(records)
        if ends == [Verdict.DONE.value] and alone and plan.window and not plan.down_before:
            measured = times(records)
            found += [measured] if measured.downtime is not None else []
    downs = [one.downtime for one in found[:count] if one.downtime is not None]
    if not downs:
        return None
    beyond = [(one.downtime or 0.0) - (one.migration or 0.0) for one in found[:count]]
    return Estimate(len(downs), min(downs), median(downs), max(downs), median(beyond))


def times(records: Sequence[Record]) -> Times:
    """Given a run's records, return its times.

    Downtime runs from the moment the first host was told to go down until the last was proved up
    again: an upper bound of what a visitor could see. Of hosts that were down before the run began it is
    what they tell themselves, to the second, where that is longer.
    """

    def moments(kind: str, step: str, undo: bool) -> list[float]:
        return [
            record["at"]
            for record in records
            if (record["kind"], record.get("step"), record.get("undo")) == (kind, step, undo)
        ]

    downs = moments("intent", "maintenance-on", False)
    ups = moments("outcome", "maintenance-off", False) + moments("outcome", "maintenance-on", True)
    open_before = {target["host"] for target in records[0]["plan"]["targets"] if target["down"]}
    lasted = [
        float(record["value"]["lasted"])
        for record in records
        if (record["kind"], record.get("step"), record.get("undo")) == ("outcome", "maintenance-off", False)
        and record["host"] in open_before
        and record["value"].get("lasted") is not None
    ]
    if ups and downs:
        lasted.append(max(ups) - min(downs))
    migration = [
        record["value"]["seconds"]
        for record in records
        if record["kind"] == "outcome" and record["step"] == "migrate" and "seconds" in record["value"]
    ]
    ended = [record["at"] for record in records if record["kind"] == "end"]
    return Times(
        started=records[0]["at"],
        ended=ended[-1] if ended else None,
        downtime=max(lasted, default=None),
        migration=migration[-1] if migration else None,
    )
