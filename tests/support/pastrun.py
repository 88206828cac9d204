"""A window as its journal and its events have it, made up: for whoever reads those and needs no hosts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from deploytools import journal
from deploytools.commands import Answer
from deploytools.plan import Target, downtime_plan
from deploytools.probe import LOST, MAINTENANCE, SITE
from deploytools.saga import Mark, State, Verdict
from tests.support.values import BASE, settings

BEGAN = 1_790_000_000.0
# How long each step takes on the first host, in seconds; a later host takes a little longer.
TOOK = {"stage": 6.0, "preflight": 1.2, "same-database": 0.8, "migrate": 11.4, "swap": 0.9, "retire": 0.4}
SAYS = {
    "lock": "locked by run run-1",
    "preflight": "50 of 50 checks passed",
    "stage": "release r2 is staged",
    "maintenance-on": "in maintenance, proved by all 4 workers",
    "migrate": "1 applied in 11.3 s; the database is at 0002",
    "swap": "generation 7 (release r2) serves; it was ready in 0.31 s",
    "maintenance-off": "up, proved by all 4 workers",
}


@dataclass
class PastRun:
    """The records and the events of a run.

    Args:
        fails: the step that fails on the last host, and holds the run.
    """

    hosts: Sequence[str] = ("web1.example.com", "web2.example.com", "web3.example.com")
    fails: str | None = None
    records: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    now: float = BEGAN

    def __post_init__(self) -> None:
        targets = tuple(Target(host, "20260920T091500Z-07391399") for host in self.hosts)
        base = replace(
            BASE,
            run_id="20260921T141320Z-5d1e9a",
            targets=targets,
            lock_host=self.hosts[0],
            release="20260921T141310Z-14640da9",
            reason="visitors get a table of <their> own",
        )
        self.plan = downtime_plan(base, settings(hosts=list(self.hosts)))
        self._add(self.records, journal.begin(self.plan))
        down, up = 0.0, 0.0
        for step in self.plan.steps:
            groups: list[Sequence[str]] = [self.plan.hosts_of(step)]
            if step.name == "maintenance-off":
                groups = [self.hosts[:1], self.hosts[1:]]
            for group in groups:
                down = self.now if step.name == "maintenance-on" else down
                held = self._take(step.name, [host for host in group if host in self.hosts])
                up = self.now if step.name == "maintenance-off" else up
                if held:
                    self._visit(down, self.now)
                    return
        self._add(self.records, journal.end(Verdict.DONE))
        self._visit(down, up)

    def _take(self, name: str, hosts: Sequence[str]) -> bool:
        """One step; True where it failed."""
        self._add(self.records, journal.intent(name, hosts, undo=False))
        self._add(self.events, {"event": "step", "step": name})
        begun, took = self.now, TOOK.get(name, 0.15)
        if name == "migrate":
            for row in range(1, 40):
                self.now = begun + took * row / 40
                text = f"INFO alembic.runtime.migration: visitors: {row * 25000} of 1000000 rows, batch {row}"
                self._add(self.events, {"event": "line", "host": hosts[0], "text": text})
        failed = self.fails == name
        slowest = 0.0
        for number, host in enumerate(hosts):
            last = failed and number == len(hosts) - 1
            state = State.FAILED if last else State.OK
            error = {"what": "the new process was not healthy in 30 s"} if last else {}
            slowest = took * (1 + 0.05 * (number % 5))
            answer = Answer(
                Mark(state, {"message": SAYS.get(name, "done"), "seconds": took}), error, 3 if last else 0
            )
            self.now = begun + slowest
            self._add(self.records, journal.outcome(name, host, answer, undo=False, seconds=slowest))
        self.now += 0.05
        if failed:
            self._add(self.records, journal.end(Verdict.HELD))
        return failed

    def _visit(self, down: float, up: float) -> None:
        for number in range(int((self.now - BEGAN) * 4)):
            at = BEGAN + number / 4
            kind, status = (MAINTENANCE, 503) if down <= at < up else (SITE, 200)
            if number == 20:
                kind, status = LOST, 502
            self.events.append(
                {"event": "sample", "at": at, "seconds": 0.02, "kind": kind, "status": status, "why": ""}
            )

    def _add(self, where: list[dict[str, Any]], what: Any) -> None:
        where.append({"at": round(self.now, 3), **what})
