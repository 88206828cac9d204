"""git as we run it: told by us alone where to work, and in English."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from deploytools.errors import UsageError

# What leads git to another repository than the directory that it works in, as inside of a hook.
ELSEWHERE = frozenset(
    (
        "GIT_ALTERNATE_OBJECT_DIRECTORIES",
        "GIT_COMMON_DIR",
        "GIT_DIR",
        "GIT_IMPLICIT_WORK_TREE",
        "GIT_INDEX_FILE",
        "GIT_INTERNAL_SUPER_PREFIX",
        "GIT_LITERAL_PATHSPECS",
        "GIT_NAMESPACE",
        "GIT_OBJECT_DIRECTORY",
        "GIT_PREFIX",
        "GIT_SHALLOW_FILE",
        "GIT_WORK_TREE",
    )
)


class GitFailed(Exception):
    """git ended with an error; its text is what git said."""


def argv(path: Path, *arguments: str) -> list[str]:
    """The command line of git at work in the directory `path`."""
    return ["git", "-C", str(path), "-c", "core.quotePath=false", *arguments]


def clean() -> dict[str, str]:
    """Our environment without what leads git elsewhere."""
    return {name: value for name, value in os.environ.items() if name not in ELSEWHERE}


def environment(**more: str) -> Mapping[str, str]:
    """What git itself gets: the clean environment, in English, with `more`."""
    return {**clean(), "LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0", **more}


def ask(path: Path, *arguments: str) -> bytes:
    """What git prints. Raises GitFailed where it fails, UsageError where there is no git."""
    try:
        done = subprocess.run(argv(path, *arguments), capture_output=True, check=False, env=environment())
    except FileNotFoundError as error:
        raise UsageError(
            "git is not installed on this computer", state="nothing was changed", next="apt install git"
        ) from error
    if done.returncode != 0:
        raise GitFailed(done.stderr.decode(errors="replace").strip())
    return done.stdout


def told(path: Path, *arguments: str) -> str:
    """The same as text, without the last line's end."""
    return os.fsdecode(ask(path, *arguments)).rstrip("\n")
