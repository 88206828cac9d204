"""A release on the laptop: which tree, under which id; exported, patched, built, described and packed."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Container, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from deploytools import squawk
from deploytools.errors import OperationFailed, UsageError
from deploytools.releasing import build, contents, scratch, selection
from deploytools.releasing.export import UNTOUCHED, export, refuse_pointers
from deploytools.releasing.packing import Parcel, pack
from deploytools.releasing.patches import Patch
from deploytools.releasing.patches import apply as apply_patches
from deploytools.releasing.patches import read as read_patches
from deploytools.releasing.selection import FILE, Item, Selected, rules, shortened
from deploytools.releasing.source import Shipped, Source, made_at, resolve, unlike
from deploytools.settings import Settings

__all__ = ["Export", "Parcel", "Shipped", "Source", "exported", "packed"]


@dataclass(frozen=True)
class Export:
    """A source's clean copy with its patches applied, ready to be built and packed.

    Args:
        told: what an operator should know before it is shipped, a line each.
    """

    source: Source
    tree: Path
    patches: tuple[Patch, ...]
    told: tuple[str, ...]

    @property
    def lines(self) -> list[str]:
        """What a plan says of it."""
        return [f"source   {self.source}", *(f"notice   {line}" for line in self.told)]

    def unlike(self, taken: Container[str]) -> Export:
        """The same under an id that isn't taken."""
        return replace(self, source=unlike(self.source, taken))


@contextmanager
def exported(settings: Settings, ref: str | None, now: datetime) -> Iterator[Export]:
    """Export and patch what `--ref` (or source.ref) names; deletes it afterwards. No host is needed for that.

    Raises what `resolve` raises, UsageError where something can't be shipped or a patch doesn't apply,
    OperationFailed where git, tar or the disk fails.
    """
    source = resolve(settings, ref, now)
    with ExitStack() as stack:
        parent = scratch.parent(source, settings)
        with _disk_troubles(parent):  # not those of whoever uses the export
            place = stack.enter_context(scratch.directory(parent))
            tree = place / "tree"
            tree.mkdir(mode=0o755)
            patches = read_patches(source, settings.source.patches, settings.project)
            known = export(source, tree, rules(settings), whole=settings.source.build is not None)
            moved = apply_patches(tree, patches)
            selected = _selected(tree, settings)
            told = (*_not_committed(source), *shortened(known), *moved, *_about(tree, selected))
        yield Export(source, tree, patches, told)


@contextmanager
def packed(
    export: Export,
    settings: Settings,
    operator: str,
    *,
    logs: Path,
    say: Callable[[str], None],
    online: bool = False,
    earlier: Shipped | None = None,
) -> Iterator[tuple[str, Parcel]]:
    """Run the build command in an export, and pack it for upload; the release's id, and what is sent.

    With `online` squawk looks at the migrations that are labelled online-safe, where settings want that.

    Args:
        earlier: what it is once more, under its id, if it is the same to the last byte.
        logs: the directory that keeps what builds print.
        say: gets that line by line, and what an operator should know of what was built.

    Raises UsageError where the build made something that can't be shipped, OperationFailed where it or the
    disk fails, and what squawk.vetoes raises.
    """
    source, tree = export.source, export.tree
    if settings.source.build:
        log = build.log_of(logs, source)
        say(f"the build begins; what it prints is kept in {log}")
        build.run(settings.source.build, source, tree, log, lambda line: say(f"build | {line}"))
    with _disk_troubles(str(tree.parent.parent)):
        selected = _selected(tree, settings)
        for line in _about(tree, selected):
            if line not in export.told:
                say(line)
        for name, _ in selected.left_out:
            _remove(tree / name)
        vetoes = squawk.vetoes(settings, tree) if online else None
        content = contents.entries(tree, selected.items)

        def parcel(source: Source, by: str) -> Parcel:
            made = made_at(source.id)
            described = contents.describe(source, settings, by, made, content, export.patches, vetoes)
            (tree / contents.MANIFEST).write_text(described)
            manifest = contents.entries(tree, [Item(contents.MANIFEST, FILE, len(described.encode()))])
            return pack(tree, (*manifest, *content), source.committed_at)

        once_more = replace(source, id=earlier.release, ref=earlier.ref) if earlier else source
        made = parcel(once_more, earlier.by if earlier else operator)
        if earlier and made.digest == earlier.digest:
            say(f"to the last byte it is what the other hosts have, and goes by that name: {once_more.id}")
        elif earlier:
            once_more, made = source, parcel(source, operator)
    yield once_more.id, made


def _selected(tree: Path, settings: Settings) -> Selected:
    try:
        selected = selection.select(tree, rules(settings))
    except ValueError as error:  # of pathspec
        raise UsageError(str(error), where="deploy.source.exclude", state="nothing was changed") from error
    refuse_pointers(tree, selected)
    return selected


def _not_committed(source: Source) -> list[str]:
    return shortened([f"not committed, so not shipped: {line}" for line in source.dirty])


def _about(tree: Path, selected: Selected) -> list[str]:
    kept = selection.kept(tree, [name for name, reason in selected.left_out if reason == "shared"])
    looks = "looks like a secret, and is shipped (a place for it is `shared`, or source.exclude)"
    return [
        *shortened(kept),
        *shortened([f"{looks}: {name!r}" for name in selection.secrets(tree, selected)]),
    ]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


@contextmanager
def _disk_troubles(parent: str | None) -> Iterator[None]:
    """`parent` is where the export lies; None for Python's own choice."""
    place = parent or tempfile.gettempdir()
    try:
        yield
    except OSError as error:
        raise OperationFailed(
            f"the release can't be made: {error.strerror}",
            where=str(error.filename or place),
            state=UNTOUCHED,
            next=f"ls -l there; df -h {place} (TMPDIR names another place)",
        ) from error
