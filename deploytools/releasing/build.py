"""The operator's build command, run in the export; all that it prints is kept."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from deploytools.errors import OperationFailed
from deploytools.releasing import git
from deploytools.releasing.export import UMASK, UNTOUCHED
from deploytools.releasing.source import Source

# How many builds' outputs stay on this computer.
KEPT = 50
# How often a running build's output is looked at, in seconds.
LOOK = 0.1
LAST_LINES = 20


def log_of(directory: Path, source: Source) -> Path:
    """Where the build of this release keeps its output."""
    return directory / f"{source.id}.log"


def run(command: str, source: Source, tree: Path, log: Path, say: Callable[[str], None]) -> None:
    """Run a shell command in the tree; its output goes to the file `log`, and to `say` line by line.

    Raises OperationFailed where it fails, OSError where the output can't be kept.
    """
    log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    _forget(log.parent)
    # Written to a file and read from there: whatever the build leaves running may keep a pipe open for ever.
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with log.open("rb") as printed:
        try:
            ran = subprocess.Popen(
                ["sh", "-c", command],
                cwd=tree,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                umask=UMASK,
                env={**git.clean(), **variables(source, tree)},
            )
        finally:
            os.close(output)
        with ran:
            rest, running = b"", True
            while running:
                with suppress(subprocess.TimeoutExpired):
                    ran.wait(LOOK)
                running = ran.poll() is None  # told before the output is read, whose end isn't missed so
                *lines, rest = (rest + printed.read()).split(b"\n")
                for line in lines:
                    say(_shown(line))
        if rest:
            say(_shown(rest))
    if ran.returncode != 0:
        ended = f"exit code {ran.returncode}" if ran.returncode > 0 else f"signal {-ran.returncode}"
        raise OperationFailed(
            f"the build command ended with {ended}",
            where="deploy.source.build",
            state=UNTOUCHED,
            next=f"less {log}",
            details=log.read_text(errors="replace").strip().splitlines()[-LAST_LINES:],
        )


def variables(source: Source, tree: Path) -> dict[str, str]:
    """What a build is told: which commit, and a time that is the same for every build of it.

    SOURCE_DATE_EPOCH: https://reproducible-builds.org/specs/source-date-epoch/
    """
    told = {"GIT_CEILING_DIRECTORIES": str(tree.parent)}  # the export is nobody's checkout
    if source.commit and source.committed_at:
        told["DEPLOYTOOLS_COMMIT"] = source.commit
        told["SOURCE_DATE_EPOCH"] = str(int(datetime.fromisoformat(source.committed_at).timestamp()))
    return told


def _shown(line: bytes) -> str:
    """A line without what a progress bar had written over."""
    return line.decode(errors="replace").rstrip("\r").rpartition("\r")[2]


def _forget(directory: Path) -> None:
    """Names of releases sort by time."""
    for old in sorted(directory.glob("*.log"))[: -KEPT + 1]:
        old.unlink(missing_ok=True)
