"""Which tree is to be shipped: the ref, its author and date, and what is not committed."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from deploytools.errors import UsageError
from deploytools.settings import Settings


@dataclass(frozen=True)
class Source:
    """What is to be shipped, before it is exported.

    Args:
        id: the release's name on the hosts: UTC time and short commit, so that names sort by age.
        commit: full hash; None for a directory that isn't a git checkout.
        dirty: changes in the checkout that are not committed, and so not shipped.
    """

    path: Path
    id: str
    ref: str | None
    commit: str | None
    author: str | None
    committed_at: str | None
    dirty: tuple[str, ...] = ()


def resolve(settings: Settings, ref: str | None, now: datetime) -> Source:
    """Given `--ref` (or source.ref where None), return what a deploy would ship.

    Raises UsageError where the path or the ref doesn't exist.
    """
    path = Path(settings.source.path)
    stamp = now.astimezone(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    if not path.is_dir():
        raise UsageError("there is no directory to deploy", where=f"deploy.source.path: {path}")
    if _git(path, "rev-parse", "--is-inside-work-tree") is None:
        if ref is not None:
            raise UsageError(
                f"{path} is not a git checkout, so it has no ref {ref}", where="deploy.source.path"
            )
        return Source(path, stamp, None, None, None, None)
    wanted = ref or settings.source.ref
    shown = _git(
        path, "log", "-1", "--format=%H%n%an <%ae>%n%cI", "--end-of-options", f"{wanted}^{{commit}}", "--"
    )
    if shown is None and wanted == "HEAD":
        raise UsageError(
            f"nothing is committed yet in {path}",
            where="deploy.source.ref: HEAD",
            state="nothing was changed",
            next="git add what is to be shipped, then git commit",
        )
    if shown is None:
        raise UsageError(
            f"there is no commit {wanted} in {path}",
            where="deploy.source.ref",
            next="git branch --all; git tag",
        )
    commit, author, committed_at = shown.splitlines()
    dirty = (_git(path, "status", "--porcelain", "--", ".") or "").splitlines()
    return Source(path, f"{stamp}-{commit[:8]}", wanted, commit, author, committed_at, tuple(dirty))


def _git(path: Path, *arguments: str) -> str | None:
    """What git says, or None where it can't say it."""
    done = subprocess.run(["git", "-C", path, *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None
