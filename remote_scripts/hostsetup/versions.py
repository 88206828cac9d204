"""The versions of the programs, each whole in a directory of its own, and the link that says which is called.

See hostlib/__init__.py for what they look like, and why a program never meets another version's hostlib.
"""

from __future__ import annotations

import compileall
import contextlib
import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hostlib.files import link_atomic, sync_directory

from hostsetup import placing
from hostsetup.bundle import Bundle, File


def called(bundle: Bundle) -> Path | None:
    """The directory of the version that is called now; None where none is."""
    place = bundle.tools / "current"
    return Path(os.path.realpath(place)) if place.is_symlink() and place.is_dir() else None


def before(bundle: Bundle, name: str) -> Path:
    """Where the file `name` of the version that is called now stands, or would stand."""
    return (called(bundle) or bundle.tools) / name


def placed(bundle: Bundle) -> list[File]:
    """The files of this version, with their full paths."""
    return [dataclasses.replace(file, path=bundle.place / file.path) for file in bundle.programs]


def extras(bundle: Bundle) -> list[Path]:
    """What is in the directory of this version and has no place in it."""
    if not bundle.place.is_dir():
        return []
    ours = {file.path for file in placed(bundle)}
    return sorted(
        path
        for path in bundle.place.rglob("*")
        if path not in ours and "__pycache__" not in path.parts and (path.is_symlink() or not path.is_dir())
    )


def put(bundle: Bundle) -> None:
    """Have this version there, whole; mend it where it is there already."""
    place = bundle.place
    for litter in place.parent.glob(".new-*"):
        shutil.rmtree(litter)
    for litter in placing.litter(bundle.tools / "current"):
        litter.unlink()
    if not place.exists():
        _build(bundle)
        return
    for path in extras(bundle):
        path.unlink()
    for file in placed(bundle):
        for parent in _between(place, file.path):
            parent.mkdir(exist_ok=True)
        if not file.path.is_file() or file.path.is_symlink() or file.path.read_bytes() != file.content:
            placing.write(file)
        else:
            placing.mend(file)


def turn(bundle: Bundle) -> None:
    """Let this version be called from now on."""
    if called(bundle) != bundle.place:
        link_atomic(bundle.tools / "current", f"versions/{bundle.version}")


def prune(bundle: Bundle, last: Path | None) -> None:
    """Take away the versions that nothing runs on any more.

    The `last` one, before this, stays: what was started on it may still run. To be called when all is in
    place: from the versions it is known what on the host is nobody's own.
    """
    keep = {bundle.place, last, *_in_use(bundle.place.parent)}
    for version in bundle.place.parent.iterdir():
        if version not in keep:
            shutil.rmtree(version)


def of_before(bundle: Bundle) -> list[Path]:
    """The hostlib of the time before versions had directories of their own."""
    place = bundle.tools / "hostlib"
    return [place] if place.is_dir() and not place.is_symlink() else []


def pages(bundle: Bundle) -> set[bytes]:
    """The maintenance pages that set-up has put here: any other is the operator's own."""
    return {copy.read_bytes() for copy in bundle.tools.glob("versions/*/maint.html")}


def records(bundle: Bundle) -> tuple[set[Path], dict[Path, str]]:
    """The files, and the links with their targets, that the versions here have put outside of theirs."""
    files: set[Path] = set()
    links: dict[Path, str] = {}
    for record in bundle.tools.glob("versions/*/installed.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            raw = json.loads(record.read_text())
            files |= set(map(Path, raw["files"]))
            links.update({Path(path): target for path, target in raw["links"].items()})
    return files, links


def leftovers(bundle: Bundle) -> list[Path]:
    """What an earlier version has put in place, and this one has no place for.

    A link that leads elsewhere by now is somebody else's.
    """
    files, links = records(bundle)
    wanted = {entry.path for entry in (*bundle.files, *bundle.links)}
    gone = {path for path in files - wanted if path.is_file()}
    gone |= {
        path
        for path, target in links.items()
        if path not in wanted and path.is_symlink() and os.readlink(path) == target
    }
    return sorted(gone)


def _build(bundle: Bundle) -> None:
    place = bundle.place
    new = Path(tempfile.mkdtemp(prefix=".new-", dir=place.parent))
    new.chmod(0o755)
    for file in bundle.programs:
        path = new / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        placing.write(dataclasses.replace(file, path=path))
    # Who may not write there would compile it each time. The paths in tracebacks are those of later.
    compileall.compile_dir(new / "hostlib", ddir=str(place / "hostlib"), quiet=1)
    for path in [new, *new.rglob("*")]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    os.rename(new, place)
    sync_directory(place.parent)


def _between(place: Path, path: Path) -> Iterator[Path]:
    return reversed([parent for parent in path.parents if place in parent.parents])


def _in_use(versions: Path) -> set[Path]:
    """The versions that a process works in: the runner of a migration stays as long as that takes."""
    found = set()
    for link in Path("/proc").glob("[0-9]*/cwd"):
        with contextlib.suppress(OSError):
            place = Path(os.readlink(link))
            found |= {place, *place.parents}
    return {version for version in versions.iterdir() if version in found}
