"""What `fab doctor` finds on the operator's own computer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from deploytools import laptop
from deploytools.examination import Finding
from tests.support.checkouts import checkout as make_checkout
from tests.support.values import settings


def bad(findings: Any) -> list[Finding]:
    return [finding for finding in findings if not finding.ok]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return make_checkout(tmp_path / "project", page="x")


def of(checkout: Path, ref: str = "HEAD") -> Any:
    return settings(source={"path": str(checkout), "ref": ref})


def test_a_computer_that_can_deploy_passes(checkout: Path, tmp_path: Path) -> None:
    assert bad(laptop.findings(of(checkout), once=True, state=tmp_path / "state" / "journal")) == []


def test_a_project_without_the_executor_is_told_the_line_to_add(checkout: Path, tmp_path: Path) -> None:
    (finding,) = bad(laptop.findings(of(checkout), once=False, state=tmp_path))

    assert (finding.level, finding.remedy.startswith("tasks: {executor_class: ")) == ("warning", True)


@pytest.mark.parametrize("name", ["git", "tar"])
def test_a_program_that_packing_needs_is_missed(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for other in {"git", "tar"} - {name}:
        (tmp_path / other).symlink_to(f"/usr/bin/{other}")
    monkeypatch.setenv("PATH", str(tmp_path))
    (finding,) = bad(laptop.source(of(checkout)))

    assert finding.message == f"{name} is not installed on this computer"
    assert f"apt install {name}" in finding.remedy


def test_a_source_that_is_not_there_is_an_error(checkout: Path) -> None:
    (no_ref,) = bad(laptop.source(of(checkout, "no-such-ref")))
    (no_directory,) = bad(laptop.source(of(checkout / "elsewhere")))

    assert "there is no commit no-such-ref" in no_ref.message
    assert "deploy.source.path" in no_directory.message
    assert no_ref.remedy
    assert no_directory.remedy


@pytest.mark.parametrize(
    ("version", "told"),
    [
        ("3.2.3", None),
        ("3.2.4", None),
        ("4.0", "fabric is 4.0, and fabric<4,>=3.2.3 is needed"),
        (None, "fabric is not installed, and fabric<4,>=3.2.3 is needed"),
    ],
)
def test_a_library_of_another_version_is_an_error(version: str | None, told: str | None) -> None:
    requires = ["fabric>=3.2.3,<4", "pytest>=99; extra == 'dev'"]
    found = bad(laptop.dependencies(requires, lambda _: version))

    assert [finding.message for finding in found] == ([told] if told else [])
    assert [finding.remedy for finding in found] == (["pip install 'fabric<4,>=3.2.3'"] if told else [])


def test_a_squawk_that_is_wanted_and_missing_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sql = {"adapter": "command", "engine": "postgresql", "status": "x", "apply": "x", "files": "db"}
    insists, whatever = (settings(migrate={**sql, **more}) for more in ({"squawk": True}, {}))

    assert [finding.ok for finding in laptop.linter(insists)] == [True]
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert [finding.remedy for finding in bad(laptop.linter(insists))] == [
        "pip install squawk-cli; or migrate.squawk: false"
    ]
    assert list(laptop.linter(whatever)) == []


def test_journals_that_can_not_be_kept_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    finding = laptop.journals(tmp_path / "file" / "deploytools")

    assert not finding.ok
    assert finding.remedy == f"chown -R $(id -un) {tmp_path}/file"
    if os.geteuid() != 0:
        tmp_path.chmod(0o555)
        assert not laptop.journals(tmp_path / "state").ok


def test_an_ssh_config_that_ssh_refuses_is_told_for_its_hosts(tmp_path: Path) -> None:
    (tmp_path / "config").write_text("Host web2\n  Port nonsense\nHost web1\n  User ann\n")
    users, wrong = laptop.deploy_users(settings(ssh_config=str(tmp_path / "config")))

    assert users == {}
    assert set(wrong) == {"web1", "web2"}
    assert "ssh can't tell how to reach web1" in wrong["web1"].message
    assert wrong["web1"].remedy.startswith("ssh ")


def test_without_ssh_it_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    _, wrong = laptop.deploy_users(settings())

    assert "openssh-client" in wrong["web1"].remedy
