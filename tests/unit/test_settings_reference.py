"""docs/reference.md has a row per key of fabric.yaml: | `key` | type | default | what it means. |"""

from __future__ import annotations

import re
from dataclasses import MISSING
from pathlib import Path
from typing import get_args

import pytest
from invoke.util import yaml

from deploytools.settings.keys import Key, dotted, keys
from deploytools.settings.problems import shown
from tests.support.deploy_section import problems, read

REFERENCE = (Path(__file__).parents[2] / "docs" / "reference.md").read_text()
KEYS = [key for key in keys().values() if not key.is_section]
TEXT = "text|path on the host|URL|URL path|command|shell command|host name|user name|duration"
TYPES = {
    str: TEXT,
    int: "integer",
    float: "duration",
    bool: "true or false",
    Path: "path",
    tuple: "list of (hosts|paths|URL paths|patterns|host names|addresses)",
    dict: "mapping of text",
}


def rows() -> list[list[str]]:
    table = REFERENCE.partition("<!-- keys of fabric.yaml -->")[2].partition("<!-- end of keys -->")[0]
    lines = [line for line in table.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def spelt(key: Key) -> str:
    """The default of a key as the reference spells it."""
    if key.default is MISSING:
        return "`{}`" if key.kind is dict else "required"
    if key.default == ():
        return "`[]`"
    if key.kind is float:
        return f"{key.default:g} s"
    plain = key.default is None or key.kind is bool
    return shown(key.default) if plain else f"`{key.default}`"


def test_every_key_is_documented_once_and_no_other() -> None:
    assert sorted(row[0].strip("`") for row in rows()) == sorted(dotted(key.path) for key in KEYS)


@pytest.mark.parametrize("key", KEYS, ids=lambda key: dotted(key.path))
def test_type_and_default_are_those_of_the_schema(key: Key) -> None:
    (row,) = [row for row in rows() if row[0] == f"`{dotted(key.path)}`"]
    _, kind, default, meaning = row

    assert re.fullmatch(
        TYPES.get(key.kind, ", ".join(f"`{word}`" for word in get_args(key.kind))),
        kind.removesuffix(" or null"),
    )
    assert kind.endswith(" or null") == key.nullable
    assert default == spelt(key)
    assert meaning.endswith(".")


def test_the_shortest_file_shown_is_a_good_one() -> None:
    examples = re.findall(r"```yaml\n(tasks:.*?)```", REFERENCE, re.DOTALL)

    assert [read(yaml.safe_load(text)["deploy"]).application for text in examples] == ["guestbook"]


def test_the_message_shown_is_the_one_that_is_given() -> None:
    lines = problems(
        {
            "application": "guestbook",
            "hosts": ["web1", {"host": "web2", "port": "abc"}],
            "app": {"command": "/usr/bin/php-cgi"},
            "keep_release": 3,
        }
    )

    assert "".join(f"    {line}\n" for line in lines) in REFERENCE
