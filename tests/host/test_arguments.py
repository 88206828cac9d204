"""What the host programs take as arguments."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from datetime import datetime

import pytest
from hostlib.arguments import line, moment, seconds

NOW = datetime.fromisoformat("2030-06-05T12:00:30+02:00").timestamp()


@pytest.fixture(autouse=True)
def central_europe(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """UTC+2 in summer, UTC+1 in winter."""
    with monkeypatch.context() as patched:
        patched.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("+90s", "2030-06-05T12:02:00+02:00"),
        ("+30m", "2030-06-05T12:30:30+02:00"),
        ("+1h30m", "2030-06-05T13:30:30+02:00"),
        ("+2d1h", "2030-06-07T13:00:30+02:00"),
        ("+36h", "2030-06-07T00:00:30+02:00"),
        ("14:30", "2030-06-05T14:30:00+02:00"),
        ("9:05", "2030-06-06T09:05:00+02:00"),
        ("12:00", "2030-06-06T12:00:00+02:00"),
        ("2030-06-05T14:30", "2030-06-05T14:30:00+02:00"),
        ("2030-06-05 14:30:10", "2030-06-05T14:30:10+02:00"),
        ("2030-12-24T14:30", "2030-12-24T14:30:00+01:00"),
        ("2030-06-05T14:30Z", "2030-06-05T14:30:00+00:00"),
        ("2030-06-05T14:30:00-05:00", "2030-06-05T14:30:00-05:00"),
        ("  +30m ", "2030-06-05T12:30:30+02:00"),
    ],
)
def test_an_end_may_be_a_duration_a_time_of_day_or_a_date(text: str, wanted: str) -> None:
    assert moment(text, NOW) == int(datetime.fromisoformat(wanted).timestamp())


def test_tomorrow_may_be_after_a_change_of_the_clocks() -> None:
    evening_before = datetime.fromisoformat("2030-10-26T22:00:00+02:00").timestamp()
    assert moment("14:00", evening_before) == int(
        datetime.fromisoformat("2030-10-27T14:00:00+01:00").timestamp()
    )


@pytest.mark.parametrize(
    "text", ["", "+", "30", "+30", "+m", "25:00", "12:60", "soon", "+1w", "-30m", "2030-13-01", "9999999"]
)
def test_anything_else_is_no_end(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is no end: write"):
        moment(text, NOW)


@pytest.mark.parametrize("text", ["2030-06-05T11:59", "2001-01-01", "+0s"])
def test_an_end_must_be_to_come(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="has passed already"):
        moment(text, NOW)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "86401", "ten", "", "1e9"])
def test_a_waiting_time_is_more_than_nothing_and_at_most_a_day(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="no waiting time"):
        seconds(text)


def test_a_waiting_time_may_be_a_fraction() -> None:
    assert seconds("0.25") == 0.25


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("new\nschema\t v2", "new schema v2"),
        ("\x1b[31mred\x07\0", "[31mred"),
        ("\u202egnp", "gnp"),
        ("\udcff", "?"),
        ("ü € 🚧", "ü € 🚧"),
        ("x" * 1000, "x" * 500),
        ("", ""),
    ],
)
def test_a_text_becomes_one_printable_line(text: str, kept: str) -> None:
    assert line(text) == kept
