"""`fab init` is what begins a project, so it has to work where nothing is there yet."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.support.fabproject import REPOSITORY

INIT = ("init", "--application", "guestbook", "--host", "deploy@web1.example.com")


def fab(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run what pyproject.toml installs as `fab`, which takes the place of Fabric's own."""
    return subprocess.run(
        [sys.executable, "-m", "deploytools", *arguments],
        cwd=directory,
        env={"PATH": "/usr/bin:/bin", "HOME": str(directory), "PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_fab_is_the_program_that_these_tests_run() -> None:
    script = re.search(r'^fab = "(\S+):program\.run"$', (REPOSITORY / "pyproject.toml").read_text(), re.M)

    assert script
    assert script[1] == "deploytools.__main__"


def test_init_works_in_an_empty_directory_and_all_tasks_are_there_afterwards(tmp_path: Path) -> None:
    done = fab(tmp_path, *INIT)

    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"fabric.yaml", "fabfile.py"}
    assert "maint-down" in fab(tmp_path, "--list").stdout


def test_init_never_writes_over_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "fabric.yaml").write_text("mine: 1\n")

    done = fab(tmp_path, *INIT)

    assert done.returncode == 2
    assert "fabric.yaml already there" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["fabric.yaml"]


def test_another_task_outside_of_a_project_is_told_that_there_is_none(tmp_path: Path) -> None:
    done = fab(tmp_path, "deploy")

    assert done.returncode == 2
    assert "there is no fabfile.py" in done.stderr
    assert "fab init" in done.stderr


def test_a_broken_fabfile_is_not_taken_for_a_missing_one(tmp_path: Path) -> None:
    (tmp_path / "fabfile.py").write_text("import nothing_of_that_name\n")

    done = fab(tmp_path, *INIT)

    assert done.returncode == 1
    assert "nothing_of_that_name" in done.stderr
