"""What the application knows of its tables, as migration 0001 leaves them."""

from __future__ import annotations

import sqlite3
from datetime import datetime, timezone
from typing import NamedTuple


class Entry(NamedTuple):
    """One entry; `number` counts its writer's entries, 0 where that isn't known."""

    name: str
    message: str
    signed_at: str
    number: int


def latest(db: sqlite3.Connection, count: int) -> list[Entry]:
    """The newest entries first."""
    rows = db.execute("SELECT name, message, signed_at, 0 FROM entries ORDER BY id DESC LIMIT ?", [count])
    return [Entry(*row) for row in rows]


def sign(db: sqlite3.Connection, name: str, message: str) -> None:
    """Add an entry."""
    db.execute("INSERT INTO entries (name, message, signed_at) VALUES (?, ?, ?)", [name, message, now()])


def now() -> str:
    """UTC, to the second."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
