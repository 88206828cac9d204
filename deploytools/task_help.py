"""A task in words: how it is typed, what it does, its options: for `fab --help TASK` and the reference."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

# What an option wants; TEXT or N where it isn't named.
VALUES = {
    "application": "NAME",
    "as": "applied|not-applied",
    "as-user": "USER",
    "batch": "N|PCT",
    "exclude": "HOST",
    "force": "RUN_ID",
    "host": "HOST",
    "lock-wait": "DURATION",
    "output": "FILE",
    "ref": "REF",
    "run-id": "RUN_ID",
    "to": "RELEASE",
    "until": "TIME",
}

# Keeps an option on one line with what it wants.
GLUE = "\N{NO-BREAK SPACE}"


def print_task_help(program: Any, name: str, otherwise: Callable[[str], None]) -> None:
    """Print what there is to know of a task of ours; of another one what Invoke has to say."""
    task = program.collection[name]
    if getattr(task, "about", None) is None:
        otherwise(name)
        return
    others = task.aliases if name == task.name else [task.name] if name in task.aliases else []
    print(f"{usage(name, task, 80)}\n")
    print("\n".join(f"  {line}".rstrip() for line in said(task).splitlines()))
    if others:
        print(f"\n  Also: {', '.join(f'fab {word}' for word in others)}")
    rows = options(name, task)
    if rows:
        print("\noptions:")
        program.print_columns(rows)


def usage(name: str, task: Any, width: int = 100) -> str:
    """`fab status [--json]`: what is typed, with the options that can be left out in brackets."""
    if name == "on":
        return "fab on ENVIRONMENT TASK ..."
    words = [typed(each) if each.positional else f"[{typed(each)}]" for each in task.get_arguments()]
    whole = [word.replace(" ", GLUE) for word in words]
    lines = textwrap.wrap(
        " ".join([f"fab {name}", *whole]), width, subsequent_indent="    ", break_on_hyphens=False
    )
    return "\n".join(lines).replace(GLUE, " ")


def said(task: Any) -> str:
    """What the task says of itself."""
    return textwrap.dedent(inspect.getdoc(task.body) or "")


def options(name: str, task: Any) -> Sequence[tuple[str, str]]:
    """Each option as it is typed, and what it does."""
    arguments = [] if name == "on" else task.get_arguments()
    return [(typed(each), task.about[each.names[0].rstrip("_")]) for each in arguments]


def typed(argument: Any) -> str:
    """An option with what it wants: `--ref REF`."""
    option = argument.names[0].rstrip("_")
    if argument.kind is bool:
        return f"--{option}"
    value = VALUES.get(option, "N" if argument.kind is int else "TEXT")
    return f"--{option} {value}" + (" ..." if argument.kind is list else "")
