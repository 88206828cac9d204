"""What of a tree is shipped: not what is excluded, shared or git's own; and nothing that leads out of it."""

from __future__ import annotations

import fnmatch
import os
import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path, PurePosixPath

from pathspec import GitIgnoreSpec

from deploytools.errors import UsageError
from deploytools.settings import Settings

# At the top of a release these are ours (deploytools.releasing.contents, hostlib.releasing.listing).
RESERVED = ".deploytools."
# What keeps an otherwise empty directory in git; as hostlib.releasing.shared has them.
PLACEHOLDERS = {".gitignore", ".gitkeep", ".keep"}
FILE, PROGRAM, LINK, DIRECTORY = "file", "program", "link", "directory"
# Names of files that are secret as a rule, and of those that only look like them.
SECRET = (
    ".env", ".env.*", "*.env", "id_rsa", "id_dsa", "id_ecdsa", "id_ed25519", "*.key", "*.p12", "*.pfx",
    "*.jks", "*.keystore", "*.kdbx", "*.ppk", ".netrc", ".pgpass", ".my.cnf", ".git-credentials", ".htpasswd",
    "credentials.json",
)  # fmt: skip
EXAMPLES = ("*.example", "*.sample", "*.dist", "*.template", "*.tmpl", ".env.example.*")
# A .pem is a certificate as often as a key, so it is looked into; a key's first line is near its beginning.
LOOKED_INTO = ("*.pem", "*.crt")
PRIVATE, BEGINNING = b"PRIVATE KEY-----", 65536


@dataclass(frozen=True)
class Item:
    """A file, link or directory of a tree; `target` is where a link leads, `size` a file's bytes."""

    name: str
    kind: str
    size: int = 0
    target: str | None = None


@dataclass(frozen=True)
class Selected:
    """The items that are shipped, in the order of their names' bytes; the names that aren't, and why."""

    items: tuple[Item, ...]
    left_out: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Rules:
    """What isn't shipped: `exclude` as in a .gitignore, and the paths that are `shared`."""

    exclude: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()

    def reason(self, name: str, *, directory: bool) -> str | None:
        """The setting that keeps this path (relative, with /) out of a release; None where it is shipped."""
        if posixpath.basename(name) == ".git":
            return "git"
        if self.exclude and self._spec.match_file(f"{name}/" if directory else name):
            return "source.exclude"
        return "shared" if name in self.shared else None

    @cached_property
    def _spec(self) -> GitIgnoreSpec:
        return GitIgnoreSpec.from_lines(self.exclude)


def rules(settings: Settings) -> Rules:
    """What the settings keep out of a release."""
    return Rules(settings.source.exclude, settings.shared)


def select(tree: Path, rules: Rules) -> Selected:
    """Go through a tree. Raises UsageError, which names all of them, where something can't be shipped."""
    items: list[Item] = []
    left_out: list[tuple[str, str]] = []
    refused: list[str] = []
    inside = os.path.realpath(tree)
    for entry, name in _walk(tree, rules, left_out):
        if "/" not in name and name.startswith(RESERVED):
            refused.append(f"{name!r}: the name is ours")
        elif entry.is_symlink():
            target = os.readlink(entry.path)
            if why := _leaves(inside, entry.path, name, target):
                refused.append(f"{name!r}: {why}")
            items.append(Item(name, LINK, target=target))
        elif entry.is_dir():
            items.append(Item(name, DIRECTORY))
        elif entry.is_file():
            about = entry.stat()
            items.append(Item(name, PROGRAM if about.st_mode & 0o100 else FILE, about.st_size))
        else:
            refused.append(f"{name!r}: it is neither a file, a directory nor a link")
    refused += _in_the_way(items, rules.shared)
    if refused:
        raise UsageError(
            f"{len(refused)} thing{'s' if len(refused) > 1 else ''} in the source can't be part of a release",
            where="deploy.source",
            state="nothing was changed",
            next="take it out of the source, or add it to source.exclude, and deploy again",
            details=shortened(refused),
        )
    return Selected(tuple(sorted(items, key=lambda item: os.fsencode(item.name))), tuple(left_out))


def secrets(tree: Path, selected: Selected) -> list[str]:
    """The files among those that look like secrets, which belong in ROOT/shared on the hosts."""
    found = []
    for item in selected.items:
        base = posixpath.basename(item.name)
        if item.kind in (LINK, DIRECTORY) or _matches(base, EXAMPLES):
            continue
        if _matches(base, SECRET) or (_matches(base, LOOKED_INTO) and _private(tree / item.name)):
            found.append(item.name)
    return found


def kept(place: Path, names: Sequence[str]) -> list[str]:
    """Given paths below `place` that are shared, say which have something that isn't shipped therefore."""
    return [
        f"kept on the hosts (`shared`), so not shipped: {name}" for name in names if _content(place / name)
    ]


def shortened(lines: Sequence[str], most: int = 10) -> list[str]:
    """The first of many lines, and how many more there are."""
    more = len(lines) - most
    return [*lines[:most], *([f"... and {more} more"] if more > 0 else [])]


def _walk(
    directory: Path, rules: Rules, left_out: list[tuple[str, str]], prefix: str = ""
) -> Iterator[tuple[os.DirEntry[str], str]]:
    """Whatever may be shipped, parents first; what isn't goes to `left_out`, and nobody looks below it."""
    for entry in sorted(os.scandir(directory), key=lambda entry: os.fsencode(entry.name)):
        name, is_directory = prefix + entry.name, entry.is_dir(follow_symlinks=False)
        reason = rules.reason(name, directory=is_directory)
        if reason is not None:
            left_out.append((name, reason))
            continue
        yield entry, name
        if is_directory:
            yield from _walk(Path(entry.path), rules, left_out, f"{name}/")


def _leaves(inside: str, path: str, name: str, target: str) -> str | None:
    """As hostlib.releasing.listing judges a link, so that no host has to refuse it."""
    end = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
    if target.startswith("/") or end == ".." or end.startswith("../"):
        return f"it is a symbolic link to {target!r}, which leaves the release"
    real = os.path.realpath(path)  # it may lead on through other links
    if real != inside and not real.startswith(f"{inside}/"):
        return f"it is a symbolic link that ends at {real!r}, outside of the release"
    return None


def _in_the_way(items: Sequence[Item], shared: Sequence[str]) -> Iterator[str]:
    """A directory on the way to a shared path is made where it is missing; it can't be anything else."""
    kinds = {item.name: item.kind for item in items}
    for path in shared:
        for parent in map(str, PurePosixPath(path).parents):
            if kinds.get(parent, DIRECTORY) != DIRECTORY:
                yield f"{parent!r}: it is a {kinds[parent]}, but `shared` has {path}"


def _content(path: Path) -> bool:
    if path.is_symlink() or not path.is_dir():
        return True
    return any(entry.name not in PLACEHOLDERS for entry in os.scandir(path))


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return _any_of(patterns).match(name) is not None


@cache
def _any_of(patterns: tuple[str, ...]) -> re.Pattern[str]:
    """All in one: to try each in turn on every name took longer than to read the files."""
    return re.compile("|".join(map(fnmatch.translate, patterns)))


def _private(path: Path) -> bool:
    with path.open("rb") as file:
        return PRIVATE in file.read(BEGINNING)
