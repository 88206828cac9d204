"""`status`: where a host stands, told without changing anything and without root."""

from __future__ import annotations

import os
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


def test_a_part_that_cannot_be_read_does_not_hide_the_others() -> None:
    with bare_host() as host:
        put_release(host, "r1")
        make_current(host, "r1")
        (host.run_dir / "app.1.json").write_text("broken")
        ran = host.run("status")
        assert (ran.code, ran.json["release"]) == (0, "r1")
        assert "app.1.json" in ran.json["problems"][0]
        assert "app.1.json" in host.run("status", as_json=False).out


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
    put_generation(host, 1, "r1", state="serving", pid=pid)
    lines = host.run("status", as_json=False).out.splitlines()
    labels = ["application", "site", "release", "generation", "lock"]
    assert [line[:12].strip() for line in lines] == labels
    assert all(line[12] != " " for line in lines)
