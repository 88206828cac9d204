"""Writes what the documents say of keys, tasks, exit codes and messages, from the code: part of `make docs`.

In a document each part stands between `<!-- generated: NAME -->` and `<!-- end -->`. A test compares what
is there with what would be written. Messages are for the site alone: there, `conf.py` has them put in.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING
from pathlib import Path
from typing import Any, get_args

from deploytools import task_help
from deploytools.errors import EXIT_CODES
from deploytools.settings import schema
from deploytools.settings.keys import Key, dotted, keys
from deploytools.settings.problems import shown
from deploytools.tasks import ns
from docs import raised

DOCS = Path(__file__).parent
_PART = re.compile(r"(?<=<!-- generated: )(\w[\w ]*)( -->\n).*?(?=<!-- end -->)", re.DOTALL)

# What the types of deploytools.settings.values are called. Text where none is named.
KINDS = {
    "Account": "user name",
    "Color": "colour",
    "CommandLine": "command",
    "Duration": "duration",
    "DurationOrZero": "duration",
    "Env": "mapping of text",
    "ExitCode": "integer",
    "ExcludePattern": "patterns",
    "Flag": "true or false",
    "HostHeader": "host name",
    "HostName": "host name",
    "HostPath": "path on the host",
    "Hosts": "list of hosts",
    "Listener": "addresses",
    "LocalPath": "path",
    "LockTimeout": "duration",
    "Parallel": "integer",
    "ReleasePath": "path on the host",
    "Releases": "integer",
    "Script": "shell command",
    "SharedPath": "path",
    "Status": "integer",
    "Url": "URL",
    "UrlPath": "URL path",
    "UrlPathQuery": "URL path",
}


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    head = list(head)
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return (
        "".join(f"| {' | '.join(line)} |\n" for line in lines)
        .replace("| --- ", "|---")
        .replace("--- |", "---|")
    )


def keys_of_fabric_yaml() -> str:
    """A table of each section's keys: type, default, and what the docstring below the key says."""
    spelt, meant = _written()
    sections: dict[str, list[list[str]]] = {}
    for path, key in keys().items():
        if key.is_section:
            continue
        owner = _owner(path)
        sections.setdefault(path[0] if len(path) > 1 else "", []).append(
            [f"`{dotted(path)}`", _kind(key, spelt[owner]), _default(key), meant[owner]]
        )
    return "\n".join(table(("key", "type", "default", "meaning"), rows) for rows in sections.values())


def tasks() -> str:
    """A part per task: how it is typed, what its docstring says, its options."""
    return "\n".join(_task(name, ns[name], aliases) for name, aliases in ns.task_names.items())


def exit_codes() -> str:
    return table(("code", "means"), ((str(code), means) for code, means in EXIT_CODES.items()))


def messages() -> str:
    """A part per file: what each of its errors says, the state that is left, the next command."""
    by_file: dict[str, list[raised.Message]] = {}
    for message in raised.messages():
        by_file.setdefault(message.file, []).append(message)
    parts = []
    for place, name in ((raised.LAPTOP, "On this computer"), (raised.HOST, "On a host")):
        parts.append(f"## {name}\n")
        for file, told in by_file.items():
            if file.startswith(place.name):
                rows = (
                    ["" if each.code is None else str(each.code), *(_cell(each, part) for part in SAID)]
                    for each in told
                )
                parts.append(f"### {file}\n\n{table(('code', 'says', 'state', 'next'), rows)}")
    return "\n".join(parts)


SAID = ("what", "state", "next")


def _cell(message: raised.Message, part: str) -> str:
    text = " ".join(message.parts[part].split())
    where = message.parts.get("where", "…") if part == "what" else "…"
    if where != "…":
        text += f" [{where}]"
    return re.sub(r"([\\`*_<>\[\]{}])", r"\\\1", text)


PARTS = {"keys of fabric yaml": keys_of_fabric_yaml, "tasks": tasks, "exit codes": exit_codes}


def renewed(document: str, parts: Mapping[str, Callable[[], str]] = PARTS) -> str:
    """Given a document, return it with every generated part that is among `parts` written anew."""

    def written(found: re.Match[str]) -> str:
        return f"{found[1]}{found[2]}\n{parts[found[1]]()}\n" if found[1] in parts else found[0]

    return _PART.sub(written, document)


def _written() -> tuple[dict[tuple[str, str], str], dict[tuple[str, str], str]]:
    """By class and field of the schema: the annotation as it is spelt, and the docstring below it."""
    spelt, meant = {}, {}
    for section in ast.parse(inspect.getsource(schema)).body:
        if not isinstance(section, ast.ClassDef):
            continue
        for statement, below in zip(section.body, [*section.body[1:], None], strict=True):
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                place = (section.name, statement.target.id)
                spelt[place] = ast.unparse(statement.annotation)
                if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                    meant[place] = " ".join(str(below.value.value).split())
    return spelt, meant


def _owner(path: tuple[str, ...]) -> tuple[str, str]:
    """The class of the schema that a key stands in, and its name there."""
    section = keys()[path[:-1]].kind if len(path) > 1 else schema.Deploy
    return section.__name__, path[-1]


def _kind(key: Key, annotation: str) -> str:
    words = [KINDS[word] for word in re.findall(r"\w+", annotation) if word in KINDS]
    if choices := get_args(key.kind):
        named = ", ".join(f"`{choice}`" for choice in choices)
    elif key.kind is tuple and words[:1] != ["list of hosts"]:
        named = f"list of {words[0].removesuffix('s')}s"
    else:
        named = words[0] if words else "text"
    return named + (" or null" if key.nullable else "")


def _default(key: Key) -> str:
    if key.default is MISSING:
        return "`{}`" if key.kind is dict else "required"
    if key.default == ():
        return "`[]`"
    if key.kind is float:
        return f"{key.default:g} s"
    return shown(key.default) if key.default is None or key.kind is bool else f"`{key.default}`"


def _task(name: str, task: Any, aliases: list[str]) -> str:
    typed = "\n".join([task_help.usage(name, task), *(f"fab {alias}" for alias in aliases)])
    rows = [(f"`{option}`", does) for option, does in task_help.options(name, task)]
    does = f"\n{table(('option', 'does'), rows)}" if rows else ""
    return f"### {name}\n\n```\n{typed}\n```\n\n{task_help.said(task)}\n{does}"


def main() -> None:
    for document in DOCS.rglob("*.md"):
        text = document.read_text()
        if (new := renewed(text)) != text:
            document.write_text(new)
            print(f"wrote {document.relative_to(DOCS.parent)}")


if __name__ == "__main__":
    main()
