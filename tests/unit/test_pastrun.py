"""What is known of a past run, on the computer that it was worked on and on another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deploytools import journal, operation, pastrun
from deploytools.errors import Unreachable, UsageError
from deploytools.report.page import page
from tests.support.answering import Hosts
from tests.support.pastrun import PastRun
from tests.support.values import settings

RUN = PastRun()
RUN_ID = RUN.plan.run_id
SETTINGS = settings(hosts=["web1"])


@pytest.fixture(autouse=True)
def another_computer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


def keep(suffix: str, lines: list[dict[str, Any]]) -> None:
    file = operation.journals() / f"{RUN_ID}{suffix}"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def read(answer: Any, run: str | None = RUN_ID) -> tuple[str, list[str]]:
    """The page of a run, and what is said beside it."""
    notes: list[str] = []
    records, events = pastrun.read(Hosts({"web1": answer}).fleet, SETTINGS, run, notes.append)
    return page(records, events), notes


def test_where_the_run_was_not_started_the_page_is_from_the_journal_and_that_is_said() -> None:
    made, (note,) = read({"records": RUN.records})

    assert "this computer has none of what visitors got" in note
    assert note.endswith("worked on: desk. The page is from the journal")
    assert "maintenance on" in made
    assert "Not measured, or not on the computer that wrote this page." in made


def test_of_a_run_that_went_on_from_another_computer_each_has_its_own_part() -> None:
    records = [*RUN.records[:9], {"at": RUN.now, **journal.resumed("bob", "laptop")}, *RUN.records[9:]]
    keep(".events", [{"event": "begin", "at": RUN.now}, *RUN.events])

    made, (note,) = read({"records": records})

    assert "only a part of what visitors got" in note
    assert "worked on: desk, laptop" in note
    assert "alembic.runtime.migration" in made


def test_where_everything_was_seen_nothing_is_said() -> None:
    keep(".events", [{"event": "begin", "at": RUN.now}, *RUN.events])

    assert read({"records": RUN.records})[1] == []


def test_a_lock_host_that_is_away_leaves_the_copy_on_this_computer() -> None:
    keep(".jsonl", RUN.records)

    made, (away, _) = read(Unreachable("no answer from web1"))

    assert away.endswith("this is told from the copy on this computer")
    assert RUN_ID in made
    with pytest.raises(Unreachable):
        read(Unreachable("no answer from web1"), "20260921T141320Z-000000")


def test_a_run_that_nobody_knows_is_refused_and_so_is_the_newest_of_none() -> None:
    with pytest.raises(UsageError, match="there is no run yet"):
        read({"runs": [], "damaged": []}, None)
