"""A release's archive: checked member by member before anything is unpacked, then unpacked by tar.

The listing is read by Python and the content by tar; what tar left behind is looked at once more, so
that nothing hangs on the two reading an archive alike.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import subprocess
import tarfile
import zlib
from io import FileIO
from pathlib import Path, PurePosixPath

from hostlib.program import Failure

BLOCK = 1 << 20


def verify(file: FileIO, sha256: str) -> None:
    """Raise Failure unless the content of `file` has the digest `sha256`."""
    digest = hashlib.sha256()
    for block in iter(lambda: file.read(BLOCK), b""):
        digest.update(block)
    if digest.hexdigest() != sha256.lower():
        raise Failure(
            f"the archive's SHA-256 is {digest.hexdigest()}, not {sha256.lower()}: it was damaged on the way",
            state="nothing was changed",
            next="upload it again",
        )


def inspect(file: FileIO) -> int:
    """Return how many bytes the archive unpacks to; Failure where a member could leave the tree."""
    file.seek(0)
    files: set[PurePosixPath] = set()
    links: set[PurePosixPath] = set()
    total = 0
    try:
        with tarfile.open(fileobj=file, mode="r:gz") as members:
            for member in members:
                path = _inside(member.name)
                if path in links or any(parent in links for parent in path.parents):
                    raise _refused(member.name, "it lies behind a symbolic link of the archive")
                if member.issym():
                    check_link(path, member.linkname)
                    links.add(path)
                elif member.islnk():
                    if _inside(member.linkname) not in files:
                        raise _refused(member.name, "it is a hard link to something outside the archive")
                    files.add(path)
                elif member.isfile():
                    files.add(path)
                    total += member.size
                elif not member.isdir():
                    raise _refused(member.name, "it is neither a file, a directory nor a link")
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise Failure(
            f"the archive is no tar.gz: {error}", state="nothing was changed", next="build it again"
        ) from error
    return total


def unpack(file: FileIO, tree: Path, lock: int) -> None:
    """Unpack `file` (unbuffered: tar starts where its descriptor stands) into the directory `tree`.

    tar keeps the descriptor `lock`, so that it still is held if we are killed meanwhile.
    """
    file.seek(0)
    argv = ["tar", "--extract", "--gzip", "--file=-", f"--directory={tree}"]
    # The laptop's clock may be ahead, and its accounts aren't ours.
    argv += ["--warning=no-timestamp", "--no-same-owner", "--no-same-permissions"]
    ran = subprocess.run(argv, stdin=file, stderr=subprocess.PIPE, check=False, pass_fds=(lock,))
    if ran.returncode != 0:
        raise Failure(
            f"tar can't unpack the archive: {ran.stderr.decode(errors='replace').strip()[-2000:]}",
            state="nothing was changed",
            next="df -h (a full disk is the usual cause), then the same command again",
        )


def settle(tree: Path) -> None:
    """Make everything in `tree` readable by the application, and nothing special or leading out of it."""
    inside = tree.resolve()
    pending = [tree]
    while pending:
        directory = pending.pop()
        directory.chmod(0o755)
        for entry in os.scandir(directory):
            path = Path(entry.path)
            if entry.is_symlink():
                relative = path.relative_to(tree)
                check_link(PurePosixPath(relative), os.readlink(path))
                # A link that leads through other links may end where its text doesn't show.
                end = Path(os.path.realpath(path))
                if end != inside and inside not in end.parents:
                    raise _refused(str(relative), "it is a symbolic link that leaves the release")
            elif entry.is_dir():
                pending.append(path)
            elif entry.is_file():
                path.chmod(0o755 if entry.stat().st_mode & 0o100 else 0o644)
            else:
                raise _refused(str(path.relative_to(tree)), "it is neither a file, a directory nor a link")


def check_link(path: PurePosixPath, target: str) -> None:
    """Raise Failure where a symbolic link at `path` (relative to the release) leaves the release."""
    end = posixpath.normpath(posixpath.join(path.parent, target))
    if target.startswith("/") or end == ".." or end.startswith("../"):
        raise _refused(str(path), f"it is a symbolic link to {target}, which leaves the release")


def _inside(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise _refused(name, "its name leaves the release")
    return path


def _refused(name: str, why: str) -> Failure:
    return Failure(
        f"the archive's member {name!r} is refused: {why}",
        state="nothing was changed",
        next="take it out of the source tree (or add it to source.exclude) and deploy again",
    )
