"""What the measurements make of what they saw."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploytools.sandbox.traffic import APP, Record
from tests.measure.rolling import first_of
from tests.measure.swaps import finished, overlapping, percentiles
from tests.measure.windows import assert_that_nobody_went_back


def test_requests_that_were_under_way_while_a_swap_was_at_work_are_told_from_the_others() -> None:
    swaps = [(10.0, 12.0), (20.0, 21.0)]
    began_and_took = [
        *((8.0, 1.5), (12.5, 7.0), (21.5, 9.0)),  # before, between, after
        *((9.0, 1.25), (11.0, 0.25), (11.5, 3.0), (9.5, 5.0), (11.75, 9.0), (20.5, 0.125)),
    ]
    began, took = zip(*began_and_took, strict=True)
    assert list(overlapping(began, took, swaps)) == [1.25, 0.25, 3.0, 5.0, 9.0, 0.125]
    assert list(overlapping(began, took, [])) == []


def test_percentiles_are_the_median_and_what_one_in_a_hundred_exceeds() -> None:
    assert percentiles([float(number) for number in range(101)]) == (50, 99)
    assert percentiles([]) == (0, 0)


def test_what_was_finished_is_read_back_and_a_line_that_was_cut_off_is_not(tmp_path: Path) -> None:
    file = tmp_path / "out.jsonl"
    assert finished(file) == {}
    file.write_text('{"key": "a", "result": {"swaps": 3}}\n{"key": "b", "resu')
    assert finished(file) == {"a": {"swaps": 3}}


def answers(*releases: str) -> list[Record]:
    return [Record(float(number), 0.1, APP, 200, release) for number, release in enumerate(releases)]


def test_a_host_serves_a_release_from_its_first_whole_answer_by_it_on() -> None:
    assert first_of("r1", answers("r2", "r2", "r1", "r1")) == pytest.approx(2.1)


def test_in_a_window_nobody_meets_the_old_release_after_the_new_one() -> None:
    assert_that_nobody_went_back(answers("r1", "r1", "", "r2", "r2"))
    with pytest.raises(AssertionError, match="after the new one"):
        assert_that_nobody_went_back(answers("r1", "", "r2", "r1"))
