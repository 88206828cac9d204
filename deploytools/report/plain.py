"""Progress as plain lines, each with its host in front: for a log file and CI, and above the live view."""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from deploytools.commands import Answer
from deploytools.hostnames import FEW, names
from deploytools.plan import Plan, Scope, Step
from deploytools.report.text import clean, shown
from deploytools.reporter import Reporter
from deploytools.saga import State

# Between two lines that tell how far hosts have come within a step, in seconds.
PROGRESS = 10.0


class PlainReporter(Reporter):
    """One line per step and one per host; of many hosts, one for all that say the same.

    Args:
        say: prints a line; called by one thread at a time.
        clock: monotonic seconds.
    """

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._print, self._clock = say, clock
        self._shares: dict[str, float] = {}
        self._due = 0.0
        self._width = 0
        self._every: Sequence[str] = ()
        self._said: set[tuple[str, str]] = set()
        self._lock = threading.RLock()  # Ctrl-C's note may come in the middle of another line

    def step(self, plan: Plan, step: Step, hosts: Sequence[str], *, undo: bool) -> None:
        self._every = tuple(dict.fromkeys((*plan.hosts, plan.lock_host)))
        self._width = max(map(len, self._every))
        self._said.clear()
        self._shares, self._due = {}, self._clock() + PROGRESS
        self._say(heading(plan, step, hosts, undo=undo))

    def progress(self, step: Step, host: str, done: int, total: int) -> None:
        with self._lock:
            self._shares[host] = done / total if total else 1.0
            if self._clock() < self._due:
                return
            self._due = self._clock() + PROGRESS
            shares = self._shares.values()
            ends = dict.fromkeys((f"{100 * min(shares):.0f}%", f"{100 * max(shares):.0f}%"))
            self._print(f"  {' to '.join(ends)} of {names(list(self._shares), self._every)}")

    def answers(self, step: Step, answers: Mapping[str, Answer], seconds: Mapping[str, float]) -> None:
        groups: dict[tuple[str, ...], list[str]] = {}
        for host, answer in answers.items():
            lines = self._told(host, answer)
            key = (host,) if len(answers) <= FEW else tuple(re.sub(r"\d+", "0", line) for line in lines)
            groups.setdefault(key, []).append(host)
        for hosts in groups.values():
            first = hosts[0]
            *lines, last = self._told(first, answers[first])
            took = [seconds[host] for host in hosts]
            ends = dict.fromkeys((f"{min(took):.1f}", f"{max(took):.1f}"))
            for line in [*lines, f"{last} ({' to '.join(ends)} s)"]:
                self._say(f"  {self._who(hosts)}  {line}")

    def line(self, host: str, text: str) -> None:
        self._say(self.said(host, text))

    def said(self, host: str, text: str) -> str:
        """What a host says, as a line of its own; and remember that it was told."""
        self._said.add((host, text.rstrip()))
        return f"  {host:{self._width}}  | {clean(text.rstrip())}"

    def note(self, text: str) -> None:
        self._say(f"  {text}")

    def _told(self, host: str, answer: Answer) -> list[str]:
        """What a host answered: what came with it (of `swap`: what the app printed), then the outcome.

        What it has said while it ran isn't told twice.
        """
        state = answer.mark.state
        said = answer.error.get("what") or answer.mark.value.get("message") or "done"
        word = "" if state is State.OK else f"{state.value.upper()}: "
        details = [str(line).rstrip() for line in answer.mark.value.get("details", ())]
        more = [f"| {clean(line)}" for line in details if (host, line) not in self._said]
        return [*more, *map(clean, f"{word}{said}".splitlines())]

    def _who(self, hosts: Sequence[str]) -> str:
        return f"{hosts[0]:{self._width}}" if len(hosts) == 1 else names(hosts, self._every)

    def _say(self, text: str) -> None:
        with self._lock:
            self._print(shown(text))


def heading(plan: Plan, step: Step, hosts: Sequence[str], *, undo: bool = False) -> str:
    """A step as `[3/15] check the hosts`; with its hosts where it has a turn on each."""
    title = step.undo if undo and step.undo else step.title
    number = "undo" if undo else f"{plan.steps.index(step) + 1}/{len(plan.steps)}"
    turns = step.scope in (Scope.ROLLING, Scope.ONE_FIRST)
    return f"[{number}] {title}{f' ({names(hosts, plan.hosts)})' if turns else ''}"


def to_stderr(text: str) -> None:
    """Print a line of progress."""
    print(text, file=sys.stderr, flush=True)
