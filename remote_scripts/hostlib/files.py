"""Files that are whole or absent: write beside the target, fsync, rename."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any


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
    """The JSON object in `path`, or None where there is no such file."""
    try:
        return json.loads(path.read_text())  # type: ignore[no-any-return]
    except FileNotFoundError:
        return None


def write_json(path: Path, value: object, mode: int = 0o644) -> None:
    """Write `value` as JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=2, sort_keys=True) + "\n", mode)
