from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploytools.errors import SettingsError, UsageError
from deploytools.scaffold import write_project

FAB = Path(sys.executable).with_name("fab")


def test_what_init_writes_is_a_project_that_fab_understands(tmp_path: Path) -> None:
    """It gets as far as the host, which doesn't exist: the file validates, with every hint in it."""
    initialised = run(tmp_path, "init", "--application", "blog", "--host", "deploy@web1.invalid")
    asked = run(tmp_path, "status")

    assert initialised.returncode == 0, initialised.stderr
    assert "wrote fabric.yaml" in initialised.stdout
    assert asked.returncode == 6, asked.stderr
    assert "web1.invalid" in asked.stderr


def run(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    if not (directory / "fabfile.py").exists():
        arguments = ("--search-root", str(Path(__file__).parents[2]), *arguments)
    environ = {**os.environ, "HOME": str(directory)}
    return subprocess.run(
        [FAB, *arguments], cwd=directory, env=environ, capture_output=True, text=True, check=False
    )


def test_existing_files_are_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "fabric.yaml").write_text("mine")

    with pytest.raises(UsageError, match="already there"):
        write_project(tmp_path, "blog", [])
    assert (tmp_path / "fabric.yaml").read_text() == "mine"
    assert not (tmp_path / "fabfile.py").exists()


@pytest.mark.parametrize(
    ("application", "hosts"), [("Blog", []), ("blog", ["-oProxyCommand=x"]), ("a\nb", [])]
)
def test_a_name_that_can_not_be_used_writes_nothing(
    tmp_path: Path, application: str, hosts: list[str]
) -> None:
    with pytest.raises(SettingsError):
        write_project(tmp_path, application, hosts)
    assert list(tmp_path.iterdir()) == []


def test_hosts_are_written_so_that_yaml_reads_them_back(tmp_path: Path) -> None:
    write_project(tmp_path, "blog", ["deploy@web1:2222", "[::1]:22"])

    text = (tmp_path / "fabric.yaml").read_text()
    assert '    - "deploy@web1:2222"' in text
    assert '    - "[::1]:22"' in text
