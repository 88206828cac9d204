"""Times as an operator types them."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone

from deploytools.errors import UsageError


def parse_until(text: str, now: datetime | None = None) -> str:
    """Given +1h30m, HH:MM (the next one, in the laptop's time zone) or ISO 8601, return it as ISO 8601.

    The + may be left out. Raises UsageError for anything else, and for a moment that has passed.
    The host programs read the same forms (hostlib.arguments).
    """
    now = (now or datetime.now(timezone.utc)).astimezone()
    moment = _parse(text.strip(), now)
    if moment is None:
        raise UsageError(
            f"can't read the time {text!r}", where="--until", next="use +30m, 14:30 or 2026-01-31T14:30+01:00"
        )
    if moment <= now:
        raise UsageError(
            f"{text} has passed already", where="--until", next="give a later time, such as +30m"
        )
    return moment.isoformat(timespec="seconds")


def parse_wait(text: str) -> float:
    """Given 90, 90s, 30m or 1h30m, return it as seconds. Raises UsageError for anything else."""
    match = re.fullmatch(r"(?=\d)(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,6})s?)?", text.strip())
    if match is None:
        raise UsageError(
            f"can't read the duration {text!r}", where="--lock-wait", next="use 90s, 30m or 1h30m"
        )
    hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return hours * 3600.0 + minutes * 60 + seconds


def has_passed(moment: str | None, now: float) -> bool:
    """Whether an ISO 8601 moment is over at `now`, in seconds since the epoch; None never is."""
    return moment is not None and datetime.fromisoformat(moment).timestamp() < now


def _parse(text: str, now: datetime) -> datetime | None:
    if match := re.fullmatch(r"\+?(?=\d)(?:(\d{1,6})d)?(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,6})s)?", text):
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        return now + timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    if match := re.fullmatch(r"([01]?\d|2[0-3]):([0-5]\d)", text):
        # Without its zone, so that tomorrow may be on the other side of a change of the clocks.
        local = now.replace(tzinfo=None)
        moment = local.replace(hour=int(match[1]), minute=int(match[2]), second=0, microsecond=0)
        return (moment if moment > local else moment + timedelta(days=1)).astimezone()
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
        return moment.astimezone() if moment.tzinfo is None else moment
    except (ValueError, OverflowError, OSError):  # also for a year that no clock has
        return None
