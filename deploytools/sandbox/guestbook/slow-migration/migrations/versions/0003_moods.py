"""Every entry gets a mood, batch by batch; takes about ten seconds, as a big table would."""

from __future__ import annotations

import time

from alembic import op
from sqlalchemy import text

revision = "0003"
down_revision = "0002"

BATCHES = 20
PAUSE = 0.5  # seconds
FILL = text("UPDATE entries SET mood = 'thoughtful' WHERE length(message) > 40 AND id % :batches = :batch")


def upgrade() -> None:
    """Add the column and fill it in."""
    op.execute("ALTER TABLE entries ADD COLUMN mood TEXT NOT NULL DEFAULT 'happy'")
    for batch in range(BATCHES):
        op.get_bind().execute(FILL, {"batches": BATCHES, "batch": batch})
        time.sleep(PAUSE)
        print(f"moods: {batch + 1} of {BATCHES} batches", flush=True)


def downgrade() -> None:
    """Take the column away."""
    op.execute("ALTER TABLE entries DROP COLUMN mood")
