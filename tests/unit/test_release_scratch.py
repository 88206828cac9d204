"""Where an export lies while it is needed."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from pathlib import Path

import pytest

from deploytools.releasing import scratch
from deploytools.releasing.source import resolve
from tests.support.checkouts import checkout, commit, git
from tests.support.values import settings

NOW = datetime(2026, 5, 1, 22, 30, 15, tzinfo=timezone.utc)


@pytest.fixture(autouse=True)
def no_wish(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TMPDIR", raising=False)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "memory").mkdir()
    return checkout(tmp_path / "checkout")


def parent(place: Path, **source: object) -> str | None:
    config = settings(source={"path": str(place), **source})
    return scratch.parent(resolve(config, None, NOW), config, memory=place.parent / "memory")


def test_a_small_commit_is_exported_to_memory(place: Path) -> None:
    assert parent(place) == str(place.parent / "memory")


def test_what_nobody_knows_the_size_of_is_not(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert parent(place, build="make") is None
    assert parent(place, ref=None) is None

    commit(place, "large files", **{"media/.gitattributes": "*.mp4 filter=lfs\n"})
    assert parent(place) is None
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert parent(place, ref="v1") is None


def test_neither_is_one_with_submodules(place: Path, tmp_path: Path) -> None:
    library = checkout(tmp_path / "library", code="1")
    git(place, "submodule", "--quiet", "add", str(library), "lib")
    commit(place, "a library")

    assert parent(place) is None


def test_nor_one_that_is_large_beside_the_memory_that_is_free(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(place, "some", page="x" * 1000)
    size = sum(path.lstat().st_size for path in place.iterdir() if path.is_file() or path.is_symlink())

    monkeypatch.setattr(scratch, "available", lambda meminfo: size * scratch.PART)
    assert parent(place) is not None
    monkeypatch.setattr(scratch, "available", lambda meminfo: size * scratch.PART - 1)
    assert parent(place) is None


def test_the_free_memory_is_what_the_kernel_says() -> None:
    assert scratch.available("MemTotal: 9 kB\nMemFree:         1 kB\nMemAvailable:    2048 kB\n") == 2 << 20
    assert scratch.available("MemTotal: 9 kB\n") == 0


def test_what_a_killed_deploy_has_left_is_swept_and_what_lives_is_not(tmp_path: Path) -> None:
    (tmp_path / "deploytools-export-killed" / "tree").mkdir(parents=True)
    (tmp_path / "deploytools-export-file").touch()
    (tmp_path / "theirs").mkdir()
    (tmp_path / "deploytools-export-link").symlink_to("theirs")
    later = time.time() + scratch.YOUNG + 1

    with scratch.directory(str(tmp_path)) as young:
        assert {path.name for path in tmp_path.glob("deploytools-export-*")} >= {
            "deploytools-export-killed",
            young.name,
        }
        with scratch.directory(str(tmp_path), lambda: later) as other:
            assert young.exists(), "its process lives"
            assert not (tmp_path / "deploytools-export-killed").exists()
    assert not young.exists()
    assert not other.exists()
    assert {path.name for path in tmp_path.iterdir()} == {
        "deploytools-export-file",
        "deploytools-export-link",
        "theirs",
    }
