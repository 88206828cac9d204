"""`init` is what begins a project, so it has to work where nothing is there yet."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

from tests.support.fabproject import REPOSITORY

INIT = ("init", "--application", "guestbook", "--host", "deploy@web1.example.com")


def fab(
    directory: Path, *arguments: str, stdin: int = subprocess.DEVNULL
) -> subprocess.CompletedProcess[str]:
    """Run `python -m deploytools`, which is what our `fab` is."""
    return subprocess.run(
        [sys.executable, "-m", "deploytools", *arguments],
        cwd=directory,
        env={"PATH": "/usr/bin:/bin", "HOME": str(directory), "PYTHONPATH": str(REPOSITORY)},
        stdin=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_init_works_in_an_empty_directory_and_all_tasks_are_there_afterwards(tmp_path: Path) -> None:
    done = fab(tmp_path, *INIT)

    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"fabric.yaml", "fabfile.py"}
    assert "maint-down" in fab(tmp_path, "--list").stdout


def test_init_never_writes_over_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "fabric.yaml").write_text("mine: 1\n")

    done = fab(tmp_path, *INIT)

    assert done.returncode == 2
    assert done.stderr.startswith("error: there is fabric.yaml already\n")
    assert [path.name for path in tmp_path.iterdir()] == ["fabric.yaml"]


def test_another_task_outside_of_a_project_is_told_that_there_is_none(tmp_path: Path) -> None:
    done = fab(tmp_path, "deploy")

    assert done.returncode == 2
    assert "there is no fabfile.py" in done.stderr
    assert "python -m deploytools init" in done.stderr


def test_a_broken_fabfile_is_not_taken_for_a_missing_one(tmp_path: Path) -> None:
    (tmp_path / "fabfile.py").write_text("import nothing_of_that_name\n")

    done = fab(tmp_path, *INIT)

    assert done.returncode == 1
    assert "nothing_of_that_name" in done.stderr


def test_what_it_writes_is_a_project_that_fab_understands(tmp_path: Path) -> None:
    """It gets as far as the host, which doesn't exist: the file validates, with every hint in it."""
    assert fab(tmp_path, "init", "--application", "blog", "--host", "deploy@web1.invalid").returncode == 0

    asked = fab(tmp_path, "status")

    assert asked.returncode == 6, asked.stderr
    assert "web1.invalid" in asked.stderr


def test_on_a_terminal_it_asks_and_takes_what_it_found_for_an_empty_answer(tmp_path: Path) -> None:
    directory = tmp_path / "My.Shop"
    directory.mkdir()
    (directory / "app.pl").write_text("use FCGI;")
    ours, its = pty.openpty()
    os.write(ours, b"\nweb1 web2\n\n")

    asked = fab(directory, "init", stdin=its)
    os.close(its)

    assert asked.returncode == 0, asked.stderr
    assert "found: a FastCGI application in app.pl" in asked.stderr
    text = (directory / "fabric.yaml").read_text()
    assert "application: my-shop " in text
    assert '    - "web1"\n    - "web2"\n' in text
    assert 'command: "perl app.pl"' in text


def test_ctrl_d_where_it_asks_writes_nothing(tmp_path: Path) -> None:
    ours, its = pty.openpty()
    os.write(ours, b"\x04")

    asked = fab(tmp_path, "init", stdin=its)
    os.close(its)

    assert asked.returncode == 130
    assert "Traceback" not in asked.stderr
    assert list(tmp_path.iterdir()) == []
