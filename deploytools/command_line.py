"""What is typed wrong ends with exit code 2 and the next command, where Fabric has a bare line and a 1; and
`fab --list` has our tasks by what they are for.

Fabric parses the tasks right after it has imported the fabfile, and the fabfile imports ours.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from typing import Any

import fabric.main
from invoke.exceptions import Exit, ParseError

from deploytools.errors import DeployError, UsageError


def adapt_fabric() -> None:
    """Have Fabric's own `fab`, where that imports us, behave as ours does."""
    program: Any = fabric.main.program
    program.parse_tasks = refusing(program.parse_tasks)
    program.list_flat = lambda: list_in_groups(program)


# What `fab --list` shows together: a heading, and the tasks in the order in which they are met.
GROUPS = {
    "to begin with": ("init", "setup", "doctor", "on"),
    "deploy": ("deploy", "hotswap", "rollback", "migrate.status", "migrate.resolve", "unlock"),
    "maintenance": ("maint-down", "maint-up", "maint-preview"),
    "look, changing nothing": ("status", "releases", "history", "report"),
    "a web host on this computer, to play with": ("sandbox.up", "sandbox.down", "sandbox.reset"),
}


def list_in_groups(program: Any) -> None:
    """Print the tasks by GROUPS, and before them those of the project's own."""
    pairs = {name.split()[0]: (name, told) for name, told in program._make_pairs(program.scoped_collection)}
    width = max(len(name) for name, _ in pairs.values())
    ours = {name for names in GROUPS.values() for name in names}
    groups = {"of this project": tuple(name for name in pairs if name not in ours), **GROUPS}
    if program.list_root or program.list_depth or not ours <= pairs.keys():
        program.display_with_columns(pairs=list(pairs.values()))
        return
    print(f"{program.task_list_opener()}:\n")
    for heading, names in groups.items():
        if names:
            print(f"{heading}:")
            program.print_columns([(pairs[name][0].ljust(width), pairs[name][1]) for name in names])


_RUN_ID = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{6}")


def named(words: Sequence[str]) -> list[str]:
    """`report RUN_ID` as `report --run=RUN_ID`: Invoke's arguments without a name can't be left out."""
    before = ["", *words]
    return [
        f"--run={word}" if last == "report" and _RUN_ID.fullmatch(word) else word
        for last, word in zip(before, words, strict=False)
    ]


def refusing(parse: Callable[[], None]) -> Callable[[], None]:
    """The same, but a ParseError becomes an Exit with a message for people."""

    def parsed() -> None:
        core = getattr(getattr(parse, "__self__", None), "core", None)
        if core is not None:
            core.unparsed = named(core.unparsed)
        try:
            parse()
        except ParseError as error:
            task = error.context.name if error.context is not None else None
            refused = UsageError(
                _MISSING.sub(_needs, str(error)).rstrip("!"),
                where="the command line",
                state="nothing was changed",
                next=f"fab --help {task}" if task else _meant(str(error), parse),
            )
            raise ended(refused) from error

    return parsed


# What people try, and what they mean by it. None of it is another name of these tasks: `fab up` in the wrong
# terminal would lift a window.
_WORDS = {
    "up": ("maint-up", "sandbox.up"),
    "down": ("maint-down", "sandbox.down"),
    "start": ("maint-up", "hotswap"),
    "stop": ("maint-down",),
    "maint": ("maint-down", "maint-up"),
    "maintenance": ("maint-down", "maint-up"),
    "preview": ("maint-preview",),
    "abort": ("deploy --abort",),
    "cancel": ("deploy --abort",),
    "resume": ("deploy --resume",),
    "continue": ("deploy --resume",),
    "plan": ("deploy --plan", "setup --plan"),
    "lock": ("status",),
    "info": ("status",),
    "health": ("status", "doctor"),
    "ping": ("doctor",),
    "logs": ("status", "history"),
    "log": ("history", "report"),
    "runs": ("history",),
    "migrations": ("migrate",),
    "schema": ("migrate",),
    "install": ("setup",),
    "provision": ("setup",),
    "bootstrap": ("init", "setup"),
    "upgrade": ("setup",),
    "uninstall": ("setup --remove",),
    "new": ("init",),
    "revert": ("rollback",),
    "undo": ("rollback",),
    "release": ("deploy", "releases"),
    "ship": ("deploy",),
    "push": ("deploy",),
    "reload": ("hotswap",),
    "use": ("on",),
    "environment": ("on",),
    "sandbox": ("sandbox.up", "on sandbox status"),
    "demo": ("sandbox.up",),
}


def _meant(message: str, parse: Callable[[], None]) -> str:
    """Given the message about an unknown task, what to type instead."""
    unknown = re.search(r"No idea what '(.*)' is", message)
    collection = getattr(getattr(parse, "__self__", None), "collection", None)
    if unknown is None or collection is None:
        return "fab --list"
    known: Sequence[str] = list(collection.task_names)
    close = _WORDS.get(unknown[1]) or tuple(difflib.get_close_matches(unknown[1], known, n=2))
    return "".join(f"fab {name}, or " for name in close) + "fab --list"


_MISSING = re.compile(r"'(\S+)' did not receive required positional arguments: (.+)")


def _needs(found: re.Match[str]) -> str:
    """Invoke's arguments that are missing, as the options that our documents have for them."""
    options = [f"--{name.rstrip('_')}" for name in re.findall("'([^']+)'", found[2])]
    return f"{found[1]} needs {', '.join(options)}"


def ended(error: DeployError) -> Exit:
    """What ends `fab` with the error's text and exit code."""
    from deploytools.report.text import error_text

    return Exit(error_text(error), code=error.exit_code)
