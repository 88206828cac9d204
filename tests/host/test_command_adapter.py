"""The adapter `command`, with dbmate on SQLite, PostgreSQL and MariaDB, and with small scripts."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.support.barehost import bare_host, put_release, runner_of
from tests.support.databases import SERVERS, Database
from tests.support.webhost import Ran, WebHost, wait_until

DBMATE = str(Path(sys.executable).with_name("dbmate"))


@pytest.fixture
def host() -> Iterator[WebHost]:
    with bare_host() as host:
        yield host


def url_of(database: Database) -> str:
    if database.server.kind == "postgresql":
        return f"postgres://{database.user}@/{database.name}?host={quote(database.host)}&sslmode=disable"
    return f"mysql://{database.user}@/{database.name}?socket={quote(database.host)}"


CURRENT = """
import sqlite3

connection = sqlite3.connect({database!r})
connection.execute("create table if not exists schema_migrations (version varchar(128) primary key)")
print(*(version for version, in connection.execute("select version from schema_migrations")), sep="\\n")
"""


class DbmateProject:
    """A release whose migrations are dbmate's; the first one, 1_a.sql, makes the table t_a."""

    def __init__(self, host: WebHost, release: str, url: str, engine: str, **migrate: Any) -> None:
        self.host, self.release, self.engine = host, release, engine
        dbmate = f"{shlex.quote(DBMATE)} --no-dump-schema"
        described = {
            "adapter": "command",
            "python": "/usr/bin/python3",
            "cwd": "{release}",
            "engine": engine,
            "lock_timeout": "5s",
            "env": {"DATABASE_URL": url},
            "status": f"{dbmate} status",
            "apply": f"{dbmate} migrate",
            "rollback": f"{dbmate} rollback",
            "transactional": engine != "mariadb",
            "files": "db/migrations",
        }
        self.place = put_release(host, release, migrate={**described, **migrate})
        (self.place / "db" / "migrations").mkdir(parents=True)
        self.add("1_a")

    def add(self, name: str, up: str | None = None, *, label: str = "") -> None:
        table = f"t_{name.partition('_')[2]}"
        up = f"create table {table} (id int);" if up is None else up
        text = f"-- migrate:up\n{label}\n{up}\n-- migrate:down\ndrop table {table};\n"
        (self.place / "db" / "migrations" / f"{name}.sql").write_text(text)


# What the engines differ in is tried on each of them; for all else one is enough, but in `make test-all`.
ONE_ENGINE = ["sqlite", *(pytest.param(kind, marks=pytest.mark.exhaustive) for kind in SERVERS)]
EACH_ENGINE = pytest.mark.parametrize("project", ["sqlite", *SERVERS], indirect=True)


@pytest.fixture(params=ONE_ENGINE)
def project(
    host: WebHost, new_database: Callable[[str], Database], request: pytest.FixtureRequest
) -> DbmateProject:
    if request.param == "sqlite":
        return DbmateProject(host, "r1", f"sqlite:{host.base}/db.sqlite3", "sqlite")
    return DbmateProject(host, "r1", url_of(new_database(request.param)), request.param)


@pytest.fixture
def on_sqlite(host: WebHost) -> DbmateProject:
    return DbmateProject(host, "r1", f"sqlite:{host.base}/db.sqlite3", "sqlite")


def check(host: WebHost, *options: str, release: str = "r1") -> Ran:
    return host.run("migrate", "check", "--release", release, *options)


def migrate(host: WebHost, target: str, run_id: str = "run1", *options: str, release: str = "r1") -> Ran:
    return host.run("migrate", "run", run_id, "--release", release, f"--target={target}", *options)


class TestDbmate:
    @EACH_ENGINE
    def test_tells_and_applies_what_is_pending(self, project: DbmateProject) -> None:
        host = project.host
        found = check(host).json
        assert (found["state"], found["current"], found["target"]) == ("pending", [], ["1_a.sql"])
        assert migrate(host, "1_a.sql", "first").code == 0
        project.add("2_b")
        project.add("3_c")
        assert [step["revision"] for step in check(host).json["pending"]] == ["2_b.sql", "3_c.sql"]
        ran = migrate(host, "3_c.sql")
        assert (ran.code, ran.json["before"], ran.json["after"]) == (0, ["1_a.sql"], ["3_c.sql"])
        assert ran.json["applied"] == ["2_b.sql", "3_c.sql"]
        assert check(host).json["state"] == "current"
        assert "Applied: 3_c.sql" in (host.root / "migrations" / "run1" / "log").read_text()

    def test_what_its_author_has_labelled_is_migrated_while_the_site_is_up(
        self, project: DbmateProject
    ) -> None:
        host = project.host
        project.add("1_a", label="-- online-safe: nobody reads it yet")
        assert check(host, "--expect", "online").code == 0

        ran = migrate(host, "1_a.sql", "run1", "--online")
        assert (ran.code, ran.json["applied"]) == (0, ["1_a.sql"])

    def test_what_is_not_labelled_needs_a_window_and_is_named_with_the_reason(
        self, on_sqlite: DbmateProject
    ) -> None:
        on_sqlite.add("1_a", label="-- online-safe")
        on_sqlite.add("2_b", label="--not online-safe")

        refused = check(on_sqlite.host, "--expect", "online")
        ran = migrate(on_sqlite.host, "2_b.sql", "run1", "--online")

        assert (refused.code, refused.json["state"]) == (3, "pending")
        assert refused.json["error"]["next"] == "fab deploy --with-downtime"
        (why,) = refused.json["details"]
        assert why == "2_b.sql: its author hasn't labelled it online-safe (a line -- online-safe)"
        assert (ran.code, ran.json["unchanged"]) == (3, True)
        assert why in ran.json["error"]["what"]

    @pytest.mark.parametrize(
        ("manifest", "why"),
        [
            ({"vetoes": {"1_a.sql": []}}, None),
            ({"vetoes": {"1_a.sql": ["line 2: ban-drop-column: no"]}}, "squawk: line 2: ban-drop-column: no"),
            ({"vetoes": {}}, "squawk: it was not shown to squawk"),
            ({"squawk": True}, "squawk: it was not shown to squawk"),
            ({"files": None}, "without migrate.files nobody knows the file that its label would be in"),
            ({"files": "sql"}, "there is no file 1_a.sql or 1_a.sql.sql in {release}/sql"),
        ],
    )
    def test_a_label_counts_where_it_is_found_and_squawk_has_no_veto(
        self, host: WebHost, manifest: dict[str, Any], why: str | None
    ) -> None:
        url = f"sqlite:{host.base}/db.sqlite3"
        project = DbmateProject(host, "r1", url, "sqlite", **manifest)
        project.add("1_a", label="-- online-safe")

        found = check(host, "--expect", "online")

        assert (found.code == 0) is (why is None)
        assert [step["why"] for step in found.json["pending"]] == [
            why.format(release=project.place) if why else ""
        ]

    def test_what_a_run_has_applied_is_taken_back_once(self, project: DbmateProject) -> None:
        host = project.host
        assert migrate(host, "1_a.sql", "first").code == 0
        project.add("2_b")
        project.add("3_c")
        assert migrate(host, "3_c.sql").code == 0

        ran = host.run("migrate", "back", "run1")
        assert (ran.code, ran.json["before"], ran.json["after"]) == (0, ["3_c.sql"], ["1_a.sql"])
        assert [step["revision"] for step in check(host).json["pending"]] == ["2_b.sql", "3_c.sql"]
        assert migrate(host, "3_c.sql", "run2").code == 0
        assert host.run("migrate", "back", "run1").json == ran.json, "it is not done a second time"
        assert check(host).json["state"] == "current"

    @pytest.mark.parametrize("named", ["run1", "run1-back"])
    def test_a_way_back_that_fails_holds_and_can_be_resolved(
        self, on_sqlite: DbmateProject, named: str
    ) -> None:
        host = on_sqlite.host
        on_sqlite.add("1_a", "create table t_a (id int);")
        on_sqlite.add("2_b")
        assert migrate(host, "2_b.sql").code == 0
        text = on_sqlite.place / "db" / "migrations" / "1_a.sql"
        text.write_text(text.read_text().replace("drop table t_a", "drop table nowhere"))

        ran = host.run("migrate", "back", "run1")
        assert (ran.code, ran.json["outcome"], ran.json["unchanged"]) == (3, "failed", False)
        assert "`rollback` ended with exit code" in ran.error["what"]
        word = ("--by", "ann", "--reason", "took it back by hand")
        assert host.run("migrate", "resolve", named, "--as", "not-applied", *word).code == 0
        assert host.run("migrate", "back", "run1").code == 0

    def test_what_somebody_else_has_changed_since_is_not_taken_back(self, on_sqlite: DbmateProject) -> None:
        host = on_sqlite.host
        assert migrate(host, "1_a.sql").code == 0
        on_sqlite.add("2_b")
        assert migrate(host, "2_b.sql", "run2").code == 0

        ran = host.run("migrate", "back", "run1")
        assert (ran.code, ran.json["unchanged"]) == (3, True)
        assert "that is not what run run1 has left" in ran.error["what"]

    def test_while_it_is_taken_back_the_lock_is_not_freed(self, on_sqlite: DbmateProject) -> None:
        host = on_sqlite.host
        assert migrate(host, "1_a.sql").code == 0
        down = on_sqlite.place / "down"
        down.write_text(
            f"#!/bin/sh\nwhile ! test -e {host.base}/go; do sleep 0.05; done; exec {DBMATE} rollback\n"
        )
        down.chmod(0o755)
        manifest = on_sqlite.place / ".deploytools.json"
        manifest.write_text(manifest.read_text().replace(f"{DBMATE} --no-dump-schema rollback", str(down)))
        assert str(down) in manifest.read_text()
        options = ("--run-id=run1", "--by=ann", "--laptop=tp", "--operation=deploy")
        assert host.run("lock", "acquire", *options).code == 0

        taking = host.start("migrate", "back", "run1")
        started = host.root / "migrations" / "run1-back" / "started.json"
        wait_until(started.exists, timeout=60, what="it has begun")
        refused = host.run("lock", "break", "--run-id=run1")
        (host.base / "go").touch()
        out, _ = taking.communicate(timeout=60)

        assert (refused.code, "still running" in refused.error["what"]) == (5, True)
        assert json.loads(out)["outcome"] == "applied"
        assert host.run("lock", "break", "--run-id=run1").code == 0

    def test_without_a_command_for_it_nothing_is_taken_back(self, host: WebHost) -> None:
        DbmateProject(host, "r1", f"sqlite:{host.base}/db.sqlite3", "sqlite", rollback=None)
        assert migrate(host, "1_a.sql").code == 0
        assert host.run("migrate", "back", "run1").code == 2

    def test_another_target_than_at_plan_time_starts_nothing(self, on_sqlite: DbmateProject) -> None:
        on_sqlite.add("2_b")
        ran = migrate(on_sqlite.host, "1_a.sql")
        assert (ran.code, ran.json["unchanged"], check(on_sqlite.host).json["current"]) == (3, True, [])

    @EACH_ENGINE
    def test_a_failure_is_undone_only_where_ddl_is_transactional(self, project: DbmateProject) -> None:
        project.add("1_a", "create table t_a (id int);\ninsert into nowhere values (1);")
        ran = migrate(project.host, "1_a.sql")
        whole = project.engine != "mariadb"
        assert (ran.code, ran.json["outcome"], ran.json["unchanged"]) == (3, "failed", whole)
        assert "exit code 2" in ran.error["what"] or "exit code 1" in ran.error["what"]
        assert any("nowhere" in line for line in ran.json["details"])
        assert ("migrate.resolve" in ran.error["next"]) is not whole
        again = migrate(project.host, "1_a.sql")
        assert again.json == ran.json, "nothing is tried twice under one id"

    def test_the_first_of_two_stays_where_the_second_fails(self, project: DbmateProject) -> None:
        project.add("2_b", "insert into nowhere values (1);")
        ran = migrate(project.host, "2_b.sql")
        assert (ran.code, ran.json["after"], ran.json["unchanged"]) == (3, ["1_a.sql"], False)

    def test_what_was_applied_out_of_order_is_not_taken_for_unchanged(self, on_sqlite: DbmateProject) -> None:
        on_sqlite.add("3_c")
        assert migrate(on_sqlite.host, "3_c.sql", "first").code == 0
        on_sqlite.add("2_b")
        on_sqlite.add("4_d", "insert into nowhere values (1);")
        assert check(on_sqlite.host).json["current"] == ["1_a.sql", "3_c.sql"]
        ran = migrate(on_sqlite.host, "4_d.sql")
        assert (ran.code, ran.json["after"], ran.json["unchanged"]) == (3, ["3_c.sql"], False)

    def test_a_database_ahead_of_the_code_shows_by_current(self, host: WebHost) -> None:
        database = host.base / "db.sqlite3"
        ask = host.base / "current.py"
        ask.write_text(CURRENT.format(database=str(database)))
        current = f"/usr/bin/python3 {ask}"
        later = DbmateProject(host, "r2", f"sqlite:{database}", "sqlite", current=current)
        later.add("2_b")
        DbmateProject(host, "r1", f"sqlite:{database}", "sqlite", current=current)
        assert migrate(host, "2_b.sql", release="r2").code == 0
        found = check(host).json
        assert (found["state"], found["current"]) == ("unknown", ["1_a.sql", "2"])

    @pytest.mark.parametrize("url", ["sqlite:/nowhere/db", "nonsense"])
    def test_a_database_that_does_not_answer_is_unknown(self, host: WebHost, url: str) -> None:
        DbmateProject(host, "r1", url, "sqlite")
        ran = check(host)
        assert (ran.code, ran.json["state"]) == (3, "unknown")
        assert "`status` ended with exit code" in ran.error["what"]


class TestPending:
    """Where a tool says by its exit code alone whether anything is pending."""

    @pytest.fixture
    def schema(self, host: WebHost) -> Path:
        """The "database": a file with a revision; the tool brings it to 2."""
        schema = host.base / "schema"
        schema.write_text("1\n")
        put_release(
            host,
            "r1",
            migrate={
                "adapter": "command",
                "python": "/usr/bin/python3",
                "cwd": str(host.base),
                "pending": {"cmd": f"sh -c 'exit $(cat {host.base}/answer)'", "none": 0, "some": 4},
                "current": f"cat {schema}",
                "apply": f"sh {host.base}/apply",
                "transactional": True,
            },
        )
        self.answer(host, 4)
        (host.base / "apply").write_text(f"echo 2 >{schema}; echo 0 >{host.base}/answer")
        return schema

    def answer(self, host: WebHost, code: int) -> None:
        (host.base / "answer").write_text(f"{code}\n")

    @pytest.mark.parametrize(
        ("code", "state"), [(0, "current"), (4, "pending"), (1, "unknown"), (2, "unknown")]
    )
    def test_is_tri_state(self, host: WebHost, schema: Path, code: int, state: str) -> None:
        self.answer(host, code)
        assert check(host).json["state"] == state

    def test_applies_without_knowing_what(self, host: WebHost, schema: Path) -> None:
        ran = migrate(host, "")
        assert (ran.code, ran.json["before"], ran.json["after"], ran.json["applied"]) == (
            0,
            ["1"],
            ["2"],
            ["2"],
        )

    def test_never_tells_that_nothing_was_done_where_something_was(self, host: WebHost, schema: Path) -> None:
        (host.base / "apply").write_text(f"echo 0 >{host.base}/answer")
        assert migrate(host, "").json["applied"] == ["1"]

    def test_success_that_leaves_something_pending_is_none(self, host: WebHost, schema: Path) -> None:
        (host.base / "apply").write_text("exit 0")
        ran = migrate(host, "")
        assert (ran.code, ran.json["outcome"], ran.json["unchanged"]) == (3, "failed", True)

    def test_a_tool_that_was_killed_proves_nothing(self, host: WebHost, schema: Path) -> None:
        (host.base / "apply").write_text("kill -KILL $$")
        ran = migrate(host, "")
        assert (ran.code, ran.json["after"], ran.json["unchanged"]) == (3, ["1"], False)
        assert f"signal {signal.SIGKILL.value}" in ran.error["what"]

    @pytest.mark.parametrize(("done", "code", "how"), [("", 4, "unknown"), ("2", 0, "applied")])
    def test_killed_with_its_runner_it_counts_as_applied_only_where_pending_says_none(
        self, host: WebHost, schema: Path, done: str, code: int, how: str
    ) -> None:
        here = host.base / "here"
        work = f"echo {done} >{schema}; echo 0 >{host.base}/answer;" if done else ""
        (host.base / "apply").write_text(
            f"{work} echo $$ $PPID >{here}.new; mv {here}.new {here}; exec sleep 600"
        )
        argv = [str(host.tools / "migrate"), "run", "run1", "--release", "r1", "--target=", "--json"]
        follower = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        wait_until(here.exists, timeout=60, what="the tool is at work")
        tool, adapter = map(int, here.read_text().split())
        for pid in (runner_of(host), adapter, tool):
            os.kill(pid, signal.SIGKILL)
        out, _ = follower.communicate(timeout=60)

        told = json.loads(out)
        assert (follower.returncode, told["outcome"]) == (code, how)
        word = ("--as", "applied", "--by", "ann", "--reason", "looked at the table")
        resolved = host.run("migrate", "resolve", "run1", *word)
        if how == "applied":
            assert resolved.code == 2, "nobody's word is needed"
            return
        assert "fab migrate.resolve" in told["error"]["next"]
        assert "unchanged" not in told
        assert resolved.code == 0
        assert migrate(host, "").json["outcome"] == "applied", "the run goes on by that word"

    def test_a_tool_that_is_missing_is_named(self, host: WebHost, schema: Path) -> None:
        put_release(
            host,
            "r2",
            migrate={
                "adapter": "command",
                "python": "/usr/bin/python3",
                "cwd": "{release}",
                "status": "no-such-tool status",
                "apply": "no-such-tool up",
            },
        )
        ran = check(host, release="r2")
        assert (ran.code, "no-such-tool" in ran.error["what"]) == (3, True)
