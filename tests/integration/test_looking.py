"""`fab doctor`, `fab status` and `fab history` on a real host that is as it should be, and then isn't."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploytools import __version__
from tests.support.site import Site


@pytest.fixture(scope="module")
def deployed(site: Site) -> Site:
    site.on("deploy", "--ref", "v1", "--yes")
    return site


@pytest.fixture
def config(deployed: Site) -> Iterator[Path]:
    """config.json on the host; put back as it was."""
    file = deployed.directory / ".sandbox/host/usr/local/lib/deploytools/guestbook/config.json"
    before = file.read_text()
    yield file
    file.write_text(before)


def findings(site: Site, code: int) -> dict[str, dict[str, Any]]:
    """What is wrong on the host, by name."""
    told = json.loads(site.on("doctor", "--json", code=code).stdout)
    checks = told["hosts"]["sandbox"]["findings"]
    assert len(checks) > 30
    assert [one for one in told["this_computer"] if not one["ok"]] == []
    return {one["name"]: one for one in checks if not one["ok"]}


def test_a_host_that_serves_passes(deployed: Site) -> None:
    assert {one["level"] for one in findings(deployed, 0).values()} <= {"warning"}
    assert deployed.on("doctor").stdout.splitlines()[-1].startswith("1 host: 1 ")


def test_an_error_ends_with_3_and_names_its_remedy(deployed: Site) -> None:
    record = deployed.root / "run" / "app.99.json"
    record.write_text("broken")
    try:
        done = deployed.on("doctor", code=3)
        status = deployed.on("status")
    finally:
        record.unlink()

    assert f"error: {record} is no generation's record" in done.stdout
    assert "  on: sandbox" in done.stdout
    assert f"remedy: rm {record}; then " in done.stdout
    assert "something would stop a deploy" in done.stderr
    assert f"problem on sandbox: {record}" in status.stdout


def test_a_host_of_another_version_is_told_by_doctor_and_status_and_gets_no_deploy(
    deployed: Site, config: Path
) -> None:
    config.write_text(json.dumps({**json.loads(config.read_text()), "version": "0.0.9"}))

    assert findings(deployed, 3)["version"]["remedy"] == "fab setup"
    told = f"deploytools is 0.0.9 there, and {__version__} here; next: fab on sandbox setup"
    assert told in deployed.on("status").stdout
    refused = deployed.on("deploy", "--ref", "v1", "--yes", code=3)
    assert f"deploytools is 0.0.9 here, and {__version__} on the laptop" in refused.stderr


def test_a_host_with_other_settings_is_told_by_both_and_mended_by_setup(deployed: Site, config: Path) -> None:
    changed = {**json.loads(config.read_text()), "liveness": ["/alive"], "digest": "of that"}
    config.write_text(json.dumps(changed))

    assert "with liveness" in findings(deployed, 0)["settings"]["message"]
    assert "has changed since it was set up" in deployed.on("status").stdout
    told = deployed.on("deploy", "--ref", "v1", "--plan")
    assert "has changed since it was set up; next: fab on sandbox setup" in told.stderr
    deployed.on("setup", "--yes")
    assert "settings" not in findings(deployed, 0)
    assert "has changed" not in deployed.on("status").stdout


def test_a_host_that_is_not_set_up_is_examined_all_the_same(deployed: Site, config: Path) -> None:
    config.unlink()

    found = findings_of_a_bare_host(deployed)
    assert found["set-up"]["remedy"] == "fab setup"
    assert "is not set up on this host" in found["set-up"]["message"]
    assert "directories" not in found


def findings_of_a_bare_host(site: Site) -> dict[str, dict[str, Any]]:
    told = json.loads(site.on("doctor", "--json", code=3).stdout)
    checks = told["hosts"]["sandbox"]["findings"]
    assert {"lighttpd", "disk", "python", "command"} <= {one["name"] for one in checks}
    return {one["name"]: one for one in checks if not one["ok"]}


def test_status_tells_the_schema(deployed: Site) -> None:
    status = deployed.status()

    assert status["schema"]["state"] == "current"
    assert status["schema"]["current"] == ["0001"]
    assert "schema, as sandbox has it: the database is at 0001" in deployed.on("status").stdout


def test_a_damaged_journal_is_told_by_name_and_hides_no_run(deployed: Site) -> None:
    journals = deployed.root / "state" / "journal"
    (journals / "run-bad.jsonl").write_text("no JSON\n")
    (journals / "run-other.jsonl").write_text('{"kind": "begin"}\n')
    try:
        done = deployed.on("history")
        listed = json.loads(deployed.on("history", "--json").stdout)
    finally:
        (journals / "run-bad.jsonl").unlink()
        (journals / "run-other.jsonl").unlink()

    assert [run["operation"] for run in listed] == ["deploy"] * len(listed)
    assert len(listed) >= 1
    assert "run run-bad" in done.stderr
    assert "run run-other: it is no journal of ours" in done.stderr


def test_a_host_that_gives_no_answer_ends_with_6(deployed: Site) -> None:
    deployed.fab("sandbox.down")
    try:
        done = deployed.on("doctor", code=6)
    finally:
        deployed.fab("sandbox.up", f"--http-port={deployed.http_port}", f"--ssh-port={deployed.ssh_port}")

    assert "connection refused" in done.stdout
    assert "remedy: fab sandbox.up, where it isn't running" in done.stdout
    assert "--exclude" not in done.stderr  # it is the only host
    assert "no answer from sandbox" in done.stderr
