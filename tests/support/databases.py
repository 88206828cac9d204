"""Real database servers, each in a temporary directory, on a unix socket, run by an unprivileged account.

with PostgreSQL() as server:
    database = server.create("shop")       # owned by the role app, who is no superuser
    database.query("select 1")             # as the server's administrator
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tests.support.webhost import end, wait_until


class Server(Protocol):
    """What the two have in common."""

    kind: str

    def create(self, name: str) -> Database: ...
    def query(self, name: str, statement: str, *values: Any) -> list[Any]: ...


@dataclass(frozen=True)
class Database:
    """One database of a server: the socket (or its directory) to connect to, the client account, its name."""

    server: Server
    name: str
    host: str
    user: str

    def query(self, statement: str, *values: Any) -> list[Any]:
        """As the administrator; committed."""
        return self.server.query(self.name, statement, *values)


class _Process:
    """A server process below a temporary directory of its own."""

    def __init__(self) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="db", dir="/tmp"))
        self.user = "nobody" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
        if os.geteuid() == 0:
            shutil.chown(self.base, self.user)
        self.base.chmod(0o755)
        self.process: subprocess.Popen[bytes] | None = None

    def prepare(self, *argv: str) -> None:
        ran = subprocess.run(argv, capture_output=True, text=True, check=False, **self._as_user())
        assert ran.returncode == 0, ran.stdout + ran.stderr

    def start(self, *argv: str) -> None:
        with (self.base / "log").open("wb") as log:
            self.process = subprocess.Popen(argv, stdout=log, stderr=log, **self._as_user())

    def answers(self, argv: Sequence[str]) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.base / "log").read_text()
        return subprocess.run(argv, capture_output=True, check=False).returncode == 0

    def stop(self) -> None:
        if self.process is not None:
            end(self.process)
        shutil.rmtree(self.base, ignore_errors=True)

    def _as_user(self) -> dict[str, Any]:
        identity = {"user": self.user, "group": pwd.getpwnam(self.user).pw_gid, "extra_groups": []}
        return {"cwd": self.base, **(identity if os.geteuid() == 0 else {})}


def programs_of_postgresql() -> Path:
    """Where those of the newest are; what Debian has on the PATH is a Perl program that looks for them."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    assert programs, "postgresql is not installed: packaging/system-packages test"
    return programs[-1]


class PostgreSQL:
    """The newest of Debian's postgresql; its administrator is `postgres`, the client role `app`."""

    kind = "postgresql"

    def __init__(self) -> None:
        self.home = _Process()
        self.host = str(self.home.base)

    def __enter__(self) -> PostgreSQL:
        programs = programs_of_postgresql()
        data = str(self.home.base / "data")
        try:
            self.home.prepare(
                f"{programs}/initdb",
                "-D",
                data,
                "-U",
                "postgres",
                "-A",
                "trust",
                "--no-sync",
                "-E",
                "UTF8",
            )
            quick = (
                "-c",
                "fsync=off",
                "-c",
                "listen_addresses=",
                "-c",
                f"unix_socket_directories={self.host}",
            )
            self.home.start(f"{programs}/postgres", "-D", data, *quick)
            ready = (f"{programs}/pg_isready", "-q", "-h", self.host)
            wait_until(lambda: self.home.answers(ready), timeout=60, what="postgresql accepts")
            self.query("postgres", "create role app login")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.home.process is not None:
            self.home.process.send_signal(signal.SIGINT)  # on SIGTERM it would wait for its clients
        self.home.stop()

    def create(self, name: str) -> Database:
        self.query("postgres", f"create database {name} owner app")
        return Database(self, name, self.host, "app")

    def query(self, name: str, statement: str, *values: Any) -> list[Any]:
        import psycopg

        with psycopg.connect(host=self.host, user="postgres", dbname=name, autocommit=True) as connection:
            cursor = connection.execute(statement, values or None)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []


class MariaDB:
    """Debian's mariadb-server; its administrator is `root`, the client account `app`."""

    kind = "mariadb"

    def __init__(self) -> None:
        self.home = _Process()
        self.host = str(self.home.base / "mysqld.sock")

    def __enter__(self) -> MariaDB:
        data = str(self.home.base / "data")
        try:
            self.home.prepare(
                "mariadb-install-db", "--no-defaults", f"--datadir={data}", "--skip-test-db",
                "--auth-root-authentication-method=normal",
            )  # fmt: skip
            self.home.start(
                "/usr/sbin/mariadbd", "--no-defaults", f"--datadir={data}", f"--socket={self.host}",
                "--skip-networking", "--innodb-flush-log-at-trx-commit=0", "--innodb-buffer-pool-size=16M",
            )  # fmt: skip
            ready = ("mariadb-admin", "--no-defaults", f"--socket={self.host}", "--user=root", "ping")
            wait_until(lambda: self.home.answers(ready), timeout=60, what="mariadb accepts")
            self.query("mysql", "create user app@localhost")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.home.stop()

    def create(self, name: str) -> Database:
        self.query("mysql", f"create database {name}")
        self.query("mysql", f"grant all on {name}.* to app@localhost")
        return Database(self, name, self.host, "app")

    def query(self, name: str, statement: str, *values: Any) -> list[Any]:
        import pymysql

        connection = pymysql.connect(unix_socket=self.host, user="root", database=name, autocommit=True)
        try:
            with connection.cursor() as cursor:
                cursor.execute(statement, values or None)
                return list(cursor.fetchall())
        finally:
            connection.close()


SERVERS: dict[str, type[PostgreSQL] | type[MariaDB]] = {"postgresql": PostgreSQL, "mariadb": MariaDB}
