"""Generations as systemd units, on real hosts: what `swap` promises, whatever happens to app and host."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from tests.fleet import Fleet, Host
from tests.fleet.hosts import wait_until
from tests.fleet.swaphost import SwapHost, set_up
from tests.support import load
from tests.support.runtimes import RUNTIMES

FLUP = RUNTIMES["flup"]
TOOLS = "/usr/local/lib/deploytools/guestbook"
RUN = "/srv/guestbook/run"
VALUES = {
    "QUOTES": """it's "both" and `neither`""",
    "DOLLARS": "$HOME ${X} $$ %i %%",
    "LINES": "one\ntwo\t\\n",
    "ACCENTS": "ünï ☃",
    "EMPTY": "",
}

pytestmark = pytest.mark.fleet(2, suites=("bookworm", "trixie"), packages=["libpam-systemd"])


@pytest.fixture(scope="module", autouse=True)
def deployed(fleet: Fleet) -> None:
    """Hosts that were set up and serve a first release."""
    set_up(fleet, FLUP)

    def begin(host: Host) -> None:
        there = SwapHost(host, FLUP)
        there.release("r1")
        assert there.swap("--release", "r1").code == 0

    fleet.in_parallel(begin)


# What the two versions of systemd may differ in is tried on both; for all else Debian 12 is enough, but in
# `make test-all`.
BOTH = pytest.mark.parametrize("host", ["web1", "web2"], indirect=True)
BOTH_MANAGERS = pytest.mark.parametrize(
    ("host", "manager"),
    [
        ("web1", "systemd"),
        pytest.param("web1", "direct", marks=pytest.mark.exhaustive),
        pytest.param("web2", "systemd", marks=pytest.mark.exhaustive),
        ("web2", "direct"),
    ],
    indirect=["host"],
)


@pytest.fixture(params=["web1", pytest.param("web2", marks=pytest.mark.exhaustive)])
def host(fleet: Fleet, request: pytest.FixtureRequest) -> Host:
    """One after the other, a host of each suite."""
    return fleet[request.param]


@pytest.fixture
def in_background() -> Iterator[Callable[..., Future[Any]]]:
    with ThreadPoolExecutor() as pool:
        yield pool.submit


def release(host: Host, name: str, **app: Any) -> str:
    """A copy of the current release with other keys in `app`."""
    place = f"/srv/guestbook/releases/{name}"
    host.run(["cp", "-a", "/srv/guestbook/current/", place])
    manifest = json.loads(host.read(f"{place}/.deploytools.json"))
    manifest["app"].update(app)
    host.write(f"{place}/.deploytools.json", json.dumps(manifest), mode=0o600, owner="deploy")
    return name


def swap(host: Host, *arguments: str, code: int = 0) -> dict[str, Any]:
    ran = host.run([f"{TOOLS}/swap", *arguments, "--json"], check=False)
    assert ran.returncode == code, ran
    told: dict[str, Any] = json.loads(ran.stdout)
    return told


def status(host: Host) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(host.run([f"{TOOLS}/status", "--json"], user="deploy").stdout)
    return told


def serving(host: Host) -> dict[str, Any]:
    now: dict[str, Any] = status(host)["serving"]
    return now


def generation(host: Host) -> int:
    """The one that answers a visitor."""
    return int(host.get("/").headers["x-generation"])


def units(host: Host) -> set[str]:
    """The units of all generations that systemd has in memory."""
    argv = ["systemctl", "list-units", "--all", "--plain", "--no-legend", "deploytools-guestbook@*"]
    return {line.split()[0] for line in host.run(argv).stdout.splitlines()}


def of_generation(number: int) -> set[str]:
    return {f"deploytools-guestbook@{number}.{kind}" for kind in ("socket", "service")}


def property_of(host: Host, unit: str, name: str) -> str:
    return host.run(["systemctl", "show", unit, "--value", f"--property={name}"]).stdout.strip()


def describe(host: Host) -> dict[str, Any]:
    """How the application finds itself."""
    told: dict[str, Any] = json.loads(host.get("/self").text)
    return told


def assert_only(host: Host, number: int) -> None:
    """Of all other generations there is no unit, no file and no process."""
    assert units(host) == of_generation(number)
    kinds = {f"app.{number}.{kind}" for kind in ("sock", "json", "env")}
    assert set(host.run(["ls", RUN]).stdout.split()) == kinds | {"app.sock", "generation", "swap.lock"}
    pid = serving(host)["pid"]
    assert host.run("grep -lz DEPLOYTOOLS_GENERATION /proc/[0-9]*/environ || true").stdout.split() == [
        f"/proc/{pid}/environ"
    ]


def visitors(host: Host, **options: Any) -> load.Visitors:
    return load.Visitors((host.address, 80), **options)


# -- the way it is run -----------------------------------------------------------------------------------


@BOTH
def test_where_systemd_runs_it_is_the_manager_and_the_application_runs_as_its_release_says(
    host: Host,
) -> None:
    swap(host, "--release", release(host, "values", env=VALUES))

    now, described = serving(host), describe(host)

    assert (now["manager"], now["alive"], now["restarts"], now["ended"]) == ("systemd", True, 0, None)
    service = f"deploytools-guestbook@{now['generation']}.service"
    assert int(property_of(host, service, "MainPID")) == now["pid"] == described["pid"]
    assert property_of(host, service, "OOMPolicy") == "continue"
    assert set(described["ids"]) == {33}
    assert described["directory"] == "/srv/guestbook/releases/values"
    environment = described["environment"]
    assert {name: environment.pop(name) for name in VALUES} == VALUES
    assert set(environment) - {"LC_CTYPE"} == {
        "PATH", "HOME", "LANG", "DEPLOYTOOLS_RELEASE", "DEPLOYTOOLS_GENERATION", "PHP_FCGI_MAX_REQUESTS",
    }  # fmt: skip
    listener = described["descriptors"].pop("0")
    assert listener.startswith("socket:")
    copies = [number for number, target in described["descriptors"].items() if target == listener]
    flags = [host.read(f"/proc/{now['pid']}/fdinfo/{number}").split()[3] for number in copies]
    assert all(int(flag, 8) & os.O_CLOEXEC for flag in flags), "it was passed once; flup made a copy"
    assert host.run(["stat", "-c", "%U %a", f"{RUN}/app.{now['generation']}.env"]).stdout == "root 600\n"
    assert_only(host, now["generation"])


def test_swaps_under_load_lose_no_request(host: Host) -> None:
    first = swap(host)["generation"]
    with visitors(host) as guests:
        for number in range(6):
            told = swap(host)
            assert told["generation"] == first + number + 1
            wait_until(lambda: guests.generations[str(told["generation"])], lambda: "a visitor", 30)  # noqa: B023
    assert guests.lost == []
    assert guests.requests > 200
    assert_only(host, first + 6)


def test_an_application_that_binds_its_socket_itself_has_no_socket_unit(host: Host) -> None:
    name = release(host, "binds", listen="path")
    with visitors(host, count=3) as guests:
        number = swap(host, "--release", name)["generation"]
        assert units(host) == {f"deploytools-guestbook@{number}.service"}
        assert swap(host)["generation"] == generation(host) == number + 1
        swap(host, "--release", "values")
    assert guests.lost == []
    assert_only(host, number + 2)


def test_the_manager_may_change_from_one_release_to_the_next(host: Host) -> None:
    with visitors(host, count=3) as guests:
        number = swap(host, "--release", release(host, "plain", manager="direct"))["generation"]
        now = serving(host)
        assert (now["generation"], now["manager"]) == (number, "direct")
        assert units(host) == set()
        group = host.read(f"/proc/{now['pid']}/cgroup")
        assert ".scope" in group, "it is in no login and in no service"
        assert generation(host) == number
        swap(host, "--release", "values")
        assert serving(host)["manager"] == "systemd"
    assert guests.lost == []
    assert_only(host, number + 1)


def test_operators_limit_the_application_by_a_drop_in(host: Host) -> None:
    drop_in = "/etc/systemd/system/deploytools-guestbook@.service.d/ours.conf"
    sandbox = "[Service]\nNoNewPrivileges=yes\nProtectSystem=strict\nPrivateTmp=yes\nCapabilityBoundingSet=\n"
    host.write(drop_in, f"{sandbox}MemoryMax=200M\n")
    host.run(["systemctl", "daemon-reload"])
    try:
        number = swap(host)["generation"]
        assert generation(host) == number
        service = f"deploytools-guestbook@{number}.service"
        assert property_of(host, service, "MemoryMax") == str(200 << 20)
        assert "NoNewPrivs:\t1" in host.read(f"/proc/{serving(host)['pid']}/status")
    finally:
        host.run(f"rm {drop_in} && systemctl daemon-reload")
    swap(host)


@pytest.mark.parametrize(
    ("app", "because"),
    [
        ({"env": {"EXIT": "4"}}, "it ended with exit status 4"),
        pytest.param(
            {"command": "sh -c 'kill -9 $$'"},
            "it was ended by signal 9 (Killed)",
            marks=pytest.mark.exhaustive,
        ),
        pytest.param(
            {"command": "./no-such-program"},
            "it ended with exit status 127 (is there such a program?)",
            marks=pytest.mark.exhaustive,
        ),
        ({"env": {"STATUS": "500"}, "start_timeout": 0.5}, "the last answer was 500"),
        pytest.param({"env": {"EXIT": "0"}}, "it must stay in the foreground", marks=pytest.mark.exhaustive),
    ],
)
def test_a_generation_that_is_not_ready_is_stopped_and_nobody_notices(
    host: Host, app: Mapping[str, Any], because: str
) -> None:
    now = serving(host)
    with visitors(host, count=2) as guests:
        told = swap(host, "--release", release(host, f"bad-{time.monotonic_ns()}", **app), code=3)
    assert because in told["error"]["what"]
    assert guests.lost == []
    assert set(guests.generations) == {str(now["generation"])}
    assert_only(host, now["generation"])


@pytest.mark.parametrize(
    ("command", "because"),
    [("exit 4", "it ended with exit status 4"), ("kill -9 $$$$", "it was ended by signal 9 (Killed)")],
)
def test_how_one_ended_is_known_although_systemd_has_started_it_again(
    host: Host, command: str, because: str
) -> None:
    unit = f"ends-{time.monotonic_ns()}.service"
    again = ["--property=Restart=always", "--property=RestartSec=1ms", "--property=StartLimitIntervalSec=0"]
    host.run(["systemd-run", "--quiet", f"--unit={unit}", *again, "sh", "-c", command])
    asked = "import sys; sys.path.insert(0, sys.argv[1]); from hostlib.swapping import systemd;"
    asked += " print(systemd.ended_before(sys.argv[2]))"
    argv = ["python3", "-c", asked, f"{TOOLS}/current", unit]
    wait_until(lambda: host.run(argv).stdout.strip() == because, lambda: f"{unit}: {because}", 30)
    host.run(["systemctl", "stop", unit])


# -- crashes ---------------------------------------------------------------------------------------------


@BOTH
def test_a_crashed_application_is_started_again_and_what_waited_is_answered(
    host: Host, in_background: Callable[..., Future[Any]]
) -> None:
    number = swap(host)["generation"]
    pid = serving(host)["pid"]
    host.run(["kill", "-STOP", str(pid)])  # so that requests wait for it
    waiting = [in_background(host.get, "/") for _ in range(5)]
    socket = f"{RUN}/app.{number}.sock"
    wait_until(lambda: host.read("/proc/net/unix").count(f" 02     0 {socket}") == 5, lambda: "a queue")

    host.run(["kill", "-KILL", str(pid)])

    assert [answer.result().status for answer in waiting] == [200] * 5
    now = serving(host)
    assert (now["generation"], now["restarts"], now["alive"]) == (number, 1, True)
    assert now["pid"] != pid
    assert swap(host)["stopped"] == [number]
    assert_only(host, number + 1)


def test_one_that_crashes_again_and_again_keeps_its_socket(
    host: Host, in_background: Callable[..., Future[Any]]
) -> None:
    number = swap(host)["generation"]
    service = f"deploytools-guestbook@{number}.service"
    for crash in range(6):  # systemd gives up after five by default
        host.run(["kill", "-KILL", property_of(host, service, "MainPID")])
        wait_until(
            lambda: (
                property_of(host, service, "NRestarts") == str(crash + 1)  # noqa: B023
                and property_of(host, service, "MainPID") != "0"
            ),
            lambda: "a restart",
        )
    assert serving(host)["restarts"] == 6
    assert host.get("/").status == 200
    assert generation(host) == number


# -- reboots ---------------------------------------------------------------------------------------------


def first_answers(host: Host, count: int = 3) -> list[int]:
    """The first answers of the web server after a boot, from the moment that it accepts connections."""
    answers: list[int] = []

    def asked() -> bool:
        try:
            answers.append(host.get("/").status)
        except OSError:
            assert not answers, "it answered before, and then refused"
        return len(answers) >= count

    wait_until(asked, lambda: f"answers: {host.console_text}", 120)
    return answers


def await_the_boot_units_end(host: Host) -> None:
    """Until then it may have the lock that a swap wants."""
    unit = "deploytools-guestbook.service"
    wait_until(lambda: property_of(host, unit, "SubState") == "exited", lambda: f"the end of {unit}")


@BOTH_MANAGERS
def test_after_a_reboot_the_same_generation_serves_and_nobody_is_refused(host: Host, manager: str) -> None:
    if not host.exists(f"/srv/guestbook/releases/slow-{manager}"):
        release(host, f"slow-{manager}", manager=manager, env={"START_DELAY": "1"})
    number = swap(host, "--release", f"slow-{manager}")["generation"]

    host.stop()
    host.boot(wait=False)

    assert first_answers(host) == [200] * 3, "the first ones waited in its socket"
    now = serving(host)
    assert (now["generation"], now["manager"], now["alive"]) == (number, manager, True)
    await_the_boot_units_end(host)
    assert property_of(host, "deploytools-guestbook.service", "Result") == "success"
    assert host.run(["systemctl", "--failed", "--no-legend"]).stdout == ""
    assert swap(host, "--release", "values")["stopped"] == [number]
    assert_only(host, number + 1)


@BOTH
def test_after_a_power_cut_in_the_middle_of_a_swap_what_served_serves(host: Host) -> None:
    number = swap(host)["generation"]
    slow = release(host, f"never-{time.monotonic_ns()}", env={"START_DELAY": "600"}, start_timeout=600)
    swapping = host.start([f"{TOOLS}/swap", "--release", slow])
    wait_until(lambda: of_generation(number + 1) <= units(host), lambda: "the new generation")

    host.power_off()
    swapping.communicate()
    host.boot()

    wait_until(lambda: host.get("/").status == 200, lambda: "an answer")
    assert generation(host) == number
    await_the_boot_units_end(host)
    assert_only(host, number)
    assert swap(host)["generation"] == number + 2


def test_one_that_does_not_come_back_is_replaced_by_a_new_generation(host: Host) -> None:
    """Here because what it was started with is gone; the release is there."""
    number = swap(host)["generation"]
    host.run(f"rm {RUN}/app.{number}.json; sync")
    host.stop()
    host.boot()
    wait_until(lambda: host.get("/").status == 200, lambda: f"an answer: {host.console_text}", 60)
    assert generation(host) == number + 1
    await_the_boot_units_end(host)


# -- going back, and time ----------------------------------------------------------------------------------


def test_back_is_one_rename_and_a_warm_generation_is_stopped_when_its_time_is_over(host: Host) -> None:
    swap(host, "--release", release(host, f"soak-{time.monotonic_ns()}", soak_time=600))
    with visitors(host) as guests:
        told = swap(host)
        old = told["previous_generation"]
        assert told["warm"] == [old]
        back = swap(host, "--back")
        assert (back["generation"], back["stopped"]) == (old, [told["generation"]])
    assert guests.lost == []
    assert_only(host, old)

    swap(host, "--release", release(host, f"brief-{time.monotonic_ns()}", soak_time=1))
    told = swap(host)
    assert told["warm"] == [told["previous_generation"]]
    wait_until(lambda: units(host) == of_generation(told["generation"]), lambda: "its end", 30)


@BOTH_MANAGERS
def test_the_application_outlives_the_login_that_swapped(fleet: Fleet, host: Host, manager: str) -> None:
    host.write("/etc/systemd/logind.conf.d/kill.conf", "[Login]\nKillUserProcesses=yes\nUserStopDelaySec=0\n")
    host.run(["systemctl", "restart", "systemd-logind"])
    name = release(host, f"login-{manager}-{time.monotonic_ns()}", manager=manager)
    done = subprocess.run(
        fleet.ssh(host, f"cat /proc/self/cgroup; {TOOLS}/swap --release {name} --json"),
        capture_output=True,
        text=True,
        check=True,
    )
    *cgroups, told = done.stdout.splitlines()
    assert any("session-" in cgroup for cgroup in cgroups), "it was a login in the eyes of logind"
    argv = ["loginctl", "list-sessions", "--no-legend"]
    wait_until(lambda: " deploy " not in host.run(argv).stdout, lambda: "the end of the login")
    assert generation(host) == json.loads(told)["generation"]
    assert serving(host)["alive"]
