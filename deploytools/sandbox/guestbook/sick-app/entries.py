"""What the application would like its tables to be: nobody wrote the migration for the mood."""

from __future__ import annotations

import sqlite3
from datetime import datetime, timezone
from typing import NamedTuple


class Entry(NamedTuple):
    """One entry; `number` counts its writer's entries."""

    name: str
    message: str
    signed_at: str
    number: int


def latest(db: sqlite3.Connection, count: int) -> list[Entry]:
    """The newest entries first."""
    rows = db.execute(
        """
        SELECT visitors.name, message || mood, signed_at, number
        FROM entries JOIN visitors ON visitors.id = visitor_id
        ORDER BY entries.id DESC LIMIT ?
        """,
        [count],
    )
    return [Entry(*row) for row in rows]


def sign(db: sqlite3.Connection, name: str, message: str) -> None:
    """Add an entry, and its writer if they are new."""
    visitor, number = db.execute(
        """
        INSERT INTO visitors (name, signed) VALUES (?, 1)
        ON CONFLICT (name) DO UPDATE SET signed = signed + 1
        RETURNING id, signed
        """,
        [name],
    ).fetchone()
    db.execute(
        "INSERT INTO entries (visitor_id, number, message, signed_at) VALUES (?, ?, ?, ?)",
        [visitor, number, message, now()],
    )


def now() -> str:
    """UTC, to the second."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
