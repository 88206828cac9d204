"""hooks.notify: a command of the operator's own tells others how a run ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deploytools.errors import DeployError
from deploytools.journal import Record
from deploytools.probe import Seen
from deploytools.report.runs import described, summary

# How long it may take, in seconds.
PATIENCE = 30.0
WORDS = ("what", "where", "state", "next", "details")


def message(records: Sequence[Record], visitors: Seen | None, error: DeployError | None) -> dict[str, Any]:
    """What the command gets: the run as `described`, the summary as `text`, and how the task ends.

    `error` is what the run ends with, None where all is done.
    """
    return {
        **described(records, visitors),
        "text": summary(records, visitors, error.next if error else None),
        "exit_code": error.exit_code if error else 0,
        "error": error and {word: getattr(error, word) for word in WORDS},
    }


def tell(
    command: str, about: Mapping[str, Any], patience: float = PATIENCE, *, place: Path | None = None
) -> str:
    """Run the command with `about` as JSON on standard input; return what went wrong with it, or "".

    It starts in `place`, the project's directory, from wherever below it `fab` was started. It has `patience`
    seconds; then it is ended with all that it started.
    """
    with subprocess.Popen(
        ["sh", "-c", command],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        cwd=place,
        start_new_session=True,
    ) as process:
        try:
            _, said = process.communicate(json.dumps(about) + "\n", timeout=patience)
        except BaseException as error:  # Ctrl-C, too: what is in a session of its own doesn't get that
            os.killpg(process.pid, signal.SIGKILL)  # nobody has waited for it, so it is still this one
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            return f"hooks.notify took longer than {patience:g} s and was ended"
    if process.returncode != 0:
        return f"hooks.notify ended with exit code {process.returncode}: {said.strip()[-500:]}"
    return ""
