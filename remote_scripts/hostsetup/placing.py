"""Puts directories, files and links in place: whole, with owner and mode, following nobody else's link."""

from __future__ import annotations

import contextlib
import os
import pwd
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hostlib.files import link_atomic, sync_directory

from hostsetup.bundle import Directory, File, Link, Refused

__all__ = [
    "attributes",
    "differing",
    "litter",
    "make_directory",
    "make_link",
    "own",
    "sync_directory",
    "write",
]


def write(file: File) -> None:
    """Replace `file.path`; whoever reads it meets the old one or the new one, never with a wrong mode."""
    handle, name = tempfile.mkstemp(prefix=f".{file.path.name}.", dir=file.path.parent)
    try:
        with os.fdopen(handle, "wb") as opened:
            opened.write(file.content)
            own(opened.fileno(), file)
            opened.flush()
            os.fsync(opened.fileno())
        os.replace(name, file.path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
    sync_directory(file.path.parent)


def make_link(link: Link) -> None:
    """Replace what is at `link.path`."""
    link_atomic(link.path, link.target)


def make_directory(directory: Directory) -> None:
    """Make it, or what is missing on the way to it; give it its owner and mode."""
    if directory.within is None:
        missing = not directory.path.exists()
        directory.path.mkdir(parents=True, exist_ok=True)
        if directory.keep and not missing:
            return
    with _opened(directory) as descriptor:
        own(descriptor, directory)


@contextlib.contextmanager
def _opened(directory: Directory) -> Iterator[int]:
    """The directory's descriptor.

    Below `within` its owner may exchange anything while we look: each step is taken from the one before, by
    no link, and what is missing is made as its parent is.
    """
    start = directory.within or directory.path
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    descriptor = os.open(start, flags)
    try:
        for name in directory.path.relative_to(start).parts:
            above = os.fstat(descriptor)
            made = False
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=descriptor)
                made = True
            below = os.open(name, flags, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
            if made:
                os.fchmod(descriptor, above.st_mode & 0o7777)
                if os.geteuid() == 0:
                    os.fchown(descriptor, above.st_uid, above.st_gid)
        yield descriptor
    finally:
        os.close(descriptor)


def mend(entry: File | Directory) -> None:
    """Give what is there its owner and mode."""
    if isinstance(entry, Directory):
        make_directory(entry)
        return
    descriptor = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        own(descriptor, entry)
    finally:
        os.close(descriptor)


def own(descriptor: int, entry: File | Directory) -> None:
    if os.geteuid() == 0:
        os.fchown(descriptor, *wanted(entry)[:2])
    os.fchmod(descriptor, entry.mode)


def attributes(path: Path) -> tuple[int, int, int]:
    """Owner, group and mode of what is there; a link is not followed."""
    found = path.lstat()
    return found.st_uid, found.st_gid, found.st_mode & 0o7777


def wanted(entry: File | Directory) -> tuple[int, int, int]:
    """Owner, group and mode as they should be; Refused where there is no such account."""
    try:
        owner = pwd.getpwnam(entry.owner)
        group = pwd.getpwnam(entry.group_of or entry.owner).pw_gid
    except KeyError as error:
        raise no_account(error.args[0].rpartition(" ")[2].strip("'")) from error
    return owner.pw_uid, group, entry.mode


def no_account(name: str) -> Refused:
    return Refused(f"there is no account {name}", next=f"make it (adduser {name}), then fab setup again")


def differing(path: Path, entry: File | Directory) -> str:
    """What `attributes` and `wanted` differ in, in names; "" where they don't."""
    there, right = attributes(path), wanted(entry)
    return "" if there == right else f"{_told(there)} -> {_told(right)}"


def _told(found: tuple[int, int, int]) -> str:
    import grp

    uid, gid, mode = found
    try:
        owner = pwd.getpwuid(uid).pw_name
    except KeyError:
        owner = str(uid)
    try:
        group = grp.getgrgid(gid).gr_name
    except KeyError:
        group = str(gid)
    return f"{owner}:{group} {mode:04o}"


def litter(path: Path) -> list[Path]:
    """What a set-up that was killed wrote beside `path`, and did not come to rename."""
    return sorted(path.parent.glob(f".{path.name}.*"))
