"""What a built tree consists of, by digest; and the description that travels with it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from deploytools.releasing.patches import Patch
from deploytools.releasing.selection import DIRECTORY, LINK, Item
from deploytools.releasing.source import Source
from deploytools.settings import Settings

MANIFEST = ".deploytools.json"
BLOCK = 1 << 20


@dataclass(frozen=True)
class Entry(Item):
    """An item with the SHA-256 of its content, as hex digits; None for what isn't a file."""

    sha256: str | None = None


def entries(tree: Path, items: Iterable[Item]) -> tuple[Entry, ...]:
    """Read each file of the tree once."""
    return tuple(
        Entry(item.name, item.kind, item.size, item.target, sha256(tree / item.name))
        if item.kind not in (LINK, DIRECTORY)
        else Entry(item.name, item.kind, target=item.target)
        for item in items
    )


def sha256(path: Path) -> str:
    """The SHA-256 of a file, as hex digits."""
    digest, descriptor = hashlib.sha256(), os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # A block as large as most files are: one that is larger than needed costs more than to read them.
        size = max(1, min(os.fstat(descriptor).st_size, BLOCK))
        while block := os.read(descriptor, size):
            digest.update(block)
    finally:
        os.close(descriptor)
    return digest.hexdigest()


def digest(content: Iterable[Entry]) -> str:
    """SHA-256 over names, kinds, rights to execute, contents and targets; equal for equal trees.

    Owners, other modes and times have no part in it: those of a release are the same on every host.
    """
    total = hashlib.sha256()
    for entry in content:
        about = f"{entry.kind}\0{entry.sha256 or ''}\0".encode()
        total.update(about + os.fsencode(entry.name) + b"\0" + os.fsencode(entry.target or "") + b"\0")
    return total.hexdigest()


def describe(
    source: Source,
    settings: Settings,
    operator: str,
    now: datetime,
    content: Iterable[Entry],
    patches: Sequence[Patch] = (),
    vetoes: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """The manifest: all that a host, or a person, is told of the release."""
    described = {
        "id": source.id,
        "ref": source.ref,
        "commit": source.commit,
        "author": source.author,
        "committed_at": source.committed_at,
        "operator": operator,
        "created_at": now.astimezone(timezone.utc).isoformat(timespec="seconds"),
        "digest": digest(content),
        "patches": [{"name": patch.name, "sha256": patch.sha256} for patch in patches],
        "app": asdict(settings.app),
        "health": asdict(settings.health),
        "migrate": {**asdict(settings.migrate), "vetoes": vetoes} if settings.migrate else None,
    }
    return json.dumps(described, indent=2, sort_keys=True) + "\n"
