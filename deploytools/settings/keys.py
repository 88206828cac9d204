"""The keys of the schema as data: what may be overridden, what was meant by a typing error."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from deploytools.settings.schema import Deploy, Host

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True)
class Key:
    """One key of the schema.

    Args:
        path: the names below `deploy`, without indexes of lists.
        kind: the bare type of its value: str, int, float, bool, pathlib.Path, tuple, dict, Literal, or a
            section's dataclass.
        nullable: whether null is a value of its own.
        default: dataclasses.MISSING where there is none.
    """

    path: tuple[str, ...]
    kind: Any
    nullable: bool
    default: object

    @property
    def is_section(self) -> bool:
        return is_dataclass(self.kind)

    @property
    def is_scalar(self) -> bool:
        return not self.is_section and self.kind not in (tuple, dict)


@cache
def keys() -> dict[tuple[str, ...], Key]:
    """Every key of the schema by its path, each section before what is in it."""
    return {key.path: key for key in _keys(Deploy, ())}


def dotted(path: Iterable[str | int]) -> str:
    """("hosts", 1, "port") -> `hosts[1].port`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part if part.isprintable() and part else repr(part)}"
    return text.removeprefix(".")


def key_at(path: KeyPath) -> Key | None:
    """The key that a path with list indexes leads to; None within mappings such as `app.env`."""
    return keys().get(tuple(part for part in path if isinstance(part, str)))


def suggestion(path: KeyPath) -> str:
    """Given the path of an unknown key, return `; did you mean ...?`, or nothing."""
    *section, wrong = [part for part in path if isinstance(part, str)]
    if section == ["hosts"]:
        return did_you_mean(wrong, [entry.name for entry in fields(Host)])
    siblings = [key.path[-1] for key in keys().values() if list(key.path[:-1]) == section]
    elsewhere = [dotted(key.path) for key in keys().values() if key.path[-1] == wrong]
    return did_you_mean(wrong, siblings) or (f"; did you mean {elsewhere[0]}?" if elsewhere else "")


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """`; did you mean ...?` where something known is close to `wrong`, or nothing."""
    close = difflib.get_close_matches(wrong, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _keys(section: Any, path: tuple[str, ...]) -> Iterator[Key]:
    hints = get_type_hints(section, include_extras=True)
    for entry in fields(section):
        kind, nullable = _bare(hints[entry.name])
        yield Key((*path, entry.name), kind, nullable, entry.default)
        if is_dataclass(kind):
            yield from _keys(kind, (*path, entry.name))


def _bare(hint: Any) -> tuple[Any, bool]:
    """Given an annotation, return the type in it without its conditions, and whether None is allowed too."""
    if get_origin(hint) is Annotated:
        return _bare(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        (inner,) = (argument for argument in get_args(hint) if argument is not type(None))
        return _bare(inner)[0], True
    return get_origin(hint) if get_origin(hint) in (tuple, dict) else hint, False
