"""squawk has a veto on what is labelled online-safe; with the real squawk."""

from __future__ import annotations

import json
import sys
from datetime import datetime, timezone
from pathlib import Path

import pytest

from deploytools import squawk
from deploytools.errors import OperationFailed, UsageError
from deploytools.releasing import exported, packed
from deploytools.releasing.contents import MANIFEST
from deploytools.settings import Settings
from tests.support.shipping import content
from tests.support.values import settings

COMMAND = {
    "adapter": "command",
    "engine": "postgresql",
    "status": "x",
    "apply": "x",
    "files": "db/migrations",
}


def of(**migrate: object) -> Settings:
    return settings(migrate={**COMMAND, **migrate})


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "db" / "migrations").mkdir(parents=True)
    return tmp_path


def add(
    tree: Path, name: str, up: str, label: str = "-- online-safe: ann", header: str = "-- migrate:up"
) -> None:
    text = f"{header}\n{label}\n{up}\n-- migrate:down\ndrop table orders;\n"
    (tree / "db" / "migrations" / name).write_text(text)


@pytest.mark.parametrize(
    "up",
    [
        "alter table orders add column note text;",
        "create table notes (id serial primary key, what varchar(20), at timestamp);",
        "create table notes (id int); create index notes_id on notes (id);",
    ],
)
def test_what_is_only_a_matter_of_taste_is_no_veto(tree: Path, up: str) -> None:
    add(tree, "1_a.sql", up)

    assert squawk.vetoes(of(), tree) == {"1_a.sql": []}


@pytest.mark.parametrize(
    ("up", "rule"),
    [
        ("alter table orders drop column note;", "ban-drop-column"),
        ("alter table orders rename column a to b;", "renaming-column"),
        ("alter table orders alter column id type bigint;", "changing-column-type"),
        ("create index notes_id on orders (id);", "require-concurrent-index-creation"),
        (
            "alter table a add b int; create index concurrently b on a (b);",
            "ban-concurrent-index-creation-in-transaction",
        ),
        ("alter table orders add constraint positive check (id > 0);", "constraint-missing-not-valid"),
        ("selec 1;", "syntax-error"),
    ],
)
def test_what_stops_visitors_or_the_code_before_is_vetoed_with_line_and_rule(
    tree: Path, up: str, rule: str
) -> None:
    add(tree, "1_a.sql", up)

    (found, *_) = (squawk.vetoes(of(), tree) or {})["1_a.sql"]

    assert found.startswith(f"line 3: {rule}: ")


def test_outside_of_a_transaction_an_index_can_be_built_concurrently(tree: Path) -> None:
    header = "-- migrate:up transaction:false"
    add(tree, "1_a.sql", "create index concurrently i on orders (id);", header=header)
    add(tree, "2_b.sql", "alter table orders add column note text;")

    assert squawk.vetoes(of(), tree) == {"1_a.sql": [], "2_b.sql": []}


def test_what_is_not_labelled_is_not_looked_at(tree: Path) -> None:
    add(tree, "1_a.sql", "drop table orders;", label="-- not online-safe")

    assert squawk.vetoes(of(), tree) == {}


def test_the_projects_own_squawk_toml_counts(tree: Path) -> None:
    add(tree, "1_a.sql", "alter table orders drop column note;")
    (tree / ".squawk.toml").write_text('excluded_rules = ["ban-drop-column"]\n')

    assert squawk.vetoes(of(), tree) == {"1_a.sql": []}


@pytest.mark.parametrize("migrate", [{"squawk": False}, {"engine": "mysql"}, {"files": None}])
def test_where_it_does_not_apply_it_is_not_asked(tree: Path, migrate: dict[str, object]) -> None:
    assert squawk.vetoes(of(**migrate), tree) is None


@pytest.fixture
def _missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.usefixtures("_missing")
def test_where_it_is_missing_the_label_alone_counts_unless_it_was_wanted(tree: Path) -> None:
    assert squawk.vetoes(of(), tree) is None
    with pytest.raises(UsageError) as refused:
        squawk.vetoes(of(squawk=True), tree)

    assert refused.value.where == "deploy.migrate.squawk"
    assert "pip install squawk-cli" in (refused.value.next or "")


@pytest.mark.usefixtures("_missing")
@pytest.mark.parametrize("script", ["echo no JSON", "echo '{}'", "echo broken >&2; exit 3"])
def test_one_that_gives_no_answer_is_no_consent(tree: Path, tmp_path: Path, script: str) -> None:
    add(tree, "1_a.sql", "select 1;")
    (tmp_path / "squawk").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "squawk").chmod(0o755)

    with pytest.raises(OperationFailed, match="squawk gave no answer"):
        squawk.vetoes(of(), tree)


def test_its_word_travels_with_the_release_of_a_deploy_without_downtime(tree: Path, tmp_path: Path) -> None:
    add(tree, "1_a.sql", "alter table orders drop column note;")
    config = settings(source={"path": str(tree)}, migrate=COMMAND)
    now = datetime(2030, 1, 1, tzinfo=timezone.utc)

    def told(*, online: bool) -> dict[str, list[str]] | None:
        with (
            exported(config, None, now) as export,
            packed(export, config, "ann", logs=tmp_path, say=print, online=online) as (_, parcel),
        ):
            vetoes: dict[str, list[str]] | None = json.loads(content(parcel, MANIFEST))["migrate"]["vetoes"]
            return vetoes

    assert list(told(online=True) or {}) == ["1_a.sql"]
    assert told(online=False) is None
