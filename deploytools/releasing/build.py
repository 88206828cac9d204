"""From a source to a packed release: exported, built, described, packed."""

from __future__ import annotations

import fnmatch
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from deploytools import squawk
from deploytools.errors import OperationFailed
from deploytools.releasing.contents import describe
from deploytools.releasing.packing import Archive, pack
from deploytools.releasing.source import Source
from deploytools.settings import Settings


@contextmanager
def packed(
    source: Source, settings: Settings, operator: str, now: datetime, *, online: bool = False
) -> Iterator[Archive]:
    """Export the tree, run the build command in it, and pack it for upload; deletes all of it afterwards.

    With `online` squawk looks at the migrations that are labelled online-safe, where settings want that.
    Raises OperationFailed where git or the build command fails, and what squawk.vetoes raises.
    """
    with tempfile.TemporaryDirectory(prefix="deploytools-") as directory:
        tree = Path(directory, "tree")
        tree.mkdir()
        _export(source, settings.source.exclude, tree)
        if settings.source.build:
            _build(settings.source.build, tree)
        vetoes = squawk.vetoes(settings, tree) if online else None
        describe(source, settings, operator, now, tree, vetoes)
        yield pack(tree, Path(directory, f"{source.id}.tar.gz"), source.committed_at)


def _export(source: Source, exclude: tuple[str, ...], tree: Path) -> None:
    if source.commit is None:
        for path in sorted(source.path.rglob("*")):
            name = path.relative_to(source.path).as_posix()
            if not any(fnmatch.fnmatch(name, pattern) for pattern in exclude):
                _copy(path, tree / name)
        return
    excluded = [f":(exclude){pattern}" for pattern in exclude]
    archive = subprocess.run(
        ["git", "-C", source.path, "archive", "--format=tar", source.commit, "--", ".", *excluded],
        capture_output=True,
        check=False,
    )
    if archive.returncode != 0:
        raise OperationFailed(
            f"git archive failed: {archive.stderr.decode(errors='replace').strip()}",
            where=str(source.path),
            state="no host was touched",
        )
    subprocess.run(["tar", "-x", "-C", tree], input=archive.stdout, check=True)


def _copy(path: Path, target: Path) -> None:
    if path.is_symlink():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(os.readlink(path))
    elif path.is_dir():
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
        target.chmod(path.stat().st_mode)


def _build(command: str, tree: Path) -> None:
    """The operator's own command line, so it gets the shell that it is written for."""
    built = subprocess.run(["sh", "-c", command], cwd=tree, capture_output=True, text=True, check=False)
    if built.returncode != 0:
        output = (built.stdout + built.stderr).strip().splitlines()
        raise OperationFailed(
            f"the build command ended with exit code {built.returncode}: {command}",
            where="deploy.source.build",
            state="no host was touched",
            details=output[-20:],
        )
