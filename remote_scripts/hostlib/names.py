"""Names that become paths: release ids and run ids; and times as we write them, and as we tell them."""

from __future__ import annotations

import argparse
import re
import time

IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,80}")


def identifier(text: str) -> str:
    """Argument type of a release id or a run id; refuses whatever could leave its directory."""
    if not IDENTIFIER.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no id: a letter or digit, then at most 80 letters, digits or any of . - _"
        )
    return text


def timestamp(moment: float | None = None) -> str:
    """`moment` (seconds since the epoch; now if None) as ISO 8601 in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment))


def local(moment: str) -> str:
    """A `timestamp` for a person: by this computer's clock on the wall, with its distance from UTC.

    What is none, because it was damaged by hand, is told as it is.
    """
    from datetime import datetime  # most programs do without

    try:
        told = datetime.fromisoformat(str(moment).replace("Z", "+00:00")).astimezone()
    except (ValueError, OverflowError):
        return str(moment)
    return told.strftime("%Y-%m-%d %H:%M:%S %z")


def span(seconds: float) -> str:
    """How long something took, for a person: 45 s, 12 min 3 s, 2 h 5 min."""
    minutes, rest = divmod(int(seconds), 60)
    hours, past = divmod(minutes, 60)
    return f"{hours} h {past} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
