"""The operator's own commands in a window: when they run, what they are told, what their failure means."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.site import Site


@pytest.fixture(scope="module")
def deployed(site: Site) -> Site:
    site.on("deploy", "--ref", "v3", "--yes")
    return site


def hooks(site: Site, **others: str) -> dict[str, str]:
    """Each hook notes that it ran; the backup is a real one."""
    notes, database = site.directory / "notes", site.root / "shared" / "var" / "guestbook.db"
    notes.unlink(missing_ok=True)
    backup = f'file={site.directory}/$DEPLOYTOOLS_RUN_ID.db; sqlite3 {database} ".backup $file"'
    told = {
        "quiesce": f"echo quiesce $DEPLOYTOOLS_RUN_ID >> {notes}",
        "resume": f"echo resume $DEPLOYTOOLS_RUN_ID >> {notes}",
        "backup": f"echo backup $DEPLOYTOOLS_RUN_ID >> {notes}; {backup}; echo $file",
        "notify": f"cat > {site.directory}/told.json; echo notify >> {notes}",
        **others,
    }
    return {f"FABRIC_DEPLOY_HOOKS_{name.upper()}": hook for name, hook in told.items()}


def notes(site: Site) -> list[str]:
    return [line.split()[0] for line in (site.directory / "notes").read_text().splitlines()]


def told(site: Site) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((site.directory / "told.json").read_text())
    return found


def outcomes(site: Site, run_id: str, step: str) -> list[dict[str, Any]]:
    """What the lock host's journal has of a step."""
    lines = (site.root / "state" / "journal" / f"{run_id}.jsonl").read_text().splitlines()
    records = map(json.loads, lines)
    return [record for record in records if (record["kind"], record.get("step")) == ("outcome", step)]


def deploy(site: Site, ref: str, code: int, **others: str) -> str:
    hooked = hooks(site, **others)
    return site.fab(
        "on", "sandbox", "deploy", "--ref", ref, "--with-downtime", "--yes", code=code, **hooked
    ).stderr


def test_they_run_in_their_turn_and_the_backup_is_in_the_journal(deployed: Site) -> None:
    deploy(deployed, "v3", 0)

    assert notes(deployed) == ["quiesce", "backup", "resume", "notify"]
    run = told(deployed)
    assert (run["verdict"], run["operation"], run["application"]) == ("done", "deploy", "guestbook")
    assert run["downtime_seconds"] > 0
    assert (run["exit_code"], run["error"]) == (0, None)
    assert run["text"].startswith("deploy of guestbook: done")
    (backup,) = outcomes(deployed, run["run_id"], "backup")
    (kept,) = backup["value"]["backups"]
    file = Path(kept["path"])
    assert file == deployed.directory / f"{run['run_id']}.db"
    assert kept == {
        "path": str(file),
        "bytes": file.stat().st_size,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "format": "SQLite",
    }


@pytest.mark.parametrize(
    "then", ["truncate -s -4096 $file; echo $file", pytest.param("exit 9", marks=pytest.mark.exhaustive)]
)
def test_a_backup_that_is_no_good_ends_the_window_before_the_database_is_touched(
    deployed: Site, then: str
) -> None:
    good = hooks(deployed)["FABRIC_DEPLOY_HOOKS_BACKUP"].rpartition(";")[0]

    said = deploy(deployed, "slow-migration", 3, backup=f"{good}; {then}")

    assert "the site is up on what it ran before" in said
    assert "hooks.backup" in said
    assert notes(deployed) == ["quiesce", "backup", "resume", "notify"], "workers run again"
    run = told(deployed)
    assert (run["verdict"], run["exit_code"]) == ("reverted", 3)
    assert "sandbox: backup: " in " ".join(run["error"]["details"])
    assert run["error"]["next"] in run["text"]
    assert outcomes(deployed, run["run_id"], "migrate") == []
    assert deployed.get()[1]["x-schema"] == "0002"


def test_workers_that_do_not_stop_end_the_window_and_a_notice_that_fails_ends_nothing(deployed: Site) -> None:
    said = deploy(deployed, "v3", 3, quiesce="echo busy >&2; exit 4", notify="echo no route >&2; exit 5")

    assert "busy" in said
    assert "hooks.notify ended with exit code 5: no route" in said
    assert "resume" in notes(deployed)
    assert deployed.status()["maintenance"]["state"] == "up"
