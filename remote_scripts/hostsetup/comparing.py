"""What is different on this host from what the bundle wants: it is all that set-up changes."""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from hostsetup import placing, versions
from hostsetup.bundle import Bundle, Directory, File, Link


@dataclass(frozen=True)
class Change:
    """`what` happens to `path`, in detail `diff`. `program`: it is one of ours, and no configuration."""

    path: str
    what: str
    diff: str = ""
    program: bool = False


def changes(bundle: Bundle) -> list[Change]:
    return [
        *(change for directory in bundle.directories for change in _directory(directory)),
        *_programs(bundle),
        *(change for file in bundle.files for change in of_file(file, versions.pages(bundle))),
        *(change for link in bundle.links for change in of_link(link)),
        *(
            Change(str(path), "remove: this version has no place for it")
            for path in versions.leftovers(bundle)
        ),
        *(Change(str(path), "remove", program=True) for path in versions.of_before(bundle)),
    ]


def of_file(file: File, shipped: Collection[bytes]) -> Iterator[Change]:
    """What has to be done to a file, if anything. `shipped`: the pages that are nobody's own."""
    path = file.path
    if not path.exists() and not path.is_symlink():
        yield Change(str(path), "create", _diff(path, b"", file.content))
    elif file.keep:
        # An empty script answers 500 to every request: whoever made it that, it was not on purpose.
        if file.kind == "switch" and path.is_file() and not path.stat().st_size:
            yield Change(str(path), "change", _diff(path, b"", file.content))
        elif file.kind == "page" and path.is_file() and not path.is_symlink():
            there = path.read_bytes()
            if there != file.content and there in shipped:
                yield Change(str(path), "change", _diff(path, there, file.content))
    elif path.is_symlink():
        yield Change(str(path), "put a file in place of the link")
    elif path.read_bytes() != file.content:
        yield Change(str(path), "change", _diff(path, path.read_bytes(), file.content))
    elif differing := placing.differing(path, file):
        yield Change(str(path), "owner or mode", differing)


def of_link(link: Link) -> Iterator[Change]:
    """What has to be done to a link, if anything."""
    if not link.path.is_symlink() or os.readlink(link.path) != link.target:
        yield Change(str(link.path), f"link to {link.target}", program=link.kind == "program")


def _directory(directory: Directory) -> Iterator[Change]:
    path = directory.path
    if not path.exists():
        yield Change(str(path), "create directory")
    elif not directory.keep and (differing := placing.differing(path, directory)):
        yield Change(str(path), "owner or mode", differing)


def _programs(bundle: Bundle) -> Iterator[Change]:
    """The files of this version against those of the one that is called now, by their path in it."""
    here, called = bundle.place, versions.called(bundle)
    for file in bundle.programs:
        name = str(file.path)
        shown = f"{bundle.tools}/{name}"
        there = versions.before(bundle, name)
        program = name != "config.json"
        if not there.is_file():
            # Where all of it is new it is as this toolkit ships it: nobody reads that as a diff.
            diff = "" if program and called is None else _diff(Path(shown), b"", file.content)
            yield Change(shown, "create", diff, program)
        elif there.read_bytes() != file.content:
            yield Change(shown, "change", _diff(Path(shown), there.read_bytes(), file.content), program)
        elif called == here and (differing := placing.differing(there, file)):
            yield Change(shown, "owner or mode", differing, program)
    if called == here:
        yield from (
            Change(str(path), "remove: it is none of ours", program=True) for path in versions.extras(bundle)
        )
    elif called is not None:
        ours = {str(file.path) for file in bundle.programs}
        for path in sorted(called.rglob("*.py")):
            if str(path.relative_to(called)) not in ours:
                yield Change(f"{bundle.tools}/{path.relative_to(called)}", "remove", program=True)


def _diff(path: Path, old: bytes, new: bytes) -> str:
    lines = difflib.unified_diff(
        old.decode(errors="replace").splitlines(),
        new.decode(errors="replace").splitlines(),
        str(path),
        str(path),
        lineterm="",
    )
    return "\n".join(lines)
