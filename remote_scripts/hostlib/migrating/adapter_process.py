"""The frame of an adapter: what all of them have in common. Run by the release's own Python.

Each command runs in a forked process of its own, with fresh connections; what takes most of the time, to
import the tool and the application, was done once before. hostlib/migrating/adapters.py tells the protocol.
"""

from __future__ import annotations

import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Answer = dict[str, Any]
# Given the answer so far, add to it. What stands in it counts even where the command raises.
Command = Callable[[Answer], None]

_settings: Answer = {}

# In a URL, or what was meant to be one; and in the parameters of a connection.
PASSWORD = re.compile(
    r"""((?::|//)/{0,2}[^:/@\s]*:)[^@\s]+(@)|\b((?:password|passwd|pwd)=)("[^"]*"|'[^']*'|[^\s&"']+)""",
    re.IGNORECASE,
)


def use_the_applications_modules() -> None:
    """Our own directory is first on the path, where its modules would hide the application's."""
    sys.path.pop(0)


@dataclass(frozen=True)
class Adapter:
    """What one adapter does.

    Args:
        prepare: imports the tool and the application; called once. What it raises is every command's error.
        commands: by their names in the protocol.
    """

    prepare: Callable[[], None]
    commands: Mapping[str, Command]


def settings() -> Answer:
    """The release's "migrate" settings, and what adapters.of_release adds to them."""
    return _settings


def labelled(online_safe: object, label: str) -> Answer:
    """What is told of one migration: whether its author says that it is safe online. Only True says so."""
    if online_safe is True:
        return {"online": True, "why": ""}
    return {"online": False, "why": f"its author hasn't labelled it online-safe ({label})"}


def serve(adapter: Adapter) -> None:
    """Answer commands until standard input ends; what the release's code prints goes to standard error."""
    out = os.dup(1)
    os.dup2(2, 1)
    _settings.update(json.loads(sys.stdin.readline()))
    failed = None
    try:
        adapter.prepare()
    # The release's code may raise anything, SystemExit included.
    except BaseException as error:  # noqa: BLE001
        failed = error
    for line in sys.stdin:
        os.write(out, _in_a_process(adapter, line.strip(), failed) + b"\n")


def _in_a_process(adapter: Adapter, command: str, failed: BaseException | None) -> bytes:
    """The answer as JSON; an empty object where the process was killed before it had one."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)  # the commands aren't for the release's code
        if command not in ("upgrade", "rollback"):
            os.dup2(nothing, 1)  # nor is what it prints while it is asked a part of the migration's log
            os.dup2(nothing, 2)
        else:  # every connection that the migration makes is to be found by this name, where libpq makes it
            os.environ["PGAPPNAME"] = _settings["session"]
        answer = json.dumps(_told(failed) if failed else _carry_out(adapter, command))
        sys.stdout.flush()
        sys.stderr.flush()
        with os.fdopen(write, "w") as file:
            file.write(answer)
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as file:
        answered = file.read()
    os.waitpid(child, 0)
    return answered or b"{}"


def _carry_out(adapter: Adapter, command: str) -> Answer:
    answer: Answer = {"transactional": None}
    try:
        adapter.commands[command](answer)
    except BaseException as error:  # noqa: BLE001
        answer.update(_told(error))
    return answer


def _told(error: BaseException) -> Answer:
    trace = traceback.format_exception(type(error), error, error.__traceback__)
    sys.stderr.write(masked("".join(trace)))
    return {"error": masked(_in_one_line(error))}


def _in_one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or "no reason given"
    return f"{type(error).__name__}: {text}"[:1000]


def masked(text: str) -> str:
    """Without passwords, as far as they can be told."""
    return PASSWORD.sub(r"\1\3***\2", text)
