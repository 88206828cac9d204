"""A migration on a host where systemd runs: it outlives the login that started it."""

from __future__ import annotations

import json
import shlex
import subprocess

import pytest

from tests.fleet import Fleet, Host
from tests.fleet.hosts import wait_until

pytestmark = pytest.mark.fleet(2, suites=("bookworm", "trixie"))

TOOLS = "/usr/local/lib/deploytools/guestbook"
RUN = "/srv/guestbook/migrations"
WORK = "/srv/guestbook/shared"

# The "database" is a file; the migration says that it is at work, and goes on when the test says so.
STATUS = f"""#!/bin/sh
if [ -e {WORK}/migrated ]; then echo '[X] first'; else echo '[ ] first'; fi
"""
APPLY = f"""#!/bin/sh
echo at work; touch {WORK}/at-work
while [ ! -e {WORK}/go ]; do sleep 0.05; done
touch {WORK}/migrated
"""


@pytest.fixture(scope="module")
def set_up(fleet: Fleet) -> Fleet:
    """Every host has the toolkit, and a release with a migration that waits for the test."""
    migrate = {
        "adapter": "command",
        "python": "/usr/bin/python3",
        "cwd": "{release}",
        "status": "./status",
        "apply": "./apply",
    }
    fleet.operator.fab("setup", "--as-user", "root", "--yes")
    for host in fleet:
        release = "/srv/guestbook/releases/r1"
        host.run(["mkdir", "-p", release])
        described = {"id": "r1", "migrate": migrate}
        host.write(f"{release}/.deploytools.json", json.dumps(described), mode=0o600, owner="deploy")
        host.write(f"{release}/status", STATUS, mode=0o755)
        host.write(f"{release}/apply", APPLY, mode=0o755)
    return fleet


# What the two versions of systemd may differ in; for all else Debian 12 is enough, but in `make test-all`.
BOTH = pytest.mark.parametrize("host", ["web1", "web2"], indirect=True)


@pytest.fixture(params=["web1", pytest.param("web2", marks=pytest.mark.exhaustive)])
def host(set_up: Fleet, request: pytest.FixtureRequest) -> Host:
    host = set_up[request.param]
    host.run(f"rm -f {WORK}/at-work {WORK}/go {WORK}/migrated; rm -rf {RUN}/* {RUN}/.[a-z]*")
    return host


def migrate(fleet: Fleet, host: Host, *words: str) -> list[str]:
    """The argv of `migrate` over ssh as the deploy user, who becomes root by sudo."""
    command = shlex.join([f"{TOOLS}/migrate", *words, "--json"])
    return fleet.ssh(host, command)


def begin(fleet: Fleet, host: Host) -> subprocess.Popen[str]:
    """A migration over ssh, which is at work when this returns."""
    words = ("run", "run1", "--release", "r1", "--target=first")
    follower = subprocess.Popen(
        migrate(fleet, host, *words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )

    def at_work() -> bool:
        assert follower.poll() is None, follower.communicate()
        return host.exists(f"{WORK}/at-work")

    wait_until(at_work, lambda: "the migration is not at work")
    return follower


def outcome(host: Host, *options: str) -> dict[str, object]:
    ran = host.run([f"{TOOLS}/migrate", "outcome", "run1", *options, "--json"], check=False)
    told: dict[str, object] = json.loads(ran.stdout)
    return told


def cgroups(host: Host) -> set[str]:
    """The cgroups of the runner, the adapter and the migration."""
    search = "grep -sl -e migration_runner -e command_adapter -e ./apply /proc/[0-9]*/cmdline"
    listed = host.run(search, check=False).stdout  # another process may end between the two steps of that
    pids = [path.split("/")[2] for path in listed.split()]
    found = (host.run(["cat", f"/proc/{pid}/cgroup"], check=False).stdout for pid in pids)
    return {text.splitlines()[-1].removeprefix("0::") for text in found if text}


@BOTH
def test_it_runs_in_a_scope_of_its_own_by_its_own_name(set_up: Fleet, host: Host) -> None:
    follower = begin(set_up, host)
    (cgroup,) = cgroups(host)
    assert cgroup.startswith("/system.slice/deploytools-guestbook-migration-run1-")
    assert cgroup.endswith(".scope")
    host.run(["touch", f"{WORK}/go"])
    follower.communicate(timeout=60)
    assert (follower.returncode, outcome(host)["outcome"]) == (0, "applied")
    unit = cgroup.rpartition("/")[2]
    wait_until(
        lambda: host.run(["systemctl", "is-active", unit], check=False).returncode != 0,
        lambda: f"{unit} is still there",
    )


def test_it_goes_on_when_all_that_ever_came_by_ssh_is_killed(set_up: Fleet, host: Host) -> None:
    follower = begin(set_up, host)
    host.run(["systemctl", "kill", "--kill-who=all", "--signal=SIGKILL", "ssh.service"])
    host.run("loginctl kill-user deploy --signal=SIGKILL", check=False)
    follower.communicate(timeout=60)
    assert follower.returncode == 255, "ssh lost its connection"
    assert outcome(host)["outcome"] == "running"
    host.run(["touch", f"{WORK}/go"])
    assert outcome(host, "--timeout", "60")["outcome"] == "applied"
    host.run("systemctl reset-failed ssh.service; systemctl restart ssh.service")
    host.wait_until_reachable()


def test_what_waits_goes_on_waiting_when_the_login_is_over(set_up: Fleet, host: Host) -> None:
    words = ("run1", "--release", "r1", "--target=first")
    armed = subprocess.run(
        migrate(set_up, host, "arm", *words), capture_output=True, text=True, timeout=60, check=False
    )
    assert armed.returncode == 0, armed
    host.run(["systemctl", "kill", "--kill-who=all", "--signal=SIGKILL", "ssh.service"])
    host.run("systemctl reset-failed ssh.service; systemctl restart ssh.service")
    host.wait_until_reachable()
    (before,) = cgroups(host)
    host.run(["touch", f"{WORK}/go"])
    ran = subprocess.run(
        migrate(set_up, host, "run", *words), capture_output=True, text=True, timeout=60, check=False
    )
    assert json.loads(ran.stdout)["outcome"] == "applied"
    assert before.startswith("/system.slice/deploytools-guestbook-migration-run1-")


def test_another_account_can_neither_say_go_nor_hold_the_lock_but_status_sees_it(
    set_up: Fleet, host: Host
) -> None:
    follower = begin(set_up, host)
    for user in ("www-data", "nobody"):
        held = host.run(["flock", "--nonblock", f"{RUN}/run1/lock", "true"], user=user, check=False)
        assert "Permission denied" in held.stderr
    status = json.loads(host.run([f"{TOOLS}/status", "--json"], user="deploy").stdout)
    assert status["migration"]["run_id"] == "run1"
    host.run(["touch", f"{WORK}/go"])
    follower.communicate(timeout=60)


def test_a_power_cut_leaves_an_outcome_that_is_unknown_and_starts_nothing_by_itself(
    set_up: Fleet, host: Host
) -> None:
    follower = begin(set_up, host)
    host.power_off()
    host.boot()
    follower.communicate(timeout=120)
    told = outcome(host)
    assert told["outcome"] == "unknown"
    assert not host.exists(f"{WORK}/migrated")
    again = host.run(
        [f"{TOOLS}/migrate", "run", "run1", "--release", "r1", "--target=first", "--json"], check=False
    )
    assert json.loads(again.stdout)["outcome"] == "unknown"
