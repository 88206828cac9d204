"""deploytools.sandbox.demo: when it says that a promise was kept, and what it shows of a window."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from deploytools.sandbox import demo
from deploytools.sandbox.traffic import APP, MAINTENANCE, Record, summary


def window(*, until: float = 3.0, last: str = APP) -> dict[str, Any]:
    """A window from second 1 to `until`, seen by a request every 0.1 s."""
    records = []
    for tenth in range(60):
        start = tenth / 10
        if 1.0 <= start < until:
            records.append(Record(start, 0.01, MAINTENANCE, 503))
        else:
            release = "r1" if start < 1.0 else "r2"
            records.append(Record(start, 0.01, APP if start < until else last, release=release))
    return summary(records, began=0.0, seconds=6.0)


def load(
    *, sent: int = demo.SWAP_REQUESTS, generations: int = demo.SWAPS + 1, **classes: int
) -> dict[str, Any]:
    """What visitors told of the hot swaps."""
    empty = summary([], began=0.0, seconds=1.0)
    lost = sum(count for kind, count in classes.items() if kind != MAINTENANCE)
    return {
        **empty,
        "sent": sent,
        "generations": {str(number): 1 for number in range(generations)},
        "classes": {**empty["classes"], **classes},
        "lost": lost,
    }


def broken(window: dict[str, Any], migration: float, load: dict[str, Any]) -> list[str]:
    return [verdict.what for verdict in demo.verdicts(window, migration, load) if not verdict.kept]


def test_all_promises_are_kept_where_nobody_noticed_more_than_the_migration() -> None:
    assert broken(window(until=3.0), 1.0, load()) == []


def test_downtime_counts_beyond_the_migration() -> None:
    assert broken(window(until=4.0), 1.0, load()) == ["downtime beyond the migration"]


def test_a_site_that_did_not_come_back_broke_the_promise() -> None:
    assert broken(window(until=3.0, last=MAINTENANCE), 100.0, load()) == ["downtime beyond the migration"]


def test_only_time_is_laid_to_a_busy_machine() -> None:
    found = demo.verdicts(window(), 1.0, load())
    slow, gone = replace(found[0], kept=False), replace(found[0], kept=False, measured=demo.NOT_BACK)
    lost = replace(found[1], kept=False)

    assert demo.late([slow, *found[1:]])
    assert not demo.late(found)
    assert not demo.late([gone, *found[1:]])
    assert not demo.late([slow, lost, *found[2:]])


def test_a_window_that_nobody_saw_proves_nothing() -> None:
    assert "downtime beyond the migration" in broken(window(until=1.0), 0.0, load())


@pytest.mark.parametrize("kind", ["reset", "unmarked_5xx", MAINTENANCE])
def test_whatever_is_not_answered_in_a_hot_swap_is_lost(kind: str) -> None:
    assert broken(window(), 1.0, load(**{kind: 1})) == [f"requests lost in {demo.SWAPS} hot swaps"]


def test_too_few_requests_or_swaps_prove_nothing() -> None:
    assert broken(window(), 1.0, load(sent=19_999)) != []
    assert broken(window(), 1.0, load(generations=demo.SWAPS)) != []


def test_code_on_another_schema_breaks_the_promise() -> None:
    mixed = {**window(), "mismatches": 1}
    assert broken(mixed, 1.0, load()) == ["answers by code on another schema"]


def test_the_table_shows_the_window_and_two_seconds_around_it() -> None:
    assert demo.around_the_window(window(until=3.0)).splitlines() == [
        "second  r1  r2  maintenance  lost",
        "     0  10   .            .     .",
        "     1   .   .           10     .",
        "     2   .   .           10     .",
        "     3   .  10            .     .",
        "     4   .  10            .     .",
        "     5   .  10            .     .",
    ]
