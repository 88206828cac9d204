"""The wheel carries everything: another project needs `pip install` and a two-line fabfile."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.site import Site, new_site

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    argv = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", out, REPOSITORY]
    subprocess.run(argv, check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    return built


def test_it_has_the_host_programs_the_sandbox_and_the_templates_and_no_litter(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())

    for name in ("down", "up", "swap", "migrate", "hostsetup/main.py", "hostlib/program.py"):
        assert f"deploytools/remote_scripts/{name}" in names
    assert "deploytools/sandbox/guestbook/v1/guestbook.py" in names
    assert {f"deploytools/templates/{name}" for name in ("fabric.yaml", "maint.html", "maint.json")} <= names
    assert "deploytools/report/page.html" in names
    litter = ("__pycache__", "_cache", "tests/")
    assert not [name for name in names if any(word in name for word in litter)]


def test_a_window_runs_from_what_it_installs(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", tmp_path, wheel]
    subprocess.run(argv, check=True, capture_output=True)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    where = [sys.executable, "-c", "import deploytools; print(deploytools.__file__)"]
    found = subprocess.run(where, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    assert found.startswith(str(tmp_path))

    with new_site() as site:
        deploy(site)


def deploy(site: Site) -> None:
    site.on("deploy", "--ref", "v1", "--yes")
    site.on("hotswap")
    assert site.serves == site.commit("v1")
