"""The live view: what it says in how much room, and on a real terminal."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pyte
import pytest
from rich.console import Console

from deploytools.journal import Estimate
from deploytools.plan import Plan, Step, Target, downtime_plan, maintenance_plan, rolling_plan
from deploytools.probe import LOST, MAINTENANCE, SITE, Sample
from deploytools.report.live import LiveReporter, View
from tests.support.site import wait_for
from tests.support.values import BASE, ok, settings

HUNDRED = tuple(f"web{number}.example.com" for number in range(1, 101))
BEGAN = 1000.0


def window(hosts: tuple[str, ...] = HUNDRED) -> Plan:
    base = replace(BASE, targets=tuple(Target(host, "r1") for host in hosts), lock_host=hosts[0])
    return downtime_plan(base, settings(hosts=list(hosts)))


def named(plan: Plan, name: str) -> Step:
    return next(step for step in plan.steps if step.name == name)


def at_work(plan: Plan, estimate: Estimate | None = None) -> View:
    """A window that went down after 30 seconds, and migrates since the 40th."""
    view = View(plan, BEGAN, estimate)
    view.begin(named(plan, "maintenance-on"), plan.hosts, BEGAN + 30, undo=False)
    view.answered(named(plan, "maintenance-on"), {host: ok() for host in plan.hosts}, BEGAN + 31)
    view.begin(named(plan, "migrate"), plan.hosts[:1], BEGAN + 40, undo=False)
    return view


def text(view: View, width: int = 200, height: int = 50, after: float = 75) -> str:
    return "\n".join(line for line, _ in view.lines(width, height, BEGAN + after))


def test_a_plan_of_another_laptop_has_nothing_in_it_that_a_terminal_would_obey() -> None:
    plan = window()
    steps = tuple(replace(step, title="\x1b]0;mine\x07gone") for step in plan.steps)
    reporter = LiveReporter(console=Console(file=io.StringIO(), width=80, height=24))

    drawn = reporter.shown(at_work(replace(plan, steps=steps))).renderables

    assert any("gone" in str(line) for line in drawn)
    assert all(str(line).isprintable() for line in drawn)


def test_it_tells_what_is_done_where_how_long_the_site_is_down_what_comes_and_how_to_stop() -> None:
    view = at_work(window(), Estimate(3, 10.0, 12.0, 20.0, 2.0))
    view.sample(Sample(BEGAN, 0.01, SITE, 200))
    view.sample(Sample(BEGAN, 0.012, MAINTENANCE, 503))
    view.tail.append("  web1  | one row")

    assert text(view).splitlines()[1:] == [
        "deploy of guestbook [##################............] 10/16 1:15",
        "now: migrate the schema 0:35",
        "     on web1.example.com",
        "site: DOWN for 0:45, expected 0:12, at most 0:20 lately",
        "visitors: 0 lost, now maintenance, 1 by the site, 1 in maintenance, the last in 12 ms",
        "  web1  | one row",
        "next: activate and hot-swap; verify behind the maintenance page; maintenance off; stop the old"
        " generations; prune old releases; release the lock",
        "Ctrl-C stops after this step; twice stops waiting for it",
    ]


def test_the_clock_of_the_downtime_stops_when_the_last_host_is_up() -> None:
    plan = window(("web1", "web2"))
    view, off = at_work(plan), named(plan, "maintenance-off")

    view.begin(off, ["web1"], BEGAN + 80, undo=False)
    view.answered(off, {"web1": ok()}, BEGAN + 81)
    assert "DOWN for 0:55" in text(view, after=85)
    view.begin(off, ["web2"], BEGAN + 86, undo=False)
    view.answered(off, {"web2": ok()}, BEGAN + 90)

    assert "site: up again, was down for 1:00" in text(view, after=500)


def test_a_site_that_was_down_before_is_down_since_then() -> None:
    before = Target("web1", "r1", down=True, since="1970-01-01T00:10:00Z")
    base = replace(BASE, targets=(before, Target("web2", "r1")), lock_host="web1")
    up = maintenance_plan(base, down=False)
    view = View(up, BEGAN)

    view.begin(named(up, "maintenance-off"), ["web1", "web2"], BEGAN, undo=False)
    assert "site: DOWN for 6:40" in text(view, after=0)
    view.answered(named(up, "maintenance-off"), {"web1": ok(), "web2": ok()}, BEGAN + 1)
    assert "site: up again, was down for 6:41" in text(view)


def test_of_many_hosts_it_tells_who_is_still_at_it() -> None:
    plan = rolling_plan(window(), settings())
    view = View(plan, BEGAN)
    view.begin(named(plan, "stage"), plan.hosts, BEGAN, undo=False)
    view.heard |= set(plan.hosts) - {"web7.example.com", "web8.example.com"}
    view.progress.update({"web7.example.com": 0.25, "web8.example.com": 0.5})

    assert (
        "     25% to 50%, on web7.example.com, web8.example.com (2 of 100 hosts), 98 of 100 hosts are done"
        in text(view)
    )
    assert "site: stays up" in text(view)


def test_what_is_lost_is_told_first_and_what_is_not_measured_is_told_as_that() -> None:
    view = at_work(window())

    assert "visitors: no answer yet" in text(view)
    view.unmeasured = "nothing is served yet"
    assert "visitors: not measured, nothing is served yet" in text(view)
    view.sample(Sample(BEGAN, 0.01, LOST))
    assert "visitors: 1 lost" in text(view)


@pytest.mark.parametrize("height", [6, 10, 24])
@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_it_fits_wherever_it_is_drawn_in_letters_that_every_terminal_has(width: int, height: int) -> None:
    view = at_work(window(), Estimate(3, 10.0, 12.0, 20.0, 2.0))
    view.sample(Sample(BEGAN, 0.01, LOST))
    view.tail.extend(f"  web1  | row {number} of a long, long migration" for number in range(6))

    lines = text(view, width, height).splitlines()

    assert len(lines) <= max(2, height - 4)
    assert max(map(len, lines)) <= width
    assert all(line.isascii() for line in lines)
    assert any("DOWN for 0:45" in line for line in lines)
    assert any(line.startswith("now: ") for line in lines)


def test_a_hundred_hosts_and_a_talkative_migration_cost_next_to_nothing_to_draw() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80, height=24)
    plan, reporter = window(), LiveReporter(console=console)
    reporter.begin(plan, [])
    try:
        began = time.process_time()
        down, migrate = named(plan, "maintenance-on"), named(plan, "migrate")
        reporter.step(plan, down, plan.hosts, undo=False)
        for host in plan.hosts:
            reporter.progress(down, host, 1, 2)
            reporter.heard(down, host)
            console.render_lines(reporter.drawn())
        reporter.answers(down, {host: ok() for host in plan.hosts}, dict.fromkeys(plan.hosts, 0.1))
        reporter.step(plan, migrate, plan.hosts[:1], undo=False)
        for number in range(400):
            reporter.line(plan.hosts[0], f"row {number}")  # each but the last ones draws the view below it
        spent = time.process_time() - began
    finally:
        reporter.end()

    assert "row 399" in out.getvalue()
    # Seconds of the processor for 500 drawings, of which there are four a second; it took 0.15.
    assert spent < 5


class Terminal:
    """A terminal of some size with a program on it, and everything that scrolled out of it."""

    def __init__(self, columns: int, rows: int) -> None:
        self.screen = pyte.HistoryScreen(columns, rows, history=1000)
        self.stream = pyte.ByteStream(self.screen)

    def read(self, descriptor: int) -> bool:
        """Take in what the program has written; False at its end."""
        try:
            data = os.read(descriptor, 65536)
        except OSError:  # what a terminal whose last program has gone says
            return False
        self.stream.feed(data)
        return bool(data)

    @property
    def text(self) -> str:
        width = self.screen.columns
        above = ["".join(line[at].data for at in range(width)) for line in self.screen.history.top]
        return "\n".join(line.rstrip() for line in [*above, *self.screen.display])


@contextmanager
def on_terminal(
    columns: int, rows: int, **environ: str
) -> Iterator[tuple[subprocess.Popen[bytes], int, Terminal]]:
    """tests.support.liveview, with a hundred hosts."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    argv = [sys.executable, "-m", "tests.support.liveview", "100", "60"]
    environ = {**os.environ, "TERM": "xterm", **environ}
    for name in ("COLUMNS", "LINES", "NO_COLOR", "CI", "PYTHONUTF8"):
        environ.pop(name, None)
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=theirs, env=environ
    ) as process:
        os.close(theirs)
        try:
            yield process, ours, Terminal(columns, rows)
        finally:
            process.kill()
            os.close(ours)


@pytest.mark.parametrize(
    ("columns", "rows", "environ"),
    [
        (40, 24, {"LC_ALL": "C"}),
        (80, 24, {"PYTHONIOENCODING": "iso-8859-1"}),
        (120, 40, {"LC_ALL": "C.UTF-8"}),
    ],
)
def test_on_a_terminal_every_line_is_there_once_and_the_view_goes_when_the_run_does(
    columns: int, rows: int, environ: dict[str, str]
) -> None:
    with on_terminal(columns, rows, **environ) as (process, descriptor, terminal):
        wait_for(
            lambda: terminal.read(descriptor) and "row 59" in terminal.text and "now: mig" in terminal.text,
            "the view of the migration",
        )
        while_it_lasts = terminal.text
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.close()
        while terminal.read(descriptor):
            pass
        assert process.wait(60) == 0

    assert "DOWN for" in while_it_lasts
    unbroken = terminal.text.replace("\n", "")
    migrated = re.findall(r"migrating row (\d+)\b", unbroken)
    assert migrated == [str(number) for number in range(1, 60)]
    assert r"red\x1b[2J" in unbroken  # a command to the terminal is shown, not obeyed
    assert "DOWN for" not in terminal.text
    assert "now: " not in terminal.text
