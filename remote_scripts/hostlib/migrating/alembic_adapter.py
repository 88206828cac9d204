"""Answers for Alembic; run by the release's own Python, in its directory, as the application's user.

    check      where is the database, and what is pending?
    upgrade    bring it to the heads of this release

Each command has a fresh env.py and fresh connections. Works with Alembic 1.8 (Debian 12) and later.
Several heads, several databases of one env.py and an asynchronous one are fine: all is learned through
env.py.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from adapter_engines import Ask, identity, sessions, take, wait_until_quiet
from adapter_process import Adapter, Answer, labelled, serve, settings, use_the_applications_modules

# What a migration has in its text that commits by itself, such as autocommit_block().
COMMITS = re.compile("commit|isolation_level", re.IGNORECASE)


def prepare() -> None:
    import alembic.runtime.environment
    import alembic.script  # noqa: F401


def check(answer: Answer) -> None:
    """Look at the database without changing it."""
    script = _script()
    pending: dict[str, Answer] = {}
    current: set[str] = set()
    strangers: set[str] = set()
    databases: list[str | None] = []

    def look(found: tuple[str, ...], context: Any) -> list[Any]:
        _note(answer, context)
        others = sessions(*_asked(context), settings()) if context.connection else None
        answer["sessions"] = None if others is None else [*(answer.get("sessions") or ()), *others]
        current.update(found)
        unknown = [revision for revision in found if not _knows(script, revision)]
        strangers.update(unknown)
        if not unknown:
            steps = list(script._upgrade_revs("heads", found))
            pending.update((step.revision.revision, _describe(step.revision)) for step in steps)
            modules = (step.revision.module.__file__ for step in steps)
            answer["atomic"] = answer.get("atomic", True) and _is_atomic(context, modules)
        databases.append(identity(*_asked(context)) if context.connection else None)
        return []

    _run(script, look, answer, dont_mutate=True)
    answer.update(
        current=sorted(current),
        target=sorted(script.get_heads()),
        pending=list(pending.values()),
        strangers=sorted(strangers),
        database=" ".join(name for name in databases if name) if all(databases) else None,
    )


def upgrade(answer: Answer) -> None:
    """Run what is pending."""
    script = _script()
    applied: list[str] = []

    def steps(current: tuple[str, ...], context: Any) -> Iterator[Any]:
        _note(answer, context)
        if context.connection:
            take(*_asked(context), settings())
            wait_until_quiet(*_asked(context), settings())
            _write_from_the_start(context)
        autocommit_block = context.autocommit_block

        def noted_autocommit_block() -> Any:
            # What runs in it is committed at once, whatever becomes of the migration.
            answer["transactional"] = False
            return autocommit_block()

        context.autocommit_block = noted_autocommit_block
        for step in script._upgrade_revs("heads", current):
            if not logging.getLogger("alembic.runtime.migration").isEnabledFor(logging.INFO):
                print("Running", step, flush=True)  # where env.py has set up logging, Alembic says so itself
            applied.append(step.revision.revision)
            yield step

    _run(script, steps, answer)
    answer["applied"] = list(dict.fromkeys(applied))


def _script() -> Any:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    if not Path("alembic.ini").exists():
        raise FileNotFoundError(f"there is no alembic.ini in {Path.cwd()}")
    return ScriptDirectory.from_config(Config("alembic.ini"))


def _run(script: Any, work: Callable[..., Any], answer: Answer, **options: Any) -> None:
    """Let the application's env.py open the database and do `work` there; it may do so for several."""
    from alembic.config import Config
    from alembic.runtime.environment import EnvironmentContext

    try:
        with EnvironmentContext(Config("alembic.ini"), script, fn=work, destination_rev="heads", **options):
            script.run_env()
    except BaseException as error:
        answer["connection_lost"] = _lost_connection(error)
        raise
    if answer["transactional"] is None:
        raise RuntimeError("env.py never came to context.run_migrations()")


def _note(answer: Answer, context: Any) -> None:
    answer["transactional"] = answer["transactional"] is not False and _is_transactional(context)


def _asked(context: Any) -> tuple[str, Ask]:
    """The database's engine, and how it is asked."""

    def ask(query: str) -> Any:
        result = context.connection.exec_driver_sql(query)
        return result.fetchall() if result.returns_rows else []

    return context.connection.dialect.name, ask


def _write_from_the_start(context: Any) -> None:
    """Take SQLite's lock for writing before the first step, waiting for it as the driver does.

    Alembic has read the revision by now. A transaction that began by reading is refused its first write at
    once, whatever the timeout, where the application is writing or has written meanwhile
    (https://sqlite.org/rescode.html#busy_snapshot). Where the driver has none open, the first write waits.
    """
    driver = getattr(context.connection.connection, "dbapi_connection", None)
    if context.connection.dialect.name == "sqlite" and getattr(driver, "in_transaction", False):
        _, ask = _asked(context)
        ask("COMMIT")
        ask("BEGIN IMMEDIATE")


def _is_transactional(context: Any) -> bool:
    """True where a failed migration is rolled back whole: its DDL and Alembic's own note of it."""
    connection = context.connection
    if connection is None or not context.impl.transactional_ddl:
        return False
    level = str(connection.get_execution_options().get("isolation_level", "")).upper()
    driver = getattr(connection.connection, "dbapi_connection", None)
    return level != "AUTOCOMMIT" and getattr(driver, "autocommit", None) is not True


def _is_atomic(context: Any, modules: Iterator[str]) -> bool:
    """True where a migration is rolled back whole even if it is killed: nothing in it commits."""
    if not _is_transactional(context) or context.connection.dialect.name not in ("postgresql", "sqlite"):
        return False
    return not any(COMMITS.search(Path(module).read_text(errors="replace")) for module in modules)


def _lost_connection(error: BaseException | None) -> bool:
    """True where the database may still be at work on what we sent it."""
    while error is not None:
        if getattr(error, "connection_invalidated", False):
            return True
        error = error.__cause__ or error.__context__
    return False


def _knows(script: Any, revision: str) -> bool:
    from alembic.util import CommandError

    try:
        return script.get_revision(revision) is not None
    except CommandError:
        return False


def _describe(revision: Any) -> Answer:
    label = labelled(getattr(revision.module, "online_safe", False), "online_safe = True in its module")
    return {"revision": revision.revision, "message": revision.doc or "", **label}


if __name__ == "__main__":
    use_the_applications_modules()
    serve(Adapter(prepare, {"check": check, "upgrade": upgrade}))
