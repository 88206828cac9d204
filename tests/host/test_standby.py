"""A swap that waits for its turn has a generation stand by: all of it is there but the application."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hostlib.swapping import processes

from tests.support.interrupts import STEPS, calls_of, killed_at
from tests.support.runtimes import RUNTIMES
from tests.support.swapsite import Site, Visitors
from tests.support.webhost import wait_until


@pytest.fixture(params=["fd0", pytest.param("path", marks=pytest.mark.exhaustive)])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    """It serves r1, and r2 is there to be swapped to."""
    with Site() as site:
        site.first(listen=request.param)
        site.release("r2", listen=request.param)
        yield site


@contextmanager
def waiting(site: Site, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    argv = [str(site.host.tools / "swap"), *arguments, "--when-told", "--json"]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["waiting"] is True
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def told(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate("go\n", timeout=60)
    assert process.returncode == 0, err
    result: dict[str, Any] = json.loads(out)
    return result


def directories(site: Site) -> set[str]:
    """The releases in which a process works."""
    links = [os.readlink(f"/proc/{pid}/cwd") for pid in site.processes()]
    return {Path(link).name for link in links}


@pytest.mark.parametrize("site", ["fd0", "path"], indirect=True)
def test_its_application_starts_at_the_word_and_not_before(site: Site) -> None:
    before = site.serving()
    with waiting(site, "--release", "r2", "--run-id", "run-1") as swap:
        standing_by = site.records()[-1]
        wait_until(lambda: "r2" in directories(site), what="its runner is there")
        assert (standing_by.generation, standing_by.release) == (2, "r2")
        assert "generation 2 begins" not in site.log()
        assert (site.serving(), site.generation()) == (before, 1)

        result = told(swap)

    assert (result["generation"], result["release"], result["stopped"]) == (2, "r2", [1])
    assert (site.generation(), site.serving().pid) == (2, standing_by.pid)
    assert site.serving().started_at > standing_by.started_at
    site.assert_only(site.serving())


def test_it_is_gone_when_the_word_does_not_come(site: Site) -> None:
    before = site.serving()
    with waiting(site, "--release", "r2") as swap:
        swap.communicate(timeout=60)
    assert swap.returncode == 2
    assert site.generation() == 1
    site.assert_only(before)


def test_what_a_killed_swap_had_ready_is_stopped_by_the_next_one(site: Site) -> None:
    with waiting(site, "--release", "r2") as swap:
        swap.kill()
    assert len(site.records()) == 2

    assert site.swap("--reap").json["stopped"] == [2]

    assert site.generation() == 1
    site.assert_only(site.serving())


def test_where_somebody_has_stopped_it_the_swap_starts_another(site: Site) -> None:
    with waiting(site, "--release", "r2") as swap:
        assert site.swap("--reap").json["stopped"] == [2]
        assert told(swap)["generation"] == 3
    assert site.generation() == 3
    site.assert_only(site.serving())


def test_where_it_died_the_swap_starts_another(site: Site) -> None:
    with waiting(site, "--release", "r2") as swap:
        standing_by = site.records()[-1]
        assert standing_by.pid is not None
        os.kill(standing_by.pid, signal.SIGKILL)
        wait_until(lambda: processes.first_process(standing_by) is None, what="it has ended")
        assert told(swap)["generation"] == 3
    site.assert_only(site.serving())


def test_it_stands_in_no_other_swaps_way(site: Site) -> None:
    """As when a run is resumed or aborted elsewhere while the laptop that began it is only out of reach."""
    with waiting(site, "--release", "r2", "--run-id", "run-1") as gone:
        assert site.swap("--release", "r2", "--run-id", "run-1").code == 0
        result = told(gone)
    assert (result["changed"], result["generation"]) == (False, 3)
    site.assert_only(site.serving())


def test_a_release_whose_turn_never_comes_can_be_discarded_at_once(site: Site) -> None:
    with waiting(site, "--release", "r2") as swap:
        assert swap.stdin is not None
        swap.stdin.close()
        ran = site.host.run("release", "discard", "r2", "--failed")
        assert ran.json["message"] == "release r2 is removed"
        swap.wait(timeout=60)
    assert site.generation() == 1


def test_killed_between_any_two_of_its_steps_it_is_finished_by_the_next_swap_and_nobody_notices() -> None:
    with Site() as site:
        site.first()
        site.release("r2")

        def swap(release: str, under: Any) -> int:
            options: dict[str, Any] = {"stdin": "go\n", "under": under, "as_json": False}
            return int(site.swap("--release", release, "--when-told", **options).code)

        steps = calls_of(lambda under: swap("r2", under), STEPS)
        assert len(steps) > 15
        ended = []
        with Visitors(site, count=3) as visitors:
            for turn, step in enumerate(steps[::8]):
                release = f"r{1 + turn % 2}"
                ended.append(swap(release, killed_at(step)))
                assert site.swap("--release", release).code == 0, step
                site.assert_only(site.serving())
        assert visitors.lost == []
        # One connection of the proof more or less, and there is no such step.
        assert set(ended) <= {0, -signal.SIGKILL}
        assert ended.count(0) <= 2


def test_with_children_and_nothing_but_their_parent_it_is_the_same() -> None:
    with Site(runtime=RUNTIMES["php-cgi"]) as site:
        site.first()
        site.release("r2")
        with waiting(site, "--release", "r2") as swap:
            told(swap)
        site.assert_only(site.serving())
