"""Checkouts for the tests of what is shipped."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.checkouts import checkout


@pytest.fixture(autouse=True)
def no_repository_around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever temporary files are, git finds no checkout that they lie in."""
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A checkout with one commit."""
    return checkout(tmp_path / "checkout")
