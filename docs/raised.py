"""Every error that the code can make, read from the code itself: what it says, where, state, next command."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from deploytools import errors

REPOSITORY = Path(__file__).parents[1]
LAPTOP, HOST = REPOSITORY / "deploytools", REPOSITORY / "remote_scripts"
CODES = {"USAGE": 2, "FAILED": 3, "IN_MAINTENANCE": 4, "BUSY": 5, "UNREACHABLE": 6, "UNFINISHED": 7}
ROOTS = {"DeployError", "Failure", "Refused"}  # Refused: of `fab setup` on a host
WHOLE = {"PackagesMissing"}
Names = dict[str, str]
Callers = dict[str, list[ast.Call]]
PARTS = ("what", "where", "state", "next")
# While a text is put together from the code: around and between what is said in one case or another.
EITHER, OR, END = "\ue000", "\ue001", "\ue002"


@dataclass(frozen=True)
class Message:
    """One place that makes an error.

    Args:
        file: relative to the repository.
        line: where the error is made.
        last_line: the last line of the call that makes it.
        function: what makes it.
        kind: the class of the error.
        code: its exit code; None where that is only known when it happens.
        parts: what, where, state and next as far as they are said, with what is filled in as `…`.
        patterns: the same as regular expressions, that match what is printed; what is filled in is a group.
    """

    file: str
    line: int
    last_line: int
    function: str
    kind: str
    code: int | None
    parts: dict[str, str]
    patterns: dict[str, str]

    @property
    def on_host(self) -> bool:
        return self.file.startswith(HOST.name)


def messages() -> list[Message]:
    """All of them, by file and place."""
    trees = {path: ast.parse(path.read_text()) for path in _sources()}
    kinds = _kinds(trees.values())
    constants = _constants(trees.values())
    made = {path: _callers(tree) for path, tree in trees.items()}
    return [
        Message(
            str(path.relative_to(REPOSITORY)),
            call.lineno,
            call.end_lineno or call.lineno,
            function,
            kind,
            _code(kind, call),
            {part: _read(text) for part, text in said.items()},
            {part: _pattern(text) for part, text in said.items()},
        )
        for path, tree in trees.items()
        for call, function, names in _calls(tree, "", constants, _of_all(path, tree, made, kinds))
        if (kind := _kind(call, function, kinds))
        if kind != "Refused"
        or path.parent.name == "hostsetup"  # that of a migration's runner never leaves it
        for said in (_said(kind, call, names),)
    ]


def _read(text: str) -> str:
    return text.replace(EITHER, "").replace(END, "").replace(OR, " | ")


def _pattern(text: str) -> str:
    signs = {EITHER: "(?:", OR: "|", END: ")", "…": "(.*)"}
    return "".join(signs.get(letter) or re.escape(letter) for letter in text)


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


def _callers(tree: ast.Module) -> Callers:
    """The calls of a module by what they call."""
    callers: Callers = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            callers.setdefault(_name(node.func), []).append(node)
    return callers


def _of_all(path: Path, tree: ast.Module, made: Mapping[Path, Callers], kinds: set[str]) -> Callers:
    """The calls of what makes an error for others, wherever they are, and of a module's own functions."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    makers = {each.name for each in functions if each.returns is not None and _name(each.returns) in kinds}
    private = {each.name for each in functions if each.name.startswith("_")}
    everywhere = {
        name: [call for calls in made.values() for call in calls.get(name, ())]
        for name in (makers | kinds) - private
    }
    return {**everywhere, **{name: made[path].get(name, []) for name in private}}


def _calls(
    node: ast.AST, function: str, names: Names, callers: Callers
) -> Iterator[tuple[ast.Call, str, Names]]:
    """Every call below `node`, the function that it is in, and the text that names have there."""
    for child in ast.iter_child_nodes(node):
        inner, known = function, names
        if isinstance(child, ast.FunctionDef | ast.ClassDef):
            inner = f"{function}.{child.name}".lstrip(".")
            known = {**names, **_assigned(child, names)}
        if isinstance(child, ast.FunctionDef):
            called = inner.split(".")[-2] if child.name == "__init__" else child.name
            known = {**names, **_given(child, callers.get(called, ()), names), **_assigned(child, names)}
        if isinstance(child, ast.Call):
            yield child, function, names
        yield from _calls(child, inner, known, callers)


def _given(function: ast.FunctionDef, calls: Iterable[ast.Call], names: Names) -> Names:
    """The text that those who call a function give to its parameters, as far as it stands in the call."""
    parameters = [one.arg for one in (*function.args.posonlyargs, *function.args.args) if one.arg != "self"]
    said: dict[str, list[str]] = {}
    for call in calls:
        given = dict(zip(parameters, call.args, strict=False))
        given.update({word.arg: word.value for word in call.keywords if word.arg})
        for name, value in given.items():
            said.setdefault(name, []).append(_text(value, names))
    return {name: _either(texts) for name, texts in said.items() if set(texts) != {"…"}}


def _assigned(function: ast.AST, names: Names) -> Names:
    """The text that a function gives to its variables."""
    said: dict[str, list[str]] = {}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            said.setdefault(node.targets[0].id, []).append(_text(node.value, names))
    return {name: _either(texts) for name, texts in said.items() if texts != ["…"]}


def _either(texts: Iterable[str]) -> str:
    different = list(dict.fromkeys(texts))
    return different[0] if len(different) == 1 else EITHER + OR.join(different) + END


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
    """The parts, and what holds for a class where it doesn't say one.

    See deploytools.errors, hostlib.program and hostsetup.bundle.
    """
    parts = _parts(call, names)
    if laptop := getattr(errors, kind, None):
        usual = {"state": laptop.usual_state, "next": laptop.usual_next}
    elif kind == "Refused":
        usual = {"state": "nothing was changed"}
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
            text = _either([_text(body, names), _text(orelse, names)])
        case ast.BoolOp(_, values):
            text = _either(_text(value, names) for value in values)
        case _:
            text = "…"
    return re.sub("…+", "…", text)
