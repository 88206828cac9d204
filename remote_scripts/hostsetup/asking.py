"""Runs the system's own programs for set-up, and waits for none of them without end."""

from __future__ import annotations

import subprocess
from os import PathLike
from typing import Any

# Seconds for one of them. systemd itself gives a service 90 to stop, or to start.
WITHIN = 100.0


def ask(*argv: str | PathLike[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program and return how it ended. Raises TimeoutError where that takes longer than WITHIN."""
    try:
        return subprocess.run(
            argv, capture_output=True, text=True, errors="replace", check=False, timeout=WITHIN, **options
        )
    except subprocess.TimeoutExpired:
        told = " ".join(map(str, argv))
        raise TimeoutError(f"`{told}` was given up, because it had not ended within {WITHIN:.0f} s") from None
