"""Generations as plain processes: kept running, ended without mercy, never mistaken for somebody else's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hostlib.releasing.manifest import App
from hostlib.swapping import processes, unixsockets
from hostlib.swapping.direct import Direct
from hostlib.swapping.generations import Life, Record
from hostlib.swapping.managers import Managers

from tests.support.swapsite import Site
from tests.support.webhost import end, wait_until

PRINT_ENVIRONMENT = "import json, os, time; print(json.dumps(dict(os.environ)), flush=True); time.sleep(60)"
STARTED_AGAIN = """
import json, os, sys, time
from hostlib.program import Config
from hostlib.swapping import processes
from hostlib.swapping.direct import Direct
from hostlib.swapping.generations import Record

leader = os.fork()
if leader == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(60)
    os._exit(0)
os.waitpid(leader, 0)

def daemon():
    return [one for one in processes.every() if one.session == leader and not one.dead]

assert daemon()
config = Config.of(json.load(open(sys.argv[1])))
record = Record(
    1, "r1", "direct", "/nowhere", 0.0, pid=leader, start_time=int(sys.argv[2]), boot_id=processes.boot_id()
)
Direct(config, term_grace=1).stop(record)
print("the daemon lives" if daemon() else "the daemon was ended")
"""
SHELL = "trap '' TERM; (trap '' TERM; while :; do sleep 0.1; done) & while :; do sleep 0.1; done"


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    try:
        (site.root / "releases" / "r1").mkdir()
        yield site
    finally:
        site.__exit__()


@pytest.fixture
def in_background() -> Iterator[Callable[..., Future[Any]]]:
    with ThreadPoolExecutor() as pool:
        yield pool.submit


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    yield process
    end(process)


def app(*argv: str, **changes: Any) -> App:
    values: dict[str, Any] = {
        "argv": argv, "listen": "fd0", "env": {}, "start_timeout": 5, "drain_timeout": 5, "soak_time": 0,
        "manager": "direct", **changes,
    }  # fmt: skip
    return App(**values)


def start(site: Site, *argv: str, **changes: Any) -> Record:
    return Managers(site.host.hostlib_config).start("r1", app(*argv, **changes))


def look(site: Site, record: Record) -> Life:
    return Managers(site.host.hostlib_config).look(record)


def stop(site: Site, record: Record) -> None:
    Managers(site.host.hostlib_config).stop(record)


# -- stopping ------------------------------------------------------------------------------------------


def test_a_process_and_its_child_that_ignore_sigterm_are_killed_after_the_grace(site: Site) -> None:
    record = start(site, "sh", "-c", SHELL)
    wait_until(lambda: len(site.processes()) >= 4)
    assert look(site, record).ended is None

    Direct(site.host.hostlib_config, term_grace=0.2).stop(record)

    assert site.processes() == []
    assert look(site, record).pid is None


def test_sigterm_is_passed_on_and_everything_ends_without_a_trace(site: Site) -> None:
    record = start(site, "sh", "-c", "trap 'echo asked to end; exit' TERM; while :; do sleep 0.01; done")
    wait_until(lambda: look(site, record).pid)

    stop(site, record)

    assert "asked to end" in site.log()
    assert "started again" not in site.log()
    assert site.processes() == []
    assert site.files() == set()


@pytest.mark.parametrize("away", ["setsid sleep 60", "sh -c 'setsid setsid sleep 60 & exit'"])
def test_a_process_that_leaves_its_session_ends_with_its_generation(site: Site, away: str) -> None:
    record = start(site, "sh", "-c", f"{away} & while :; do sleep 0.05; done")
    wait_until(lambda: any("sleep 60" in command for command in site.commands()))

    stop(site, record)

    assert site.processes() == []


def test_an_application_that_becomes_a_daemon_is_told_to_stay_in_the_foreground_and_ends(site: Site) -> None:
    record = start(site, "sh", "-c", "setsid sleep 60 & exit 0")
    wait_until(lambda: look(site, record).ended)
    assert look(site, record).ended == "it ended with exit status 0 (it must stay in the foreground)"

    stop(site, record)
    assert site.processes() == []


def test_what_is_left_when_somebody_kills_the_supervisor_is_found_by_its_session(site: Site) -> None:
    record = start(site, "sh", "-c", "sleep 60 & sleep 60")
    wait_until(lambda: len(site.processes()) == 4)
    assert record.pid is not None
    os.kill(record.pid, signal.SIGKILL)
    wait_until(lambda: len(site.processes()) == 3)
    assert look(site, record) == Life(None, ended="its process is gone", over=True)

    stop(site, record)
    assert site.processes() == []


@pytest.mark.parametrize("change", [{"start_time": 1}, {"boot_id": "another"}])
def test_a_process_that_was_given_the_same_pid_later_is_left_alone(
    site: Site, stranger: subprocess.Popen[bytes], change: dict[str, Any]
) -> None:
    config = site.host.hostlib_config
    process = processes.find(stranger.pid)
    assert process is not None
    true = {"start_time": process.start_time, "boot_id": processes.boot_id()}
    record = Record(1, "r1", "direct", "/nowhere", 0.0, pid=stranger.pid, **{**true, **change})  # type: ignore[arg-type]
    record.saved(config)

    assert look(site, record).pid is None
    stop(site, record)

    assert stranger.poll() is None
    assert site.records() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can begin a container")
def test_a_container_that_is_started_again_ends_nobody_who_was_given_the_pid_of_a_life_before(
    site: Site,
) -> None:
    """The kernel goes on meanwhile. The session is a daemon's, whose leader has ended."""
    (site.host.base / "again.py").write_text(STARTED_AGAIN)
    began = processes.find(os.getpid())  # like a generation of before the container
    assert began is not None
    arguments = [site.host.base / "again.py", site.host.tools / "config.json", str(began.start_time)]
    ran = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": str(site.host.tools)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout == "the daemon lives\n"


def test_a_record_from_before_its_process_is_cleaned_up(site: Site) -> None:
    config = site.host.hostlib_config
    record = Record(1, "r1", "direct", str(config.run / "app.1.sock"), 0.0).saved(config)
    stop(site, record)
    assert site.files() == set()


def test_a_generation_from_before_there_were_supervisors_is_its_first_process(site: Site) -> None:
    argv = ["sh", "-c", "sleep 60 & sleep 60"]
    with subprocess.Popen(argv, cwd=site.root / "releases", start_new_session=True) as old:
        process = processes.find(old.pid)
        assert process is not None
        record = Record(
            1, "r1", "direct", "/nowhere", 0.0,
            pid=old.pid, start_time=process.start_time, boot_id=processes.boot_id(),
        )  # fmt: skip
        record.saved(site.host.hostlib_config)
        wait_until(lambda: len(site.processes()) == 3)
        assert look(site, record) == Life(old.pid)

        stop(site, record)
    assert site.processes() == []


# -- starting ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "there"), [({}, "0"), ({"PHP_FCGI_MAX_REQUESTS": "9"}, "9")])
def test_php_cgi_is_told_not_to_end_after_500_requests(site: Site, given: dict[str, str], there: str) -> None:
    record = start(site, "sh", "-c", "echo $PHP_FCGI_MAX_REQUESTS; sleep 60", env=given)
    wait_until(lambda: site.log().strip())
    assert site.log().strip() == there
    stop(site, record)


def test_what_cannot_be_started_is_told(site: Site) -> None:
    record = start(site, "no-such-program")
    wait_until(lambda: look(site, record).ended)
    assert look(site, record).ended == "it can't be started: No such file or directory: no-such-program"
    stop(site, record)
    assert site.files() == set()


def test_the_log_is_not_written_through_a_link(site: Site) -> None:
    target = site.root / "precious"
    target.write_text("kept")
    (site.root / "log" / "app.log").symlink_to(target)
    with pytest.raises(OSError, match="symbolic link"):
        start(site, "sh", "-c", "echo overwritten")
    assert target.read_text() == "kept"
    assert site.files() == set()


def test_signals_that_python_ignores_are_not_ignored_by_the_application(site: Site) -> None:
    record = start(site, "sh", "-c", "grep SigIgn /proc/self/status; exec sleep 60")
    wait_until(lambda: "SigIgn" in site.log())
    ignored = int(site.log().split()[1], 16)
    assert not [number for number in (signal.SIGPIPE, signal.SIGXFSZ) if ignored >> (number - 1) & 1]
    stop(site, record)


VALUES = {
    "QUOTES": """it's "both" and `neither`""",
    "DOLLARS": "$HOME ${X} $$ %i %%",
    "LINES": "one\ntwo\t\\n",
    "ACCENTS": "ünï ☃",
    "EMPTY": "",
}


def test_any_value_of_a_variable_reaches_the_application(site: Site) -> None:
    record = start(site, sys.executable, "-c", PRINT_ENVIRONMENT, env=VALUES)
    wait_until(lambda: site.log().strip())
    environment = json.loads(site.log())
    assert {name: environment[name] for name in VALUES} == VALUES
    assert "DEPLOYTOOLS_START" not in environment
    stop(site, record)


# -- a crash -------------------------------------------------------------------------------------------


def test_a_crashed_application_is_started_again_and_answers_what_waited(
    site: Site, in_background: Callable[..., Future[Any]]
) -> None:
    with site.host:
        site.first("r2")
        first = site.pid()
        os.kill(first, signal.SIGSTOP)  # so that requests wait for it
        waiting = [in_background(site.host.get, "/") for _ in range(5)]
        wait_until(lambda: unixsockets.connections(site.serving().socket).queued == 5)

        os.kill(first, signal.SIGKILL)

        assert [answer.result().status for answer in waiting] == [200] * 5
        life = look(site, site.serving())
        assert life == Life(site.pid(), 1, "it was ended by signal 9 (Killed)")
        assert site.pid() != first
        told = site.host.run("status")
        assert told.json["serving"]["restarts"] == 1
        assert "started again once (it was ended by signal 9 (Killed))" in told.json["message"]


def test_one_that_ends_again_and_again_is_started_less_and_less_often(site: Site) -> None:
    record = start(site, "sh", "-c", "exit 3")
    wait_until(lambda: look(site, record).restarts == 3, timeout=20)
    pauses = [float(line.split()[-2]) for line in site.log().splitlines()]
    assert pauses[:4] == [0.1, 0.2, 0.4, 0.8][: len(pauses)]
    assert "it ended with exit status 3" in site.log()
    stop(site, record)
    assert site.processes() == []


def test_a_supervisor_costs_no_processor_time_and_holds_nothing_but_the_socket_and_the_log(
    site: Site,
) -> None:
    record = start(site, "sleep", "60")
    wait_until(lambda: look(site, record).pid)
    place = Path(f"/proc/{record.pid}")
    wait_until(
        lambda: "wait" in (place / "wchan").read_text() or (place / "stat").read_text().split()[2] == "S"
    )
    held = {os.readlink(descriptor) for descriptor in (place / "fd").iterdir()}
    assert {path for path in held if path.startswith("/")} == {
        str(site.root / "log" / "app.log"),
        str(site.host.run_dir / f"app.{record.generation}.life"),
    }
    assert len([path for path in held if path.startswith("socket:")]) == 1
    inherited = {
        os.readlink(descriptor) for descriptor in Path(f"/proc/{look(site, record).pid}/fd").iterdir()
    }
    assert str(site.host.run_dir / f"app.{record.generation}.life") not in inherited
    stop(site, record)
