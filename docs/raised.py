"""Every error that the code can make, read from the code itself: what it says, where, state, next command."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from deploytools import errors

REPOSITORY = Path(__file__).parents[1]
LAPTOP, HOST = REPOSITORY / "deploytools", REPOSITORY / "remote_scripts"
CODES = {"USAGE": 2, "FAILED": 3, "IN_MAINTENANCE": 4, "BUSY": 5, "UNREACHABLE": 6, "UNFINISHED": 7}
ROOTS = {"DeployError", "Failure"}
WHOLE = {"PackagesMissing"}
Names = dict[str, str]
PARTS = ("what", "where", "state", "next")


@dataclass(frozen=True)
class Message:
    """One place that makes an error.

    Args:
        file: relative to the repository.
        line: where the error is made.
        function: what makes it.
        kind: the class of the error.
        code: its exit code; None where that is only known when it happens.
        parts: what, where, state and next as far as they are said, with what is filled in as `…`.
    """

    file: str
    line: int
    function: str
    kind: str
    code: int | None
    parts: dict[str, str]

    @property
    def on_host(self) -> bool:
        return self.file.startswith(HOST.name)


def messages() -> list[Message]:
    """All of them, by file and place."""
    trees = {path: ast.parse(path.read_text()) for path in _sources()}
    kinds = _kinds(trees.values())
    constants = _constants(trees.values())
    return [
        Message(
            str(path.relative_to(REPOSITORY)),
            call.lineno,
            function,
            kind,
            _code(kind, call),
            _said(kind, call, names),
        )
        for path, tree in trees.items()
        for call, function, names in _calls(tree, "", constants)
        if (kind := _kind(call, function, kinds))
    ]


def _sources() -> list[Path]:
    found = [path for top in (LAPTOP, HOST) for path in top.rglob("*") if path.is_file()]
    return sorted(
        path
        for path in found
        if path.suffix == ".py" or (not path.suffix and path.read_bytes().startswith(b"#!/usr/bin/python3"))
    )


def _kinds(trees: Iterable[ast.Module]) -> set[str]:
    """The classes of errors that are for people: of either tree, with all that are derived from them."""
    kinds = set(ROOTS)
    classes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    while more := {
        each.name
        for each in classes
        if each.name not in kinds and kinds & {_name(base) for base in each.bases}
    }:
        kinds |= more
    return kinds


def _kind(call: ast.Call, function: str, kinds: set[str]) -> str | None:
    """The error that a call makes. One whose own `__init__` says it all is made there."""
    name, inside = _name(call.func), function.removesuffix(".__init__")
    if name == "__init__":
        return inside if inside != function and inside in kinds - ROOTS else None
    return name if name in kinds - WHOLE else None


def _constants(trees: Iterable[ast.Module]) -> dict[str, str]:
    """Text that a module gives a name in capitals."""
    return {
        target.id: str(node.value.value)
        for tree in trees
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name) and isinstance(node.value.value, str)
    }


def _calls(node: ast.AST, function: str, names: Names) -> Iterator[tuple[ast.Call, str, Names]]:
    """Every call below `node`, the function that it is in, and the text that names have there."""
    for child in ast.iter_child_nodes(node):
        inner, known = function, names
        if isinstance(child, ast.FunctionDef | ast.ClassDef):
            inner = f"{function}.{child.name}".lstrip(".")
            known = {**names, **_assigned(child, names)}
        if isinstance(child, ast.Call):
            yield child, function, names
        yield from _calls(child, inner, known)


def _assigned(function: ast.AST, names: Names) -> Names:
    """The text that a function gives to its variables; with ` | ` between where it is one or another."""
    said: dict[str, list[str]] = {}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            said.setdefault(node.targets[0].id, []).append(_text(node.value, names))
    return {name: " | ".join(dict.fromkeys(texts)) for name, texts in said.items() if texts != ["…"]}


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _code(kind: str, call: ast.Call) -> int | None:
    """The exit code: of a class on the laptop, of each failure on a host."""
    if hasattr(errors, kind):
        return int(getattr(errors, kind).exit_code)
    given = next((word.value for word in call.keywords if word.arg == "exit_code"), None)
    if given is None:
        return 3
    if isinstance(given, ast.Constant):
        return int(given.value)  # type: ignore[arg-type]
    return CODES.get(_name(given))


def _said(kind: str, call: ast.Call, names: Names) -> dict[str, str]:
    """The parts, and what holds for a class where it doesn't say one: deploytools.errors, hostlib.program."""
    parts = _parts(call, names)
    if laptop := getattr(errors, kind, None):
        usual = {"state": laptop.usual_state, "next": laptop.usual_next}
    else:
        state = "nothing was changed" if _code(kind, call) == CODES["USAGE"] else "as `status` tells"
        usual = {"state": state, "next": "…/status"}
    return {**{name: text for name, text in usual.items() if text}, **parts}


def _parts(call: ast.Call, names: Names) -> dict[str, str]:
    said = {word.arg: word.value for word in call.keywords}
    if call.args:
        said.setdefault("what", call.args[0])
    if None in said:  # **parts
        return {name: _text(said[name], names) if name in said else "…" for name in PARTS}
    return {name: _text(said[name], names) for name in PARTS if name in said}


def _text(node: ast.expr, names: Names) -> str:
    """The text of an expression; what is only known when it happens is `…`."""
    match node:
        case ast.Constant(value):
            text = str(value)
        case ast.Name(name):
            text = names.get(name, "…")
        case ast.FormattedValue(value):
            text = _text(value, names)
        case ast.JoinedStr(values):
            text = "".join(_text(value, names) for value in values)
        case ast.BinOp(left, ast.Add(), right):
            text = _text(left, names) + _text(right, names)
        case ast.IfExp(_, body, orelse):
            text = f"{_text(body, names)} | {_text(orelse, names)}"
        case ast.BoolOp(_, values):
            text = " | ".join(_text(value, names) for value in values)
        case _:
            text = "…"
    return re.sub("…+", "…", text)
