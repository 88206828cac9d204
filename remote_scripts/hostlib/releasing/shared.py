"""What is kept across releases: links from a release to ROOT/shared.

A name that ends with a slash is a directory; so is one whose last part has no dot (`var`). The others
(`.env`, `settings.ini`) are files. A missing directory is created. A missing file is never invented:
its link dangles until somebody puts the file there, and `stage` names it.
"""

from __future__ import annotations

import contextlib
import filecmp
import os
import shutil
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from hostlib.program import USAGE, Failure

# What a source tree keeps an otherwise empty directory with.
PLACEHOLDERS = {".gitignore", ".gitkeep", ".keep"}


MEND = "mend deploy.shared in fabric.yaml"


def check_names(names: Sequence[str]) -> None:
    """Raise Failure (exit code 2) where a name isn't a plain path below ROOT/shared or two overlap."""
    paths = [PurePosixPath(name) for name in names]
    for name, path in zip(names, paths):  # noqa: B905 - strict= came with Python 3.10
        if path.is_absolute() or not path.parts or ".." in path.parts or path.parts[0] == ".deploytools.json":
            raise Failure(
                f"{name!r} can't be shared: it must be a path inside the release", next=MEND, exit_code=USAGE
            )
        if sum(other == path or other in path.parents for other in paths) > 1:
            raise Failure(
                f"{name!r} is shared twice: once by itself, once within another", next=MEND, exit_code=USAGE
            )


def link(tree: Path, final: Path, shared: Path, names: Sequence[str]) -> list[str]:
    """Link each name in `tree`, which will be `final`, to `shared`; return the files that are missing there.

    Raises Failure where the release has something of its own there that a link would hide.
    """
    missing = []
    for name in names:
        kept, place = shared / name, tree / name
        if not kept.exists() and _is_directory(name):
            _make_directory(kept)
        elif not kept.exists():
            _make_directory(kept.parent)
            missing.append(str(PurePosixPath(name)))
        _make_parents(tree, place)
        if place.is_symlink() or place.exists():
            _clear(place, kept, name)
        place.symlink_to(os.path.relpath(kept, (final / name).parent))
    return missing


def _is_directory(name: str) -> bool:
    return name.endswith("/") or "." not in PurePosixPath(name).name


def _make_directory(path: Path) -> None:
    """Create it writable by its group, which it takes over from ROOT/shared (setgid): the application's."""
    before = os.umask(0o002)
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o775)
    finally:
        os.umask(before)


def _make_parents(tree: Path, place: Path) -> None:
    for parent in list(place.relative_to(tree).parents)[-2::-1]:
        directory = tree / parent
        if directory.is_symlink():
            raise _conflict(str(parent), "a symbolic link")
        with contextlib.suppress(FileExistsError):
            directory.mkdir(mode=0o755)
        if not directory.is_dir():
            raise _conflict(str(parent), "a file")


def _clear(place: Path, kept: Path, name: str) -> None:
    if place.is_symlink():
        raise _conflict(name, "a symbolic link")
    if place.is_dir():
        if any(entry.name not in PLACEHOLDERS for entry in os.scandir(place)):
            raise _conflict(name, "a directory that isn't empty")
        shutil.rmtree(place)
    elif kept.is_file() and filecmp.cmp(place, kept, shallow=False):
        place.unlink()
    else:
        raise _conflict(name, "a file of its own")


def _conflict(name: str, what: str) -> Failure:
    return Failure(
        f"{name!r} is to be shared, but the release has {what} there",
        state="nothing was changed",
        next="take it out of the source tree, or out of `shared` in fabric.yaml, and deploy again",
    )
