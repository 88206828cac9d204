"""What `alembic current` tells of the sample application's database, in a hundredth of its time.

    alembic_state.py [--check-heads]        with the option it ends with 255 where something is pending

A command of `migrate` is asked up to ten times by a deploy, and Alembic's own takes half a second to begin.
"""

import sqlite3
import sys
from pathlib import Path

# Revisions are numbered, and so are the files.
HEAD = max(path.name[:4] for path in Path("migrations/versions").glob("0*.py"))
DATABASE = sqlite3.connect("var/guestbook.db", timeout=30)
try:
    current = {str(row[0]) for row in DATABASE.execute("select version_num from alembic_version")}
except sqlite3.OperationalError as error:
    if "no such table" not in str(error):
        raise
    current = set()
print(*current, sep="\n")
sys.exit(255 if sys.argv[1:] and current != {HEAD} else 0)
