from __future__ import annotations

from datetime import datetime, timezone

import pytest

from deploytools.errors import UsageError
from deploytools.moments import parse_until, parse_wait

NOW = datetime(2026, 5, 1, 22, 30, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("+90s", "2026-05-01T22:31:30+00:00"),
        ("+30m", "2026-05-01T23:00:00+00:00"),
        ("30m", "2026-05-01T23:00:00+00:00"),
        ("+1h30m", "2026-05-02T00:00:00+00:00"),
        ("+1d10s", "2026-05-02T22:30:10+00:00"),
        ("+2h", "2026-05-02T00:30:00+00:00"),
        ("2026-05-02T01:00+02:00", "2026-05-01T23:00:00+00:00"),
        ("2026-05-01T23:00:00Z", "2026-05-01T23:00:00+00:00"),
    ],
)
def test_a_time_can_be_typed_as_a_span_or_as_iso_8601(text: str, moment: str) -> None:
    assert datetime.fromisoformat(parse_until(text, NOW)) == datetime.fromisoformat(moment)


def test_a_clock_time_that_has_passed_today_means_tomorrow() -> None:
    now = NOW.astimezone()
    earlier = f"{(now.hour - 1) % 24:02}:{now.minute:02}"

    parsed = datetime.fromisoformat(parse_until(earlier, NOW))

    assert parsed > NOW
    assert (parsed - NOW).total_seconds() <= 24 * 3600


@pytest.mark.parametrize(
    "text", ["", "soon", "+", "+m", "30", "25:00", "12:61", "2026-13-01", "0001-01-01", "+9999999h", "\n"]
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="can't read the time"):
        parse_until(text, NOW)


def test_a_moment_in_the_past_is_refused() -> None:
    with pytest.raises(UsageError, match="passed already"):
        parse_until("2020-01-01T00:00:00Z", NOW)


@pytest.mark.parametrize(
    ("text", "seconds"), [("0", 0), ("90", 90), ("90s", 90), ("30m", 1800), ("1h30m", 5400)]
)
def test_a_duration_is_read_as_people_write_it(text: str, seconds: float) -> None:
    assert parse_wait(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-5", "1d", "5m3h"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="can't read the duration") as caught:
        parse_wait(text)
    assert caught.value.where == "--lock-wait"
