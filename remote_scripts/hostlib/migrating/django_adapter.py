"""Answers for Django; run by the release's own Python, in its directory, as the application's user.

    check      where is the database, and what is pending?
    upgrade    bring it to the newest migrations of this release

A revision is APP.MIGRATION; the database is at the last applied ones of each app. It is the database
`default`, of the settings that DJANGO_SETTINGS_MODULE names. Works with Django 3.2 (Debian 12) and later.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any

from adapter_engines import identity, sessions, take, wait_until_quiet
from adapter_process import Adapter, Answer, labelled, serve, settings, use_the_applications_modules

Key = tuple[str, str]  # app, migration


def prepare() -> None:
    import django

    if not os.environ.get("DJANGO_SETTINGS_MODULE"):
        raise RuntimeError("DJANGO_SETTINGS_MODULE is missing in migrate.env")
    django.setup()


def check(answer: Answer) -> None:
    """Look at the database without changing it."""
    loader, plan = _look(answer)
    graph = loader.graph
    squashed = {key for squash in loader.replacements.values() for key in squash.replaces}
    strangers = {*loader.applied_migrations} - {*loader.disk_migrations} - squashed
    answer.update(
        current=_names(_last(loader, strangers)),
        target=_names(graph.leaf_nodes()),
        pending=[
            {"revision": _name(step), "message": _describe(loader, step), **_label(loader, step)}
            for step in plan
        ],
        strangers=_names(key for key in strangers if key[0] in loader.migrated_apps),
        # Of apps that the release doesn't have. Those that it has no more leave their rows behind.
        orphans=_names(key for key in strangers if key[0] not in loader.migrated_apps),
        sessions=sessions(_engine(), _ask, settings()),
        database=identity(_engine(), _ask),
    )


def upgrade(answer: Answer) -> None:
    """Run what is pending, as `manage.py migrate` does, with all that listens to it."""
    from django.core.management import call_command
    from django.db import connection

    _, plan = _look(answer)
    driver = connection.connection
    try:
        take(_engine(), _ask, settings())
        wait_until_quiet(_engine(), _ask, settings())
        call_command("migrate", interactive=False, verbosity=1)
    except BaseException:
        # Django drops a broken connection, and may have opened another one since.
        answer["connection_lost"] = connection.connection is not driver or not connection.is_usable()
        raise
    answer["applied"] = [_name(step) for step in plan]


def _look(answer: Answer) -> tuple[Any, list[Key]]:
    """Django's view of the migrations, and what is pending, in order. Raises what Django itself refuses."""
    from django.core.management.base import CommandError
    from django.db import connection
    from django.db.migrations.executor import MigrationExecutor

    executor = MigrationExecutor(connection)
    loader = executor.loader
    loader.check_consistent_history(connection)
    conflicts = loader.detect_conflicts()
    if conflicts:
        told = "; ".join(f"{', '.join(names)} in {app}" for app, names in sorted(conflicts.items()))
        raise CommandError(f"there are several newest migrations: {told}; manage.py makemigrations --merge")
    steps = [step for step, _ in executor.migration_plan(loader.graph.leaf_nodes())]
    rolled_back = connection.features.can_rollback_ddl and connection.settings_dict.get("AUTOCOMMIT", True)
    answer["transactional"] = rolled_back and all(step.atomic for step in steps)
    # Within atomic() Django lets nobody commit.
    answer["atomic"] = answer["transactional"] and connection.vendor in ("postgresql", "sqlite")
    return loader, [(step.app_label, step.name) for step in steps]


def _engine() -> str:
    from django.db import connection

    return str(connection.vendor)


def _ask(query: str) -> Any:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchall() if cursor.description else []


def _last(loader: Any, strangers: set[Key]) -> set[Key]:
    """The applied migrations that no other applied one of the same app builds on."""
    applied = {key for key in loader.applied_migrations if key in loader.graph.node_map}
    before = {
        parent.key
        for key in applied
        for parent in loader.graph.node_map[key].parents
        if parent.key[0] == key[0]
    }
    return applied - before | {key for key in strangers if key[0] in loader.migrated_apps}


def _describe(loader: Any, key: Key) -> str:
    operations = loader.graph.nodes[key].operations
    return "; ".join(str(operation.describe()) for operation in operations)[:200]


def _label(loader: Any, key: Key) -> Answer:
    migration = loader.graph.nodes[key]
    return labelled(getattr(migration, "online_safe", False), "online_safe = True in its class")


def _name(key: Key) -> str:
    return ".".join(key)


def _names(keys: Iterable[Key]) -> list[str]:
    return sorted(map(_name, keys))


if __name__ == "__main__":
    use_the_applications_modules()
    sys.path.insert(0, os.getcwd())  # as manage.py, which stands there, has it
    serve(Adapter(prepare, {"check": check, "upgrade": upgrade}))
