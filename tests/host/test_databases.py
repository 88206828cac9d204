"""What a migration is promised in a real database: its session's settings, its name there, and peace."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pymysql
import pytest

from tests.host.test_command_adapter import DbmateProject, url_of
from tests.support.barehost import AlembicProject, bare_host, runner_of
from tests.support.databases import Database
from tests.support.django_project import DjangoProject
from tests.support.webhost import Ran, WebHost, wait_until  # isort: split

from hostlib.locking import held
from hostlib.migrating.adapter_engines import identity, milliseconds, take

TOLD = "create table told as select current_setting('application_name') as name,"
TOLD += (
    " current_setting('lock_timeout') as waits, current_setting('client_connection_check_interval') as looks"
)


@pytest.fixture
def host() -> Iterator[WebHost]:
    with bare_host() as host:
        yield host


@pytest.fixture
def on_postgresql(new_database: Callable[[str], Database]) -> Database:
    return new_database("postgresql")


@pytest.fixture
def on_mariadb(new_database: Callable[[str], Database]) -> Database:
    return new_database("mariadb")


def alembic(host: WebHost, database: Database, options: str = "", **migrate: Any) -> AlembicProject:
    """A project on the server; nothing of it is applied."""
    url = f"postgresql+psycopg://{database.user}@/{database.name}?host={database.host}{options}"
    if database.server.kind == "mariadb":
        url = f"mysql+pymysql://{database.user}@/{database.name}?unix_socket={database.host}"
    env = {"DATABASE_URL": url, "TRANSACTIONAL": "no" if database.server.kind == "mariadb" else "yes"}
    return AlembicProject(host, engine=database.server.kind, env=env, **{"lock_timeout": "1s", **migrate})


def sql(host: WebHost, adapter: str, database: Database, statement: str, *, online: bool = False) -> str:
    """A release whose one pending migration runs `statement`; returns its target."""
    label = "online_safe = True" if online else ""
    if adapter == "alembic":
        alembic(host, database).add("a", body=f'op.execute("""{statement}""")', extra=label)
        return "a"
    if adapter == "django":
        project = DjangoProject(host, database=database, lock_timeout="1s")
        project.add("a", operations=f'migrations.RunSQL("""{statement}""")', extra=label)
        return "shop.a"
    project = DbmateProject(host, "r1", url_of(database), database.server.kind, lock_timeout="1s")
    project.add("1_a", f"{statement};", label="-- online-safe" if online else "")
    return "1_a.sql"


def check(host: WebHost) -> Ran:
    return host.run("migrate", "check", "--release", "r1")


def asking(target: str) -> list[str]:
    return ["migrate", "run", "run1", "--release", "r1", f"--target={target}"]


def run(host: WebHost, target: str) -> Ran:
    return host.run(*asking(target))


def connected(database: Database, name: str, user: str = "app") -> psycopg.Connection[Any]:
    """Somebody else's session, on PostgreSQL."""
    return psycopg.connect(host=database.host, user=user, dbname=database.name, application_name=name)


@contextmanager
def locking(database: Database, user: str = "app") -> Iterator[psycopg.Connection[Any]]:
    """Somebody else with a transaction open in which a row of `orders` was written, on PostgreSQL."""
    database.query("create table if not exists orders (id int); alter table orders owner to app")
    with connected(database, "report", user) as connection:
        connection.execute("insert into orders values (1)")
        yield connection
        connection.rollback()


ON_DJANGO, BY_COMMAND = (pytest.param(kind, marks=pytest.mark.exhaustive) for kind in ("django", "command"))
ADAPTERS = pytest.mark.parametrize("adapter", ["alembic", ON_DJANGO, "command"])
ON_MARIADB = pytest.mark.parametrize("adapter", ["alembic", ON_DJANGO])
# Where it is adapter_engines, which all adapters have in common, that does it.
ONE_ADAPTER = pytest.mark.parametrize("adapter", ["alembic", ON_DJANGO, BY_COMMAND])


class TestPostgresql:
    @ADAPTERS
    def test_name_lock_timeout_and_check_interval_are_in_effect_in_the_migration(
        self, host: WebHost, on_postgresql: Database, adapter: str
    ) -> None:
        assert run(host, sql(host, adapter, on_postgresql, TOLD)).code == 0
        assert on_postgresql.query("select * from told") == [("deploytools-run1", "1s", "1s")]

    @ADAPTERS
    def test_another_database_at_the_same_revision_is_told_apart(
        self, host: WebHost, on_postgresql: Database, adapter: str
    ) -> None:
        sql(host, adapter, on_postgresql, "select 1")
        ((known,),) = on_postgresql.query(
            "select system_identifier || '.' || oid from pg_control_system(), pg_database"
            " where datname = current_database()"
        )
        same = ("migrate", "check", "--release=r1", "--same-as=")

        assert check(host).json["database"] == known
        assert host.run(*same, f"--database={known}").json["same"] is True
        ran = host.run(*same, f"--database={known}0")

        assert (ran.code, ran.error["state"]) == (3, "nothing was changed")
        assert "another database than the migration host, though at the same revision" in ran.error["what"]

    def test_they_are_even_where_the_connection_was_made_with_others(
        self, host: WebHost, on_postgresql: Database
    ) -> None:
        """As by a pooler, or a driver that doesn't know libpq's variables."""
        options = "&application_name=pool&options=-c%20lock_timeout%3D0"
        alembic(host, on_postgresql, options).add("a", body=f'op.execute("""{TOLD}""")')
        assert run(host, "a").code == 0
        assert on_postgresql.query("select * from told") == [("deploytools-run1", "1s", "1s")]

    @ONE_ADAPTER
    def test_who_holds_locks_on_what_is_listed(
        self, host: WebHost, on_postgresql: Database, adapter: str
    ) -> None:
        sql(host, adapter, on_postgresql, TOLD)
        with locking(on_postgresql):
            found = check(host).json
        (session,) = found["sessions"]
        told = {key: session[key] for key in ("application", "user", "client", "locks", "ours")}
        assert told == {
            "application": "report",
            "user": "app",
            "client": "local",
            "locks": ["orders RowExclusiveLock"],
            "ours": False,
        }
        assert session["since"].startswith("20")
        assert "report of app" in found["message"]
        assert "holds orders RowExclusiveLock" in found["message"]

    @ONE_ADAPTER
    def test_nothing_is_begun_while_others_hold_locks(
        self, host: WebHost, on_postgresql: Database, adapter: str
    ) -> None:
        target = sql(host, adapter, on_postgresql, TOLD)
        with locking(on_postgresql):
            ran = run(host, target)
        assert (ran.code, ran.json["outcome"], ran.json["unchanged"]) == (3, "failed", True)
        assert "others hold locks" in ran.error["what"]
        assert "report of app" in ran.error["what"]
        assert check(host).json["state"] == "pending"

    @ONE_ADAPTER
    def test_while_the_site_is_up_others_locks_count_only_where_they_are_in_the_way(
        self, host: WebHost, on_postgresql: Database, adapter: str
    ) -> None:
        target = sql(host, adapter, on_postgresql, TOLD, online=True)
        with locking(on_postgresql):
            assert host.run(*asking(target), "--online").code == 0
        assert on_postgresql.query("select * from told") == [("deploytools-run1", "1s", "1s")]

    @ONE_ADAPTER
    def test_while_the_site_is_up_a_lock_in_the_way_is_waited_for_no_longer_than_lock_timeout(
        self, host: WebHost, on_postgresql: Database, adapter: str
    ) -> None:
        target = sql(host, adapter, on_postgresql, "alter table orders add column note text", online=True)
        with locking(on_postgresql):
            ran = host.run(*asking(target), "--online")
        assert (ran.code, ran.json["outcome"], ran.json["unchanged"]) == (3, "failed", True)
        assert check(host).json["state"] == "pending"

    @ONE_ADAPTER
    def test_it_begins_as_soon_as_they_let_go(
        self, host: WebHost, on_postgresql: Database, adapter: str
    ) -> None:
        target = sql(host, adapter, on_postgresql, TOLD)
        with locking(on_postgresql) as other:
            other.rollback()
            other.execute("insert into orders values (2)")
            letting_go = threading.Timer(0.3, other.commit)
            letting_go.start()
            ran = run(host, target)
            letting_go.join()
        assert ran.code == 0, ran

    def test_the_details_of_other_roles_are_not_the_applications_to_see_but_their_locks_are(
        self, host: WebHost, on_postgresql: Database
    ) -> None:
        sql(host, "alembic", on_postgresql, TOLD)
        with locking(on_postgresql, "postgres"):
            found = check(host).json
        assert found["sessions"][0]["since"] is None
        assert "report of postgres" in found["message"]
        assert "holds orders RowExclusiveLock" in found["message"]

    def test_who_is_only_connected_stops_nothing_and_is_in_the_log(
        self, host: WebHost, on_postgresql: Database
    ) -> None:
        target = sql(host, "alembic", on_postgresql, TOLD)
        with connected(on_postgresql, "idle"):
            assert len(check(host).json["sessions"]) == 1
            assert run(host, target).code == 0
        log = (host.root / "migrations" / "run1" / "log").read_text()
        assert "connected, too: idle of app (local, id " in log
        assert "holds no lock" in log

    def test_a_lock_that_comes_in_the_middle_is_waited_for_no_longer_than_lock_timeout(
        self, host: WebHost, on_postgresql: Database
    ) -> None:
        project = alembic(host, on_postgresql)
        here, go = project.add_waiting("a", then='op.execute("create index on orders (id)")')
        on_postgresql.query("create table orders (id int); alter table orders owner to app")
        follower = host.start(*asking("a"))
        wait_until(here.exists, timeout=60, what="the migration has begun")
        with locking(on_postgresql):
            go.touch()
            out, _ = follower.communicate(timeout=30)
        told = json.loads(out)
        assert (told["outcome"], told["unchanged"]) == ("failed", True)
        assert "LockNotAvailable" in told["error"]["what"]

    def test_an_orphan_is_ended_by_the_server(self, host: WebHost, on_postgresql: Database) -> None:
        """Its processes are killed in the middle of a statement; without the interval it would go on."""
        project = alembic(host, on_postgresql)
        body = SLEEPS.format(here=str(host.base / "here"), statement="select pg_sleep(300)")
        project.add("a", body=f'op.execute("create table half (id int)"); {body}')
        kill_in_the_middle(host, on_postgresql, "a")
        statement = "select 1 from pg_stat_activity where application_name = 'deploytools-run1'"
        wait_until(lambda: not on_postgresql.query(statement), timeout=30, what="the session has ended")
        ran = host.run("migrate", "outcome", "run1")
        assert (ran.code, ran.json["outcome"], ran.json["unchanged"]) == (3, "failed", True)
        assert on_postgresql.query("select to_regclass('half')") == [(None,)]

    @ONE_ADAPTER
    def test_the_session_of_a_migration_that_is_unknown_is_found_by_its_name(
        self, host: WebHost, on_postgresql: Database, adapter: str
    ) -> None:
        target = sql(host, adapter, on_postgresql, TOLD)
        assert run(host, target).code == 0
        place = host.root / "migrations" / "run1"
        wait_until(lambda: not held(place / "lock"), what="its processes have ended")
        (place / "outcome.json").unlink()
        with connected(on_postgresql, "deploytools-run1"):
            still_at_work(host)
        ran = host.run("migrate", "outcome", "run1")
        assert (ran.code, ran.json["outcome"]) == (0, "applied"), "the database is at the target"


# A migration that tells who runs it, and is then busy in the database.
SLEEPS = "pathlib.Path({here!r}).write_text(f'{{os.getpid()}} {{os.getppid()}}'); op.execute({statement!r})"


# Asks the server whether it works at the statement of a migration that SLEEPS made.
BUSY = {
    "postgresql": "select 1 from pg_stat_activity where state = 'active' and query like 'select pg_sleep%'",
    "mariadb": "select 1 from information_schema.processlist where info like 'update orders%'",
}


def kill_in_the_middle(host: WebHost, database: Database, target: str, *, with_runner: bool = True) -> None:
    """Kill every process of the migration once the server works at its statement; the follower ends."""
    here = host.base / "here"
    follower = host.start(*asking(target))
    busy = BUSY[database.server.kind]
    wait_until(lambda: database.query(busy), timeout=60, what="the server works at its statement")
    migration, adapter = map(int, here.read_text().split())
    runner = runner_of(host)
    for pid in (runner, adapter, migration) if with_runner else (migration,):
        os.kill(pid, signal.SIGKILL)
    follower.communicate(timeout=30)


def still_at_work(host: WebHost) -> None:
    """While the session lives, nobody may take the migration for over."""
    # Here it doesn't end, and each of these would start the adapter again and again for two seconds.
    runner = host.tools / "hostlib/migrating/migration_runner.py"
    line, text = "\nSESSION_ENDS, SESSION_POLL = 2.0, ", runner.read_text()
    assert line in text
    runner.write_text(text.replace(line, line.replace("2.0", "0.1")))
    ran = host.run("migrate", "outcome", "run1")
    assert (ran.code, ran.json["outcome"], ran.json["session"]["ours"]) == (4, "unknown", True)
    assert "still at work there" in ran.error["state"]
    assert "wait until that session has ended" in ran.error["next"]
    word = ("--as", "applied", "--by", "ann", "--reason", "it looks so")
    assert host.run("migrate", "resolve", "run1", *word).code == 2
    acquire(host, "run1")
    broken = host.run("lock", "break", "--run-id=run1")
    assert (broken.code, "in the database, by its session" in broken.error["what"]) == (5, True)


def acquire(host: WebHost, run_id: str) -> None:
    options = (f"--run-id={run_id}", "--by=ann", "--laptop=tp", "--operation=deploy")
    assert host.run("lock", "acquire", *options).code == 0


def resolve(host: WebHost, verdict: str) -> Ran:
    """The operator's word on the migration of run1."""
    return host.run("migrate", "resolve", "run1", "--as", verdict, "--by=ann", "--reason=looked at it")


class TestMariadb:
    WAITS = """create table told as
        select @@session.lock_wait_timeout as a, @@session.innodb_lock_wait_timeout as b"""

    @ON_MARIADB
    def test_lock_timeouts_are_in_effect_in_the_migration(
        self, host: WebHost, on_mariadb: Database, adapter: str
    ) -> None:
        assert run(host, sql(host, adapter, on_mariadb, self.WAITS)).code == 0
        assert on_mariadb.query("select * from told") == [(1, 1)]

    @ON_MARIADB
    def test_who_has_a_transaction_open_is_told_where_the_account_may_know_it(
        self, host: WebHost, on_mariadb: Database, adapter: str
    ) -> None:
        target = sql(host, adapter, on_mariadb, self.WAITS)
        on_mariadb.query("create table orders (id int)")
        other = pymysql.connect(unix_socket=on_mariadb.host, user="app", database=on_mariadb.name)
        try:
            with other.cursor() as cursor:
                cursor.execute("insert into orders values (1)")
            (session,) = check(host).json["sessions"]
            assert (session["user"], session["locks"]) == ("app", [])
            on_mariadb.query("grant process on *.* to app@localhost")
            (session,) = check(host).json["sessions"]
            assert session["locks"] == ["in a transaction"]
            assert session["transaction"].startswith("20")
            ran = run(host, target)
            assert (ran.code, "others hold locks" in ran.error["what"]) == (3, True)
        finally:
            on_mariadb.query("revoke process on *.* from app@localhost")
            other.close()

    def test_an_orphan_is_still_at_work_and_that_is_told(self, host: WebHost, on_mariadb: Database) -> None:
        """The server finishes what it was sent, whatever becomes of the client."""
        on_mariadb.query("create table orders (id int)")
        on_mariadb.query("insert into orders values (1)")
        project = alembic(host, on_mariadb, lock_timeout="300s")
        body = SLEEPS.format(here=str(host.base / "here"), statement="update orders set id = 2")
        project.add("a", body=body)
        other = pymysql.connect(unix_socket=on_mariadb.host, user="app", database=on_mariadb.name)
        try:
            with other.cursor() as cursor:
                cursor.execute("update orders set id = 3")
            kill_in_the_middle(host, on_mariadb, "a")
            still_at_work(host)
        finally:
            other.close()
        wait_until(
            lambda: host.run("migrate", "outcome", "run1").json["session"] is None,
            timeout=30,
            what="the session has ended",
        )
        assert host.run("lock", "break", "--run-id=run1").code == 0

    def test_while_a_killed_migrations_session_is_at_work_nothing_is_concluded_and_unlock_refuses(
        self, host: WebHost, on_mariadb: Database
    ) -> None:
        """Its runner lives, but can't know what the server makes of the statement in hand."""
        on_mariadb.query("create table orders (id int)")
        on_mariadb.query("insert into orders values (1)")
        project = alembic(host, on_mariadb, lock_timeout="300s")
        project.add(
            "a", body=SLEEPS.format(here=str(host.base / "here"), statement="update orders set id = 2")
        )
        other = pymysql.connect(unix_socket=on_mariadb.host, user="app", database=on_mariadb.name)
        try:
            with other.cursor() as cursor:
                cursor.execute("update orders set id = 3")
            kill_in_the_middle(host, on_mariadb, "a", with_runner=False)
            still_at_work(host)
        finally:
            other.close()
        wait_until(lambda: not on_mariadb.query(BUSY["mariadb"]), timeout=30, what="the statement has ended")
        ran = host.run("migrate", "outcome", "run1")
        assert (ran.code, ran.json["outcome"], ran.json["unchanged"]) == (3, "failed", False)
        assert host.run("lock", "break", "--run-id=run1").code == 0

    def test_half_applied_ddl_holds_and_is_not_tried_again(self, host: WebHost, on_mariadb: Database) -> None:
        project = alembic(host, on_mariadb)
        project.add("a", body='op.execute("create table half (id int)"); raise RuntimeError("no such luck")')
        ran = run(host, "a")
        assert (ran.code, ran.json["unchanged"], ran.json["transactional"]) == (3, False, False)
        assert "migrate.resolve" in ran.error["next"]
        assert run(host, "a").json == ran.json
        assert on_mariadb.query("select count(*) from half") == [(0,)]

    def test_half_applied_ddl_is_not_tried_again_by_another_run_either_until_the_operator_has_said_how_it_is(
        self, host: WebHost, on_mariadb: Database
    ) -> None:
        project = alembic(host, on_mariadb)
        project.add("a", body='op.execute("create table half (id int)"); raise RuntimeError("no such luck")')
        acquire(host, "run1")
        assert run(host, "a").code == 3
        freed = host.run("lock", "break", "--run-id=run1")
        assert (freed.code, "fab migrate.resolve --run-id run1" in freed.json["message"]) == (0, True)

        project.add("a", body='op.execute("create table half (id int)")')
        for expect in ("known", "online"):
            stopped = host.run("migrate", "check", "--release", "r1", "--expect", expect)
            assert (stopped.code, stopped.json["state"]) == (3, "unsettled")
            assert "the migration of run run1 (a, release r1), begun 2" in stopped.error["what"]
            assert "failed half-way (RuntimeError: no such luck)" in stopped.error["what"]
            assert stopped.error["what"].endswith("at no revision before, and is at no revision now")
            assert "fab migrate.resolve --run-id run1 --as" in stopped.error["next"]
        assert check(host).json["unsettled"]["run_id"] == "run1"

        on_mariadb.query("drop table half")
        said = resolve(host, "not-applied")
        assert (said.code, "next: fab deploy, with" in said.json["message"]) == (0, True)
        assert host.run("migrate", "check", "--release", "r1", "--expect", "known").json["state"] == "pending"
        assert host.run("migrate", "run", "run2", "--release", "r1", "--target=a").code == 0

    def test_what_the_operator_calls_applied_is_not_run_again_while_the_tool_takes_it_for_pending(
        self, host: WebHost, on_mariadb: Database
    ) -> None:
        project = alembic(host, on_mariadb)
        project.add("a", body='op.execute("create table half (id int)"); raise RuntimeError("no such luck")')
        assert run(host, "a").code == 3
        assert resolve(host, "applied").code == 0
        stopped = host.run("migrate", "check", "--release", "r1", "--expect", "known")
        assert (stopped.code, stopped.json["state"]) == (3, "unsettled")
        assert "was applied, as ann says, but the database doesn't say so" in stopped.error["what"]
        assert resolve(host, "not-applied").code == 0, "one may have been wrong"

        on_mariadb.query("insert into alembic_version values ('a')")
        assert resolve(host, "applied").code == 0
        assert host.run("migrate", "check", "--release", "r1", "--expect", "known").json["state"] == "current"


@pytest.mark.parametrize(
    ("engine", "rows"), [("postgresql", [("pool", "0", "1000")]), ("mariadb", [("50", "50")])]
)
def test_a_session_that_does_not_take_the_settings_begins_nothing(
    engine: str, rows: list[tuple[str, ...]]
) -> None:
    """As behind a pooler that resets them; nothing that runs here does so."""
    with pytest.raises(RuntimeError, match="in the migration's session, but should be"):
        take(engine, lambda _: rows, {"session": "deploytools-run1", "lock_timeout": "5s"})


@pytest.mark.parametrize(
    ("written", "meant"), [("5s", 5000), ("500ms", 500), ("2min", 120000), ("1h", 3.6e6), ("7", 7), ("0", 0)]
)
def test_durations_are_read_as_postgresql_does(written: str, meant: float) -> None:
    assert milliseconds(written) == meant


def test_a_database_in_a_file_is_known_by_its_file_where_no_other_host_has_that() -> None:
    def known(path: str) -> str | None:
        connection = sqlite3.connect(path)
        try:
            return identity("sqlite", lambda query: connection.execute(query).fetchall())
        finally:
            connection.close()

    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        one, other = f"{directory}/one", f"{directory}/other"
        for path in (one, other):
            connection = sqlite3.connect(path)
            connection.execute("create table t (n int)")
            connection.close()
        os.symlink(one, f"{directory}/link")
        assert known(one) == known(f"{directory}/link") is not None
        assert known(other) not in (None, known(one))
    assert known(":memory:") is None


def test_what_cannot_tell_is_not_taken_for_another_database() -> None:
    def fails(query: str) -> Any:
        raise psycopg.errors.InsufficientPrivilege(query)

    assert identity("postgresql", fails) is None
    assert identity("postgresql", lambda query: [(None,)]) is None
    assert identity("mariadb", fails) is None
