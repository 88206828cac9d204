"""Files, directories and links as data for the installer (hostsetup/bundle.py reads them)."""

from __future__ import annotations

import base64
from typing import Any

Entry = dict[str, Any]


def directory(path: str, owner: str, mode: int = 0o755, **more: str | bool) -> Entry:
    """A directory that is to be there.

    `group_of`: the account whose group it gets, where that isn't the owner's. `within`: the place of
    somebody else that it lies in, below which no link is followed. `keep`: made if absent, else left alone.
    """
    return {"path": path, "owner": owner, "mode": mode, **more}


def file(path: str, content: bytes, owner: str, mode: int = 0o644, **more: str | bool) -> Entry:
    """A file that is to be there.

    `keep`: made if absent, the operator's own from then on. `kind`: what is to be checked and told besides.
    """
    return {
        "path": path,
        "owner": owner,
        "mode": mode,
        "content": base64.b64encode(content).decode(),
        **more,
    }


def link(path: str, target: str, **more: str) -> Entry:
    """A symbolic link that is to be there; `kind` as of a file."""
    return {"path": path, "target": target, **more}
