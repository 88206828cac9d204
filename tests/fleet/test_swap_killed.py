"""`swap` under systemd, killed between any two of its steps; with visitors."""

from __future__ import annotations

import signal

import pytest

from tests.fleet import Fleet
from tests.fleet.swaphost import ROOT, SwapHost, set_up
from tests.support.interrupts import SOME_OR_EVERY, STEPS, calls_of, killed_at
from tests.support.runtimes import RUNTIMES

FLUP = RUNTIMES["flup"]
KILLED = 128 + signal.SIGKILL

pytestmark = [pytest.mark.fleet(1), pytest.mark.timeout(900)]


@SOME_OR_EVERY
def test_killed_between_any_two_of_its_steps_it_is_finished_by_the_next_one_and_nobody_notices(
    fleet: Fleet, stride: int
) -> None:
    """Its calls of systemctl are among the steps; the next swap has the same run id."""
    set_up(fleet, FLUP)
    host = SwapHost(fleet.hosts[0], FLUP)
    for name in ("r1", "r2"):
        host.release(name)
    assert host.swap("--release", "r1").code == 0
    steps = calls_of(lambda under: host.swap("--release", "r2", under=under), STEPS, read=host.host.read)
    assert sum("clone" in step.name or "vfork" in step.name for step in steps) > 2, "systemctl and others"
    assert len(steps) > 15

    with host.visitors(3) as visitors:
        for turn, step in enumerate(steps[::stride]):
            release = f"r{1 + turn % 2}"
            wanted = ("--release", release, "--run-id", f"run-{turn}")
            assert host.swap(*wanted, under=killed_at(step)).code == KILLED, step
            assert visitors.lost == [], step

            again = host.swap(*wanted)

            assert (again.code, again.json["release"]) == (0, release), (step, again)
            assert host.host.run(["readlink", f"{ROOT}/current"]).stdout == f"releases/{release}\n"
            number = again.json["generation"]
            assert host.units() == {
                f"deploytools-guestbook@{number}.{kind}" for kind in ("socket", "service")
            }, step
    assert visitors.lost == []
