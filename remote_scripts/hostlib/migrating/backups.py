"""Backups: the operator's hook makes them, we read every byte of them before the schema is touched.

The hook prints where: each line of its standard output that is an absolute path names a file, or a directory
as pg_dump --format=directory makes it. It is checked by what its content is, not by its name:

    pg_dump custom, tar, directory   pg_restore restores it to nowhere (its --list is happy with half a dump);
                                     of a tar file, all that is in it is there
    pg_dump, pg_dumpall, mariadb-dump, mysqldump, sqlite3 .dump   the line that each writes last is there
    SQLite                           its integrity check
    gzip, bzip2, xz, zstd of these   unpacked to the end, and the same

Anything else is only read in full, and told so.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import hashlib
import lzma
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import time
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

from hostlib.program import Failure, Result

CHUNK = 1 << 20
# The first and the last bytes of a dump that tell what it is and whether it is whole.
EDGE = 4096
# File systems keep times by coarser clocks than ours, in seconds.
CLOCK = 2.0
# What a whole dump has in its first lines -> and in its last.
# The first that fits counts: what pg_dumpall writes has dumps by pg_dump in it.
ENDINGS = (
    (
        rb"^-- PostgreSQL database cluster dump$",
        rb"^-- PostgreSQL database cluster dump complete$",
        "pg_dumpall",
    ),
    (rb"^-- PostgreSQL database dump$", rb"^-- PostgreSQL database dump complete$", "pg_dump"),
    (rb"^-- (MariaDB|MySQL) dump ", rb"^-- Dump completed", "mysqldump"),
    (rb"\APRAGMA foreign_keys=OFF;\nBEGIN TRANSACTION;$", rb"^COMMIT;$", "sqlite3 .dump"),
)

PACKED: tuple[tuple[bytes, str, Any], ...] = (
    (b"\x1f\x8b", "gzip", gzip.open),
    (b"BZh", "bzip2", bz2.open),
    (b"\xfd7zXZ\0", "xz", lzma.open),
)


@dataclass(frozen=True)
class Backup:
    """One file or directory that was read in full; `format` is None where its content tells nothing."""

    path: str
    bytes: int
    sha256: str
    format: str | None


class Damaged(Exception):
    """A backup that could not be restored, with the reason."""


def make(hook: str, variables: dict[str, str]) -> Result:
    """Run the hook, then verify what it says it has written. Failure (exit code 3) where either fails."""
    began = time.time()
    ran = subprocess.run(
        ["sh", "-c", hook],
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        errors="replace",
        check=False,
    )
    sys.stderr.write(ran.stdout)
    if ran.returncode != 0:
        raise _failed(f"hooks.backup ended with exit code {ran.returncode}")
    paths = [Path(line.strip()) for line in ran.stdout.splitlines() if line.strip().startswith("/")]
    if not paths:
        raise _failed("hooks.backup printed no path, so nobody knows what to verify")
    backups = []
    for path in paths:
        try:
            backups.append(verify(path, began))
        except (Damaged, OSError, tarfile.TarError) as error:
            raise _failed(f"the backup {path} is no good: {error}") from error
    return {"backups": [asdict(backup) for backup in backups], "message": "; ".join(map(_told, backups))}


def verify(path: Path, since: float = 0.0) -> Backup:
    """Read a backup to its end, and check that it is no older than `since`.

    Raises Damaged, OSError or TarError where it can't be relied on.
    """
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    if not files:
        raise Damaged("it is empty")
    if max(each.stat().st_mtime for each in files) < since - CLOCK:
        raise Damaged("it was there before the hook ran")
    digest, size = hashlib.sha256(), 0
    for each in files:
        if path.is_dir():
            digest.update(f"{each.relative_to(path)}\0".encode(errors="surrogateescape"))
        with each.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
                size += len(chunk)
    if size == 0:
        raise Damaged("it is empty")
    if path.is_dir():
        format = _restored("pg_dump directory", path) if (path / "toc.dat").exists() else None
    else:
        format = _format(path)
    return Backup(str(path), size, digest.hexdigest(), format)


def _format(path: Path) -> str | None:
    """What the content is, if that can be told; Damaged where it isn't whole."""
    try:
        with _unpacked(path) as (stream, packed):
            name = _kind(*_edges(stream))
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        raise Damaged(f"it can't be unpacked: {error}") from error
    if name in ("pg_dump custom", "pg_dump tar"):
        _restored(name, path)
    if name == "pg_dump tar":
        _complete(path)
    elif name == "SQLite" and packed is None:
        _integral(path)
    if packed is None:
        return name
    return f"{name}, {packed}" if name else packed


@contextlib.contextmanager
def _unpacked(path: Path) -> Iterator[tuple[BinaryIO, str | None]]:
    """What is in a file, and how it was packed."""
    with path.open("rb") as file:
        magic = file.read(6)
        file.seek(0)
        for start, name, opened in PACKED:
            if magic.startswith(start):
                with opened(file) as stream:
                    yield stream, name
                return
        if magic.startswith(b"\x28\xb5\x2f\xfd"):
            os.lseek(file.fileno(), 0, os.SEEK_SET)  # where zstd reads on; seek() moves within our buffer
            with subprocess.Popen([_needed("zstd"), "-dcq"], stdin=file, stdout=subprocess.PIPE) as unpacking:
                assert unpacking.stdout is not None
                yield unpacking.stdout, "zstd"  # type: ignore[misc]
                while unpacking.stdout.read(CHUNK):
                    pass
            if unpacking.returncode != 0:
                raise Damaged(f"it can't be unpacked: zstd ended with exit code {unpacking.returncode}")
        else:
            yield file, None


def _edges(stream: BinaryIO) -> tuple[bytes, bytes, int]:
    """The first and the last bytes of a stream, which is read to its end, and how many there are."""
    head = tail = b""
    size = 0
    while chunk := stream.read(CHUNK):
        size += len(chunk)
        if len(head) < EDGE:
            head = (head + chunk)[:EDGE]
        tail = (tail + chunk)[-EDGE:]
    return head, tail, size


def _kind(head: bytes, tail: bytes, size: int) -> str | None:
    if not head:
        raise Damaged("it is empty")
    if head.startswith(b"PGDMP"):
        return "pg_dump custom"
    if head.startswith(b"toc.dat\0"):
        return "pg_dump tar"
    if head.startswith(b"SQLite format 3\0"):
        # https://sqlite.org/fileformat.html: the size of a page, where 1 is 64 kB, and how many there are.
        page, pages = int.from_bytes(head[16:18], "big"), int.from_bytes(head[28:32], "big")
        if size < (page if page > 1 else 1 << 16) * pages:
            raise Damaged(f"it is an SQLite file of {pages} pages, but not all of them are there")
        return "SQLite"
    for first, last, name in ENDINGS:
        if re.search(first, head, re.MULTILINE):
            if not re.search(last, tail, re.MULTILINE):
                raise Damaged(f"it is a dump by {name}, but its last line is missing")
            return name
    return None


def _restored(name: str, path: Path) -> str:
    """Have pg_restore read all of it, and write that nowhere."""
    argv = [_needed("pg_restore"), "-f", "/dev/null"]
    if path.is_dir():
        ran = subprocess.run([*argv, path], capture_output=True, text=True, check=False)
    else:
        with _unpacked(path) as (stream, packed):
            if packed is None:
                ran = subprocess.run([*argv, path], capture_output=True, text=True, check=False)
            else:
                ran = _piped(argv, stream)
    if ran.returncode != 0:
        raise Damaged(ran.stderr.strip().rsplit("\n", 1)[-1] or f"pg_restore: exit code {ran.returncode}")
    return name


def _piped(argv: list[str], stream: BinaryIO) -> subprocess.CompletedProcess[str]:
    # Only its one line of complaint comes by the pipe, so that can't fill up.
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as restoring:
        assert restoring.stdin is not None
        assert restoring.stderr is not None
        with contextlib.suppress(BrokenPipeError):
            shutil.copyfileobj(stream, restoring.stdin, CHUNK)
        with contextlib.suppress(BrokenPipeError):
            restoring.stdin.close()
        said = restoring.stderr.read().decode(errors="replace")
        return subprocess.CompletedProcess(argv, restoring.wait(), "", said)


def _complete(path: Path) -> None:
    """pg_restore takes a tar file whose data are cut off; pg_dump writes restore.sql last."""
    name = ""
    with _unpacked(path) as (stream, _), tarfile.open(fileobj=stream, mode="r|") as tar:
        for member in tar:
            content, left = tar.extractfile(member), member.size
            while content is not None and (chunk := content.read(CHUNK)):
                left -= len(chunk)
            if left:
                raise Damaged(f"{member.name} in it is cut off")
            name = member.name
    if name != "restore.sql":
        raise Damaged("its end is missing")


def _integral(path: Path) -> None:
    try:
        uri = f"file:{quote(str(path))}?mode=ro&immutable=1"
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
            (found,) = connection.execute("pragma integrity_check(1)").fetchone()
    except sqlite3.Error as error:
        raise Damaged(str(error)) from error
    if found != "ok":
        raise Damaged(" ".join(str(found).split()))


def _needed(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        raise Damaged(f"it takes {program} to read it, which isn't on this host")
    return found


def _told(backup: Backup) -> str:
    what = backup.format or "in no format that we know, so only that it can be read was checked"
    return f"{backup.path}: {backup.bytes} bytes, {what}, sha256 {backup.sha256[:12]}..."


def _failed(what: str) -> Failure:
    result: dict[str, Any] = {"unchanged": True}
    return Failure(
        what,
        state="the database was not touched",
        next="mend hooks.backup in fabric.yaml, then run the same command again",
        **result,
    )
