"""Where an export lies while it is needed: in memory, where its size is known and small beside what is free.

Ten thousand new files cost a disk seconds, and memory next to nothing; a redeploy exports them all.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from deploytools.releasing import git
from deploytools.releasing.git import GitFailed
from deploytools.releasing.source import Source
from deploytools.settings import Settings

MEMORY = Path("/dev/shm")  # noqa: S108  a directory of our own is made in it, for us alone
# Which part of the memory that is free an export may take.
PART = 8

PREFIX = "deploytools-export-"
# A directory may be as young as this (seconds) without being locked by whoever has just made it.
YOUNG = 60.0


@contextmanager
def directory(parent: str | None, now: Callable[[], float] = time.time) -> Iterator[Path]:
    """A temporary directory, deleted afterwards; so are those of deploys that were killed.

    It is locked as long as its process lives, and nobody cleans up in memory after a closed terminal.
    """
    _sweep(Path(parent or tempfile.gettempdir()), now())
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=parent) as made, _locked(Path(made)):
        yield Path(made)


def parent(source: Source, settings: Settings, *, memory: Path = MEMORY) -> str | None:
    """The directory to make a temporary one in; None where Python's own choice is to be taken.

    That is taken where TMPDIR says so, and where nobody knows how large it gets: with a build, of a plain
    directory.
    """
    if "TMPDIR" in os.environ or settings.source.build or source.commit is None:
        return None
    try:
        size = _size(source.path, source.commit)
        room = os.statvfs(memory)
        free = min(room.f_bavail * room.f_frsize, available(Path("/proc/meminfo").read_text()))
    except (GitFailed, OSError):
        return None
    writable = os.access(memory, os.W_OK | os.X_OK)
    return str(memory) if writable and size is not None and size * PART <= free else None


def available(meminfo: str) -> int:
    """Given /proc/meminfo, return how many bytes of memory are free for new work; 0 where it doesn't say."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", meminfo, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _size(path: Path, commit: str) -> int | None:
    """The bytes of a commit's files; None where a submodule or a filter, as that of Git LFS, adds others."""
    try:
        git.ask(path, "grep", "-q", "filter=", commit, "--", ":(top,glob)**/.gitattributes")
    except GitFailed:
        sizes = re.findall(
            rb"(?:^|\0)\d+ (?:blob|commit) \w+ +(\d+|-)\t", git.ask(path, "ls-tree", "-rlz", commit)
        )
        return None if b"-" in sizes else sum(map(int, sizes))
    return None


def _sweep(place: Path, now: float) -> None:
    for left in place.glob(f"{PREFIX}*"):
        with suppress(OSError):
            about = left.lstat()
            if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid() or now - about.st_mtime < YOUNG:
                continue
            with _locked(left):
                shutil.rmtree(left, ignore_errors=True)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the directory's lock, which no child inherits; BlockingIOError where another process does."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
