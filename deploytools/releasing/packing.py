"""A built tree as the one file that is uploaded."""

from __future__ import annotations

import gzip
import hashlib
import tarfile
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path


@dataclass(frozen=True)
class Archive:
    """A packed release: the file to upload and its SHA-256."""

    path: Path
    digest: str


def pack(tree: Path, archive: Path, committed_at: str | None) -> Archive:
    """Write `tree` to the tar.gz file `archive`.

    Every file has the commit's time and no owner, so that equal trees give equal archives.
    """
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
    digest = hashlib.sha256()
    with archive.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return Archive(archive, digest.hexdigest())
