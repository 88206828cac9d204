"""A release on the laptop: which tree, under which id, packed with the description that travels with it."""

from __future__ import annotations

import fnmatch
import gzip
import hashlib
import json
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from deploytools import squawk
from deploytools.errors import OperationFailed, UsageError
from deploytools.settings import Settings

MANIFEST = ".deploytools.json"


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


@dataclass(frozen=True)
class Archive:
    """A packed release: the file to upload and its SHA-256."""

    path: Path
    digest: str


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
        _manifest(source, settings, operator, now, tree, vetoes)
        archive = Path(directory, f"{source.id}.tar.gz")
        _pack(tree, archive, source.committed_at)
        with archive.open("rb") as file:
            digest = hashlib.sha256()
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        yield Archive(archive, digest.hexdigest())


def tree_digest(tree: Path) -> str:
    """SHA-256 over the names, kinds, executable bits and contents of a tree; equal for equal trees."""
    digest = hashlib.sha256()
    for path in sorted(tree.rglob("*")):
        name = path.relative_to(tree).as_posix()
        if path.is_symlink():
            entry = f"link {name}\0{os.readlink(path)}\0".encode()
        elif path.is_dir():
            entry = f"directory {name}\0".encode()
        else:
            kind = "program" if path.stat().st_mode & 0o100 else "file"
            entry = f"{kind} {name}\0".encode() + hashlib.sha256(path.read_bytes()).digest()
        digest.update(entry)
    return digest.hexdigest()


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


def _manifest(
    source: Source,
    settings: Settings,
    operator: str,
    now: datetime,
    tree: Path,
    vetoes: Mapping[str, Sequence[str]] | None,
) -> None:
    described = {
        "id": source.id,
        "ref": source.ref,
        "commit": source.commit,
        "author": source.author,
        "committed_at": source.committed_at,
        "operator": operator,
        "created_at": now.astimezone(timezone.utc).isoformat(timespec="seconds"),
        "digest": tree_digest(tree),
        "app": asdict(settings.app),
        "health": asdict(settings.health),
        "migrate": {**asdict(settings.migrate), "vetoes": vetoes} if settings.migrate else None,
    }
    (tree / MANIFEST).write_text(json.dumps(described, indent=2, sort_keys=True) + "\n")


def _pack(tree: Path, archive: Path, committed_at: str | None) -> None:
    """Every file has the commit's time and no owner, so that equal trees give equal archives."""
    modified = int(datetime.fromisoformat(committed_at).timestamp()) if committed_at else 0

    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = 0
        entry.mtime = modified
        entry.uname = entry.gname = ""
        entry.mode = 0o755 if entry.isdir() or entry.mode & 0o100 else 0o644
        return entry

    with (
        archive.open("wb") as raw,
        gzip.GzipFile("", "wb", 6, raw, mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        tar.add(tree, arcname=".", filter=plain)


def _git(path: Path, *arguments: str) -> str | None:
    """What git says, or None where it can't say it."""
    done = subprocess.run(["git", "-C", path, *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None
