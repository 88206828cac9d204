"""`migrate`: a migration runs once, outlives whoever started it, and its outcome is never guessed."""

from __future__ import annotations

import json
import os
import pwd
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hostlib.migrating import adapter_process

from tests.support.barehost import AlembicProject, bare_host, put_release, runner_of
from tests.support.webhost import Ran, WebHost, end, wait_until


@pytest.fixture
def host() -> Iterator[WebHost]:
    with bare_host() as host:
        yield host


@pytest.fixture
def project(host: WebHost) -> AlembicProject:
    """Its database is at revision a; b and whatever a test adds is pending."""
    project = AlembicProject(host)
    project.add("a")
    at_revision(project, "a")
    return project


def at_revision(project: AlembicProject, *revisions: str) -> None:
    """Bring the database where a test begins, without running a migration."""
    project.query("create table if not exists alembic_version (version_num varchar(32) not null)")
    for revision in revisions:
        project.query("insert into alembic_version values (?)", revision)


def check(project: AlembicProject, *options: str) -> Ran:
    return project.host.run("migrate", "check", "--release", project.release, *options)


def asking(project: AlembicProject, target: str, *options: str, run_id: str = "run1") -> list[str]:
    return ["run", run_id, "--release", project.release, f"--target={target}", *options]


def run(project: AlembicProject, target: str, *options: str, run_id: str = "run1") -> Ran:
    return project.host.run("migrate", *asking(project, target, *options, run_id=run_id))


def outcome(host: WebHost, *options: str) -> Ran:
    return host.run("migrate", "outcome", "run1", *options)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


class Waiting:
    """A migration b in the middle of its work, which goes on when the test says so."""

    def __init__(self, project: AlembicProject, then: str = "pass") -> None:
        self.project = project
        self.here, self.go = project.add_waiting("b", "a", then)
        # A session of its own, as sshd gives it; a test may signal the whole of it.
        self.follower = subprocess.Popen(
            [str(project.host.tools / "migrate"), *asking(project, "b"), "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        wait_until(
            lambda: self.here.exists() and self.here.read_text(), timeout=60, what="the migration has begun"
        )
        # The process that runs it, and the adapter, whose parent is the runner.
        self.migration, self.adapter = map(int, self.here.read_text().split())
        self.processes = [self.migration, self.adapter, runner_of(project.host)]

    @property
    def runner(self) -> int:
        return self.processes[-1]

    def let_go(self) -> None:
        self.go.touch()

    def clean_up(self) -> None:
        self.let_go()
        end(self.follower)
        self.follower.communicate()
        wait_until(lambda: not any(alive(pid) for pid in self.processes), timeout=60, what="it has ended")


@pytest.fixture
def waiting(project: AlembicProject) -> Iterator[Callable[..., Waiting]]:
    begun: list[Waiting] = []

    def begin(then: str = "pass") -> Waiting:
        begun.append(Waiting(project, then))
        return begun[-1]

    yield begin
    for one in begun:
        one.clean_up()


class TestCheck:
    def test_tells_what_is_pending_in_the_order_of_application(self, project: AlembicProject) -> None:
        project.add("c", "b", message="drop the old column")
        project.add("b", "a", message="add a column")
        ran = check(project)
        assert ran.code == 0
        assert ran.json["state"] == "pending"
        assert (ran.json["current"], ran.json["target"], ran.json["transactional"]) == (["a"], ["c"], True)
        assert [(step["revision"], step["message"]) for step in ran.json["pending"]] == [
            ("b", "add a column"),
            ("c", "drop the old column"),
        ]

    def test_changes_nothing_even_in_an_empty_database(self, host: WebHost) -> None:
        project = AlembicProject(host)
        project.add("a")
        assert check(project).json["state"] == "pending"
        assert project.query("select count(*) from sqlite_master") == [(0,)]

    def test_of_a_database_at_the_heads_is_current(self, project: AlembicProject) -> None:
        assert check(project).json["state"] == "current"

    def test_understands_several_heads(self, project: AlembicProject) -> None:
        project.add("left", "a")
        project.add("right", "a")
        project.query("update alembic_version set version_num = 'left'")
        found = check(project).json
        assert (found["state"], found["current"], found["target"]) == ("pending", ["left"], ["left", "right"])
        assert [migration["revision"] for migration in found["pending"]] == ["right"]

    def test_of_an_application_without_migrations_is_current(self, host: WebHost) -> None:
        put_release(host, "r1")
        found = host.run("migrate", "check", "--release", "r1").json
        assert (found["state"], found["pending"], found["target"]) == ("current", [], [])

    def test_a_database_that_does_not_answer_is_unknown(self, host: WebHost) -> None:
        nowhere = {"DATABASE_URL": f"sqlite:///{host.base}/missing/db", "TRANSACTIONAL": "yes"}
        project = AlembicProject(host, env=nowhere)
        project.add("a")
        ran = check(project)
        assert (ran.code, ran.json["state"]) == (3, "unknown")
        assert "unable to open database file" in ran.error["what"]
        assert "Traceback" not in ran.err

    def test_a_revision_that_nobody_knows_is_unknown(self, project: AlembicProject) -> None:
        project.query("update alembic_version set version_num = 'strange'")
        ran = check(project)
        assert (ran.code, ran.json["state"], ran.json["current"]) == (3, "unknown", ["strange"])
        assert "strange" in ran.error["what"]

    def test_a_revision_that_a_later_release_brought_is_ahead(self, project: AlembicProject) -> None:
        later = AlembicProject(project.host, "r2")
        later.add("a")
        later.add("b", "a")
        assert run(later, "b").code == 0
        ran = check(project)
        assert (ran.code, ran.json["state"], ran.json["current"]) == (0, "ahead", ["b"])
        assert "run1" in ran.json["message"]

    @pytest.mark.parametrize(
        ("settings", "told"),
        [
            ({"python": "/nowhere/python"}, "/nowhere/python"),
            ({"python": "/bin/false"}, "the adapter died"),
            ({"cwd": "{release}/nowhere"}, "nowhere"),
            ({"cwd": "/"}, "there is no alembic.ini in /"),
        ],
        ids=["no python", "no adapter", "no directory", "no alembic.ini"],
    )
    def test_what_keeps_it_from_asking_is_told(
        self, host: WebHost, settings: dict[str, str], told: str
    ) -> None:
        ran = check(AlembicProject(host, **settings))
        assert (ran.code, ran.json["state"]) == (3, "unknown")
        assert told in ran.error["what"]

    @pytest.mark.parametrize(
        ("said", "told"),
        [
            ("can't parse 'postgresql://ann:s3c/r:et@db/x'", "can't parse 'postgresql://ann:***@db/x'"),
            ("can't parse 'postgres//ann:s3cret@db'", "can't parse 'postgres//ann:***@db'"),
            ("postgresql:/ann:s3cret@db", "postgresql:/ann:***@db"),
            ("redis://:s3cret@db", "redis://:***@db"),
            ("host=db password=s3cret user=ann", "host=db password=*** user=ann"),
            ("postgresql://db/x?user=ann&password=s3cret&a=1", "postgresql://db/x?user=ann&password=***&a=1"),
            ("    connect(passwd='s3 cret', db=1)", "    connect(passwd=***, db=1)"),
            (
                'File "/srv/a.py", line 3, at 12:30:45 by a@b.c',
                'File "/srv/a.py", line 3, at 12:30:45 by a@b.c',
            ),
            ("https://db.example.com:5432/x", "https://db.example.com:5432/x"),
        ],
    )
    def test_what_is_a_password_in_an_error_is_left_out(self, said: str, told: str) -> None:
        assert adapter_process.masked(said) == told

    def test_passwords_of_database_urls_are_not_shown(self, host: WebHost) -> None:
        env = {"DATABASE_URL": "nosuchthing://ann:s3cret@db/x y", "TRANSACTIONAL": "yes"}
        project = AlembicProject(host, env=env)
        project.add("a")
        (project.place / "migrations" / "env.py").write_text(
            'import os\nraise RuntimeError("can\'t connect to " + os.environ["DATABASE_URL"])\n'
        )
        ran = check(project)
        assert "nosuchthing://ann:***@db" in ran.error["what"]
        assert "s3cret" not in ran.out + ran.err

    @pytest.mark.parametrize(
        "settings",
        [{"adapter": "flyway"}, {"lock_timeout": "5s -c x=y"}, {"env": ["A=1"]}, {"python": None}],
        ids=["adapter", "lock_timeout", "env", "python"],
    )
    def test_a_manifest_that_cannot_be_used_is_a_usage_error(
        self, host: WebHost, settings: dict[str, object]
    ) -> None:
        ran = check(AlembicProject(host, **settings))
        assert (ran.code, ran.json["unchanged"]) == (2, True)

    def test_a_manifest_that_is_no_plain_file_is_not_read_as_root(self, project: AlembicProject) -> None:
        described = next(project.place.rglob(".deploytools.json"))
        described.unlink()
        os.mkfifo(described)
        ran = check(project)
        assert (ran.code, "it is not a file" in ran.error["what"]) == (2, True)

    def test_an_unknown_release_is_a_usage_error(self, host: WebHost) -> None:
        ran = host.run("migrate", "check", "--release", "nowhere")
        assert ran.code == 2
        assert "nowhere" in ran.error["what"]


class TestSameAs:
    """--same-as REV: does this host find the database that the migration host finds there?"""

    def test_the_same_revision_is_the_same_database(self, project: AlembicProject) -> None:
        assert check(project, "--same-as=a").json["same"] is True

    def test_another_revision_is_another_database(self, project: AlembicProject) -> None:
        ran = check(project, "--same-as=")
        assert (ran.code, ran.error["state"]) == (3, "nothing was changed")
        assert "this host finds another database: the database is at a" in ran.error["what"]

    def test_a_host_that_cannot_tell_says_so_and_is_no_obstacle(self, host: WebHost) -> None:
        ran = check(AlembicProject(host, python="/nonexistent/python"), "--same-as=a")
        assert (ran.code, ran.json["same"]) == (0, None)
        assert "can't tell" in ran.json["message"]


class TestExpect:
    """--expect turns a state that a deploy can't go on with into a failure."""

    @pytest.fixture
    def expect(self, host: WebHost) -> Callable[..., Ran]:
        """`migrate check --expect WHAT` where the adapter gives a certain answer."""

        def expect(what: str, **answer: object) -> Ran:
            known = {"current": ["a"], "target": ["b"], "pending": [], "strangers": [], "transactional": True}
            python = host.base / "python"
            told = json.dumps({**known, **answer})
            python.write_text(f"#!/bin/sh\nread -r settings; read -r command; echo '{told}'\n")
            python.chmod(0o755)
            return check(AlembicProject(host, python=str(python)), "--expect", what)

        return expect

    def test_current_refuses_what_is_pending(self, expect: Callable[..., Ran]) -> None:
        ran = expect("current", pending=[{"revision": "b", "message": ""}])
        assert (ran.code, ran.json["state"]) == (3, "pending")
        assert ran.error["next"] == "fab deploy --with-downtime"

    def test_known_accepts_what_is_pending(self, expect: Callable[..., Ran]) -> None:
        assert expect("known", pending=[{"revision": "b", "message": ""}]).code == 0

    def test_online_accepts_only_what_its_author_has_labelled(self, project: AlembicProject) -> None:
        why = "its author hasn't labelled it online-safe (online_safe = True in its module)"
        project.add("b", "a", extra="online_safe = True")
        project.add("c", "b", extra="online_safe = 'no'")
        refused = check(project, "--expect", "online")
        assert (refused.code, refused.json["details"]) == (3, [f"c: {why}"])
        assert refused.json["error"]["next"] == "fab deploy --with-downtime"
        not_started = run(project, "c", "--online")
        assert (not_started.code, not_started.json["unchanged"]) == (3, True)
        assert f"not while the site is up: c: {why}" in not_started.json["error"]["what"]

        project.add("c", "b", extra="online_safe = True")
        assert check(project, "--expect", "online").code == 0
        assert run(project, "c", "--online").json["applied"] == ["b", "c"]

    @pytest.mark.parametrize("what", ["known", "current"])
    def test_neither_accepts_a_strange_revision(self, expect: Callable[..., Ran], what: str) -> None:
        assert expect(what, strangers=["strange"]).code == 3


class TestRun:
    def test_applies_what_is_pending_and_tells_it(self, project: AlembicProject) -> None:
        project.add("b", "a")
        project.add("c", "b")
        ran = run(project, "c")
        assert ran.code == 0
        told = {key: ran.json[key] for key in ("outcome", "before", "after", "applied")}
        assert told == {"outcome": "applied", "before": ["a"], "after": ["c"], "applied": ["b", "c"]}
        assert ran.json["seconds"] > 0
        assert (project.tables(), project.revision()) == ({"t_b", "t_c"}, ["c"])

    def test_with_nothing_pending_applies_nothing(self, project: AlembicProject) -> None:
        ran = run(project, "a")
        assert (ran.code, ran.json["outcome"], ran.json["applied"]) == (0, "applied", [])

    def test_without_migrations_applies_nothing(self, host: WebHost) -> None:
        put_release(host, "r1")
        ran = host.run("migrate", "run", "run1", "--release", "r1", "--target=")
        assert (ran.code, ran.json["outcome"], ran.json["applied"]) == (0, "applied", [])

    def test_brings_several_heads_there(self, project: AlembicProject) -> None:
        project.add("left", "a")
        project.add("right", "a")
        ran = run(project, "right,left")
        assert (ran.code, ran.json["after"]) == (0, ["left", "right"])
        assert project.tables() == {"t_left", "t_right"}

    def test_the_same_id_never_runs_again_and_has_the_same_outcome(self, project: AlembicProject) -> None:
        project.add(
            "b", "a", 'op.execute("create table if not exists t_b (id)"); open("../../ran", "a").write("x")'
        )
        first = run(project, "b")
        project.query("update alembic_version set version_num = 'a'")
        again = run(project, "b")
        assert (first.json, first.code) == (again.json, again.code)
        assert (project.host.root / "ran").read_text() == "x"

    def test_an_application_that_writes_to_sqlite_meanwhile_does_not_refuse_it_its_first_write(
        self, project: AlembicProject
    ) -> None:
        """Its transaction began by reading the revision; another one has committed since."""
        project.query("pragma journal_mode = wal")
        project.query("create table visits (at text)")
        env = project.place / "migrations" / "env.py"
        begun = 'connection.exec_driver_sql("BEGIN")'
        visited = f"""{begun}
        connection.exec_driver_sql("select * from visits").fetchall()
        import sqlite3
        with sqlite3.connect({str(project.database)!r}) as visitor:
            visitor.execute("insert into visits values ('now')")
        visitor.close()"""  # noqa: S608
        env.write_text(env.read_text().replace(begun, visited))
        project.add("b", "a")
        ran = run(project, "b")
        assert (ran.code, ran.json["outcome"], project.revision()) == (0, "applied", ["b"]), ran.error
        assert project.query("select count(*) from visits") != [(0,)]

    def test_another_target_than_the_releases_heads_is_refused(self, project: AlembicProject) -> None:
        project.add("b", "a")
        ran = run(project, "a")
        assert (ran.code, ran.json["unchanged"], project.revision()) == (3, True, ["a"])
        assert outcome(project.host).json["outcome"] == "not-started"

    def test_a_database_that_cannot_be_asked_starts_nothing(self, project: AlembicProject) -> None:
        project.query("update alembic_version set version_num = 'strange'")
        ran = run(project, "a")
        assert (ran.code, ran.json["outcome"], ran.json["unchanged"]) == (3, "failed", True)
        project.query("update alembic_version set version_num = 'a'")
        assert run(project, "a").code == 0, "the same id may try again, as nothing was started"

    def test_migrate_runs_as_the_applications_user_in_a_clean_environment(self, host: WebHost) -> None:
        user = "nobody" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
        host.config["user"] = user
        host.write_config()
        seen = host.base / "seen"
        seen.mkdir(mode=0o777)
        seen.chmod(0o777)
        python = host.base / "python"
        python.write_text(f"#!/bin/sh\nid -un >{seen}/user; env >{seen}/env; pwd >{seen}/cwd\n")
        python.chmod(0o755)
        project = AlembicProject(
            host, python=str(python), engine="postgresql", env={"A": "b c"}, cwd="{release}/migrations"
        )
        host.run("migrate", "check", "--release", project.release, CALLER="x")
        env = dict(line.split("=", 1) for line in (seen / "env").read_text().splitlines())
        assert (seen / "user").read_text().strip() == user
        assert (seen / "cwd").read_text().strip() == str(project.place / "migrations")
        assert (env["A"], env["USER"]) == ("b c", user)
        assert env["PGAPPNAME"] == "deploytools-check"
        assert env["PGOPTIONS"] == "-c client_connection_check_interval=1000 -c lock_timeout=5s"
        assert "CALLER" not in env


# As the text of a migration is read; what it really does before it is killed is the same.
MAY_COMMIT = "pass  # would commit"


class TestFailure:
    BROKEN = 'op.execute("create table t_half (id)"); raise RuntimeError("no such luck")'

    def test_with_transactional_ddl_proves_that_nothing_changed(self, project: AlembicProject) -> None:
        project.add("b", "a", self.BROKEN)
        ran = run(project, "b")
        assert (ran.code, ran.json["outcome"], ran.json["unchanged"]) == (3, "failed", True)
        assert (ran.json["before"], ran.json["after"], project.tables()) == (["a"], ["a"], set())
        assert "RuntimeError: no such luck" in ran.error["what"]
        assert ran.json["details"][-1] == "RuntimeError: no such luck"
        assert outcome(project.host).json == ran.json

    def test_without_it_the_schema_may_be_half_changed(self, host: WebHost) -> None:
        project = AlembicProject(host, transactional=False)
        project.add("a")
        at_revision(project, "a")
        project.add("b", "a", self.BROKEN)
        ran = run(project, "b")
        assert (ran.code, ran.json["outcome"], ran.json["unchanged"]) == (3, "failed", False)
        assert (ran.json["transactional"], project.tables()) == (False, {"t_half"})

    def test_what_ran_in_an_autocommit_block_counts_as_changed(self, project: AlembicProject) -> None:
        body = (
            "with op.get_context().autocommit_block():\n"
            '        op.execute("create table t_half (id)")\n'
            '    raise RuntimeError("no such luck")'
        )
        project.add("b", "a", body)
        ran = run(project, "b")
        assert (ran.code, ran.json["after"], ran.json["unchanged"]) == (3, ["a"], False)

    def test_an_env_that_forgets_to_commit_is_no_success(self, project: AlembicProject) -> None:
        project.add("b", "a")
        env = project.place / "migrations" / "env.py"
        env.write_text(env.read_text().replace("with context.begin_transaction():", "if True:"))
        ran = run(project, "b")
        assert (ran.code, ran.json["outcome"], project.revision()) == (3, "failed", ["a"])
        assert "commit" in ran.error["what"]

    @pytest.mark.parametrize(("then", "unchanged"), [("pass", True), (MAY_COMMIT, False)])
    def test_a_killed_migration_changed_nothing_only_where_nothing_in_it_commits(
        self, waiting: Callable[..., Waiting], then: str, unchanged: bool
    ) -> None:
        begun = waiting(then)
        os.kill(begun.migration, signal.SIGKILL)
        out, _ = begun.follower.communicate(timeout=60)
        told = json.loads(out)
        assert (begun.follower.returncode, told["outcome"], told["unchanged"]) == (3, "failed", unchanged)
        assert told["after"] == ["a"]


class TestFollowing:
    def test_killing_the_follower_does_not_kill_the_migration(self, waiting: Callable[..., Waiting]) -> None:
        begun = waiting()
        os.killpg(begun.follower.pid, signal.SIGKILL)
        begun.follower.communicate()
        again = begun.project.host.start("migrate", *asking(begun.project, "b"))
        begun.let_go()
        out, _ = again.communicate(timeout=60)
        assert (again.returncode, json.loads(out)["applied"]) == (0, ["b"])

    def test_no_longer_than_the_time_out_and_says_how_to_go_on(self, waiting: Callable[..., Waiting]) -> None:
        begun = waiting()
        for ran in (run(begun.project, "b", "--timeout", "0.1"), outcome(begun.project.host)):
            assert (ran.code, ran.json["outcome"]) == (7, "running")
            assert "migrate outcome run1" in ran.error["next"]
        begun.let_go()
        assert outcome(begun.project.host, "--timeout", "60").json["outcome"] == "applied"

    def test_ctrl_c_ends_the_following_only(self, waiting: Callable[..., Waiting]) -> None:
        begun = waiting()
        os.killpg(begun.follower.pid, signal.SIGINT)
        out, _ = begun.follower.communicate(timeout=60)
        assert (begun.follower.returncode, json.loads(out)["outcome"]) == (130, "running")
        begun.let_go()
        assert outcome(begun.project.host, "--timeout", "60").code == 0

    def test_shows_the_log_as_it_grows(self, waiting: Callable[..., Waiting]) -> None:
        begun = waiting()
        assert begun.follower.stderr is not None
        while "Running upgrade a -> b" not in begun.follower.stderr.readline():
            assert begun.follower.poll() is None
        assert not begun.go.exists(), "the migration is still at work"

    def test_while_it_runs_status_tells_it_and_its_lock_cannot_be_broken(
        self, waiting: Callable[..., Waiting]
    ) -> None:
        begun = waiting()
        host = begun.project.host
        options = ("--run-id=run1", "--by=ann", "--laptop=tp", "--operation=deploy")
        assert host.run("lock", "acquire", *options).code == 0
        assert host.run("status").json["migration"]["run_id"] == "run1"
        assert host.run("lock", "break", "--run-id=run1").code == 5
        begun.let_go()
        begun.follower.communicate(timeout=60)
        assert host.run("status").json["migration"] is None
        assert host.run("lock", "break", "--run-id=run1").code == 0


class TestUnknown:
    """Asked are the runner, the sessions of the database, its revision; only then somebody's word counts."""

    def test_after_a_killed_runner_the_database_tells_that_it_was_applied(
        self, waiting: Callable[..., Waiting]
    ) -> None:
        begun = waiting()
        os.kill(begun.runner, signal.SIGKILL)
        still = outcome(begun.project.host)
        assert (still.code, still.json["outcome"]) == (7, "running"), "the migration itself lives on"
        begun.let_go()
        out, _ = begun.follower.communicate(timeout=60)
        told = json.loads(out)
        assert (begun.follower.returncode, told["outcome"], told["after"]) == (0, "applied", ["b"])
        assert told["applied"] == ["b"]
        assert outcome(begun.project.host).json == told

    def test_what_was_killed_with_its_runner_is_proved_to_be_rolled_back_where_nothing_in_it_commits(
        self, waiting: Callable[..., Waiting]
    ) -> None:
        begun = waiting()
        for pid in reversed(begun.processes):
            os.kill(pid, signal.SIGKILL)
        out, _ = begun.follower.communicate(timeout=60)
        told = json.loads(out)
        assert (begun.follower.returncode, told["outcome"], told["unchanged"]) == (3, "failed", True)
        assert (told["before"], told["after"]) == (["a"], ["a"])
        assert outcome(begun.project.host).json == told
        word = ("--as", "applied", "--by", "ann", "--reason", "I think so")
        assert begun.project.host.run("migrate", "resolve", "run1", *word).code == 2

    def test_where_it_may_have_committed_something_nobody_knows(
        self, waiting: Callable[..., Waiting]
    ) -> None:
        begun = waiting(MAY_COMMIT)
        for pid in reversed(begun.processes):
            os.kill(pid, signal.SIGKILL)
        out, _ = begun.follower.communicate(timeout=60)
        told = json.loads(out)
        assert (begun.follower.returncode, told["outcome"], told["after"]) == (4, "unknown", ["a"])
        assert "as it was before" in told["error"]["state"]
        assert "unchanged" not in told

    def test_a_migration_that_was_never_started_is_told_apart(self, host: WebHost) -> None:
        ran = outcome(host)
        assert (ran.code, ran.json["outcome"], ran.json["unchanged"]) == (3, "not-started", True)

    def test_a_database_that_was_away_at_the_end_is_asked_again(
        self, waiting: Callable[..., Waiting]
    ) -> None:
        begun = waiting()
        env = begun.project.place / "migrations" / "env.py"
        whole = env.read_text()
        env.write_text("raise RuntimeError('the database is away')")
        begun.let_go()
        out, _ = begun.follower.communicate(timeout=60)
        assert (begun.follower.returncode, json.loads(out)["outcome"]) == (4, "unknown")
        env.write_text(whole)
        ran = outcome(begun.project.host)
        assert (ran.code, ran.json["outcome"], ran.json["applied"]) == (0, "applied", ["b"])


class TestResolve:
    """The operator's word, where nobody else knows how a migration ended."""

    WORD = ("--by", "ann", "--reason", "looked at the tables")

    @pytest.fixture
    def unknown(self, waiting: Callable[..., Waiting]) -> WebHost:
        begun = waiting(MAY_COMMIT)
        for pid in reversed(begun.processes):
            os.kill(pid, signal.SIGKILL)
        begun.follower.communicate(timeout=60)
        return begun.project.host

    def test_applied_lets_the_run_go_on(self, unknown: WebHost) -> None:
        assert unknown.run("migrate", "resolve", "run1", "--as", "applied", *self.WORD).code == 0
        ran = outcome(unknown)
        assert (ran.code, ran.json["outcome"], ran.json["applied"]) == (0, "applied", ["b"])

    def test_not_applied_lets_the_run_be_undone(self, unknown: WebHost) -> None:
        assert unknown.run("migrate", "resolve", "run1", "--as", "not-applied", *self.WORD).code == 0
        ran = outcome(unknown)
        assert (ran.code, ran.json["outcome"], ran.json["unchanged"]) == (3, "failed", True)
        assert "ann says it was not-applied: looked at the tables" in ran.error["what"]

    def test_a_reason_is_one_line_that_can_be_shown_on_a_terminal(self, unknown: WebHost) -> None:
        word = ("--by", "ann\x1b[31m", "--reason", "looked\nat the tables")
        assert unknown.run("migrate", "resolve", "run1", "--as", "not-applied", *word).code == 0
        assert "ann [31m says it was not-applied: looked at the tables" in outcome(unknown).error["what"]

    def test_until_then_no_other_run_may_migrate_what_is_pending(
        self, unknown: WebHost, project: AlembicProject
    ) -> None:
        stopped = check(project, "--expect", "known")
        assert (stopped.code, stopped.json["state"]) == (3, "unsettled")
        assert "ended nobody knows how (the runner died before it could tell)" in stopped.error["what"]
        assert "the database was at a before, and is at a now" in stopped.error["what"]
        assert unknown.run("migrate", "resolve", "run1", "--as", "not-applied", *self.WORD).code == 0
        assert check(project, "--expect", "known").json["state"] == "pending"

    def test_a_run_that_found_nothing_to_do_does_not_hide_it(
        self, unknown: WebHost, project: AlembicProject
    ) -> None:
        before = AlembicProject(unknown, "r0")
        before.add("a")
        assert run(before, "a", run_id="run2").json["applied"] == []
        found = check(before, "--expect", "known").json
        assert (found["state"], found["unsettled"]["run_id"]) == ("current", "run1")
        assert check(project, "--expect", "known").json["state"] == "unsettled"

    def test_what_was_proved_to_be_rolled_back_needs_nobodys_word(self, project: AlembicProject) -> None:
        project.add("b", "a", 'op.execute("create table t_b (id)"); raise RuntimeError("no such luck")')
        assert run(project, "b").json["unchanged"] is True
        found = check(project, "--expect", "known").json
        assert (found["state"], found["unsettled"]) == ("pending", None)

    def test_while_it_runs_the_next_one_is_told_to_wait(self, waiting: Callable[..., Waiting]) -> None:
        begun = waiting()
        stopped = check(begun.project, "--expect", "known")
        assert (stopped.json["state"], "run run1 (b, release r1)" in stopped.error["what"]) == (
            "unsettled",
            True,
        )
        assert "migrate outcome run1" in stopped.error["next"]

    def test_a_known_outcome_is_not_argued_with(self, project: AlembicProject) -> None:
        project.add("b", "a")
        assert run(project, "b").code == 0
        ran = project.host.run("migrate", "resolve", "run1", "--as", "not-applied", *self.WORD)
        assert ran.code == 2
        assert "needs nobody's word: applied" in ran.error["what"]

    def test_a_running_migration_is_not_argued_with(self, waiting: Callable[..., Waiting]) -> None:
        begun = waiting()
        ran = begun.project.host.run("migrate", "resolve", "run1", "--as", "applied", *self.WORD)
        assert (ran.code, "it still runs" in ran.error["what"]) == (2, True)
        begun.let_go()

    def test_a_migration_that_was_never_started_has_nothing_to_resolve(self, host: WebHost) -> None:
        ran = host.run("migrate", "resolve", "run1", "--as", "applied", *self.WORD)
        assert (ran.code, "never started" in ran.error["what"]) == (2, True)


# An adapter in a few lines of sh, which notes by its session's name that it was told to upgrade.
NOTING = """#!/bin/sh
read -r settings
note={base}/$(echo "$settings" | sed 's/.*"session": "\\([^"]*\\)".*/\\1/')
while read -r command; do
    if [ "$command" = upgrade ]; then
        echo started >>"$note"
        echo '{{"applied": ["b"], "transactional": true}}'
    else
        current='["a"]'
        pending='[{{"revision": "b", "message": ""}}]'
        if [ -e "$note" ]; then current='["b"]' pending='[]'; fi
        printf '{{"current": %s, "pending": %s, ' "$current" "$pending"
        echo '"target": ["b"], "strangers": [], "transactional": true}}'
    fi
done
"""


@pytest.mark.parametrize("batches", [1, pytest.param(6, marks=pytest.mark.exhaustive)])
def test_racing_pairs_make_one_start_each(host: WebHost, batches: int) -> None:
    python = host.base / "python"
    python.write_text(NOTING.format(base=host.base))
    python.chmod(0o755)
    project = AlembicProject(host, python=str(python), engine="postgresql")
    for batch in range(batches):
        ids = [f"run{batch}{number}" for number in range(5)]
        pairs = {
            run_id: [host.start("migrate", *asking(project, "b", run_id=run_id)) for _ in "ab"]
            for run_id in ids
        }
        for run_id, pair in pairs.items():
            one, other = (json.loads(process.communicate(timeout=60)[0]) for process in pair)
            assert (one["outcome"], one["applied"]) == ("applied", ["b"])
            assert one == other
            assert (host.base / f"deploytools-{run_id}").read_text() == "started\n"
    assert len(list((host.root / "migrations").iterdir())) == 5 * batches
