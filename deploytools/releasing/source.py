"""Which tree is to be shipped: a commit with its author, date and submodules, or a directory as it is."""

from __future__ import annotations

import shlex
from collections.abc import Container
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

from deploytools.errors import UsageError
from deploytools.releasing import git
from deploytools.releasing.git import GitFailed
from deploytools.settings import Settings

STAMP = "%Y%m%dT%H%M%SZ"
AS_IT_IS = "source.ref: null, to ship the directory as it is"


@dataclass(frozen=True)
class Source:
    """What is to be shipped, before it is exported.

    Args:
        id: the release's name on the hosts: UTC time and short commit, so that names sort by age.
        ref: as it was asked for; the branch's name where that was HEAD.
        commit: full hash; None for a directory that is shipped as it is.
        dirty: changes in the checkout that are not committed, and so not shipped.
    """

    path: Path
    id: str
    ref: str | None
    commit: str | None
    author: str | None
    committed_at: str | None
    dirty: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.commit is None:
            return f"{self.path} as it is on this computer, not from git"
        made = datetime.fromisoformat(self.committed_at).astimezone() if self.committed_at else None
        when = f", {made:%Y-%m-%d %H:%M:%S %z}" if made else ""
        return f"{self.ref} of {self.path}: {self.commit[:8]} by {self.author}{when}"


@dataclass(frozen=True)
class Shipped:
    """What a deploy of the past has sent: a release's id, its parcel's digest, by whom, and by which ref."""

    release: str
    digest: str
    by: str
    ref: str | None


def resolve(settings: Settings, ref: str | None, now: datetime) -> Source:
    """Given `--ref` (or source.ref where None), return what a deploy would ship.

    Raises UsageError where the path or the ref doesn't exist, or git can't be asked.
    """
    path, wanted = settings.source.path, ref or settings.source.ref
    stamp = now.astimezone(timezone.utc).strftime(STAMP)
    if not path.is_dir():
        raise UsageError(
            "there is no directory to deploy",
            where=f"deploy.source.path: {path}",
            next="mend deploy.source.path in fabric.yaml",
        )
    if wanted is None or not _in_git(path):
        if ref is not None:
            raise UsageError(
                f"{path} is not a git checkout, so it has no ref {ref}",
                where="deploy.source.path",
                next="leave out --ref, to ship the directory as it is; or git init and git commit there",
            )
        return Source(path, stamp, None, None, None, None)
    try:
        shown = git.told(
            path, "log", "-1", "--no-show-signature", "--format=%H%n%an <%ae>%n%cI",
            "--end-of-options", f"{wanted}^{{commit}}", "--",
        )  # fmt: skip
    except GitFailed as error:
        raise _no_commit(path, wanted, str(error)) from error
    commit, author, committed_at = shown.splitlines()
    name = f"{stamp}-{commit[:8]}"
    return Source(path, name, _named(path, wanted), commit, author, committed_at, _dirty(path))


def made_at(release: str) -> datetime:
    """Given the id of a release, return when it was made."""
    return datetime.strptime(release.partition("-")[0], STAMP).replace(tzinfo=timezone.utc)


def unlike(source: Source, taken: Container[str]) -> Source:
    """The same source under an id that isn't taken: another deploy of it may have begun in that second."""
    while source.id in taken:
        _, dash, commit = source.id.partition("-")
        later = made_at(source.id) + timedelta(seconds=1)
        source = replace(source, id=f"{later.strftime(STAMP)}{dash}{commit}")
    return source


def _in_git(path: Path) -> bool:
    """A checkout that is taken for a plain directory would ship what isn't committed.

    Raises UsageError where git can't tell.
    """
    try:
        git.ask(path, "rev-parse", "--git-dir")
    except GitFailed as error:
        if "not a git repository" in str(error):
            return False
        raise UsageError(
            f"git can't be asked about {path}: {error}",
            where="deploy.source.path",
            state="nothing was changed",
            next=f"git -C {path} status; or {AS_IT_IS}",
        ) from error
    except UsageError:
        if any((place / ".git").exists() for place in (path, *path.parents)):
            raise
        return False
    return True


def _no_commit(path: Path, wanted: str, said: str) -> UsageError:
    if wanted == "HEAD":
        return UsageError(
            f"nothing is committed yet in {path}",
            where="deploy.source.ref: HEAD",
            state="nothing was changed",
            next="git add what is to be shipped, then git commit",
            details=said.splitlines(),
        )
    return UsageError(
        f"there is no commit {wanted} in {path}",
        where="--ref, or deploy.source.ref",
        state="nothing was changed",
        next=f"what there is: git -C {shlex.quote(str(path))} log --all --oneline",
    )


def _named(path: Path, ref: str) -> str:
    """HEAD says nothing to whoever reads it later; the branch that it was does."""
    if ref != "HEAD":
        return ref
    try:
        return git.told(path, "symbolic-ref", "--short", "--quiet", "HEAD")
    except GitFailed:  # detached
        return ref


def _dirty(path: Path) -> tuple[str, ...]:
    try:
        lines = git.told(
            path, "status", "--porcelain", "--untracked-files=normal", "--ignore-submodules=none", "--", "."
        )
    except GitFailed:  # a bare repository has nothing that could be dirty
        return ()
    return tuple(lines.splitlines())
