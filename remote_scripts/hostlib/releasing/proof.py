"""What a release's files looked like when their content was last seen to be right.

A file that is the same inode still, with the same time of change, isn't read again for every release that it
is linked into; rsync goes by less. What no such look can see (a disk that rots, a hand that has set the time
back) is found by turns: a part of all files is read each time, so that within PARTS releases every one was.
`release verify` reads all of a release.
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


def due(digest: str, number: int) -> bool:
    """Whether it is the turn of a file with this SHA-256 to be read for the release of this number."""
    return int(digest[:2], 16) % PARTS == number % PARTS


def write(tree: Path, looks: Iterable[bytes]) -> None:
    """Note what the files of a listing look like, in its order. Whoever calls flushes the disk."""
    path = tree / listing.PROVED
    path.write_bytes(b"\n".join(looks))
    path.chmod(0o600)


def read(place: Path) -> list[bytes]:
    """What `write` has noted of a release; nothing where it hasn't."""
    try:
        return (place / listing.PROVED).read_bytes().split(b"\n")
    except OSError:
        return []


def forget(releases: Iterable[Path]) -> None:
    """Have the next release read whatever it links."""
    for place in releases:
        (place / listing.PROVED).unlink(missing_ok=True)


def damaged(place: Path, shared: Sequence[str] = ()) -> tuple[int, list[str]]:
    """Read all files of a release; how many it should have, and those that aren't what its listing says.

    Of what is `shared` a release has only links. Raises OSError where there is no listing.
    """
    hidden = tuple(os.fsencode(f"{name.rstrip('/')}/") for name in shared)
    files = [
        (path, what)
        for path, what in listing.kept((place / listing.FILES).read_bytes())
        if not (hidden and (path + b"/").startswith(hidden))
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
