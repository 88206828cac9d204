"""A built tree as what is sent of it: a listing in blocks, and contents by their digest.

`hostlib/releasing/listing.py` says how a listing is made up. It names nothing in which two builds of the same
tree could differ, so equal trees have equal listings.
"""

from __future__ import annotations

import hashlib
import os
import struct
import tempfile
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from deploytools.errors import OperationFailed
from deploytools.releasing.contents import Entry
from deploytools.releasing.selection import LINK, PROGRAM

SEPARATOR = b"\0\0"
HEADER = struct.Struct(">cI")
END = HEADER.pack(b"e", 0)
# Bytes of content in one frame. Each is deflated by itself: quickly, as networks are quick, and not at all
# where a piece from its middle says that it would not shrink by a tenth.
FRAME, PROBE, LEVEL, WORTH = 1 << 18, 1 << 12, 1, 0.9


@dataclass(frozen=True)
class Content:
    """What a file has in it, wherever that file may be."""

    digest: str
    size: int
    path: bytes


@dataclass(frozen=True)
class Parcel:
    """A release as it is sent.

    Args:
        digest: the SHA-256 of the whole listing, which stands for the release.
        blocks: the listing's blocks.
        contents: all different contents, in the order in which the listing first has them.
    """

    digest: str
    blocks: tuple[bytes, ...]
    contents: tuple[Content, ...]
    _streams: dict[object, Frames] = field(default_factory=dict, repr=False, compare=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def outline(self) -> Iterator[bytes]:
        """The message of the blocks' digests."""
        return message(b"".join(hashlib.sha256(block).digest() for block in self.blocks))

    def listing(self, numbers: Sequence[int]) -> Iterator[bytes]:
        """The message with these blocks."""
        return message(SEPARATOR.join(self.blocks[number] for number in numbers))

    def stream(self, numbers: Sequence[int], begun: Mapping[int, int]) -> Frames:
        """The message with these contents; of those in `begun` only from that byte on.

        Hosts that lack the same share it, so that it is deflated once.
        """
        key = (tuple(numbers), tuple(begun.items()))
        with self._lock:
            if key not in self._streams:
                wanted = [(self.contents[number], begun.get(number, 0)) for number in numbers]
                self._streams[key] = Frames(wanted)
            return self._streams[key]


class Frames:
    """A message of contents: frames in the order in which they are sent, made when first asked for.

    Attributes:
        size: bytes of all the content in it.
    """

    def __init__(self, wanted: Sequence[tuple[Content, int]]) -> None:
        self.size = sum(content.size - start for content, start in wanted)
        self._pieces = _pieces(wanted)
        self._made: list[tuple[int, int, int]] = []  # where, how long, how much content up to its end
        self._spool: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115  closed with the object
        self._trouble: OSError | None = None
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[tuple[bytes, int]]:
        """Yield each frame with how much content has been sent with it. Any thread may do so, all at once."""
        number = 0
        while (frame := self._frame(number)) is not None:
            yield frame
            number += 1
        yield END, self.size

    def _frame(self, number: int) -> tuple[bytes, int] | None:
        with self._lock:
            if number == len(self._made) and not self._make():
                return None
            where, length, sent = self._made[number]
            return os.pread(self._spool.fileno(), length, where), sent

    def _make(self) -> bool:
        """Make one more frame; False where there is none. Raises OperationFailed, once and ever after."""
        if self._trouble is None:
            try:
                piece = next(self._pieces, None)
                if piece is not None:
                    self._keep(frame(piece), len(piece))
            except OSError as error:
                self._trouble = error
            else:
                return piece is not None
        raise OperationFailed(
            f"the release can't be read on this computer: {self._trouble.strerror}",
            where=str(self._trouble.filename or tempfile.gettempdir()),
            state="what came of it to a host is kept there, and no release",
            next=f"df -h {tempfile.gettempdir()} (TMPDIR names another place)",
        )

    def _keep(self, made: bytes, size: int) -> None:
        where, length, sent = self._made[-1] if self._made else (0, 0, 0)
        self._spool.write(made)
        self._spool.flush()
        self._made.append((where + length, len(made), sent + size))


def pack(tree: Path, content: Iterable[Entry], committed_at: str | None) -> Parcel:
    """Given all that is in a tree, parents first, return it as it is sent.

    Files that are new on a host get the commit's time there.
    """
    modified = max(0, int(datetime.fromisoformat(committed_at).timestamp())) if committed_at else 0
    directories: dict[bytes, list[Entry]] = {b".": []}
    for entry in content:
        directories.setdefault(os.path.dirname(os.fsencode(entry.name)) or b".", []).append(entry)
    blocks, contents = [b"1 %d" % modified], dict[str, Content]()
    for directory, found in directories.items():
        block = [directory]
        for entry in found:
            block += [os.path.basename(os.fsencode(entry.name)), _what(entry)]
            if entry.sha256 is not None:
                place = os.fsencode(tree / entry.name)
                contents.setdefault(entry.sha256, Content(entry.sha256, entry.size, place))
        blocks.append(b"\0".join(block))
    whole = hashlib.sha256(SEPARATOR.join(blocks)).hexdigest()
    return Parcel(whole, tuple(blocks), tuple(contents.values()))


def message(data: bytes) -> Iterator[bytes]:
    """Short data as frames."""
    for start in range(0, len(data), FRAME):
        yield frame(data[start : start + FRAME])
    yield END


def frame(piece: bytes) -> bytes:
    """Given at most FRAME bytes, return them with their header, deflated where that is worth it."""
    middle = piece[len(piece) // 2 :][:PROBE]
    if len(zlib.compress(middle, LEVEL)) < WORTH * len(middle):
        deflated = zlib.compress(piece, LEVEL)
        if len(deflated) < len(piece):
            return HEADER.pack(b"z", len(deflated)) + deflated
    return HEADER.pack(b"s", len(piece)) + piece


def _what(entry: Entry) -> bytes:
    """What a listing says of an entry."""
    if entry.kind == LINK:
        return b"l " + os.fsencode(entry.target or "")
    if entry.sha256 is None:
        return b"d"
    return b"%c %d %s" % (b"fx"[entry.kind == PROGRAM], entry.size, entry.sha256.encode())


def _pieces(wanted: Sequence[tuple[Content, int]]) -> Iterator[bytes]:
    """The contents one after the other, cut into FRAME bytes."""
    piece = bytearray()
    for content, start in wanted:
        left = content.size - start
        with open(content.path, "rb", buffering=0) as file:
            file.seek(start)
            while left:
                block = file.read(min(left, FRAME - len(piece)))
                if not block:  # it was cut since: what is made up instead won't have its digest
                    block = bytes(min(left, FRAME - len(piece)))
                piece += block
                left -= len(block)
                if len(piece) == FRAME:
                    yield bytes(piece)
                    piece.clear()
    if piece:
        yield bytes(piece)
