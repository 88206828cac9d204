"""Nothing of a fleet is left, whatever died."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet import keeper
from tests.fleet.hosts import wait_until

pytestmark = pytest.mark.usefixtures("fleet_possible")

OWNER = """
import sys, time
from tests.fleet import Fleet

with Fleet(1) as fleet:
    print(fleet.place.number, fleet.keeper.pid, *(pid for host in fleet for pid in host.pids()), flush=True)
    {then}
"""


class Owner:
    """A process with a fleet."""

    def __init__(self, then: str = "time.sleep(600)") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", OWNER.format(then=then)],
            cwd=keeper.REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        number, self.keeper, *self.pids = map(int, self.process.stdout.readline().split())
        self.place = keeper.Place(number)
        self.key = (self.place.directory / "operator_key.pub").read_text()

    def left(self) -> list[str]:
        """What there is of its fleet on this machine."""
        running = [f"process {pid}" for pid in (self.keeper, *self.pids) if Path(f"/proc/{pid}").exists()]
        key = self.place.directory / "operator_key.pub"
        if key.exists() and key.read_text() != self.key:
            return running  # another test has the number by now
        mounts = Path("/proc/self/mounts").read_text().splitlines()
        links = subprocess.check_output(["ip", "-br", "link"], text=True).splitlines()
        routes = subprocess.check_output(["ip", "route", "show", "table", "all"], text=True).splitlines()
        cgroups = [str(cgroup) for cgroup in self.place.cgroups() if cgroup.exists()]
        return [
            *running,
            *(f"mount {line}" for line in mounts if "/fleet/web" in line or self.place.name in line),
            *(f"link {line}" for line in links if self.place.cable in line.split("@")[0].split()),
            *(f"route {line}" for line in routes if self.place.subnet.removesuffix(".0/24") + "." in line),
            *(f"cgroup {path}" for path in cgroups),
            *([f"directory {self.place.directory}"] if self.place.directory.exists() else []),
        ]


@pytest.fixture
def owner() -> Iterator[Owner]:
    owner = Owner()
    yield owner
    owner.process.kill()
    owner.process.communicate()
    wait_until(lambda: not owner.left(), lambda: f"no trace of the fleet: {owner.left()}")


def gone(owner: Owner) -> None:
    wait_until(lambda: not owner.left(), lambda: f"no trace of the fleet: {owner.left()}")


def test_a_running_fleet_is_found_whole_and_a_sweep_leaves_it_alone(owner: Owner) -> None:
    kinds = {line.split()[0] for line in owner.left()}
    assert kinds == {"process", "link", "route", "cgroup", "directory"}
    mounts = Path(f"/proc/{owner.pids[0]}/mounts").read_text()
    assert "overlay" in mounts, "they are nowhere but in its own namespace"
    assert owner.place.number not in keeper.sweep()
    assert owner.place.number in keeper.living()
    assert {line.split()[0] for line in owner.left()} == kinds


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGKILL,
        pytest.param(signal.SIGTERM, marks=pytest.mark.exhaustive),
        pytest.param(signal.SIGINT, marks=pytest.mark.exhaustive),
    ],
)
def test_nothing_is_left_when_the_owner_is_killed(owner: Owner, number: signal.Signals) -> None:
    owner.process.send_signal(number)
    gone(owner)


@pytest.mark.exhaustive
def test_nothing_is_left_when_the_owner_ends_with_an_error() -> None:
    owner = Owner(then="raise SystemExit('the test failed')")
    gone(owner)
    assert owner.process.wait(10) == 1


def test_nothing_is_left_when_the_keeper_is_killed_and_the_owner_goes_on() -> None:
    owner = Owner(then="sys.stdin.read() if False else time.sleep(1)")
    os.kill(owner.keeper, signal.SIGKILL)
    assert owner.process.wait(60) == 0
    gone(owner)


def test_after_the_death_of_both_no_host_runs_and_the_next_start_sweeps_the_rest(owner: Owner) -> None:
    os.kill(owner.keeper, signal.SIGKILL)
    owner.process.kill()
    wait_until(
        lambda: not [line for line in owner.left() if line.startswith(("process", "link"))],
        lambda: f"the kernel to end what ran: {owner.left()}",
    )
    done = subprocess.run(
        [sys.executable, "-m", "tests.fleet", "down"],
        cwd=keeper.REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "removed what was left of" in done.stdout
    gone(owner)
