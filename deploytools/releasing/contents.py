"""What a built tree consists of: its digest, and the description that travels with it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

from deploytools.releasing.source import Source
from deploytools.settings import Settings

MANIFEST = ".deploytools.json"


def tree_digest(tree: Path) -> str:
    """SHA-256 over the names, kinds, executable bits and contents of a tree; equal for equal trees."""
    digest = hashlib.sha256()
    for path in sorted(tree.rglob("*")):
        name = path.relative_to(tree).as_posix()
        if path.is_symlink():
            entry = f"link {name}\0{os.readlink(path)}\0".encode()
        elif path.is_dir():
            entry = f"directory {name}\0".encode()
        else:
            kind = "program" if path.stat().st_mode & 0o100 else "file"
            entry = f"{kind} {name}\0".encode() + hashlib.sha256(path.read_bytes()).digest()
        digest.update(entry)
    return digest.hexdigest()


def describe(
    source: Source,
    settings: Settings,
    operator: str,
    now: datetime,
    tree: Path,
    vetoes: Mapping[str, Sequence[str]] | None,
) -> None:
    """Write the manifest into the tree: all that a host, or a person, is told of the release."""
    described = {
        "id": source.id,
        "ref": source.ref,
        "commit": source.commit,
        "author": source.author,
        "committed_at": source.committed_at,
        "operator": operator,
        "created_at": now.astimezone(timezone.utc).isoformat(timespec="seconds"),
        "digest": tree_digest(tree),
        "app": asdict(settings.app),
        "health": asdict(settings.health),
        "migrate": {**asdict(settings.migrate), "vetoes": vetoes} if settings.migrate else None,
    }
    (tree / MANIFEST).write_text(json.dumps(described, indent=2, sort_keys=True) + "\n")
