"""The page of a run: what is on it, and that it needs nothing but itself. How it looks: docs/images."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest

from deploytools import journal
from deploytools.probe import SITE, Sample
from deploytools.report.page import COLUMNS, chart, page, rows, ticks, timeline
from deploytools.saga import Verdict
from tests.support.pastrun import BEGAN, PastRun
from tests.support.values import BASE


class Page(HTMLParser):
    """What a reader finds: words, headings, and whatever would be fetched or run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words = ""
        self.headings: list[str] = []
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.words += data
        if self._open and self._open[-1] in ("h1", "h2"):
            self.headings.append(data)


@pytest.fixture(scope="module")
def window() -> PastRun:
    return PastRun()


def test_a_page_has_the_summary_the_hosts_the_visitors_the_steps_the_log_and_the_plan(
    window: PastRun,
) -> None:
    read = Page(page(window.records, window.events))

    assert read.headings == [
        *("deploy of guestbook: ", "What each host did", "What visitors got, per second", "Steps"),
        *("Migration log", "The plan"),
    ]
    for words in (
        "20260920T091500Z-07391399 -> 20260921T141310Z-14640da9",
        "web[1-3].example.com",
        "visitors: 975000 of 1000000 rows, batch 39",
        "maintenance on, proved, on every host at once",
        "lost: 1",
    ):
        assert words in read.words


def test_it_needs_no_network_and_runs_nothing(window: PastRun) -> None:
    text = page(window.records, window.events)
    read = Page(text)

    assert not {tag for tag, _ in read.tags} & {"script", "link", "img", "iframe", "object", "form"}
    assert not [about for _, about in read.tags if {"src", "href", "action"} & set(about)]
    assert "url(" not in text
    assert ("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'") in [
        (about.get("http-equiv"), about.get("content")) for _, about in read.tags
    ]


def test_what_people_and_hosts_say_is_text_whatever_it_looks_like() -> None:
    run = PastRun()
    run.events.append({"event": "note", "at": BEGAN, "text": "<img src=x onerror=alert(1)>\x1b[2J"})

    read = Page(page(run.records, run.events))

    assert "visitors get a table of <their> own" in read.words
    assert "<img src=x onerror=alert(1)>\\x1b[2J" in read.words
    assert not {tag for tag, _ in read.tags} & {"their", "img"}


def test_hosts_that_went_alike_are_one_row_and_one_that_failed_has_its_own() -> None:
    hosts = [f"web{number}" for number in range(1, 101)]
    run = PastRun(hosts=hosts, fails="swap")

    drawn = rows(timeline(run.records), hosts)

    assert [name for name, _ in drawn] == ["web1", "web[2-99] (98 of 100 hosts)", "web100"]
    assert drawn[-1][1][-1].phase == "bad"
    assert "web100: the new process was not healthy in 30 s" in Page(page(run.records, run.events)).words


def test_a_bar_begins_with_the_intent_and_is_as_long_as_the_host_took(window: PastRun) -> None:
    (bar,) = [bar for bar in timeline(window.records)["web1.example.com"] if bar.step == "migrate"]

    assert bar.phase == "data"
    assert bar.end - bar.begin == pytest.approx(11.4)


def test_without_what_this_computer_kept_it_says_what_is_not_there(window: PastRun) -> None:
    read = Page(page(window.records))

    assert "Not measured, or not on the computer that wrote this page." in read.words
    assert "Nothing of it is on the computer that wrote this page." in read.words


def test_a_run_that_was_cut_off_has_a_page_too() -> None:
    records = [
        {"at": 1.0, **journal.begin(BASE)},
        {"at": 2.0, **journal.intent("lock", ["web1"], undo=False)},
    ]

    assert "no answer is on record" in Page(page(records)).words
    records.append({"at": 3.0, **journal.end(Verdict.REVERTED)})
    assert "deploy of guestbook: undone" in Page(page(records)).words


def test_the_answers_are_on_the_same_axis_as_the_hosts() -> None:
    drawn = chart([Sample(BEGAN + 0.9 + at, 0.01, SITE, 200) for at in (0.0, 0.05, 0.2)], BEGAN + 0.5, 3.0)

    assert [(column.at, column.counts[SITE]) for column in drawn] == [(0.0, 3.0)]


def test_a_long_run_has_no_more_columns_than_a_screen_has() -> None:
    drawn = chart([Sample(BEGAN + second, 0.01, SITE, 200) for second in range(20_000)], BEGAN, 20_000.0)

    assert len(drawn) <= COLUMNS
    assert {round(sum(column.counts.values()), 3) for column in drawn[:-1]} == {1.0}


@pytest.mark.parametrize("span", [0.001, 0.7, 3, 24, 61, 700, 86_400])
def test_the_axis_has_a_few_marks_at_round_figures(span: float) -> None:
    assert 1 <= len(ticks(span)) <= 7
    assert all(re.fullmatch(r"\d+(\.\d)?", f"{tick:.10g}") for tick in ticks(span))
