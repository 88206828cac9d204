"""The adapter `django`, with real Django projects on SQLite, PostgreSQL and MariaDB."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.support.barehost import bare_host
from tests.support.databases import SERVERS, Database
from tests.support.django_project import DjangoProject
from tests.support.webhost import Ran, WebHost


@pytest.fixture
def host() -> Iterator[WebHost]:
    with bare_host() as host:
        yield host


# What the engines differ in is tried on each of them; for all else one is enough, but in `make test-all`.
ONE_ENGINE = ["sqlite", *(pytest.param(kind, marks=pytest.mark.exhaustive) for kind in SERVERS)]
EACH_ENGINE = pytest.mark.parametrize("project", ["sqlite", *SERVERS], indirect=True)


@pytest.fixture(params=ONE_ENGINE)
def project(
    host: WebHost, new_database: Callable[[str], Database], request: pytest.FixtureRequest
) -> DjangoProject:
    """A project with the migration a, which is applied."""
    project = DjangoProject(host, database=None if request.param == "sqlite" else new_database(request.param))
    project.add("a")
    assert migrate(project, "shop.a", run_id="first").code == 0
    return project


@pytest.fixture
def on_sqlite(host: WebHost) -> DjangoProject:
    project = DjangoProject(host)
    project.add("a")
    assert migrate(project, "shop.a", run_id="first").code == 0
    return project


def check(project: DjangoProject) -> Ran:
    return project.host.run("migrate", "check", "--release", project.release)


def migrate(project: DjangoProject, target: str, run_id: str = "run1") -> Ran:
    return project.host.run("migrate", "run", run_id, "--release", project.release, f"--target={target}")


def test_tells_what_is_pending_in_the_order_of_application(project: DjangoProject) -> None:
    project.add(
        "c", "b", operations="migrations.AddField('Order', 'paid', models.BooleanField(default=False))"
    )
    project.add(
        "b", "a", operations="migrations.CreateModel('Order', [('id', models.AutoField(primary_key=True))])"
    )
    found = check(project).json
    assert (found["state"], found["current"], found["target"]) == ("pending", ["shop.a"], ["shop.c"])
    assert [(step["revision"], step["message"]) for step in found["pending"]] == [
        ("shop.b", "Create model Order"),
        ("shop.c", "Add field paid to Order"),
    ]
    assert found["transactional"] is (project.engine != "mariadb")


def test_what_its_author_has_labelled_is_migrated_while_the_site_is_up(project: DjangoProject) -> None:
    asked = ("check", "--release", project.release, "--expect", "online")
    order = ("run", "run1", "--release", project.release, "--target=shop.c", "--online")
    project.add("b", "a", extra="online_safe = True")
    project.add("c", "b")
    refused, ran = project.host.run("migrate", *asked), project.host.run("migrate", *order)
    why = "shop.c: its author hasn't labelled it online-safe (online_safe = True in its class)"
    assert (refused.code, refused.json["details"]) == (3, [why])
    assert (ran.code, ran.json["unchanged"]) == (3, True)

    project.add("c", "b", extra="online_safe = True")
    assert project.host.run("migrate", *asked).code == 0
    ran = project.host.run("migrate", *order)
    assert (ran.code, ran.json["applied"]) == (0, ["shop.b", "shop.c"])


def test_changes_nothing_even_in_an_empty_database(host: WebHost) -> None:
    project = DjangoProject(host)
    project.add("a")
    assert check(project).json["state"] == "pending"
    assert project.query("select count(*) from sqlite_master") == [(0,)]


@EACH_ENGINE
def test_applies_what_is_pending_and_tells_it(project: DjangoProject) -> None:
    project.add("b", "a")
    project.add("c", "b")
    ran = migrate(project, "shop.c")
    assert (ran.code, ran.json["outcome"]) == (0, "applied"), ran
    assert (ran.json["before"], ran.json["after"]) == (["shop.a"], ["shop.c"])
    assert ran.json["applied"] == ["shop.b", "shop.c"]
    assert project.tables() == {"t_a", "t_b", "t_c"}
    assert check(project).json["state"] == "current"
    assert "Applying shop.b" in (host_log := (project.host.root / "migrations/run1/log").read_text()), (
        host_log
    )


def test_what_listens_to_a_migration_is_called(host: WebHost) -> None:
    """contenttypes' own table, and the row in it for each model, is such a listener's work."""
    project = DjangoProject(host, apps=("django.contrib.contenttypes", "shop"))
    project.add(
        "a", operations="migrations.CreateModel('Order', [('id', models.AutoField(primary_key=True))])"
    )
    (project.place / "shop" / "models.py").write_text(
        "from django.db import models\nclass Order(models.Model): pass\n"
    )
    target = check(project).json["target"]
    assert target == ["contenttypes.0002_remove_content_type_name", "shop.a"]
    assert migrate(project, ",".join(target)).code == 0
    assert project.query("select app_label, model from django_content_type where app_label = 'shop'")


@EACH_ENGINE
def test_a_failed_migration_proves_that_nothing_changed_only_where_ddl_is_transactional(
    project: DjangoProject,
) -> None:
    project.add("b", "a", work="raise RuntimeError('no such luck')")
    ran = migrate(project, "shop.b")
    whole = project.engine != "mariadb"
    assert (ran.code, ran.json["outcome"], ran.json["unchanged"]) == (3, "failed", whole)
    assert (ran.json["before"], ran.json["after"]) == (["shop.a"], ["shop.a"])
    assert project.tables() == ({"t_a"} if whole else {"t_a", "t_b"})
    assert "no such luck" in ran.error["what"]
    assert ("migrate.resolve" in ran.error["next"]) is not whole


def test_a_migration_that_is_not_atomic_counts_as_changed(on_sqlite: DjangoProject) -> None:
    on_sqlite.add("b", "a", work="raise RuntimeError('no such luck')", atomic=False)
    assert check(on_sqlite).json["transactional"] is False
    ran = migrate(on_sqlite, "shop.b")
    assert (ran.code, ran.json["unchanged"]) == (3, False)


def test_the_first_of_two_stays_where_the_second_fails(project: DjangoProject) -> None:
    project.add("b", "a")
    project.add("c", "b", work="raise RuntimeError('no such luck')")
    ran = migrate(project, "shop.c")
    assert (ran.code, ran.json["after"], ran.json["unchanged"]) == (3, ["shop.b"], False)


def test_a_half_applied_migration_is_never_started_again_by_itself(
    host: WebHost, new_database: Callable[[str], Database]
) -> None:
    project = DjangoProject(host, database=new_database("mariadb"))
    project.add("a", work="raise RuntimeError('no such luck')")
    first, again = migrate(project, "shop.a"), migrate(project, "shop.a")
    assert (first.code, first.json["unchanged"], project.tables()) == (3, False, {"t_a"})
    assert again.json == first.json


def test_a_database_ahead_of_the_code_is_told_with_the_run_that_brought_it_there(host: WebHost) -> None:
    later = DjangoProject(host, "r2")
    later.add("a")
    later.add("b", "a")
    assert migrate(later, "shop.b").code == 0
    earlier = DjangoProject(host, "r1")
    earlier.add("a")
    ran = check(earlier)
    assert (ran.code, ran.json["state"]) == (0, "ahead")
    assert "run1" in ran.json["message"]
    assert "shop.b" in ran.json["message"]


def test_an_app_that_only_a_later_release_has_makes_the_database_ahead_too(host: WebHost) -> None:
    later = DjangoProject(host, "r2", apps=("shop", "blog"))
    later.add("a")
    later.add("a", app="blog", operations="")
    assert migrate(later, "blog.a,shop.a").code == 0
    earlier = DjangoProject(host, "r1")
    earlier.add("a")
    found = check(earlier).json
    assert (found["state"], "run1" in found["message"]) == ("ahead", True)


def test_an_app_that_was_taken_out_leaves_nothing_unknown(host: WebHost) -> None:
    earlier = DjangoProject(host, "r1", apps=("shop", "blog"))
    earlier.add("a")
    earlier.add("a", app="blog", operations="")
    assert migrate(earlier, "blog.a,shop.a").code == 0
    later = DjangoProject(host, "r2")
    later.add("a")
    assert check(later).json["state"] == "current"


def test_a_revision_that_nobody_knows_is_unknown(on_sqlite: DjangoProject) -> None:
    on_sqlite.query(
        "insert into django_migrations (app, name, applied) values ('shop', 'strange', '2026-01-01')"
    )
    ran = check(on_sqlite)
    assert (ran.code, ran.json["state"]) == (3, "unknown")
    assert "shop.strange" in ran.error["what"]


def test_an_inconsistent_history_is_unknown(on_sqlite: DjangoProject) -> None:
    on_sqlite.add("b", "a")
    on_sqlite.add("c", "b")
    on_sqlite.query("insert into django_migrations (app, name, applied) values ('shop', 'c', '2026-01-01')")
    ran = check(on_sqlite)
    assert (ran.code, ran.json["state"]) == (3, "unknown")
    assert "InconsistentMigrationHistory" in ran.error["what"]


def test_two_newest_migrations_of_an_app_are_refused(on_sqlite: DjangoProject) -> None:
    on_sqlite.add("left", "a")
    on_sqlite.add("right", "a")
    ran = check(on_sqlite)
    assert (ran.code, ran.json["state"]) == (3, "unknown")
    assert "makemigrations --merge" in ran.error["what"]


def test_squashed_migrations_are_no_strangers_and_nothing_is_pending(on_sqlite: DjangoProject) -> None:
    on_sqlite.add("b", "a")
    assert migrate(on_sqlite, "shop.b").code == 0
    for name in "ab":
        (on_sqlite.place / "shop" / "migrations" / f"{name}.py").unlink()
    on_sqlite.add("both", replaces=("a", "b"))
    found = check(on_sqlite).json
    assert (found["state"], found["current"], found["target"]) == ("current", ["shop.both"], ["shop.both"])


@pytest.mark.parametrize(
    ("env", "told"),
    [
        ({}, "DJANGO_SETTINGS_MODULE is missing in migrate.env"),
        ({"DJANGO_SETTINGS_MODULE": "nowhere"}, "No module named 'nowhere'"),
        (
            {"DJANGO_SETTINGS_MODULE": "project.settings", "DATABASE": '{"NAME": "/nowhere/db"}'},
            "unable to open database file",
        ),
    ],
)
def test_what_can_not_be_asked_is_unknown_with_the_reason(
    host: WebHost, env: dict[str, str], told: str
) -> None:
    project = DjangoProject(host, env=env)
    project.add("a")
    ran = check(project)
    assert (ran.code, ran.json["state"]) == (3, "unknown")
    assert told in ran.error["what"]


def test_a_connection_that_breaks_changed_nothing_where_its_session_is_gone_and_it_could_not_commit(
    host: WebHost, new_database: Callable[[str], Database]
) -> None:
    project = DjangoProject(host, database=new_database("postgresql"))
    kill = "schema_editor.connection.cursor().execute('select pg_terminate_backend(pg_backend_pid())')"
    project.add("a", work=kill)
    ran = migrate(project, "shop.a")
    assert (ran.code, ran.json["after"], ran.json["unchanged"]) == (3, [], True)
