"""Nobody may say what somebody said before.

It fails half way: entries that say the same are there already. The column that it added first is
taken back with it.
"""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add a column, then an index that the data doesn't allow."""
    op.execute("ALTER TABLE entries ADD COLUMN mood TEXT NOT NULL DEFAULT 'happy'")
    op.execute("UPDATE entries SET mood = 'thoughtful' WHERE length(message) > 40")
    op.execute("CREATE UNIQUE INDEX unique_messages ON entries (message)")


def downgrade() -> None:
    """Take both away."""
    op.execute("DROP INDEX unique_messages")
    op.execute("ALTER TABLE entries DROP COLUMN mood")
