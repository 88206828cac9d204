"""Argument types of the host programs: waiting times, moments, and texts that end up on a terminal."""

from __future__ import annotations

import argparse
import re
import time
from datetime import datetime, timedelta, timezone

LONGEST_TEXT = 500  # characters of a reason
DAY = 86400.0


def seconds(text: str) -> float:
    """A waiting time: more than 0 s, at most a day."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= DAY:
        raise argparse.ArgumentTypeError(f"{text!r} is no waiting time in seconds (up to {DAY:.0f})")
    return value


def line(text: str) -> str:
    """One line without control characters, so that telling it can't garble a terminal or a log."""
    readable = text.encode(errors="replace").decode()
    kept = "".join(letter if letter.isprintable() else " " for letter in readable)
    return " ".join(kept.split())[:LONGEST_TEXT]


def moment(text: str, now: float | None = None) -> int:
    """A moment to come, in seconds since the epoch (as `now` is).

    As `any_moment` reads it.
    """
    now = time.time() if now is None else now
    found = any_moment(text, now)
    if found <= now:
        shown = time.strftime("%Y-%m-%d %H:%M %Z", time.localtime(now))
        raise argparse.ArgumentTypeError(f"{text!r} has passed already (it is {shown})")
    return found


def any_moment(text: str, now: float | None = None) -> int:
    """A moment, passed or not, in seconds since the epoch.

    Given as +90s, +30m, +1h30m, +2d (the + may be left out), as the next HH:MM, or as an ISO 8601
    date and time. Without a zone it is in this host's time.
    """
    try:
        return int(_parsed(text.strip(), time.time() if now is None else now))
    except (ValueError, OverflowError, OSError) as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no end: write +30m, +1h30m, 14:30 or 2030-12-31T14:30+01:00"
        ) from error


def _parsed(text: str, now: float) -> float:
    ahead = re.fullmatch(r"\+?(?=\d)(?:(\d{1,6})d)?(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,6})s)?", text)
    if ahead:
        days, hours, minutes, secs = (int(part or 0) for part in ahead.groups())
        return now + timedelta(days=days, hours=hours, minutes=minutes, seconds=secs).total_seconds()
    clock = re.fullmatch(r"([01]?\d|2[0-3]):([0-5]\d)", text)
    if clock:
        # Without its zone, so that tomorrow may be on the other side of a change of the clocks.
        local = datetime.fromtimestamp(now, timezone.utc).astimezone().replace(tzinfo=None)
        wanted = local.replace(hour=int(clock[1]), minute=int(clock[2]), second=0, microsecond=0)
        return (wanted if wanted > local else wanted + timedelta(days=1)).astimezone().timestamp()
    # Python before 3.11 does not know the Z.
    return datetime.fromisoformat(re.sub("[Zz]$", "+00:00", text)).astimezone().timestamp()


def revisions(text: str) -> tuple[str, ...]:
    """Revisions of a database, with commas between them."""
    return tuple(revision for revision in text.split(",") if revision)
