"""The guestbook's first table, and the first entries in it."""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the table."""
    op.execute(
        """
        CREATE TABLE entries (
            id INTEGER PRIMARY KEY,
            name TEXT NOT NULL,
            message TEXT NOT NULL,
            signed_at TEXT NOT NULL
        )
        """
    )
    op.execute(
        """
        INSERT INTO entries (name, message, signed_at) VALUES
            ('Ada', 'What a lovely place!', '2024-03-01 09:00:00'),
            ('Charles', 'Noted.', '2024-03-01 10:30:00'),
            ('Ada', 'Noted.', '2024-03-02 08:15:00')
        """
    )


def downgrade() -> None:
    """Drop the table."""
    op.execute("DROP TABLE entries")
