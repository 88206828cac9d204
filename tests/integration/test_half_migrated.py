"""A migration that failed half-way where nothing is rolled back: no other run begins it anew by itself."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.integration.test_taking_back import MIGRATE
from tests.support.site import FABRIC_YAML, Site

MIGRATION = """
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute("{statement}")
    {then}
"""
FAILS = MIGRATION.format(
    statement="ALTER TABLE entries ADD COLUMN pinned INTEGER NOT NULL DEFAULT 0",
    then='raise RuntimeError("no such luck")',
)
MENDED = MIGRATION.format(statement="UPDATE entries SET pinned = 0", then="pass")


@pytest.fixture(scope="module")
def deployed(site: Site) -> Site:
    """The site on v3; a failed migration counts as half applied, as on MariaDB."""
    section = json.dumps({"environments": {"sandbox": {"migrate": {**MIGRATE, "transactional": False}}}})
    (site.directory / "fabric.yaml").write_text(f"{FABRIC_YAML}deploy: {section}\n")
    site.on("deploy", "--ref", "v3", "--yes")
    return site


@pytest.fixture(scope="module")
def run_id(deployed: Site) -> str:
    """The run that failed half-way and holds."""
    commit(deployed, "half", FAILS)
    deployed.on("deploy", "--ref", "half", "--with-downtime", "--yes", code=4)
    return str(deployed.status()["lock"]["run_id"])


def test_unlock_says_what_it_leaves(deployed: Site, run_id: str) -> None:
    freed = deployed.on("unlock", "--force", run_id)
    assert f"looked at the schema and said: fab on sandbox migrate.resolve --run-id {run_id}" in freed.stdout


@pytest.mark.parametrize("window", [[], ["--with-downtime"]])
def test_a_new_deploy_stops_before_it_changes_anything(
    deployed: Site, run_id: str, window: list[str]
) -> None:
    stopped = deployed.on("deploy", "--ref", "half", *window, "--yes", code=3)
    assert f"the migration of run {run_id} (" in stopped.stderr
    assert "failed half-way" in stopped.stderr
    assert (
        f"next:  look at the schema, then: fab on sandbox migrate.resolve --run-id {run_id} --as"
        in stopped.stderr
    )
    assert len(list(deployed.root.glob("migrations/*/started.json"))) == 2, "the first deploy's, and this one"


def test_after_the_operators_word_it_goes_on(deployed: Site, run_id: str) -> None:
    word = ("--as", "not-applied", "--reason", "nothing but the column is there")
    said = deployed.on("migrate.resolve", "--run-id", run_id, *word)
    assert "next: fab on sandbox deploy" in said.stdout
    commit(deployed, "mended", MENDED)
    deployed.on("deploy", "--ref", "half", "--with-downtime", "--yes")
    status, headers = deployed.get()
    assert (status, headers["x-schema"]) == (200, "0003")


def commit(site: Site, message: str, migration: str) -> None:
    """One more commit on the branch `half` of the sandbox's repository, which the first one makes from v3."""
    repository = site.directory / ".sandbox" / "guestbook"
    git = ["git", "-C", str(repository), "-c", "user.name=Ann", "-c", "user.email=ann@example.com"]
    if message == "half":
        subprocess.run([*git, "checkout", "-q", "-b", "half", "v3"], check=True)
    (repository / "migrations" / "versions" / "0003_pinned.py").write_text(migration)
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", message], check=True)
