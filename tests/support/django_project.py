"""A release with a Django project: one app, `shop`, whose migrations a test writes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tests.support.barehost import put_release
from tests.support.databases import Database
from tests.support.webhost import WebHost

SETTINGS = """
import json, os

SECRET_KEY = "nobody signs anything here"
USE_TZ = True
INSTALLED_APPS = {apps!r}
DATABASES = {{"default": {{"ENGINE": "django.db.backends.sqlite3", **json.loads(os.environ["DATABASE"])}}}}
"""

PYMYSQL = """
import pymysql

pymysql.version_info = (2, 2, 7, "final", 0)
pymysql.install_as_MySQLdb()
"""

MIGRATION = """
import os, pathlib, time
from django.db import migrations, models


def work(apps, schema_editor):
    {work}


class Migration(migrations.Migration):
    atomic = {atomic}
    dependencies = {dependencies!r}
    replaces = {replaces!r}
    operations = [{operations}]
    {extra}
"""

BACKENDS = {"postgresql": "postgresql", "mariadb": "mysql"}


def connection_of(database: Database | Path) -> dict[str, Any]:
    """What Django's DATABASES has for it."""
    if isinstance(database, Path):
        return {"NAME": str(database)}
    engine = f"django.db.backends.{BACKENDS[database.server.kind]}"
    return {"ENGINE": engine, "NAME": database.name, "USER": database.user, "HOST": database.host}


class DjangoProject:
    """Its database is SQLite in the host's directory where none is given."""

    def __init__(
        self,
        host: WebHost,
        release: str = "r1",
        *,
        database: Database | None = None,
        apps: tuple[str, ...] = ("shop",),
        **migrate: Any,
    ) -> None:
        self.host, self.release = host, release
        self.database = database or host.base / "db.sqlite3"
        self.engine = "sqlite" if database is None else database.server.kind
        described = {
            "adapter": "django",
            "python": sys.executable,
            "cwd": "{release}",
            "engine": self.engine,
            "lock_timeout": "5s",
            "env": {
                "DJANGO_SETTINGS_MODULE": "project.settings",
                "DATABASE": json.dumps(connection_of(self.database)),
            },
        }
        self.place = put_release(host, release, migrate={**described, **migrate})
        project = self.place / "project"
        project.mkdir()
        (project / "__init__.py").write_text(PYMYSQL)
        (project / "settings.py").write_text(SETTINGS.format(apps=list(apps)))
        for app in apps:
            if "." not in app:
                (self.place / app / "migrations").mkdir(parents=True)
                (self.place / app / "__init__.py").touch()
                (self.place / app / "migrations" / "__init__.py").touch()

    def add(
        self,
        name: str,
        *dependencies: str,
        operations: str | None = None,
        work: str = "pass",
        app: str = "shop",
        atomic: bool = True,
        replaces: tuple[str, ...] = (),
        extra: str = "",
    ) -> None:
        """A migration; without `operations` it makes a table t_NAME, then runs `work`."""
        made = f"migrations.RunSQL('create table t_{name} (id integer)'), migrations.RunPython(work)"
        text = MIGRATION.format(
            work=work,
            atomic=atomic,
            dependencies=[(app, dependency) for dependency in dependencies],
            replaces=[(app, replaced) for replaced in replaces],
            operations=made if operations is None else operations,
            extra=extra,
        )
        (self.place / app / "migrations" / f"{name}.py").write_text(text)

    def query(self, statement: str, *values: Any) -> list[Any]:
        """As the database's administrator; committed."""
        if isinstance(self.database, Database):
            return self.database.query(statement, *values)
        import sqlite3
        from contextlib import closing

        with closing(sqlite3.connect(self.database)) as connection, connection:
            return connection.execute(statement, values).fetchall()

    def tables(self) -> set[str]:
        statement = {
            "sqlite": "select name from sqlite_master where type = 'table'",
            "postgresql": "select table_name from information_schema.tables",
            "mariadb": "select table_name from information_schema.tables where table_schema = database()",
        }[self.engine]
        return {name for (name,) in self.query(statement) if name.startswith("t_")}

    def applied(self) -> list[str]:
        return [name for (name,) in self.query("select name from django_migrations order by id")]
