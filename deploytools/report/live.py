"""The live view on a terminal: below what PlainReporter prints, where the run stands right now.

Nothing that is printed gets lost: it scrolls above. Only what a program says at this moment, a migration say,
is held back in the view as the end of its log, and printed above as soon as more follows or the step is over.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from deploytools.commands import Answer
from deploytools.hostnames import names
from deploytools.journal import Estimate, Record
from deploytools.plan import Plan, Step
from deploytools.probe import LOST, MAINTENANCE, SITE, Sample
from deploytools.report.plain import PlainReporter
from deploytools.report.text import clean
from deploytools.saga import State

# How many lines of a log are held back, and how often a second the view is drawn.
TAIL, DRAWN = 6, 4
# So many lines of the terminal are left to what was printed.
LEFT = 4

DOWN, GOOD, BAD, FAINT = "bold yellow", "green", "bold red", "dim"
KINDS = {SITE: "the site", MAINTENANCE: "maintenance", LOST: "an error"}
HOW_TO_STOP = "Ctrl-C stops after this step; twice stops waiting for it"

# A line of the view: what it says, and in which of rich's styles.
Line = tuple[str, str]


@dataclass
class View:
    """Where a run stands. Times are seconds since the epoch.

    Args:
        down_since, down_until: from when the first host was down, or told to go down, until the last was up
            again.
        unmeasured: why nobody measures what visitors get, if nobody does.
    """

    plan: Plan
    began: float
    estimate: Estimate | None = None
    step: Step | None = None
    undo: bool = False
    step_began: float = 0.0
    hosts: tuple[str, ...] = ()
    heard: set[str] = field(default_factory=set)
    progress: dict[str, float] = field(default_factory=dict)
    down_since: float | None = None
    down_until: float | None = None
    up: set[str] = field(default_factory=set)
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys((SITE, MAINTENANCE, LOST), 0))
    latest: Sample | None = None
    unmeasured: str | None = None
    tail: deque[str] = field(default_factory=deque)

    def __post_init__(self) -> None:
        before = [target.since for target in self.plan.targets if target.down and target.since]
        if before:
            self.down_since = datetime.fromisoformat(min(before).replace("Z", "+00:00")).timestamp()

    def begin(self, step: Step, hosts: Sequence[str], now: float, *, undo: bool) -> None:
        """A step begins."""
        self.step, self.hosts, self.undo, self.step_began = step, tuple(hosts), undo, now
        self.heard, self.progress = set(), {}
        if step.name == "maintenance-on" and not undo and self.down_since is None:
            self.down_since = now

    def answered(self, step: Step, answers: Mapping[str, Answer], now: float) -> None:
        """All hosts are done with it."""
        if step.name == "maintenance-off" or (step.name == "maintenance-on" and self.undo):
            self.up |= {host for host, answer in answers.items() if answer.mark.state is State.OK}
        if self.down_since is not None and self.up >= set(self.plan.hosts):
            self.down_until = self.down_until or now

    def sample(self, sample: Sample) -> None:
        """A visitor got this."""
        self.counts[sample.kind] += 1
        self.latest = sample

    def lines(self, width: int, height: int, now: float) -> list[Line]:
        """What to show of it in so many characters a line, and so many lines."""
        head = [(self._head(width, now), "bold")]
        step = [(self._doing(width, now), "")] if self.step else []
        where = [(text, FAINT) for text in (self._where(width),) if text]
        down = [self._down(width, now)]
        visitors = [self._visitors(width)]
        ahead = [(text, FAINT) for text in (self._ahead(width),) if text]
        stop = [
            (
                _fit([HOW_TO_STOP] if len(HOW_TO_STOP) <= width else ["Ctrl-C: stop after this step"], width),
                FAINT,
            )
        ]
        # What goes first where there is no room: the end of the log, then what comes next, then the head.
        rule = [("-" * min(width, 72), FAINT)]
        fixed = [rule, step, where, down, visitors, ahead, stop, head]
        room = max(0, height - LEFT - sum(map(len, fixed)))
        tail = [(_cut(text, width), "") for text in list(self.tail)[-room:]] if room else []
        shown = [*rule, *head, *step, *where, *down, *visitors, *tail, *ahead, *stop]
        for part in (rule, ahead, head, visitors, where, stop):
            if len(shown) > max(2, height - LEFT):
                shown = [line for line in shown if line not in part]
        return shown

    def _head(self, width: int, now: float) -> str:
        done = self.plan.steps.index(self.step) + 1 if self.step else 0
        total, clock = len(self.plan.steps), span(now - self.began)
        what = f"{self.plan.operation} of {self.plan.application}"
        room = min(30, width - len(what) - len(clock) - len(f" [] {done}/{total} "))
        if room < 5:
            return f"{what[: width - len(clock) - 1]} {clock}"
        full = room * done // total
        bar = f"[{'#' * full}{'.' * (room - full)}] {done}/{total}"
        return f"{what} {bar} {clock}"

    def _doing(self, width: int, now: float) -> str:
        assert self.step is not None
        title = f"undoing: {self.step.undo}" if self.undo else self.step.title
        clock = span(now - self.step_began)
        return f"now: {_cut(title, width - len(clock) - 6)} {clock}"

    def _where(self, width: int) -> str:
        """Which hosts are still at it."""
        waiting = [host for host in self.hosts if host not in self.heard]
        if not waiting:
            return ""
        parts = [f"on {names(waiting, self.hosts)}"]
        if len(self.hosts) > 1:
            parts += [f"{len(self.heard)} of {len(self.hosts)} hosts are done"]
        shares = [self.progress[host] for host in waiting if host in self.progress]
        if shares:
            low, high = f"{100 * min(shares):.0f}%", f"{100 * max(shares):.0f}%"
            parts.insert(0, low if low == high else f"{low} to {high}")
        return _fit(parts, width, "     ")

    def _down(self, width: int, now: float) -> Line:
        expected = f"expected {span(self.estimate.median)}" if self.estimate else ""
        if self.down_since is None:
            planned = self.plan.has("maintenance-on")
            parts = ["not down yet", expected] if planned else ["stays up"]
            return _fit(parts, width, "site: "), GOOD
        if self.down_until is not None:
            return _fit(
                [f"up again, was down for {span(self.down_until - self.down_since)}"], width, "site: "
            ), GOOD
        late = self.estimate is not None and now - self.down_since > self.estimate.most
        parts = [f"DOWN for {span(now - self.down_since)}", expected]
        if self.estimate and self.estimate.windows > 1:
            parts.append(f"at most {span(self.estimate.most)} lately")
        return _fit(parts, width, "site: "), BAD if late else DOWN

    def _visitors(self, width: int) -> Line:
        if self.latest is None:
            told = ["not measured", self.unmeasured] if self.unmeasured else ["no answer yet"]
            return _fit(told, width, "visitors: "), FAINT
        counts = [f"{self.counts[SITE]} by the site", f"{self.counts[MAINTENANCE]} in maintenance"]
        now = f"now {KINDS[self.latest.kind]}"
        lost, took = self.counts[LOST], f"the last in {1000 * self.latest.seconds:.0f} ms"
        return _fit([f"{lost} lost", now, *counts, took], width, "visitors: "), BAD if lost else ""

    def _ahead(self, width: int) -> str:
        """What comes next."""
        if self.step is None:
            return ""
        if self.undo:
            before = self.plan.steps[: self.plan.steps.index(self.step)]
            titles = [step.undo for step in reversed(before) if step.undo]
        else:
            titles = [step.title for step in self.plan.steps[self.plan.steps.index(self.step) + 1 :]]
        if not titles:
            return "next: the end"
        return _fit([title.split(",")[0] for title in titles], width, "next: ", "; ")


class LiveReporter(PlainReporter):
    """Draws the view on a terminal between `begin` and `end`.

    Args:
        expected: what past windows make expect of this one; asked when it begins.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        expected: Callable[[], Estimate | None] = lambda: None,
        console: Console | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(self._above)
        self._console = console or Console(file=sys.stderr, highlight=False, markup=False, emoji=False)
        self._expected, self._clock = expected, clock
        self._live: Live | None = None
        self._view: View | None = None
        self._drawing = threading.RLock()

    def begin(self, plan: Plan, records: Sequence[Record]) -> None:
        now = self._clock()
        self._view = View(plan, began=now, estimate=self._expected())
        for record in records:  # of a run that is resumed
            if record["kind"] == "intent" and record["step"] == "maintenance-on" and not record["undo"]:
                self._view.down_since = self._view.down_since or record["at"]
        self._live = Live(
            console=self._console,
            get_renderable=self.drawn,
            refresh_per_second=DRAWN,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start()
        self._console.show_cursor(True)  # it would stay hidden where the process is killed

    def end(self) -> None:
        self._let_go()
        if self._live is not None:
            self._live.stop()
            self._live = None

    def step(self, plan: Plan, step: Step, hosts: Sequence[str], *, undo: bool) -> None:
        self._let_go()
        with self._drawing:
            if self._view is not None:
                self._view.begin(step, hosts, self._clock(), undo=undo)
        super().step(plan, step, hosts, undo=undo)

    def progress(self, step: Step, host: str, done: int, total: int) -> None:
        with self._drawing:
            if self._view is not None and total:
                self._view.progress[host] = done / total

    def heard(self, step: Step, host: str) -> None:
        with self._drawing:
            if self._view is not None:
                self._view.heard.add(host)

    def answers(self, step: Step, answers: Mapping[str, Answer], seconds: Mapping[str, float]) -> None:
        self._let_go()
        with self._drawing:
            if self._view is not None:
                self._view.answered(step, answers, self._clock())
        super().answers(step, answers, seconds)

    def line(self, host: str, text: str) -> None:
        self._let_go(TAIL, self.said(host, text))

    def sample(self, sample: Sample) -> None:
        with self._drawing:
            if self._view is not None:
                self._view.sample(sample)

    def unmeasured(self, why: str) -> None:
        with self._drawing:
            if self._view is not None:
                self._view.unmeasured = why

    def drawn(self) -> Group:
        """The view as rich draws it. Whatever goes wrong in here, the run goes on."""
        try:
            with self._drawing:
                return self.shown(self._view) if self._view else Group()
        except Exception as error:  # noqa: BLE001  drawn while a window is open, by whoever prints
            return Group(Text(f"nothing can be shown: {error!r}"))

    def shown(self, view: View) -> Group:
        """A view in as much room as there is."""
        size = self._console.size
        lines = view.lines(size.width, size.height, self._clock())
        return Group(
            *(Text(clean(text), style=style, no_wrap=True, overflow="crop") for text, style in lines)
        )

    def _let_go(self, keep: int = 0, *new: str) -> None:
        """Hold back the last `keep` lines, the new ones being the last, and print those before."""
        with self._drawing:
            tail = self._view.tail if self._view is not None else deque[str]()
            tail.extend(new)
            keep = keep if self._live is not None else 0
            out = [tail.popleft() for _ in range(len(tail) - keep)]
        for text in out:  # not under the lock, which the drawing thread takes while it holds rich's own
            self._say(text)

    def _above(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)


def span(seconds: float) -> str:
    """A clock: 0:07, 12:34, 1:02:03."""
    minutes, rest = divmod(int(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _fit(parts: Sequence[str], width: int, before: str = "", between: str = ", ") -> str:
    """As many of the parts as there is room for, at least the first."""
    first, *others = [part for part in parts if part]
    text = before + first
    for part in others:
        if len(text) + len(between) + len(part) > width:
            break
        text += between + part
    return _cut(text, width)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: max(0, width - 2)]}.."
