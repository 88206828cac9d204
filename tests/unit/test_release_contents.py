"""What a tree consists of, and that equal trees are recognised as equal."""

from __future__ import annotations

import hashlib
import json
import os
from datetime import datetime, timezone
from pathlib import Path

import pytest

from deploytools.releasing import contents
from deploytools.releasing.contents import Entry
from deploytools.releasing.patches import Patch
from deploytools.releasing.selection import Rules, select
from deploytools.releasing.source import Source
from tests.support.values import settings

NOW = datetime(2026, 5, 1, 22, 30, 15, tzinfo=timezone.utc)


def entries(tree: Path) -> tuple[Entry, ...]:
    return contents.entries(tree, select(tree, Rules()).items)


def digest(tree: Path) -> str:
    return contents.digest(entries(tree))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    (tree / "empty").mkdir(parents=True)
    (tree / "page").write_text("hello")
    (tree / "run").write_text("x")
    (tree / "run").chmod(0o755)
    (tree / "link").symlink_to("page")
    return tree


def test_each_file_has_the_digest_of_its_content(tree: Path) -> None:
    found = {entry.name: (entry.kind, entry.sha256, entry.target) for entry in entries(tree)}

    assert found == {
        "empty": ("directory", None, None),
        "link": ("link", None, "page"),
        "page": ("file", hashlib.sha256(b"hello").hexdigest(), None),
        "run": ("program", hashlib.sha256(b"x").hexdigest(), None),
    }


def test_times_owners_and_other_modes_have_no_part_in_the_digest(tree: Path) -> None:
    before = digest(tree)

    os.utime(tree / "page", (1, 1))
    (tree / "page").chmod(0o600)
    (tree / "run").chmod(0o700)
    (tree / "empty").chmod(0o700)

    assert digest(tree) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: (tree / "page").write_text("hullo"),
        lambda tree: (tree / "page").chmod(0o755),
        lambda tree: (tree / "page").rename(tree / "paged"),
        lambda tree: (tree / "empty").rmdir(),
        lambda tree: ((tree / "link").unlink(), (tree / "link").symlink_to("run")),
        lambda tree: ((tree / "link").unlink(), (tree / "link").write_text("page")),
        lambda tree: (tree / "empty" / "\udcff").write_text(""),
    ],
)
def test_whatever_a_visitor_or_the_application_could_notice_changes_the_digest(tree: Path, change) -> None:  # type: ignore[no-untyped-def]
    before = digest(tree)

    change(tree)

    assert digest(tree) != before


def test_the_description_says_what_was_shipped_from_where_by_whom(tree: Path) -> None:
    source = Source(tree, "r2", "v1", "c0ffee", "Ann <ann@example.com>", "2026-05-01T22:30:15+02:00")
    patch = Patch("fix.diff", b"x")

    described = json.loads(
        contents.describe(source, settings(), "bob", NOW, entries(tree), [patch], {"1.sql": ["ban"]})
    )

    assert described["app"]["command"] == "/usr/bin/php-cgi"
    assert described["health"] == {"path": "/", "status": 200, "contains": None, "smoke": []}
    assert described["migrate"]["adapter"] == "alembic"
    assert described["migrate"]["vetoes"] == {"1.sql": ["ban"]}
    assert {key: described[key] for key in described if key not in ("app", "health", "migrate")} == {
        "id": "r2",
        "ref": "v1",
        "commit": "c0ffee",
        "author": "Ann <ann@example.com>",
        "committed_at": "2026-05-01T22:30:15+02:00",
        "operator": "bob",
        "created_at": "2026-05-01T22:30:15+00:00",
        "digest": digest(tree),
        "patches": [{"name": "fix.diff", "sha256": hashlib.sha256(b"x").hexdigest()}],
    }
