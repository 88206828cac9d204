"""`swap` that is killed, or refused something by the kernel, between any two of its steps; with visitors."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tests.support.interrupts import SOME_OR_EVERY, STEPS, WRITES, calls_of, failing_at, killed_at
from tests.support.swapsite import Site, Visitors, wait_until_idle

pytestmark = pytest.mark.timeout(600)  # a hundred runs of a program


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as site:
        site.first()
        site.release("r2")
        yield site


@SOME_OR_EVERY
def test_killed_between_any_two_of_its_steps_it_is_finished_by_the_next_one_and_nobody_notices(
    site: Site, stride: int
) -> None:
    """The steps are all that it does to files, sockets and processes; the next swap has the same run id."""
    steps = calls_of(lambda under: site.swap("--release", "r2", under=under), STEPS)
    assert len(steps) > 15
    with Visitors(site, count=3) as visitors:
        for turn, step in enumerate(steps[::stride]):
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


@SOME_OR_EVERY
def test_killed_between_any_two_steps_of_its_way_back_it_is_taken_back_by_the_next_one_and_nobody_notices(
    site: Site, stride: int
) -> None:
    """The next one is the same swap again, or the one that a deploy goes back by."""
    site.tune("barrier.py", "BAD_ANSWERS_FOR = 1.0", "BAD_ANSWERS_FOR = 0.0")
    site.release("bad", env={"SICK_BEHIND_WEB": "/health"}, health={"path": "/health"})
    assert site.swap("--release", "bad").code == 3  # once, so that what was tuned is compiled
    steps = calls_of(lambda under: site.swap("--release", "bad", under=under), STEPS)
    flips = [number for number, step in enumerate(steps) if '/app.sock") = 0' in step.line]
    assert len(flips) == 2, "there and back"
    way_back = steps[flips[0] + 1 :]
    assert len(way_back) > 8
    killed = []
    with Visitors(site, count=3) as visitors:
        for turn, step in enumerate(way_back[::stride]):
            bad = ("--release", "bad", "--run-id", f"run-{turn}")
            ran = site.swap(*bad, under=killed_at(step))
            killed.append(ran.code == -signal.SIGKILL)
            # What the one before has left may spare it a call, and then there is none of that number.
            assert killed[-1] or (ran.code, "was taken back" in ran.error["what"]) == (3, True), (step, ran)
            assert visitors.lost == [], step

            if turn % 2:
                again = site.swap(*bad)
                assert (again.code, "was taken back" in again.error["what"]) == (3, True), (step, again)
            else:
                again = site.swap("--release", "r1", "--run-id", f"run-{turn}-back")
                assert again.code == 0, (step, again)

            assert os.readlink(site.root / "current") == "releases/r1", step
            assert site.serving().release == "r1"
            site.assert_only(site.serving())
    assert visitors.lost == []
    assert sum(killed) > len(killed) / 2


@SOME_OR_EVERY
def test_killed_between_any_two_steps_of_a_reap_the_next_one_ends_what_is_left(
    site: Site, stride: int
) -> None:
    assert site.swap("--leave").code == 0
    steps = calls_of(lambda under: site.swap("--reap", under=under), STEPS)
    assert len(steps) > 3
    with Visitors(site, count=3) as visitors:
        for step in steps[::stride]:
            assert site.swap("--leave").code == 0
            serving = site.serving()
            for one in site.records():
                if one != serving:
                    wait_until_idle(one)  # a visitor may still be in it, whom a reap would not disturb
            assert site.swap("--reap", under=killed_at(step)).code == -signal.SIGKILL, step

            again = site.swap("--reap")

            assert again.code == 0, (step, again)
            assert site.serving() == serving
            site.assert_only(serving)
    assert visitors.lost == []


@SOME_OR_EVERY
def test_whichever_of_its_writes_finds_no_room_the_site_stays_and_the_message_says_so(
    site: Site, stride: int
) -> None:
    """The kernel refuses one at a time; a disk that is really full is in test_swap_mishaps.py."""
    writes = calls_of(lambda under: site.swap(under=under), WRITES)
    assert len(writes) > 15
    codes = []
    with Visitors(site, count=3) as visitors:
        for write in writes[::stride]:
            if write.line.startswith("write(1"):  # the result itself, on standard output
                continue
            before = site.serving()

            ran = site.swap(under=failing_at(write, "ENOSPC"))

            assert visitors.lost == [], write
            assert ran.code in (0, 3, 7), (write, ran)
            if ran.code != 0:
                assert "No space left on device" in str(ran.error), (write, ran)
            if ran.code == 3:
                assert site.serving() == before, (write, ran)
                assert site.generation() == before.generation
                site.assert_only(before)
            codes.append(ran.code)
        assert site.swap().code == 0
    assert visitors.lost == []
    assert codes.count(3) > 5 / stride
    site.assert_only(site.serving())
