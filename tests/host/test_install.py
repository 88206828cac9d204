"""The host's half of `fab setup`, on links that lead somewhere else already."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from deploytools.setup import remote_scripts

spec = importlib.util.spec_from_file_location("install", remote_scripts() / "install.py")
assert spec
assert spec.loader
install: Any = importlib.util.module_from_spec(spec)
spec.loader.exec_module(install)


def bundle(tmp_path: Path, application: str) -> dict[str, Any]:
    """What sets up the link `down` for an application whose programs are in a directory of its name."""
    target = str(tmp_path / "tools" / application / "down")
    link = {"path": str(tmp_path / "down"), "target": target, "application": application}
    return {"directories": [], "files": [], "links": [{**link, "configuration": False}]}


@pytest.fixture
def guestbook(tmp_path: Path) -> None:
    """A host that the application guestbook is set up on."""
    programs = tmp_path / "tools" / "guestbook"
    programs.mkdir(parents=True)
    (programs / "config.json").write_text(json.dumps({"application": "guestbook"}))
    (tmp_path / "down").symlink_to(programs / "down")


def test_a_link_below_what_others_own_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "shared" / "a").symlink_to(tmp_path / "elsewhere")
    entry = {"path": str(tmp_path / "shared" / "a" / "b"), "owner": "root", "mode": 0o750}
    wanted = {"directories": [{**entry, "within": str(tmp_path / "shared")}], "files": [], "links": []}

    with pytest.raises(install.Refused, match="leads out of"):
        install.missing(wanted)
    with pytest.raises(OSError, match=r"symbolic|Not a directory"):
        install.own(tmp_path / "shared" / "a", entry)


@pytest.mark.usefixtures("guestbook")
def test_the_switch_of_another_application_is_not_taken_over(tmp_path: Path) -> None:
    with pytest.raises(install.Refused, match="belongs to the application guestbook"):
        install.missing(bundle(tmp_path, "gestbook"))


@pytest.mark.usefixtures("guestbook")
def test_an_applications_own_switch_needs_no_change_and_may_move_with_its_programs(tmp_path: Path) -> None:
    same, moved = bundle(tmp_path, "guestbook"), bundle(tmp_path, "guestbook")
    moved["links"][0]["target"] = str(tmp_path / "elsewhere" / "down")

    assert install.missing(same) == []
    assert [change["path"] for change in install.missing(moved)] == [str(tmp_path / "down")]
