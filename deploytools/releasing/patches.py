"""Local changes to what is shipped: unified diffs, applied in order by `git apply`, which knows no fuzz.

A hunk may have moved to another line, but every line around it has to be as the patch has it.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploytools.errors import UsageError
from deploytools.releasing import git
from deploytools.releasing.export import UMASK
from deploytools.releasing.git import GitFailed
from deploytools.releasing.selection import shortened
from deploytools.releasing.source import Source

# What the operator's own git settings would have `git apply` overlook.
STRICT = ("-c", "apply.ignoreWhitespace=no", "-c", "apply.whitespace=nowarn", "-c", "core.autocrlf=false")
# What `git apply --reject --verbose` says: the line of each hunk that doesn't fit, then by file which ones.
FAILED = re.compile(r"^error: patch failed: .*?:(\d+)$", re.MULTILINE | re.DOTALL)
APPLYING = re.compile(r"^Applying patch (?P<file>.+) with \d+ rejects?\.\.\.$")
REJECTED = re.compile(r"^Rejected hunk #(?P<number>\d+)\.$")
MOVED = re.compile(
    r"^Hunk #(?P<number>\d+) succeeded at (?P<line>\d+) \((?P<offset>offset -?\d+ lines?)\)\.$"
)
CHECKING = re.compile(r"^Checking patch (?P<file>.+)\.\.\.$")


@dataclass(frozen=True)
class Patch:
    """A patch as it is applied.

    Args:
        name: its path in the repository that is shipped from, or else in the project where it lies there.
    """

    name: str
    content: bytes

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


def read(source: Source, paths: Sequence[Path], project: Path) -> tuple[Patch, ...]:
    """The patches: of the commit that is shipped where they lie in its repository, otherwise of the disk.

    Raises UsageError where one is missing, or isn't committed.
    """
    return tuple(_read(source, path, number, project) for number, path in enumerate(paths))


def apply(tree: Path, patches: Sequence[Patch]) -> list[str]:
    """Apply the patches to the tree; return which hunks fit at another line than the patch has.

    Raises UsageError, naming file and hunk, where one doesn't fit; the tree is spoilt then.
    """
    moved = []
    for patch in patches:
        done = _git_apply(tree, patch, "--reject", "--verbose")
        said = done.stderr.decode(errors="replace")
        if done.returncode != 0:
            raise _refused(tree, patch, said)
        moved += [f"{patch.name}: {line}" for line in _moved(said)]
    return moved


def _read(source: Source, path: Path, number: int, project: Path) -> Patch:
    where = f"deploy.source.patches[{number}]: {path}"
    name = _in_repository(source, path)
    try:
        if name is None:
            own = path.relative_to(project) if path.is_relative_to(project) else path
            return Patch(str(own), path.read_bytes())
        return Patch(name, git.ask(source.path, "cat-file", "blob", f"{source.commit}:{name}"))
    except OSError as error:
        raise UsageError(
            f"the patch can't be read: {error.strerror}", where=where, state="nothing was changed"
        ) from error
    except GitFailed as error:
        raise UsageError(
            f"the patch {name} is not in {source.ref}, which is to be shipped",
            where=where,
            state="nothing was changed",
            next="commit it; or, for a ref from before it, take it out of deploy.source.patches",
        ) from error


def _in_repository(source: Source, path: Path) -> str | None:
    """The path in the repository that is shipped from; None where it lies elsewhere, or there is none."""
    if source.commit is None:
        return None
    try:
        top = Path(git.told(source.path, "rev-parse", "--show-toplevel"))
        return (path.parent.resolve() / path.name).relative_to(top.resolve()).as_posix()
    except (GitFailed, ValueError):  # a bare repository; elsewhere
        return None


def _git_apply(tree: Path, patch: Patch, *options: str) -> subprocess.CompletedProcess[bytes]:
    # A repository around the tree would have git look for the files from its top.
    environment = git.environment(GIT_CEILING_DIRECTORIES=os.path.realpath(tree.parent))
    return subprocess.run(
        git.argv(tree, *STRICT, "apply", *options, "-"),
        input=patch.content,
        capture_output=True,
        check=False,
        umask=UMASK,
        env=environment,
    )


def _moved(said: str) -> Iterator[str]:
    file = ""
    for line in said.splitlines():
        if match := CHECKING.match(line):
            file = match["file"]
        elif match := MOVED.match(line):
            yield f"{file}: hunk {match['number']} applies at line {match['line']}, {match['offset']}"


def _refused(tree: Path, patch: Patch, said: str) -> UsageError:
    about = {"where": f"deploy.source.patches: {patch.name}", "state": "nothing was changed"}
    if _git_apply(tree, patch, "--reverse", "--check").returncode == 0:
        return UsageError(
            "what the patch changes is in the source already",
            next="take it out of deploy.source.patches",
            **about,
        )
    return UsageError(
        "the patch doesn't apply to what is to be shipped",
        next="make it anew against that, or take it out of deploy.source.patches",
        details=shortened(list(_troubles(said))),
        **about,
    )


def _troubles(said: str) -> Iterator[str]:
    """What doesn't fit, a line for each: by file and hunk, or as git puts it."""
    lines = iter(FAILED.findall(said))
    file = ""
    for line in said.splitlines():
        if match := APPLYING.match(line):
            file = match["file"]
        elif match := REJECTED.match(line):
            yield f"{file}: hunk {match['number']}, at line {next(lines, '?')}, doesn't fit"
        elif line.startswith("error: ") and not line.startswith(
            ("error: while searching", "error: patch failed")
        ):
            yield line.removeprefix("error: ")
