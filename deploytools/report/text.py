"""How things are written, whatever they are: errors, tables, moments. Pure."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from io import TextIOWrapper
from typing import Any, TextIO, overload

from deploytools.errors import DeployError

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def error_text(error: DeployError) -> str:
    """The five questions of every failure: what, where, details, state, next."""
    lines = [f"error: {error.what}"]
    if error.where:
        lines.append(f"  where: {error.where}")
    lines += [f"    {line}" for detail in error.details for line in detail.splitlines()]
    if error.state:
        lines.append(f"  state: {error.state}")
    if error.next:
        lines.append(f"  next:  {error.next}")
    return shown("\n".join(lines))


def error_json(error: DeployError) -> str:
    """A failure as a machine reads it, like the answer of a host program, with the run as far as it came."""
    words = ("what", "where", "state", "next", "details")
    about = {word: getattr(error, word) for word in words}
    return json.dumps({"ok": False, "exit_code": error.exit_code, "error": about, "run": error.run})


def clean(text: str) -> str:
    """Text of another machine, without what a terminal would obey: colours left out, the rest as escapes."""
    plain = _COLOURS.sub("", text).expandtabs()
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in plain)


def shown(text: str) -> str:
    """Lines in which there may be text of another machine, or of a colleague, as `clean` has it."""
    return "\n".join(map(clean, text.split("\n")))


_TASKS = "deploy|doctor|history|hotswap|maint-|migrate|releases|report|rollback|setup|status|unlock"
_COMMAND = re.compile(rf"\bfab ((?:-H \S+ )?)(?=(?:{_TASKS}))")


def addressed(text: str, environment: str | None) -> str:
    """`fab deploy` in a text as `fab on staging deploy`, where that is what was chosen: to copy and paste."""
    if environment is None:
        return text
    return _COMMAND.sub(lambda found: f"fab {found[1]}on {shlex.quote(environment)} ", text)


def address(error: DeployError, environment: str | None) -> None:
    """The same for all that an error says."""
    error.state = error.state and addressed(error.state, environment)
    error.next = error.next and addressed(error.next, environment)
    error.details = tuple(addressed(line, environment) for line in error.details)


def wrapped(lines: Iterable[str], width: int | None) -> list[str]:
    """Lines as they fit into a terminal: what is too long goes on below its own beginning."""
    if width is None:
        return list(lines)
    told = []
    for line in lines:
        label = re.match(r" +(?:lock on +|\S+ +)?", line)
        indent = " " * min(len(label[0]) if label else 2, width // 3)
        fits = textwrap.wrap(
            line, width, subsequent_indent=indent, break_on_hyphens=False, drop_whitespace=True
        )
        told += fits or [line]
    return told


def writable(out: TextIO) -> None:
    """What the terminal's encoding doesn't have is written as an escape, where Python would fail."""
    if isinstance(out, TextIOWrapper):
        out.reconfigure(errors="backslashreplace")


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], width: int | None = None) -> str:
    """Rows as aligned text under their column names; None and "" show as a dash.

    A table that is wider than `width` characters is told row by row, one line for each value that there is.
    """
    cells = [list(columns)] + [[_cell(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(row[index]) for row in cells) for index in range(len(columns))]
    if width is not None and sum(widths) + 2 * (len(widths) - 1) > width:
        longest = max(map(len, columns))
        blocks = (
            [f"{column:{longest}}  {row[column]}" for column in columns if row.get(column) not in (None, "")]
            for row in rows
        )
        return "\n\n".join("\n".join(block) for block in blocks)
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )


def terminal_width(out: TextIO) -> int | None:
    """How many characters a line of the terminal has; None where `out` is none."""
    return shutil.get_terminal_size().columns if out.isatty() else None


def when(moment: float) -> str:
    """Seconds since the epoch in the reader's own time zone, with its distance from UTC."""
    return datetime.fromtimestamp(moment).astimezone().strftime("%Y-%m-%d %H:%M:%S %z")


def local(moment: str | None) -> str | None:
    """An ISO 8601 moment as `when` writes it; what is none is told as it is."""
    try:
        return moment and when(datetime.fromisoformat(moment.replace("Z", "+00:00")).timestamp())
    except (ValueError, OverflowError):
        return moment


@overload
def seconds(span: float) -> str: ...
@overload
def seconds(span: float | None) -> str | None: ...
def seconds(span: float | None) -> str | None:
    """A span of time as people say it."""
    if span is None or span < 60:
        return None if span is None else f"{span:.1f} s"
    minutes, rest = divmod(round(span), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _cell(value: object) -> str:
    return "-" if value in (None, "") else clean(str(value))
