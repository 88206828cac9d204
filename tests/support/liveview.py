"""A run that is told to the live view, without hosts: `python -m tests.support.liveview HOSTS LINES`.

Two steps; in the second the first host says LINES lines, the last of them in letters that few encodings have.
"""

from __future__ import annotations

import sys
from dataclasses import replace

from deploytools import journal
from deploytools.plan import Target, downtime_plan
from deploytools.probe import MAINTENANCE, Sample
from deploytools.report.live import LiveReporter
from tests.support.values import BASE, ok, settings


def main(hosts: int, lines: int) -> None:
    names = [f"web{number}.example.com" for number in range(1, hosts + 1)]
    base = replace(BASE, targets=tuple(Target(name, "r1") for name in names), lock_host=names[0])
    plan = downtime_plan(base, settings(hosts=names))
    down = next(step for step in plan.steps if step.name == "maintenance-on")
    migrate = next(step for step in plan.steps if step.name == "migrate")
    reporter = LiveReporter(lambda: journal.Estimate(3, 10.0, 12.0, 20.0, 2.0))
    reporter.begin(plan, [])
    reporter.step(plan, down, names, undo=False)
    reporter.answers(down, {name: ok(message="in maintenance") for name in names}, dict.fromkeys(names, 0.1))
    reporter.sample(Sample(1000.0, 0.012, MAINTENANCE, 503))
    reporter.step(plan, migrate, names[:1], undo=False)
    for number in range(1, lines):
        reporter.line(names[0], f"migrating row {number}")
    reporter.line(names[0], "Привет \x1b[31mred\x1b[2J")
    print("the end is near", file=sys.stdout, flush=True)
    sys.stdin.readline()
    reporter.answers(migrate, {names[0]: ok(message="1 applied")}, {names[0]: 1.0})
    reporter.end()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
