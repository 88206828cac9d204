"""Content that has arrived and has no place yet, by its digest: an upload that was cut goes on from here.

A file that is shorter than its content is the part that had come when the connection went.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

BLOCK = 1 << 20
# What no deploy has asked for, for so long (seconds), none will.
STALE = 24 * 3600.0


class Store:
    """A directory of contents. For one process at a time, which whoever makes it sees to."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._proved: set[str] = set()
        directory.mkdir(exist_ok=True)

    def arrived(self, digest: str, size: int) -> int:
        """How many bytes of a content are here; `size` only where they are proved to be the right ones."""
        if digest in self._proved:
            return size
        path = self.path(digest)
        try:
            there = path.lstat()
        except FileNotFoundError:
            if not size:
                path.touch()
            return 0
        if stat.S_ISREG(there.st_mode) and there.st_size < size:
            return there.st_size
        if stat.S_ISREG(there.st_mode) and there.st_size == size and _hashed(path).hexdigest() == digest:
            self._proved.add(digest)
            return size
        path.unlink()
        return 0

    def receive(self, wanted: Mapping[str, tuple[int, int]], parts: Iterator[bytes]) -> None:
        """Write what comes: the contents `wanted` (digest: size, from which byte on), one after the other.

        What is not what it should be is thrown away, so that it is still missing afterwards.
        """
        left = memoryview(b"")
        for digest, (size, start) in wanted.items():
            path = self.path(digest)
            seen = _hashed(path) if start else hashlib.sha256()
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                missing = size - start
                while missing:
                    if not left:
                        part = next(parts, None)
                        if part is None:
                            break
                        left = memoryview(part)
                    block, left = left[:missing], left[missing:]
                    seen.update(block)
                    missing -= len(block)
                    while block:
                        block = block[os.write(descriptor, block) :]
            finally:
                os.close(descriptor)
            if seen.hexdigest() == digest:
                self._proved.add(digest)
            else:
                path.unlink()
        for _ in parts:  # up to the end of the message
            pass

    def path(self, digest: str) -> Path:
        return self.directory / digest

    def clear_stale(self) -> None:
        """Throw away what has been lying here for too long, by a clock that may have been set back."""
        for path in self.directory.iterdir():
            if abs(time.time() - path.lstat().st_mtime) > STALE:
                path.unlink()


def _hashed(path: Path) -> hashlib._Hash:
    seen = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(BLOCK):
            seen.update(block)
    return seen
