"""Asking the application through the bypass while the public sees the page, on a real lighttpd."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Mapping

import pytest
from hostlib.program import DONE, FAILED, IN_MAINTENANCE, USAGE
from hostlib.switch import maintscript

from tests.support.barehost import AlembicProject
from tests.support.webhost import WebHost


def release(host: WebHost, name: str, **health: object) -> None:
    """A release of which only the health check matters here."""
    directory = host.root / "releases" / name
    directory.mkdir()
    manifest: Mapping[str, object] = {"id": name, "app": {"command": "true"}, "health": health}
    (directory / ".deploytools.json").write_text(json.dumps(manifest))


def record(host: WebHost, generation: int, name: str) -> None:
    path = host.run_dir / f"app.{generation}.json"
    about = {"generation": generation, "release": name, "manager": "direct", "started_at": 0.0}
    path.write_text(json.dumps({**about, "socket": str(path.with_suffix(".sock")), "state": "serving"}))


def deployed(host: WebHost, **health: object) -> WebHost:
    """In maintenance, with release r1 serving as generation 1."""
    host.serve()
    release(host, "r1", **health)
    record(host, 1, "r1")
    assert host.run("down").code == DONE
    return host


def test_a_healthy_release_is_verified_while_the_public_sees_the_page(web_host: WebHost) -> None:
    host = deployed(web_host, path="/hello", status=200, contains="app /hello")
    ran = host.run("verify", "--release", "r1")
    assert ran.code == DONE
    assert (ran.json["release"], ran.json["generation"], ran.json["workers"]) == ("r1", 1, 1)
    assert ran.json["took"] < 5
    assert host.get("/hello").in_maintenance


def test_every_worker_is_asked(make_web_host: Callable[..., WebHost]) -> None:
    host = deployed(make_web_host(max_workers=3))
    assert host.run("verify", "--release", "r1").json["workers"] == 3


def test_a_health_path_that_is_a_liveness_path_still_reaches_the_application(
    make_web_host: Callable[..., WebHost],
) -> None:
    host = deployed(make_web_host(liveness=("/live",)), path="/live", contains="app /live")
    assert host.get("/live").body == b"ok\n"
    assert host.run("verify", "--release", "r1").code == DONE


@pytest.mark.parametrize(
    ("health", "told"),
    [
        ({"path": "/", "status": 204}, "health check (204 from /)"),
        ({"path": "/", "contains": "welcome"}, "health check (200 from / with 'welcome' in it)"),
    ],
)
def test_an_unhealthy_release_keeps_the_site_in_maintenance(
    web_host: WebHost, health: dict[str, object], told: str
) -> None:
    host = deployed(web_host, **health)
    ran = host.run("verify", "--release", "r1", "--timeout", "0.3")
    assert ran.code == IN_MAINTENANCE
    assert told in ran.error["what"]
    assert "the last other answer was 200" in ran.error["what"]
    assert ran.error["state"] == "the site is in maintenance"


def test_the_maintenance_answer_never_passes_for_a_healthy_503(web_host: WebHost) -> None:
    """Only the marker tells the page from a 503 that the health check wants."""
    host = deployed(web_host, path="/", status=503)
    lua = host.maintenance_dir / "maint.lua"
    lua.write_text(lua.read_text().replace("same(request", "false and same(request", 1))
    ran = host.run("verify", "--release", "r1", "--timeout", "0.3")
    assert ran.code == IN_MAINTENANCE


def test_another_release_is_refused(web_host: WebHost) -> None:
    host = deployed(web_host)
    release(host, "r2")
    ran = host.run("verify", "--release", "r2")
    assert ran.code == IN_MAINTENANCE
    assert "(release r1) serves, not release r2" in ran.error["what"]


def test_an_application_that_is_dead_is_told(web_host: WebHost) -> None:
    host = deployed(web_host)
    host.stop_backend(1)
    ran = host.run("verify", "--release", "r1", "--timeout", "0.5")
    assert ran.code == IN_MAINTENANCE
    assert "the last other answer was 503 without X-Maintenance-Mode" in ran.error["what"]


def test_without_a_serving_generation_it_says_so(web_host: WebHost) -> None:
    host = deployed(web_host)
    (host.run_dir / "app.sock").unlink()
    ran = host.run("verify", "--release", "r1")
    assert ran.code == IN_MAINTENANCE
    assert "no generation serves" in ran.error["what"]


def test_a_public_that_gets_through_is_an_error(web_host: WebHost) -> None:
    host = deployed(web_host)
    lua = host.maintenance_dir / "maint.lua"
    lua.write_text(lua.read_text().replace("same(cookie, bypass)", "true"))
    ran = host.run("verify", "--release", "r1", "--timeout", "0.3")
    assert ran.code == IN_MAINTENANCE
    assert "the public no longer sees the maintenance page" in ran.error["what"]


def test_a_site_that_is_up_is_not_verified(web_host: WebHost) -> None:
    host = deployed(web_host)
    host.run("up")
    ran = host.run("verify", "--release", "r1")
    assert ran.code == FAILED
    assert "not in maintenance" in ran.error["what"]


@pytest.mark.parametrize("name", ["", "../r1", "a/b", "r2"])
def test_a_release_that_is_none_is_a_usage_error(web_host: WebHost, name: str) -> None:
    host = deployed(web_host)
    assert host.run("verify", "--release", name).code == USAGE


def test_the_token_is_told_nowhere(web_host: WebHost) -> None:
    host = deployed(web_host, contains="no such text")
    token = maintscript.bypass_of((host.maintenance_dir / "maint.lua").read_text())
    ran = host.run("verify", "--release", "r1", "--timeout", "0.2")
    assert token
    assert token not in ran.out + ran.err
    assert os.path.exists(host.tools / "verify")


def test_every_smoke_page_is_asked_through_the_bypass(web_host: WebHost) -> None:
    host = deployed(web_host, smoke=["/login", "/cart?full=1"])
    assert host.run("verify", "--release", "r1").code == DONE


def test_a_smoke_page_that_does_not_work_keeps_the_site_in_maintenance(web_host: WebHost) -> None:
    host = deployed(web_host, smoke=["/login", "/slow"])  # which wants to know how slow
    ran = host.run("verify", "--release", "r1", "--timeout", "0.3")
    assert ran.code == IN_MAINTENANCE
    assert "/slow of release r1 doesn't work" in ran.error["what"]


class TestSchema:
    """--schema REV: the release's database, as this host finds it, is there."""

    @pytest.fixture
    def project(self, web_host: WebHost) -> AlembicProject:
        """Release r2, with revisions a and b, serves in maintenance; its database is at a."""
        web_host.serve()
        project = AlembicProject(web_host, "r2")
        manifest = project.place / ".deploytools.json"
        described = json.loads(manifest.read_text())
        manifest.write_text(json.dumps({**described, "app": {"command": "true"}, "health": {}}))
        project.add("a")
        project.add("b", "a")
        project.query("create table alembic_version (version_num varchar(32) not null)")
        project.query("insert into alembic_version values ('a')")
        record(web_host, 1, "r2")
        assert web_host.run("down").code == DONE
        return project

    def test_it_is_done_where_the_database_is_there(self, project: AlembicProject) -> None:
        project.query("update alembic_version set version_num = 'b'")
        assert project.host.run("verify", "--release", "r2", "--schema=b").code == DONE

    def test_another_revision_keeps_the_site_in_maintenance(self, project: AlembicProject) -> None:
        ran = project.host.run("verify", "--release", "r2", "--schema=b")
        assert ran.code == IN_MAINTENANCE
        assert "release r2 needs the database at b; here the database is at a" in ran.error["what"]

    def test_the_database_counts_as_it_is_when_the_word_comes(self, project: AlembicProject) -> None:
        argv = [project.host.tools / "verify", "--release=r2", "--schema=b", "--when-told", "--json"]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as verify:
            assert verify.stdout is not None
            assert json.loads(verify.stdout.readline()) == {"waiting": True}
            project.query("update alembic_version set version_num = 'b'")
            told, _ = verify.communicate("go\n", timeout=60)
        assert (verify.returncode, json.loads(told)["release"]) == (DONE, "r2")

    def test_a_database_that_does_not_answer_keeps_the_site_in_maintenance(
        self, project: AlembicProject
    ) -> None:
        project.database.write_text("not a database at all, but long enough to be taken for one" * 20)
        assert project.host.run("verify", "--release", "r2", "--schema=b").code == IN_MAINTENANCE
