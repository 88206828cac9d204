"""What is wrong with fabric.yaml, as lines that a person reads: where, what it should be, what it is."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from deploytools.settings.keys import KeyPath, key_at, suggestion

LONGEST_VALUE = 60
_CONTAINERS = {"dataclass_type": "a mapping", "dict_type": "a mapping", "tuple_type": "a list"}


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, at a path below `deploy`."""

    path: KeyPath
    text: str

    def line(self, place: Callable[[KeyPath], str]) -> str:
        """`place` tells where a path was written: in fabric.yaml, or in a variable."""
        return f"{place(self.path)}: {self.text}"


def problems_of(error: ValidationError) -> list[Problem]:
    """Given what pydantic found, return it in our words and in the order of the schema."""
    return [_problem(item) for item in error.errors(include_url=False)]


def shown(value: object) -> str:  # noqa: PLR0911 - one case per type
    """A value as a message has it: short, on one line, and as YAML would spell it."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case str():
            return repr(value) if len(value) <= LONGEST_VALUE else f"{value[:LONGEST_VALUE]!r}..."
        case int() if value.bit_length() > 64:
            return "a huge number"
        case int() | float():
            return str(value)
        case datetime.date():
            return f"the date {value}"
        case Mapping():
            return "a mapping"
        case list() | tuple():
            return "a list"
    return f"of type {type(value).__name__}"


def _problem(item: Mapping[str, Any]) -> Problem:  # noqa: PLR0911 - one case per type
    path, kind, value = tuple(item["loc"]), item["type"], item["input"]
    if kind == "missing":
        return Problem(path, "is missing")
    if kind == "unexpected_keyword_argument":
        return Problem(path, f"is not a known key{suggestion(path)}")
    if kind == "invalid_key":
        return Problem((*path[:-1], shown(value)), "is a key that is not text; put it in quotes")
    if path[-1:] == ("[key]",):
        return Problem((*path[:-2], shown(value) if not isinstance(value, str) else value), item["msg"])
    if kind in _CONTAINERS:
        wanted = (
            "text or a mapping" if isinstance(path[-1], int) else _CONTAINERS[kind]
        )  # an entry of `hosts`
        return Problem(path, f"should be {wanted}, is {shown(value)}")
    if kind == "unfit":
        secret = item.get("ctx", {}).get("secret") or isinstance(value, dict | list | tuple)
        return Problem(path, item["msg"] + ("" if secret else f", is {shown(value)}") + _quotes(path, value))
    return Problem(path, f"{item['msg'].replace('Input should be', 'should be')}, is {shown(value)}")


def _quotes(path: KeyPath, value: object) -> str:
    """YAML reads 1.10 as a number and 2024-01-01 as a date, where text was meant."""
    key = key_at(path)
    text = key is None or key.kind not in (int, float, bool)
    return "; put it in quotes" if text and isinstance(value, bool | int | float | datetime.date) else ""
