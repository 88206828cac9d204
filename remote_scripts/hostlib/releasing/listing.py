"""What a release consists of: its listing, which the laptop sends before any content.

A listing is bytes, and its SHA-256 stands for the whole release. It is made of blocks, so that only the
blocks of directories in which something changed have to travel. The first has the format's number and the
time that new files get; every other one is a directory, which comes after the one that it is in, and what is
directly in it:

    1 1700000000 NUL NUL . NUL NAME NUL WHAT NUL NAME NUL WHAT NUL NUL public NUL NAME NUL WHAT

WHAT is `d` for a directory, `f SIZE SHA256` for a file, `x SIZE SHA256` for an executable one, and `l TARGET`
for a symbolic link. Names are bytes, as the file system has them. Nothing in it is taken on trust.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from hostlib.program import Failure

# Where a release keeps its listing, and what else of a host's own is in it.
FILES = ".deploytools.files"
STAGED = ".deploytools.staged.json"
PROVED = ".deploytools.proved"
SEPARATOR = b"\0\0"
HEX = 65  # bytes at the end of a file's WHAT: a blank and the digest
_HEAD = re.compile(rb"1 (0|[1-9][0-9]{0,11})")
_WHAT = re.compile(rb"d|[fx] (?:0|[1-9][0-9]{0,17}) [0-9a-f]{64}|l .+", re.DOTALL)


class File(NamedTuple):
    """A file of a release: where, and WHAT the listing says of it."""

    path: bytes
    what: bytes

    @property
    def size(self) -> int:
        return int(self.what[2:-HEX])

    @property
    def digest(self) -> str:
        return self.what[1 - HEX :].decode()

    @property
    def mode(self) -> int:
        return 0o755 if self.what[:1] == b"x" else 0o644


class Block(NamedTuple):
    """A directory's part of a listing, as it came, and the files that are directly in there."""

    data: bytes
    directory: bytes
    files: list[File]


@dataclass(frozen=True)
class Listing:
    """A checked listing; directories come before what is in them. `modified`: seconds since the epoch."""

    modified: int
    blocks: list[Block] = field(default_factory=list)
    directories: list[bytes] = field(default_factory=list)
    links: list[tuple[bytes, bytes]] = field(default_factory=list)

    @property
    def files(self) -> list[File]:
        return [file for block in self.blocks for file in block.files]


def parse(blocks: Sequence[bytes]) -> Listing:
    """Raises Failure where the blocks are no listing, or where anything in them could leave the release."""
    head = _HEAD.fullmatch(blocks[0]) if blocks else None
    if head is None:
        raise Failure(
            "what came is no listing of this version",
            state="nothing was changed",
            next="fab setup, where laptop and host are not of the same version",
        )
    listing = Listing(int(head[1]))
    open_, taken = {b"."}, set(map(os.fsencode, (FILES, STAGED, PROVED)))
    for data in blocks[1:]:
        directory, *entries = data.split(b"\0")
        if directory not in open_:
            raise refused(directory, "no directory of that name comes before it")
        open_.remove(directory)
        block = Block(data, directory, [])
        listing.blocks.append(block)
        prefix = b"" if directory == b"." else directory + b"/"
        for name, what in _pairs(directory, entries):
            path = prefix + name
            if name in (b"", b".", b"..") or b"/" in name:
                raise refused(path, "that is no name")
            if path in taken:
                raise refused(path, "it is there twice, or its name is a host's own")
            if not _WHAT.fullmatch(what):
                raise refused(path, "it is neither a file, a directory nor a link")
            taken.add(path)
            if what == b"d":
                listing.directories.append(path)
                open_.add(path)
            elif what[:1] == b"l":
                check_link(path, what[2:])
                listing.links.append((path, what[2:]))
            else:
                block.files.append(File(path, what))
    return listing


def kept(blocks: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """The path and the WHAT of every file in a listing that this host has checked before."""
    for block in blocks[1:]:
        directory, *entries = block.split(b"\0")
        prefix = b"" if directory == b"." else directory + b"/"
        for name, what in zip(entries[::2], entries[1::2]):  # noqa: B905 - strict= came with Python 3.10
            if what[:1] in b"fx":
                yield prefix + name, what


def digest(blocks: Sequence[bytes]) -> str:
    """What stands for the release."""
    return hashlib.sha256(SEPARATOR.join(blocks)).hexdigest()


def check_link(path: bytes, target: bytes) -> None:
    """Raise Failure where a symbolic link at `path` (relative to the release) leaves the release."""
    end = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
    if target.startswith(b"/") or end == b".." or end.startswith(b"../"):
        raise refused(path, f"it is a symbolic link to {os.fsdecode(target)}, which leaves the release")


def check_ends(tree: bytes, links: Sequence[tuple[bytes, bytes]]) -> None:
    """Raise Failure where a link leads out of `tree` through other links, as its text doesn't show."""
    inside = os.path.realpath(tree)
    for path, _ in links:
        end = os.path.realpath(os.path.join(tree, path))
        if end != inside and not end.startswith(inside + b"/"):
            raise refused(path, "it is a symbolic link that leaves the release")


def refused(path: bytes, why: str) -> Failure:
    return Failure(
        f"{os.fsdecode(path)!r} is refused: {why}",
        state="nothing was changed",
        next="take it out of the source tree (or add it to source.exclude) and deploy again",
    )


def _pairs(directory: bytes, entries: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
    if len(entries) % 2:
        raise refused(directory, "it has a name that nothing is said of")
    return zip(entries[::2], entries[1::2])  # noqa: B905 - strict= came with Python 3.10
