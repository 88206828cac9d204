"""Names that become paths: release ids and run ids; and times as we write them."""

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
