"""The sample application as a git repository, with a ref for each thing to try.

It is written by `git fast-import`, so a commit's hash depends on nothing but the files: not on the
machine's umask, and not on its user's git settings, hooks and templates.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deploytools.errors import OperationFailed
from deploytools.sandbox import checks

SOURCES = Path(__file__).parent / "guestbook"
AUTHOR = "Sandbox <sandbox@example.com>"
FIRST = 1_735_722_000  # 2025-01-01 09:00:00 UTC; each commit is an hour younger than the one before


@dataclass(frozen=True)
class Commit:
    """A directory of guestbook/, laid over the commit it builds on."""

    name: str
    parent: str | None
    ref: str
    message: str


COMMITS = (
    Commit("v1", None, "refs/tags/v1", "A guestbook"),
    Commit("v2", "v1", "refs/tags/v2", "Give visitors a table of their own"),
    Commit("v3", "v2", "refs/tags/v3", "Greet visitors, in blue"),
    Commit("broken-migration", "v3", "refs/heads/broken-migration", "Let nobody say the same twice"),
    Commit("slow-migration", "v3", "refs/heads/slow-migration", "Give every entry a mood"),
    Commit("broken-app", "v3", "refs/heads/broken-app", "Tidy up the page"),
    Commit("sick-app", "v3", "refs/heads/sick-app", "Show moods"),
)


def make(directory: Path) -> None:
    """Make the repository in `directory`, with main at v1 checked out; raises OperationFailed."""
    _git(directory, "init", "--quiet", "--initial-branch=main", "--template=")
    _git(directory, "fast-import", "--quiet", stdin=b"".join(_stream()))
    _git(directory, "reset", "--quiet", "--hard", "main")


def changed(directory: Path) -> bool:
    """Whether somebody worked in a repository that `make` made: commits of theirs, or changed files."""
    authors = set(_git(directory, "log", "--all", "--format=%an <%ae>").decode().splitlines())
    return authors != {AUTHOR} or bool(_git(directory, "status", "--porcelain"))


def _stream() -> Iterator[bytes]:
    marks: dict[str, int] = {}
    for number, commit in enumerate(COMMITS, start=1):
        marks[commit.name] = number
        when = f"{AUTHOR} {FIRST + 3600 * number} +0000"
        yield f"commit {commit.ref}\nmark :{number}\nauthor {when}\ncommitter {when}\n".encode()
        yield _data(commit.message.encode() + b"\n")
        if commit.parent:
            yield f"from :{marks[commit.parent]}\n".encode()
        for path in files(commit.name):
            yield f"M 644 inline {path.as_posix()}\n".encode()
            yield _data((SOURCES / commit.name / path).read_bytes())
    yield f"reset refs/heads/main\nfrom :{marks['v1']}\n".encode()


def _data(content: bytes) -> bytes:
    return b"data %d\n%s\n" % (len(content), content)


def files(name: str) -> list[Path]:
    """The files of a directory of guestbook/; without what Python makes of them when they are installed."""
    below = SOURCES / name
    found = (path.relative_to(below) for path in below.rglob("*") if path.is_file())
    return sorted(path for path in found if "__pycache__" not in path.parts)


def _git(directory: Path, *arguments: str, stdin: bytes = b"") -> bytes:
    git = checks.program("git") or "git"
    environment = {
        "PATH": os.environ.get("PATH", checks.PATH),
        "HOME": str(directory),
        "LC_ALL": "C",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
    }
    argv = [git, "-C", str(directory), "-c", "core.hooksPath=/dev/null", *arguments]
    ran = subprocess.run(argv, input=stdin, env=environment, check=False, capture_output=True, timeout=60)
    if ran.returncode != 0:
        raise OperationFailed(
            f"git {arguments[0]} failed in the sandbox's repository",
            where=str(directory),
            state="the sandbox has no guestbook to deploy",
            next="mend what git says, then fab sandbox.reset",
            details=ran.stderr.decode(errors="replace").strip().splitlines()[-5:],
        )
    return ran.stdout
