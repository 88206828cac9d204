"""A release put together: what the host has already is linked from earlier releases, the rest has arrived.

A link shares a file's content for good, so only what was read and found right is linked: now, or for an
earlier release where the file is as it was then (`hostlib.releasing.proof`). One that was damaged since is
sent anew. Where the application could write into a release, files are copied instead: what it did to one
would be done to all.

Most directories are to the last byte what an earlier release has. Their files are linked by name, one after
the other; only what is left then is looked for.
"""

from __future__ import annotations

import errno
import hashlib
import os
import pwd
import stat
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from hostlib.program import Config, Failure
from hostlib.releasing import proof, releases
from hostlib.releasing.listing import FILES, SEPARATOR, Block, File, Listing, check_ends, kept
from hostlib.releasing.store import Store

BLOCK = 1 << 20
# Why there is no file to be read any more.
GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES, errno.ENXIO)
# Why a file can't be linked that can be copied: too many links, another owner or file system.
UNLINKABLE = (errno.EMLINK, errno.EPERM, errno.EXDEV)
# How many names of damaged files are told.
TOLD = 10
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Found(NamedTuple):
    """Where a content should be, and what the file there looked like when that was seen to be right."""

    path: bytes
    proved: bytes


class Earlier:
    """A release that is here already, as a source of files."""

    def __init__(self, place: Path) -> None:
        self.place = os.fsencode(place) + b"/"
        self.blocks = (place / FILES).read_bytes().split(SEPARATOR)
        # What its files looked like, by block.
        self.proved = proof.read(place, self.blocks)
        # What lies behind the links to ROOT/shared isn't the release's.
        shared = releases.staged(place).get("shared", ())
        self._shared = tuple(os.fsencode(f"{name.rstrip('/')}/") for name in shared)
        self._by_path: dict[bytes, bytes] | None = None
        self._by_what: dict[bytes, bytes] = {}
        self._proved: dict[bytes, bytes] = {}

    def find(self, file: File) -> Found | None:
        """Where that content is; None where this release has it nowhere."""
        if self._by_path is None:
            files = list(kept(self.blocks))
            looks = [seen for of_block in self.proved.values() for seen in of_block if seen]
            if len(looks) == len(files):
                self._proved = {path: seen for (path, _), seen in zip(files, looks)}  # noqa: B905 - Python 3.10
            self._by_path = {path: what for path, what in files if not self._hidden(path)}
            self._by_what = {what: path for path, what in self._by_path.items()}
        path: bytes | None = file.path
        if self._by_path.get(file.path) != file.what:
            path = self._by_what.get(file.what) or self._by_what.get(_otherwise(file.what))
        return None if path is None else Found(self.place + path, self._proved.get(path, b""))

    def _hidden(self, path: bytes) -> bool:
        return bool(self._shared) and (path + b"/").startswith(self._shared)


def earlier(config: Config, releases: Sequence[str]) -> list[Earlier]:
    """Given names of releases, those whose listing is there, in the same order."""
    found = []
    for release in releases:
        try:
            found.append(Earlier(config.releases / release))
        except (OSError, ValueError):  # taken away by hand, or by another program right now
            continue
    return found


@dataclass
class Assembly:
    """A release on its way: `tree` is what it will be.

    Attributes:
        files: all that the listing has.
        linked, copied, arrived: how many files came to be there in which way.
        bytes: how many of content were asked for.
        damaged: files of earlier releases whose content isn't what it was.
    """

    config: Config
    listing: Listing
    tree: Path
    sources: Sequence[Earlier]
    store: Store
    files: list[File] = field(init=False)
    linked: int = 0
    copied: int = 0
    arrived: int = 0
    bytes: int = 0
    damaged: list[str] = field(default_factory=list)
    _missing: list[File] = field(default_factory=list)
    _proved: dict[bytes, bytes] = field(default_factory=dict)
    _words: set[bytes] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.files = self.listing.files

    def begin(self) -> None:
        """Make directories and links, and all files that are here already."""
        tree = os.fsencode(self.tree)
        for path in self.listing.directories:
            os.mkdir(os.path.join(tree, path))
            os.chmod(os.path.join(tree, path), 0o755)  # noqa: S103  readable by the application
        for path, target in self.listing.links:
            os.symlink(target, os.path.join(tree, path))
        check_ends(tree, self.listing.links)
        owner = _trusted_owner(self.config.user)
        having = {block: source for source in reversed(self.sources) for block in source.blocks}
        for block in self.listing.blocks:
            source = having.get(block.data)
            for file in self._link_all(block, source, tree, owner) if source else block.files:
                if not self._place(file, tree + b"/" + file.path, owner):
                    self._missing.append(file)

    def wanted(self) -> dict[str, tuple[int, int]]:
        """The contents that nobody has: their sizes, and from which byte on they are wanted."""
        sizes = {file.digest: file.size for file in self._missing}
        arrived = {digest: self.store.arrived(digest, size) for digest, size in sizes.items()}
        return {digest: (size, arrived[digest]) for digest, size in sizes.items() if arrived[digest] < size}

    def check_room(self, wanted: dict[str, tuple[int, int]]) -> None:
        """Raise Failure where the disk has no room for what is to come."""
        disk = os.statvfs(self.tree)
        times = Counter(file.digest for file in self._missing)
        sizes = {file.digest: file.size for file in self._missing}
        new = [size for digest, (size, _) in wanted.items()]
        new += [sizes[digest] for digest, count in times.items() for _ in range(count - 1)]
        needed = sum(-(-size // disk.f_frsize) * disk.f_frsize for size in new)
        needed -= sum(start for _, start in wanted.values())
        free = disk.f_bavail * disk.f_frsize
        if needed > free:
            raise full(f"the release needs {needed >> 20} MiB, {self.tree.parent} has {free >> 20} MiB free")
        if disk.f_files and len(new) > disk.f_favail:
            raise full(f"the release needs {len(new)} inodes, {self.tree.parent} has {disk.f_favail} left")

    def finish(self) -> None:
        """Put what has arrived in its place. Raises Failure where anything is missing after all."""
        left = Counter(file.digest for file in self._missing)
        for file in self._missing:
            left[file.digest] -= 1
            place, source = os.path.join(os.fsencode(self.tree), file.path), self.store.path(file.digest)
            if left[file.digest]:  # the same content is needed once more
                with open(source, "rb", buffering=0) as content:
                    whole = self._copy(content.fileno(), file, place)
                if not whole:
                    raise Failure(f"{source} was damaged just now", state="nothing was changed")
            else:
                os.rename(source, place)
                os.chmod(place, file.mode)
                os.utime(place, (self.listing.modified, self.listing.modified))
                self._proved[file.path] = proof.look(os.lstat(place))
        self.arrived = len(self._missing)
        looks = ([self._proved[file.path] for file in block.files] for block in self.listing.blocks)
        proof.write(self.tree, looks)

    def counts(self) -> dict[str, object]:
        """What the answer says of it."""
        details = [
            f"{path} is not what it was when it was staged, and was not used" for path in self.damaged[:TOLD]
        ]
        if len(self.damaged) > TOLD:
            details.append(f"and {len(self.damaged) - TOLD} more")
        numbers = {"linked": self.linked, "copied": self.copied, "arrived": self.arrived, "bytes": self.bytes}
        return {"files": len(self.files), **numbers, **({"details": details} if details else {})}

    def _link_all(self, block: Block, source: Earlier, tree: bytes, owner: int | None) -> list[File]:
        """Link what is as it was when it was read, in a directory that `source` has, too; what is left."""
        proved = source.proved.get(block.data, ())
        if owner is None or len(proved) != len(block.files):
            return block.files
        with ExitStack() as stack:
            try:
                there = os.open(source.place + block.directory, DIRECTORY)
            except OSError as error:
                if error.errno in GONE:
                    return block.files
                raise
            stack.callback(os.close, there)
            here = os.open(tree + b"/" + block.directory, DIRECTORY)
            stack.callback(os.close, here)
            left = []
            for file, seen in zip(block.files, proved):  # noqa: B905 - Python 3.10
                name = os.path.basename(file.path)
                if not self._link_proved(Found(name, seen), file, name, owner, (there, here)):
                    left.append(file)
        return left

    def _place(self, file: File, place: bytes, owner: int | None) -> bool:
        self._words = self._words or {
            word
            for block in {block for source in self.sources for block in source.blocks}
            for word in block.split(b"\0")
        }
        if file.what not in self._words and _otherwise(file.what) not in self._words:
            return False
        for source in self.sources:
            found = source.find(file)
            if found is None:
                continue
            if self._link_proved(found, file, place, owner) or self._take(found.path, file, place, owner):
                return True
            self.damaged.append(os.fsdecode(found.path))
        return False

    def _link_proved(
        self,
        found: Found,
        file: File,
        place: bytes,
        owner: int | None,
        where: tuple[int | None, int | None] = (None, None),
    ) -> bool:
        """Link a file that is as it was when it was read before; False where it has to be read now.

        Its path and `place` are below the directories that are open as `where`, which spares the kernel to
        look up every part of a path for every file.
        """
        if not found.proved:
            return False
        from_, to = where
        try:
            there = os.stat(found.path, dir_fd=from_, follow_symlinks=False)
            if (
                proof.look(there) != found.proved
                or there.st_mode != stat.S_IFREG | file.mode
                or there.st_size != file.size
                or there.st_uid != owner
            ):
                return False
            os.link(found.path, place, src_dir_fd=from_, dst_dir_fd=to, follow_symlinks=False)
        except OSError as error:
            if error.errno not in (*GONE, *UNLINKABLE):
                raise
            return False
        self.linked += 1
        self._proved[file.path] = found.proved
        return True

    def _take(self, path: bytes, file: File, place: bytes, owner: int | None) -> bool:
        """Read a file of an earlier release and have it at `place`; False where it isn't what it should be.

        Only what is the deploy user's (`owner`) and nobody else can write is linked.
        """
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in GONE:
                return False
            raise
        try:
            there = os.fstat(descriptor)
            if not stat.S_ISREG(there.st_mode) or there.st_size != file.size:
                return False
            if there.st_uid == owner and stat.S_IMODE(there.st_mode) == file.mode:
                if proof.hashed(descriptor, file.size) != file.digest:
                    return False
                try:
                    os.link(path, place)
                except OSError as error:
                    if error.errno not in UNLINKABLE:
                        raise
                    os.lseek(descriptor, 0, os.SEEK_SET)
                else:
                    self.linked += 1
                    self._proved[file.path] = proof.look(there)
                    return True
            if not self._copy(descriptor, file, place):
                return False
            self.copied += 1
            return True
        finally:
            os.close(descriptor)

    def _copy(self, source: int, file: File, place: bytes) -> bool:
        seen = hashlib.sha256()
        target = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            while block := os.read(source, BLOCK):
                seen.update(block)
                rest = memoryview(block)
                while rest:
                    rest = rest[os.write(target, rest) :]
            os.fchmod(target, file.mode)
            os.utime(target, (self.listing.modified, self.listing.modified))
            self._proved[file.path] = proof.look(os.fstat(target))
        finally:
            os.close(target)
        if seen.hexdigest() == file.digest:
            return True
        os.unlink(place)
        return False


def _otherwise(what: bytes) -> bytes:
    """The WHAT of a file of the same content whose right to execute is the other one."""
    return (b"f" if what[:1] == b"x" else b"x") + what[1:]


def _trusted_owner(application: str) -> int | None:
    """Whose files can be linked: ours, unless the application's account could write to them as well."""
    try:
        theirs = pwd.getpwnam(application).pw_uid
    except KeyError:  # fab doctor tells
        return None
    return None if theirs in (0, os.geteuid()) else os.geteuid()


def full(what: str) -> Failure:
    return Failure(
        what,
        state="nothing was changed",
        next="df -h; df -i; `release prune --keep N`, or make room, and deploy again",
    )
