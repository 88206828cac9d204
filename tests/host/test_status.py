"""`status`: where a host stands, told without changing anything and without root."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import time
from collections.abc import Callable

import pytest

from tests.support.barehost import AlembicProject, bare_host, make_current, put_generation, put_release
from tests.support.webhost import WebHost, wait_until


def this_process() -> dict[str, object]:
    """What identifies us in a generation's record."""
    with open("/proc/self/stat") as file:
        start_time = int(file.read().rpartition(")")[2].split()[19])
    with open("/proc/sys/kernel/random/boot_id") as file:
        return {"pid": os.getpid(), "start_time": start_time, "boot_id": file.read().strip()}


def test_of_a_fresh_host_says_that_nothing_is_there_yet() -> None:
    with bare_host() as host:
        found = host.run("status").json
        assert (found["application"], found["toolkit"]) == ("guestbook", "0")
        assert (found["release"], found["serving"], found["others"], found["releases"]) == (None, None, [], 0)
        assert (found["lock"], found["migration"], found["schema"]) == (None, None, None)
        assert found["problems"] == []


def test_tells_the_release_and_every_generation() -> None:
    with bare_host() as host:
        for release in ("r1", "r2"):
            put_release(host, release)
        make_current(host, "r2")
        put_generation(host, 7, "r1", state="warm", until=time.time() + 60)
        put_generation(host, 8, "r2", state="serving", started_at=time.time() - 90, **this_process())
        (host.run_dir / "app.sock").symlink_to("app.8.sock")
        found = host.run("status").json
        assert (found["release"], found["releases"]) == ("r2", 2)
        serving = {key: found["serving"][key] for key in ("generation", "release", "state", "pid", "alive")}
        assert serving == {
            "generation": 8,
            "release": "r2",
            "state": "serving",
            "pid": os.getpid(),
            "alive": True,
        }
        assert 90 <= found["serving"]["age"] < 120
        assert [(other["generation"], other["state"], other["alive"]) for other in found["others"]] == [
            (7, "warm", False)
        ]


def test_what_serves_counts_as_the_release_and_what_was_done_to_its_links_is_told_with_the_remedy() -> None:
    with bare_host() as host:
        for release in ("r1", "r2"):
            put_release(host, release)
        put_generation(host, 1, "r1", state="serving", **this_process())
        (host.run_dir / "app.sock").symlink_to("app.1.sock")

        missing = host.run("status").json
        make_current(host, "r2")
        (elsewhere,) = host.run("status").json["problems"]
        (host.root / "current").unlink()
        make_current(host, "r1")
        shutil.rmtree(host.root / "releases" / "r1")
        (gone,) = host.run("status").json["problems"]

        assert missing["release"] == "r1"
        assert "current is missing, and generation 1 (release r1) serves" in missing["problems"][0]
        assert "leads to r2, and generation 1 (release r1) serves" in elsewhere
        assert "next: fab hotswap" in elsewhere
        assert "r1 is gone, and generation 1 (release r1) serves, until it ends; next: fab deploy" in gone
        assert "links" in {check["name"] for check in host.run("doctor").json["checks"] if not check["ok"]}


def test_tells_the_maintenance_window_and_the_lock(web_host: WebHost) -> None:
    options = ("--reason", "new schema", "--by", "ann", "--run-id", "run1")
    assert web_host.run(web_host.maintenance_dir / "down", *options).code == 0
    lock = ("--run-id=run1", "--by=ann", "--laptop=tp", "--operation=deploy")
    web_host.run("lock", "acquire", *lock)
    found = web_host.run("status").json
    told = {key: found["maintenance"][key] for key in ("state", "by", "reason", "run_id")}
    assert told == {"state": "down", "by": "ann", "reason": "new schema", "run_id": "run1"}
    assert found["lock"]["run_id"] == "run1"
    text = web_host.run("status", as_json=False).out
    assert "by ann, why: new schema" in text
    assert "ann on tp since" in text


def test_a_site_that_is_up_is_told_to_be_up(web_host: WebHost) -> None:
    assert web_host.run(web_host.maintenance_dir / "up").code == 0
    assert web_host.run("status").json["maintenance"]["state"] == "up"


def test_with_schema_asks_the_database_of_the_current_release() -> None:
    with bare_host() as host:
        project = AlembicProject(host)
        project.add("a", message="a first table")
        make_current(host, "r1")
        schema = host.run("status", "--schema").json["schema"]
        assert (schema["state"], schema["current"], schema["target"]) == ("pending", [], ["a"])
        project.database.unlink()
        project.database.mkdir()
        schema = host.run("status", "--schema").json["schema"]
        assert schema["state"] == "unknown"
        assert "unable to open database file" in schema["message"]


def test_a_schema_that_nobody_can_tell_is_a_problem() -> None:
    with bare_host() as host:
        (put_release(host, "r1") / ".deploytools.json").write_text("junk")
        make_current(host, "r1")
        junk = host.run("status", "--schema")
        program = host.tools / "status"
        program.write_text(program.read_text().replace("ASKING = 45.0 ", "ASKING = 0.1 "))
        (host.tools / "migrate").write_text("#!/bin/sh\nexec sleep 60\n")
        late = host.run("status", "--schema")

        assert (junk.json["schema"], late.json["schema"]) == (None, None)
        assert any(".deploytools.json of r1 can't be read" in problem for problem in junk.json["problems"])
        assert any("the database gave no answer within 0 s" in problem for problem in late.json["problems"])


@pytest.mark.parametrize("text", ["broken", "[]", "{}", '{"generation": 1}'])
def test_a_record_that_cannot_be_read_hides_no_other(text: str) -> None:
    with bare_host() as host:
        put_release(host, "r1")
        make_current(host, "r1")
        (host.run_dir / "app.1.json").write_text(text)
        put_generation(host, 2, "r1", state="serving", **this_process())
        put_generation(host, 3, "r1", started_at="yesterday")
        put_generation(host, 4, "r1", manager="nobody")
        (host.run_dir / "app.sock").symlink_to("app.2.sock")
        ran = host.run("status")
        assert (ran.code, ran.json["release"], ran.json["serving"]["generation"]) == (0, "r1", 2)
        assert {"app.1.json", "app.3.json", "app.4.json"} == {
            problem.split()[0].rpartition("/")[2] for problem in ran.json["problems"]
        }
        assert "app.1.json" in host.run("status", as_json=False).out


def break_lock(host: WebHost, text: str) -> None:
    (host.root / "state" / "lock").mkdir()
    (host.root / "state" / "lock" / "details.json").write_text(text)


@pytest.mark.parametrize("text", ["broken", "[]", "{}", '{"run_id": 7}'])
def test_a_lock_that_cannot_be_read_is_a_problem(text: str) -> None:
    with bare_host() as host:
        break_lock(host, text)
        ran = host.run("status")
        assert (ran.code, ran.json["lock"]) == (0, None)
        assert len(ran.json["problems"]) == 1


def test_whatever_is_missing_is_a_problem_and_no_traceback() -> None:
    with bare_host() as host:
        for name in ("releases", "run", "state", "migrations"):
            (host.root / name).rmdir()
        (host.maintenance_dir / "maint.lua").unlink()
        ran = host.run("status")
        assert (ran.code, ran.json["maintenance"]["state"]) == (0, "unknown")
        assert any(str(host.root / "releases") in problem for problem in ran.json["problems"])


def test_a_window_that_lasts_longer_than_it_was_to_is_told(web_host: WebHost) -> None:
    assert web_host.run(web_host.maintenance_dir / "down", "--until", "+1h").code == 0
    assert web_host.run("status").json["maintenance"]["overrun"] is None
    record = web_host.maintenance_dir / "maint.json"
    window = json.loads(record.read_text())
    record.write_text(json.dumps({**window, "until": "2026-01-01T00:00:00Z"}))
    found = web_host.run("status").json["maintenance"]
    assert found["overrun"] > 3600
    assert "min beyond its end" in web_host.run("status", as_json=False).out
    record.write_text(json.dumps({**window, "until": "soon"}))
    assert web_host.run("status").json["maintenance"]["overrun"] is None


def test_says_how_it_was_set_up_and_for_whom() -> None:
    with bare_host(digest="abc") as host:
        found = host.run("status").json
        owner = pwd.getpwuid((host.root / "releases").stat().st_uid).pw_name
        assert (found["digest"], found["deploy_user"]) == ("abc", owner)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another account")
def test_an_ordinary_account_sees_where_the_host_stands(web_host: WebHost) -> None:
    put_release(web_host, "r1")
    make_current(web_host, "r1")
    put_generation(web_host, 1, "r1", state="serving", pid=web_host.serve(1))
    web_host.run("lock", "acquire", "--run-id=run1", "--by=ann", "--laptop=tp", "--operation=deploy")
    assert web_host.run(web_host.maintenance_dir / "down", "--by", "ann").code == 0
    found = web_host.run("status", as_user="nobody").json
    assert found["problems"] == []
    assert (found["release"], found["serving"]["generation"], found["lock"]["by"]) == ("r1", 1, "ann")
    assert (found["maintenance"]["state"], found["maintenance"]["by"]) == ("down", "ann")


@pytest.mark.parametrize("arguments", [("--nonsense",), ("extra",)])
def test_what_it_does_not_know_is_a_usage_error(arguments: tuple[str, ...]) -> None:
    with bare_host() as host:
        assert host.run("status", *arguments, as_json=False).code == 2


def test_of_a_host_that_was_never_set_up_names_the_command_that_does_it() -> None:
    with bare_host() as host:
        (host.tools / "config.json").unlink()
        ran = host.run("status")
        assert (ran.code, ran.error["next"]) == (2, "fab setup")


def test_the_text_is_aligned(make_web_host: Callable[..., WebHost]) -> None:
    host = make_web_host()
    pid = host.serve(1)
    wait_until(lambda: host.get("/").status == 200)
    put_release(host, "r1")
    make_current(host, "r1")
    put_generation(host, 1, "r1", state="serving", pid=pid)
    lines = host.run("status", as_json=False).out.splitlines()
    labels = ["application", "site", "release", "generation", "lock"]
    assert [line[:12].strip() for line in lines] == labels
    assert all(line[12] != " " for line in lines)


@pytest.mark.parametrize(
    ("planned", "said"),
    [
        ({"release": "r1", "down": True, "run_id": "run1"}, None),
        ({"release": "r1", "down": True, "run_id": None}, "in maintenance by run run1"),
        ({"release": "r1", "down": False, "run_id": None}, "in maintenance by run run1"),
        ({"release": "r2", "down": True, "run_id": "run1"}, "it serves r1"),
    ],
)
def test_a_host_that_is_not_as_a_plan_has_it_says_how_it_differs(
    web_host: WebHost, planned: dict[str, object], said: str | None
) -> None:
    put_release(web_host, "r1")
    make_current(web_host, "r1")
    assert web_host.run(web_host.maintenance_dir / "down", "--run-id", "run1").code == 0

    ran = web_host.run("status", f"--planned={json.dumps(planned)}")

    assert ran.code == (3 if said else 0)
    if said:
        now, _, before = ran.error["what"].partition("; when this run was planned it was otherwise: ")
        assert said in now
        assert before
        assert ran.error["state"] == "nothing was changed"


def test_a_host_with_the_lock_of_a_run_that_has_it_nowhere_else_is_no_part_of_another_run(
    web_host: WebHost,
) -> None:
    """So it is where the fabric.yaml of two checkouts differ in the host that the lock is on."""
    taken = ("--run-id", "run1", "--by", "ann", "--laptop", "desk", "--operation", "deploy")
    assert web_host.run("lock", "acquire", *taken).code == 0
    planned = f"--planned={json.dumps({'release': None, 'down': False, 'run_id': None})}"

    refused = web_host.run("status", planned, "--holder=run2")

    assert (refused.code, refused.error["state"]) == (5, "nothing was changed")
    assert "run run1 by ann on desk has the lock on this host" in refused.error["what"]
    assert "lock break --run-id run1" in refused.error["next"]
    assert web_host.run("status", planned, "--holder=run1").code == 0


@pytest.mark.parametrize("text", ["", "[]", "{}", "{"])
def test_a_plan_that_cannot_be_read_is_a_usage_error(text: str) -> None:
    with bare_host() as host:
        assert host.run("status", f"--planned={text}").code == 2
