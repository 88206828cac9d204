"""What a release's files looked like when their content was last seen to be right.

A file that is the same inode still, with the same time of change, isn't read again for every release that it
is linked into; rsync goes by less. What no such look can see (a disk that rots, a hand that has set the time
back) is found by turns: `release prune` reads a part of what was deployed, so that within PARTS releases
every file was read. `release verify` reads all of a release.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from hostlib.releasing import listing

PARTS = 8
BLOCK = 1 << 20


def look(about: os.stat_result) -> bytes:
    """What a file is recognised by, beside size, owner and mode. Not its ctime, which every link changes."""
    return b"%d %d" % (about.st_ino, about.st_mtime_ns)


def write(tree: Path, looks: Iterable[Iterable[bytes]]) -> None:
    """Note what the files of each block of a listing look like. Whoever calls flushes the disk."""
    path = tree / listing.PROVED
    path.write_bytes(b"\n".join(b",".join(of_block) for of_block in looks))
    path.chmod(0o600)


def read(place: Path, blocks: Sequence[bytes]) -> dict[bytes, list[bytes]]:
    """What `write` has noted of a release, by its listing's blocks; nothing where it hasn't."""
    try:
        lines = (place / listing.PROVED).read_bytes().split(b"\n")
    except OSError:
        return {}
    if len(lines) != len(blocks) - 1:  # of another version
        return {}
    return {block: line.split(b",") for block, line in zip(blocks[1:], lines)}  # noqa: B905 - Python 3.10


def forget(releases: Iterable[Path]) -> None:
    """Have the next release read whatever it links."""
    for place in releases:
        (place / listing.PROVED).unlink(missing_ok=True)


def damaged(place: Path, shared: Sequence[str] = (), number: int | None = None) -> tuple[int, list[str]]:
    """Read the files of a release; how many were to be read, and those that aren't what its listing says.

    Of what is `shared` a release has only links. With the release's `number` only those are read whose turn
    it is. Raises OSError where there is no listing.
    """
    hidden = tuple(os.fsencode(f"{name.rstrip('/')}/") for name in shared)
    files = [
        (path, what)
        for path, what in listing.kept((place / listing.FILES).read_bytes().split(listing.SEPARATOR))
        if not (hidden and (path + b"/").startswith(hidden)) and (number is None or _due(what, number))
    ]
    wrong = [
        os.fsdecode(path) for path, what in files if not _right(os.path.join(os.fsencode(place), path), what)
    ]
    return len(files), wrong


def hashed(descriptor: int, size: int) -> str:
    """The SHA-256 of the first `size` bytes from where an open file stands."""
    seen = hashlib.sha256()
    while size and (block := os.read(descriptor, min(size, BLOCK))):
        seen.update(block)
        size -= len(block)
    return seen.hexdigest()


def _due(what: bytes, number: int) -> bool:
    """Whether it is the turn of a file with this WHAT to be read after the release of this number."""
    return int(what[-2:], 16) % PARTS == number % PARTS


def _right(path: bytes, what: bytes) -> bool:
    kind, size, digest = what.split(b" ")
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        about = os.fstat(descriptor)
        as_listed = (stat.S_ISREG(about.st_mode), about.st_size, bool(about.st_mode & 0o100))
        return (
            as_listed == (True, int(size), kind == b"x") and hashed(descriptor, int(size)) == digest.decode()
        )
    finally:
        os.close(descriptor)
