"""What is typed wrong ends with exit code 2 and the next command, where Fabric has a bare line and a 1; and
`fab --list` has our tasks by what they are for.

Fabric parses the tasks right after it has imported the fabfile, and the fabfile imports ours.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import fabric.main
from invoke.exceptions import Exit, ParseError

from deploytools import guesses
from deploytools.errors import DeployError, UsageError
from deploytools.report.text import addressed, error_text
from deploytools.task_help import print_task_help


def adapt_fabric() -> None:
    """Have Fabric's own `fab`, where that imports us, behave as ours does."""
    program: Any = fabric.main.program
    program.parse_tasks = refusing(program.parse_tasks)
    program.list_flat = lambda: list_in_groups(program)
    theirs = program.print_task_help
    program.print_task_help = lambda name: print_task_help(program, name, theirs)


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
    """The same, but what can't be parsed becomes an Exit with a message for people.

    A task in another spelling (`maint.down`, `hot-swap`) is taken for what it is.
    """
    program: Any = getattr(parse, "__self__", None)

    def parsed() -> None:
        core = getattr(program, "core", None)
        if core is not None:
            core.unparsed = named(core.unparsed)
        while True:
            try:
                parse()
                _refuse_options_of_fabric(program)
                return
            except ParseError as error:
                if _respell(error, program):
                    continue
                what, remedy = _refused(error, program)
                refused = UsageError(what, where="the command line", state="nothing was changed", next=remedy)
                raise ended(refused) from error
            except ValueError as error:
                number = re.fullmatch(r"invalid literal for int\(\) with base 10: (.+)", str(error))
                if number is None:
                    raise
                refused = UsageError(
                    f"{number[1]} is no number",
                    where="the command line",
                    state="nothing was changed",
                    next="a whole number there, then the same command again",
                )
                raise ended(refused) from error

    return parsed


def _respell(error: ParseError, program: Any) -> bool:
    """Put the task that was meant in the place of a word that is one but for its dots and dashes."""
    unknown = _UNKNOWN.search(str(error))
    if unknown is None or unknown[1].startswith("-") or unknown[1] not in program.core.unparsed:
        return False
    name = guesses.respelled(unknown[1], program.collection.task_names)
    if name is not None:
        program.core.unparsed[program.core.unparsed.index(unknown[1])] = name
    return name is not None


def _refused(error: ParseError, program: Any) -> tuple[str, str]:
    """What to tell of words that Invoke makes no sense of, and what to type instead."""
    what = _MISSING.sub(_needs, str(error)).rstrip("!")
    context, unknown = error.context, _UNKNOWN.search(str(error))
    known = list(program.collection.task_names) if getattr(program, "collection", None) else []
    if context is None or context.name is None:
        words = list(program.core.unparsed) if unknown else []
        rest = words[words.index(unknown[1]) + 1 :] if unknown and unknown[1] in words else []
        return what, guesses.task(unknown[1], rest, known) if unknown else "fab --list"
    task = context.name
    if task == "on" and unknown is None:
        what = "`on` needs the name of an environment"
        return what, "fab on ENVIRONMENT TASK, such as fab on sandbox status"
    meant = guesses.option(task, unknown[1], context.flags, known) if unknown else f"fab --help {task}"
    return what, addressed(meant, _chosen(program.core.unparsed))


def _chosen(words: Sequence[str]) -> str | None:
    """The environment in `fab on staging deploy ...`."""
    return words[1] if words[:1] == ["on"] and len(words) > 1 else None


def _refuse_options_of_fabric(program: Any) -> None:
    """Raise Exit where one of Fabric's own options stands behind a task of ours.

    Fabric takes `-r v3` behind `deploy` for its --search-root, and would deploy what nobody meant.
    """
    ours = [
        context.name for context in program.tasks if getattr(program.collection[context.name], "once", False)
    ]
    args = {max(arg.names, key=len): arg for arg in program.core_via_tasks.args.values()}
    given = [name for name, arg in args.items() if arg.raw_value is not None and arg.got_value]
    stray = [name for name in given if name not in ("help", "hosts")]
    if ours and stray:
        refused = UsageError(
            f"--{stray[0]} is an option of Fabric's own, and none of {ours[-1]}",
            where="the command line",
            state="nothing was changed",
            next=f"fab --help {ours[-1]}; Fabric's options stand before the task",
        )
        raise ended(refused)


_UNKNOWN = re.compile(r"No idea what '(.*)' is")
_MISSING = re.compile(r"'(\S+)' did not receive required positional arguments: (.+)")


def _needs(found: re.Match[str]) -> str:
    """Invoke's arguments that are missing, as the options that our documents have for them."""
    options = [f"--{name.rstrip('_')}" for name in re.findall("'([^']+)'", found[2])]
    return f"{found[1]} needs {', '.join(options)}"


def ended(error: DeployError) -> Exit:
    """What ends `fab` with the error's text and exit code."""
    return Exit(error_text(error), code=error.exit_code)
