"""A window that is aborted after its migration, by the command that takes it back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.support.site import FABRIC_YAML, Site

ALEMBIC = Path(sys.executable).with_name("alembic")
STATE = f"/usr/bin/python3 -IS {Path(__file__).parents[1]}/support/alembic_state.py"
# Alembic moves the schema; where that stands, a program of ours tells much faster.
MIGRATE = {
    "adapter": "command",
    "engine": "sqlite",
    "pending": {"cmd": f"{STATE} --check-heads", "none": 0, "some": 255},
    "current": STATE,
    "apply": f"{ALEMBIC} upgrade head",
    "rollback": f"{ALEMBIC} downgrade -1",
}
PINNED = """
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.execute("ALTER TABLE entries ADD COLUMN pinned INTEGER NOT NULL DEFAULT 0")


def downgrade() -> None:
    op.execute("ALTER TABLE entries DROP COLUMN pinned")
"""


def test_an_abort_takes_the_schema_back_before_the_code_and_the_public_meets_neither(site: Site) -> None:
    section = json.dumps({"environments": {"sandbox": {"migrate": MIGRATE}}})
    (site.directory / "fabric.yaml").write_text(f"{FABRIC_YAML}deploy: {section}\n")
    site.on("deploy", "--ref", "v3", "--yes")
    repository = site.directory / ".sandbox" / "guestbook"
    git = ["git", "-C", str(repository), "-c", "user.name=Ann", "-c", "user.email=ann@example.com"]
    subprocess.run([*git, "checkout", "-q", "-b", "bad", "v3"], check=True)
    (repository / "migrations" / "versions" / "0003_pinned.py").write_text(PINNED)
    code = repository / "guestbook.py"
    code.write_text(code.read_text().replace("\nimport ", "\nraise SystemExit('a bad day')\nimport ", 1))
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "bad"], check=True)

    with site.visitors("--rate", "100", "--clients", "4") as leave:
        held = site.on("deploy", "--ref", "bad", "--with-downtime", "--yes", code=4)
        assert site.get()[0] == 503
        aborted = site.on("deploy", "--abort")
        seen = leave()

    assert "a bad day" in held.stderr
    assert "[undo] take the migration back" in aborted.stderr
    assert "is taken back" in aborted.stderr
    assert "undone (aborted by " in aborted.stdout
    status = site.status()
    assert (status["maintenance"]["state"], status["lock"]) == ("up", None)
    assert site.serves == site.commit("v3")
    assert site.get()[1]["x-schema"] == "0002"
    assert (seen["lost"], seen["mismatches"]) == (0, 0)
    assert len(list(site.root.glob("migrations/*-back/started.json"))) == 1
