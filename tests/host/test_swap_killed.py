"""`swap` that is killed, or refused something by the kernel, between any two of its steps; with visitors."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tests.support.interrupts import STEPS, calls_of, killed_at
from tests.support.swapsite import Site, Visitors

pytestmark = pytest.mark.timeout(600)  # a hundred runs of a program


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as site:
        site.first()
        site.release("r2")
        yield site


def test_killed_between_any_two_of_its_steps_it_is_finished_by_the_next_one_and_nobody_notices(
    site: Site,
) -> None:
    """The steps are all that it does to files, sockets and processes; the next swap has the same run id."""
    steps = calls_of(lambda under: site.swap("--release", "r2", under=under), STEPS)
    assert len(steps) > 15
    with Visitors(site, count=3) as visitors:
        for turn, step in enumerate(steps):
            release = f"r{1 + turn % 2}"
            wanted = ("--release", release, "--run-id", f"run-{turn}")
            assert site.swap(*wanted, under=killed_at(step)).code == -signal.SIGKILL, step
            assert visitors.lost == [], step

            again = site.swap(*wanted)

            assert (again.code, again.json["release"]) == (0, release), (step, again)
            assert os.readlink(site.root / "current") == f"releases/{release}", step
            assert site.serving().release == release
            site.assert_only(site.serving())
    assert visitors.lost == []
