"""Answers for Alembic; run by the release's own Python, in its directory, as the application's user.

Reads commands from standard input, a word per line, and answers each with a JSON object on a line of
standard output (see hostlib/adapters.py); what migrations and env.py print goes to standard error.

    check      where is the database, and what is pending?
    upgrade    bring it to the heads of this release

Each command runs in a forked process of its own, with a fresh env.py and fresh connections; Alembic,
which takes most of the time, is imported once. Works with Alembic 1.8 (Debian 12) and later. Several
heads, several databases of one env.py and an asynchronous one are fine: all is learned through env.py.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Answer = dict[str, Any]

PASSWORD = re.compile(r"(://[^:/@\s]*:)[^@\s]+@")


class Seen:
    """What was learned while env.py ran; it calls us once for each of its databases."""

    def __init__(self) -> None:
        self.current: set[str] = set()
        self.strangers: set[str] = set()
        self.pending: dict[str, Answer] = {}
        self.applied: list[str] = []
        self.transactional: bool | None = None

    def database(self, current: tuple[str, ...], context: Any) -> None:
        self.current.update(current)
        self.transactional = self.transactional is not False and _is_transactional(context)


def main(out: int) -> None:
    """Answer commands on the descriptor `out` until standard input ends."""
    with contextlib.suppress(ImportError):  # whose time comes when a command is carried out
        import alembic.runtime.environment
        import alembic.script  # noqa: F401
    for command in sys.stdin:
        os.write(out, _in_a_process(command.strip()) + b"\n")


def carry_out(command: str) -> Answer:
    seen = Seen()
    answer: Answer = {}
    try:
        answer = COMMANDS[command](seen)
        if seen.transactional is None:
            raise RuntimeError("env.py never came to context.run_migrations()")
    # env.py and migrations may raise anything, SystemExit included.
    except BaseException as error:  # noqa: BLE001
        sys.stderr.write(_masked(traceback.format_exc()))
        answer.update(error=_masked(_in_one_line(error)), connection_lost=_lost_connection(error))
    return {**answer, "transactional": seen.transactional}


def check(seen: Seen) -> Answer:
    """Look at the database without changing it."""
    script = _script()

    def look(current: tuple[str, ...], context: Any) -> list[Any]:
        seen.database(current, context)
        strangers = [revision for revision in current if not _knows(script, revision)]
        seen.strangers.update(strangers)
        if not strangers:
            steps = script._upgrade_revs("heads", current)
            seen.pending.update((step.revision.revision, _describe(step.revision)) for step in steps)
        return []

    _run(script, look, dont_mutate=True)
    return {
        "current": sorted(seen.current),
        "target": sorted(script.get_heads()),
        "pending": list(seen.pending.values()),
        "strangers": sorted(seen.strangers),
    }


def upgrade(seen: Seen) -> Answer:
    """Run what is pending."""
    script = _script()

    def steps(current: tuple[str, ...], context: Any) -> Iterator[Any]:
        seen.database(current, context)
        autocommit_block = context.autocommit_block

        def noted_autocommit_block() -> Any:
            # What runs in it is committed at once, whatever becomes of the migration.
            seen.transactional = False
            return autocommit_block()

        context.autocommit_block = noted_autocommit_block
        for step in script._upgrade_revs("heads", current):
            if not logging.getLogger("alembic.runtime.migration").isEnabledFor(logging.INFO):
                print("Running", step, flush=True)  # where env.py has set up logging, Alembic says so itself
            seen.applied.append(step.revision.revision)
            yield step

    _run(script, steps)
    return {"applied": list(dict.fromkeys(seen.applied))}


COMMANDS: dict[str, Callable[[Seen], Answer]] = {"check": check, "upgrade": upgrade}


def _in_a_process(command: str) -> bytes:
    """The answer as JSON; an empty object where the process was killed before it had one."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)  # the commands aren't for env.py
        if command == "check":
            os.dup2(nothing, 1)  # nor is what env.py prints a part of the migration's log
            os.dup2(nothing, 2)
        answer = json.dumps(carry_out(command))
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


def _script() -> Any:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    if not Path("alembic.ini").exists():
        raise FileNotFoundError(f"there is no alembic.ini in {Path.cwd()}")
    return ScriptDirectory.from_config(Config("alembic.ini"))


def _run(script: Any, work: Callable[..., Any], **options: Any) -> None:
    """Let the application's env.py open the database and do `work` there."""
    from alembic.config import Config
    from alembic.runtime.environment import EnvironmentContext

    with EnvironmentContext(Config("alembic.ini"), script, fn=work, destination_rev="heads", **options):
        script.run_env()


def _is_transactional(context: Any) -> bool:
    """True where a failed migration is rolled back whole: its DDL and Alembic's own note of it."""
    connection = context.connection
    if connection is None or not context.impl.transactional_ddl:
        return False
    level = str(connection.get_execution_options().get("isolation_level", "")).upper()
    driver = getattr(connection.connection, "dbapi_connection", None)
    return level != "AUTOCOMMIT" and getattr(driver, "autocommit", None) is not True


def _knows(script: Any, revision: str) -> bool:
    from alembic.util import CommandError

    try:
        return script.get_revision(revision) is not None
    except CommandError:
        return False


def _describe(revision: Any) -> Answer:
    return {"revision": revision.revision, "message": revision.doc or ""}


def _lost_connection(error: BaseException | None) -> bool:
    """True where the database may still be at work on what we sent it."""
    while error is not None:
        if getattr(error, "connection_invalidated", False):
            return True
        error = error.__cause__ or error.__context__
    return False


def _in_one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or "no reason given"
    return f"{type(error).__name__}: {text}"[:1000]


def _masked(text: str) -> str:
    """Without the password of any URL in it."""
    return PASSWORD.sub(r"\1***@", text)


if __name__ == "__main__":
    # Our own directory is first on the path, where its modules would hide the application's.
    sys.path.pop(0)
    answers = os.dup(1)
    os.dup2(2, 1)
    main(answers)
