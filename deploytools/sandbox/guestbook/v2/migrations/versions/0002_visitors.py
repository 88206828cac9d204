"""Visitors get a table of their own; the entries point to it and lose the name.

Code written for 0001 can't read or write the new tables.
"""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Copy every entry into the new shape."""
    op.execute(
        "CREATE TABLE visitors (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, signed INTEGER NOT NULL)"
    )
    op.execute("INSERT INTO visitors (name, signed) SELECT name, count(*) FROM entries GROUP BY name")
    op.execute(
        """
        CREATE TABLE new_entries (
            id INTEGER PRIMARY KEY,
            visitor_id INTEGER NOT NULL REFERENCES visitors (id),
            number INTEGER NOT NULL,
            message TEXT NOT NULL,
            signed_at TEXT NOT NULL
        )
        """
    )
    op.execute(
        """
        INSERT INTO new_entries (id, visitor_id, number, message, signed_at)
        SELECT entries.id, visitors.id, row_number() OVER (PARTITION BY name ORDER BY entries.id),
            message, signed_at
        FROM entries JOIN visitors USING (name)
        """
    )
    op.execute("DROP TABLE entries")
    op.execute("ALTER TABLE new_entries RENAME TO entries")


def downgrade() -> None:
    """Copy every entry back into the old shape."""
    op.execute("ALTER TABLE entries ADD COLUMN name TEXT NOT NULL DEFAULT ''")
    op.execute("UPDATE entries SET name = (SELECT name FROM visitors WHERE visitors.id = visitor_id)")
    op.execute("ALTER TABLE entries DROP COLUMN visitor_id")
    op.execute("ALTER TABLE entries DROP COLUMN number")
    op.execute("DROP TABLE visitors")
