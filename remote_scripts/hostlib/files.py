"""Files that are whole or absent: write beside the target, fsync, rename."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from pathlib import Path
from typing import Any

LARGEST_JSON = 1 << 24  # bytes


def write_atomic(
    path: Path, content: str | bytes, mode: int = 0o644, like: Path | None = None, group: int | None = None
) -> None:
    """Replace `path` by a file with `content`; readers see the old one or the new one, never a part.

    Owner and group are taken from `like` where it is given and we may (as root); so is the numeric `group`.
    Raises OSError and leaves `path` as it was when anything fails, a full disk included.
    """
    data = content.encode() if isinstance(content, str) else content
    name = path.parent / f".{path.name}.{os.urandom(4).hex()}"
    handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            os.fchmod(file.fileno(), mode)
            if like is not None and os.geteuid() == 0:
                owner = like.stat()
                os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
            if group is not None and os.geteuid() == 0:
                os.fchown(file.fileno(), -1, group)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(name)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        raise
    sync_directory(path.parent)


def link_atomic(path: Path, target: str) -> None:
    """Make `path` a symbolic link to `target` by rename(2), so that it never is missing in between."""
    temporary = path.parent / f".{path.name}.{os.getpid()}"
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    temporary.symlink_to(target)
    try:
        os.replace(temporary, path)
    except OSError:
        temporary.unlink()
        raise
    sync_directory(path.parent)


def link_over(path: Path, source: Path) -> None:
    """Make `path` another name of the file `source`, by rename(2): it takes no room on the disk."""
    temporary = path.parent / f".{path.name}.{os.urandom(4).hex()}"
    os.link(source, temporary)
    try:
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # rename(2) does nothing where both are one file already
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make a rename in `path` survive a power loss."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in `path`, or None where there is no such file.

    Raises OSError or ValueError. What isn't a file is not waited for, and only so much is read: root reads
    what other accounts have written.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError(f"{path} is no file")
        return json.loads(file.read(LARGEST_JSON))  # type: ignore[no-any-return]


def write_json(path: Path, value: object, mode: int = 0o644) -> None:
    """Write `value` as JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=2, sort_keys=True) + "\n", mode)
