"""Who deploys, and what was intended and came of it."""
