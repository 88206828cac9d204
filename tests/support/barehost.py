"""A host without a web server, and releases and Alembic projects to put on it."""

from __future__ import annotations

import json
import os
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from tests.support.webhost import WebHost

# SQLAlchemy's way to transactional DDL on SQLite: the driver begins nothing, SQLAlchemy does.
ENV = """
import os
from alembic import context
from sqlalchemy import create_engine, event

print("env.py prints what it likes")
TRANSACTIONAL = os.environ["TRANSACTIONAL"] == "yes"
engine = create_engine(os.environ["DATABASE_URL"])

if TRANSACTIONAL and engine.dialect.name == "sqlite":
    @event.listens_for(engine, "connect")
    def connected(driver, _):
        driver.isolation_level = None

    @event.listens_for(engine, "begin")
    def begins(connection):
        connection.exec_driver_sql("BEGIN")

with engine.connect() as connection:
    context.configure(connection=connection, transactional_ddl=TRANSACTIONAL)
    with context.begin_transaction():
        context.run_migrations()
"""

VERSION = '''"""{message}"""
import os, pathlib, time
from alembic import op

revision = {revision!r}
down_revision = {down!r}
{extra}

def upgrade():
    {body}
'''

# Tells who runs it, then waits until the test lets it go on, or is over.
WAITS = """
    pathlib.Path({here!r}).write_text(f"{{os.getpid()}} {{os.getppid()}}")
    go = pathlib.Path({go!r})
    while go.parent.exists() and not go.exists():
        time.sleep(0.01)
"""


@contextmanager
def bare_host(**config: Any) -> Iterator[WebHost]:
    """A WebHost whose lighttpd isn't started; its directory is removed at the end."""
    host = WebHost(config=config)
    try:
        yield host
    finally:
        host.__exit__()


def runners_of(host: WebHost) -> list[int]:
    """The pids of the processes on `host` that run a migration, or wait to."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                argv = (entry / "cmdline").read_bytes().split(b"\0")
                cwd = os.readlink(entry / "cwd")
            except OSError:
                continue
            if b"hostlib.migrating.migration_runner" in argv and cwd == str(host.tools):
                found.append(int(entry.name))
    return found


def runner_of(host: WebHost) -> int:
    """The only one of them."""
    (runner,) = runners_of(host)
    return runner


def put_release(host: WebHost, release: str, **described: Any) -> Path:
    """A release as if it had been staged; `described` goes into its manifest."""
    place = host.root / "releases" / release
    place.mkdir()
    (place / ".deploytools.json").write_text(json.dumps({"id": release, "migrate": None, **described}))
    return place


def make_current(host: WebHost, release: str) -> None:
    (host.root / "current").symlink_to(f"releases/{release}")


def put_generation(host: WebHost, number: int, release: str, **more: Any) -> None:
    """The record of a generation, as `swap` writes it."""
    socket = str(host.run_dir / f"app.{number}.sock")
    record = {
        "generation": number,
        "release": release,
        "manager": "direct",
        "socket": socket,
        "started_at": 0.0,
    }
    (host.run_dir / f"app.{number}.json").write_text(json.dumps({**record, **more}))


class AlembicProject:
    """A release with an Alembic environment on an SQLite database in the host's directory."""

    def __init__(
        self, host: WebHost, release: str = "r1", *, transactional: bool = True, **migrate: Any
    ) -> None:
        self.host, self.release = host, release
        self.database = host.base / "db.sqlite3"
        described = {
            "adapter": "alembic",
            "python": sys.executable,
            "cwd": "{release}",
            "engine": "sqlite",
            "lock_timeout": "5s",
            "env": {
                "DATABASE_URL": f"sqlite:///{self.database}",
                "TRANSACTIONAL": "yes" if transactional else "no",
            },
        }
        self.place = put_release(host, release, migrate={**described, **migrate})
        self.versions = self.place / "migrations" / "versions"
        self.versions.mkdir(parents=True)
        (self.place / "alembic.ini").write_text("[alembic]\nscript_location = migrations\n")
        (self.place / "migrations" / "env.py").write_text(ENV)

    def add(
        self,
        revision: str,
        down: str | tuple[str, ...] | None = None,
        body: str | None = None,
        *,
        message: str = "a table",
        extra: str = "",
    ) -> None:
        """A migration; without `body` it creates the table t_REVISION."""
        body = body or f'op.execute("create table t_{revision} (id integer)")'
        text = VERSION.format(revision=revision, down=down, body=body, message=message, extra=extra)
        (self.versions / f"{revision}.py").write_text(text)

    def add_waiting(self, revision: str, down: str | None = None, then: str = "pass") -> tuple[Path, Path]:
        """A migration that writes its pids to the first returned file, then waits for the second."""
        here, go = self.host.base / "here", self.host.base / "go"
        self.add(revision, down, WAITS.format(here=str(here), go=str(go)).strip() + f"\n    {then}\n")
        return here, go

    def tables(self) -> set[str]:
        return {str(row[0]) for row in self.query("select name from sqlite_master where name like 't_%'")}

    def revision(self) -> list[str]:
        return [str(row[0]) for row in self.query("select version_num from alembic_version")]

    def query(self, statement: str, *values: Any) -> list[Any]:
        with closing(sqlite3.connect(self.database)) as connection, connection:
            return connection.execute(statement, values).fetchall()
