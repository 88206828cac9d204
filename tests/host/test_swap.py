"""`swap` on real hosts: lighttpd in front of flup and php-cgi, and visitors who check every answer."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hostlib.swapping import processes, swaplock, unixsockets

from tests.support.interrupts import WRITES, calls_of, failing_at, killed_at
from tests.support.runtimes import RUNTIMES
from tests.support.swapsite import Site, Visitors, wait_until_idle
from tests.support.webhost import wait_until

PHP = RUNTIMES["php-cgi"]
FOUR_CHILDREN = {"PHP_FCGI_CHILDREN": "4"}
ONE_PROCESS = {"PHP_FCGI_CHILDREN": "0"}


@pytest.fixture
def make_site() -> Iterator[Callable[..., Site]]:
    with ExitStack() as stack:

        def make(**options: Any) -> Site:
            return stack.enter_context(Site(**options))

        yield make


@pytest.fixture
def site(make_site: Callable[..., Site]) -> Site:
    return make_site()


@pytest.fixture
def in_background() -> Iterator[Callable[..., Future[Any]]]:
    with ThreadPoolExecutor() as pool:
        yield pool.submit


# -- the way it goes -------------------------------------------------------------------------------


def test_the_first_swap_puts_a_release_on_the_air(site: Site) -> None:
    site.release("r1")

    ran = site.swap("--release", "r1", "--run-id", "run-1")

    assert ran.code == 0
    assert (ran.json["changed"], ran.json["generation"], ran.json["release"]) == (True, 1, "r1")
    assert (ran.json["previous_generation"], ran.json["stopped"]) == (None, [])
    assert 0 < ran.json["ready_in"] < 10
    assert site.generation() == 1
    assert os.readlink(site.root / "current") == "releases/r1"
    assert os.readlink(site.host.run_dir / "app.sock") == "app.1.sock"
    assert (site.host.run_dir / "app.1.sock").stat().st_mode & 0o777 == 0o660
    assert "generation 1 begins" in site.log()
    site.assert_only(site.serving())


def test_a_swap_replaces_the_process_on_the_current_release_and_leaves_nothing_of_the_old_one(
    site: Site,
) -> None:
    old = site.first()

    ran = site.swap()

    assert ran.code == 0
    assert (ran.json["generation"], ran.json["previous_generation"], ran.json["stopped"]) == (2, 1, [1])
    assert (ran.json["release"], ran.json["previous_release"]) == ("r1", "r1")
    assert site.generation() == 2
    assert site.serving().pid != old.pid
    site.assert_only(site.serving())


def test_by_hand_it_tells_in_words_what_it_did(site: Site) -> None:
    site.first()
    ran = site.swap(as_json=False)
    assert ran.out.startswith("generation 2 (release r1) serves; it was ready in 0.")
    assert ran.out.endswith("; stopped: 1\n")


def test_the_same_run_id_again_changes_nothing_and_another_one_does(site: Site) -> None:
    site.release("r1")
    first = site.swap("--release", "r1", "--run-id", "run-1")
    served = site.serving()

    again = site.swap("--release", "r1", "--run-id", "run-1")
    assert (again.code, again.json["changed"], again.json["generation"]) == (0, False, 1)
    assert site.serving() == served

    other = site.swap("--release", "r1", "--run-id", "run-2")
    assert (first.json["changed"], other.json["changed"], other.json["generation"]) == (True, True, 2)


def test_the_same_run_id_starts_it_again_when_it_has_crashed_since(site: Site) -> None:
    site.release("r1")
    site.swap("--release", "r1", "--run-id", "run-1")
    kill(site.serving().pid, site.pid())

    ran = site.swap("--release", "r1", "--run-id", "run-1")

    assert (ran.code, ran.json["changed"]) == (0, True)
    assert site.generation() == 2
    site.assert_only(site.serving())


def test_an_application_that_is_gone_with_its_supervisor_is_simply_started_anew(site: Site) -> None:
    kill(site.first().pid, site.pid())
    assert site.host.get("/").status == 503

    assert site.swap().code == 0
    assert site.generation() == 2
    site.assert_only(site.serving())


def test_generation_numbers_are_never_given_twice(site: Site) -> None:
    site.first()
    site.release("bad", env={"EXIT": "1"})
    assert site.swap("--release", "bad").code == 3
    assert site.swap().json["generation"] == 3


def test_a_swap_in_maintenance_proves_itself_through_the_bypass(site: Site) -> None:
    site.first()
    assert site.host.run("down").code == 0

    ran = site.swap()

    assert (ran.code, ran.json["generation"]) == (0, 2), ran
    assert site.host.get("/").in_maintenance
    assert site.host.run("up").code == 0
    assert site.generation() == 2


# -- nothing is lost -------------------------------------------------------------------------------


def test_ten_swaps_under_load_lose_no_request_of_a_threaded_application(
    make_site: Callable[..., Site],
) -> None:
    site = make_site(max_workers=3)
    site.first()
    site.release("r2")

    with Visitors(site, interval=0) as visitors:
        for number in range(10):
            ran = site.swap("--release", f"r{1 + number % 2}")
            assert ran.code == 0, ran
            at_least_one_more(visitors, ran.json["generation"])

    assert visitors.lost == []
    assert visitors.answered > 1000
    site.assert_only(site.serving())


def test_ten_swaps_under_load_lose_no_request_of_php_and_no_old_code_answers_after_one(
    make_site: Callable[..., Site],
) -> None:
    site = make_site(runtime=PHP, max_workers=2)
    for name in ("r1", "r2"):
        site.release(name, env=FOUR_CHILDREN)
    assert site.swap("--release", "r2").code == 0

    with Visitors(site, interval=0) as visitors:
        for number in range(10):
            ran = site.swap("--release", f"r{1 + number % 2}")
            assert ran.code == 0, ran
            for _ in range(8):
                answer = site.host.get("/index.php")
                assert answer.text == f"hello from {answer.headers['x-release']}"
            at_least_one_more(visitors, ran.json["generation"])

    assert visitors.lost == []
    assert visitors.answered > 1000
    site.assert_only(site.serving())


def test_an_application_that_binds_its_socket_itself_is_swapped_as_well(site: Site) -> None:
    site.first(listen="path")
    site.release("r2", listen="path")
    with Visitors(site, count=3) as visitors:
        for release in ("r2", "r1", "r2"):
            ran = site.swap("--release", release)
            assert ran.code == 0, ran
            at_least_one_more(visitors, ran.json["generation"])
    assert visitors.lost == []
    assert site.files() == {"app.sock", *(f"app.4.{kind}" for kind in ("sock", "json", "d", "env", "life"))}


def test_a_long_request_in_the_old_generation_is_finished(
    site: Site, in_background: Callable[..., Future[Any]]
) -> None:
    site.first(drain_timeout=60)
    go = site.root / "go"
    slow = in_background(site.host.get, f"/until?{go}", timeout=60)
    wait_until(lambda: "until begins" in site.log())

    swap = in_background(site.swap)
    wait_until(lambda: site.records()[0].state == "draining")
    go.touch()

    answer = slow.result()
    assert (answer.status, answer.text, answer.headers["x-generation"]) == (200, "hello from r1", "1")
    assert (swap.result().code, swap.result().json["stopped"]) == (0, [1])
    assert site.generation() == 2
    site.assert_only(site.serving())


def test_requests_that_still_wait_in_the_old_queue_are_answered_by_it(
    make_site: Callable[..., Site], in_background: Callable[..., Future[Any]]
) -> None:
    site = make_site(runtime=PHP)
    site.release("r1", env=ONE_PROCESS)  # so one request at a time
    site.swap("--release", "r1")
    old = site.serving()
    slow = [in_background(site.host.get, "/index.php/slow?0.4") for _ in range(3)]
    wait_until(lambda: unixsockets.connections(old.socket).queued == 2)

    ran = site.swap()

    assert (ran.code, ran.json["stopped"]) == (0, [1])
    assert [(answer.result().status, answer.result().headers["x-generation"]) for answer in slow] == [
        (200, "1")
    ] * 3


# -- an old generation that is not done in time -------------------------------------------------------


def test_past_the_drain_deadline_the_old_generation_is_kept_and_a_later_swap_reaps_it(
    site: Site, in_background: Callable[..., Future[Any]]
) -> None:
    site.first(drain_timeout=0.2)
    go = site.root / "go"
    slow = in_background(site.host.get, f"/until?{go}", timeout=60)
    wait_until(lambda: "until begins" in site.log())

    ran = site.swap()

    assert ran.code == 7
    assert ran.error["what"] == "not stopped: generation 1 (1 connection; not done within 0.2 s)"
    assert ran.error["state"].startswith("generation 2 (release r1) serves")
    assert ran.error["next"].endswith("/swap --reap")
    assert ran.json["kept"][0]["connections"] == 1
    assert [record.state for record in site.records()] == ["draining", "serving"]
    assert site.generation() == 2

    early = site.swap("--reap")
    assert (early.code, early.error["what"]) == (7, "not stopped: generation 1 (1 connection; not done yet)")

    go.touch()
    answer = slow.result()
    assert (answer.status, answer.headers["x-generation"]) == (200, "1")
    wait_until_idle(site.records()[0])
    later = site.swap()
    assert (later.code, sorted(later.json["stopped"])) == (0, [1, 2])
    site.assert_only(site.serving())


def test_reap_stops_what_is_left_over_and_starts_nothing(
    site: Site, in_background: Callable[..., Future[Any]]
) -> None:
    site.first(drain_timeout=0)
    go = site.root / "go"
    slow = in_background(site.host.get, f"/until?{go}", timeout=60)
    wait_until(lambda: "until begins" in site.log())
    assert site.swap().code == 7
    go.touch()
    slow.result()
    wait_until_idle(site.records()[0])

    ran = site.swap("--reap")

    assert (ran.code, ran.json["stopped"], ran.json["generation"]) == (0, [1], 2)
    site.assert_only(site.serving())


def test_off_ends_what_serves_as_before_the_first_release_and_a_request_in_it_is_answered(
    site: Site, in_background: Callable[..., Future[Any]]
) -> None:
    site.first()
    go = site.root / "go"
    answer = in_background(site.get, f"/until?{go}", timeout=60)
    wait_until(lambda: "until begins" in site.log())

    swap = in_background(site.swap, "--off")
    wait_until(lambda: not (site.host.run_dir / "app.sock").is_symlink())
    go.touch()

    ran = swap.result()
    assert (ran.code, ran.json["previous_release"], ran.json["stopped"]) == (0, "r1", [1])
    assert answer.result().status == 200
    assert not (site.root / "current").is_symlink()
    assert (site.files(), site.generations()) == (set(), set())
    assert site.swap("--off").json["changed"] is False
    assert site.swap("--release", "r1").code == 0


def test_where_time_is_short_the_generation_before_runs_on_until_it_is_reaped(site: Site) -> None:
    site.first()

    ran = site.swap("--leave")

    assert (ran.code, ran.json["stopped"], site.generation()) == (0, [], 2)
    assert [record.state for record in site.records()] == ["draining", "serving"]
    assert site.swap("--reap").json["stopped"] == [1]
    site.assert_only(site.serving())


def test_the_children_of_a_killed_php_cgi_serve_on_until_the_swap_and_end_with_it(
    make_site: Callable[..., Site],
) -> None:
    site = make_site(runtime=PHP)
    site.release("r1", env=FOUR_CHILDREN)
    site.swap("--release", "r1")
    site.wait_for_children(4)
    kill(site.pid())
    assert site.generation() == 1
    wait_until(lambda: len(site.processes()) == 1 + 4 + 1 + 4, what="another php-cgi with its children")

    assert site.swap().code == 0
    site.assert_only(site.serving())


# -- a new generation that is no good -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("app", "because"),
    [
        ({"env": {"START_DELAY": "60"}, "start_timeout": 0.4}, "within 0.4 s; the last try got no answer"),
        ({"env": {"EXIT": "4"}}, "it ended with exit status 4"),
        ({"env": {"STATUS": "500"}, "start_timeout": 5}, "the last answer was 500 'hello from bad'"),
        ({"env": {"EXIT": "0"}}, "it must stay in the foreground"),
        ({"env": {"START_DELAY": "60"}, "start_timeout": 0.4, "listen": "path"}, "No such file"),
        ({"command": "sh -c 'kill -9 $$'"}, "it was ended by signal 9 (Killed)"),
        ({"command": "./no-such-program"}, "can't be started"),
    ],
)
def test_a_generation_that_is_not_ready_is_stopped_and_the_public_notices_nothing(
    site: Site, app: dict[str, Any], because: str
) -> None:
    old = site.first()
    site.release("bad", **app)

    with Visitors(site, count=2) as visitors:
        ran = site.swap("--release", "bad")

    assert ran.code == 3
    assert because in ran.error["what"]
    assert visitors.lost == []
    assert set(visitors.generations) == {"1"}
    assert os.readlink(site.root / "current") == "releases/r1"
    assert site.serving() == old
    site.assert_only(old)


def test_an_exit_is_noticed_at_once_and_told_with_the_last_lines_of_the_log(site: Site) -> None:
    site.first()
    site.release("bad", env={"EXIT": "4"}, start_timeout=60)
    began = time.monotonic()

    ran = site.swap("--release", "bad")
    assert time.monotonic() - began < 5
    assert ran.json["details"][:2] == ["generation 2 begins", "no database, I give up"]

    by_hand = site.swap("--release", "bad", as_json=False)
    assert "\n  | no database, I give up\n" in by_hand.err


def test_the_text_that_the_health_check_wants_counts(site: Site) -> None:
    site.release("r1", health={"contains": "hello", "status": 200})
    assert site.swap("--release", "r1").code == 0
    site.release("r2", health={"contains": "goodbye"}, start_timeout=0.3)
    ran = site.swap("--release", "r2")
    assert ran.code == 3
    assert "did not answer 200 from / with 'goodbye' in it within 0.3 s" in ran.error["what"]


def test_a_generation_that_fails_behind_the_web_server_is_taken_back(site: Site) -> None:
    old = site.first()
    site.release("bad", env={"BEHIND_WEB_STATUS": "500"})

    ran = site.swap("--release", "bad")

    assert ran.code == 3
    assert "the web server answers 500, not 200 from /" in ran.error["what"]
    assert "generation 2 (release bad) was stopped" in ran.error["state"]
    assert os.readlink(site.root / "current") == "releases/r1"
    assert site.generation() == 1
    site.assert_only(old)


def test_one_that_serves_already_and_is_not_well_is_told_and_stays(site: Site) -> None:
    """There is nothing to take it back to: the run that brought it is asked for again, after it was done."""
    site.release("r1")
    assert site.swap("--release", "r1", "--run-id", "run-1").code == 0
    described = site.root / "releases/r1/.deploytools.json"
    told = json.loads(described.read_text())
    described.write_text(json.dumps({**told, "health": {**told["health"], "status": 204}}))

    ran = site.swap("--release", "r1", "--run-id", "run-1")

    assert ran.code == 3
    assert "serves already, but the web server answers 200, not 204 from /" in ran.error["what"]
    assert ran.error["state"] == "nothing was changed"
    assert ran.error["next"] == f"look at {site.root}/log/app.log"
    assert site.generation() == 1
    site.assert_only(site.serving())


def test_a_web_server_that_does_not_lead_to_our_socket_is_found_out_and_no_link_is_left(
    make_site: Callable[..., Site],
) -> None:
    site = make_site(backend="elsewhere.sock")
    site.tune("barrier.py", "UNSEEN_FOR = 5.0", "UNSEEN_FOR = 1.0")
    site.host.serve(99, flip=False)  # answers 200 to everything, as the health check wants
    (site.host.run_dir / "elsewhere.sock").symlink_to("app.99.sock")
    site.release("r1")

    ran = site.swap("--release", "r1")

    assert ran.code == 3
    assert "without a connection to" in ran.error["what"]
    assert "fastcgi.server" in ran.error["next"]
    assert site.generations() == set()
    assert not (site.host.run_dir / "app.sock").is_symlink()
    assert not (site.root / "current").is_symlink()


# -- going back ---------------------------------------------------------------------------------------


def test_the_old_generation_stays_warm_and_back_is_one_rename_away(site: Site) -> None:
    old = site.first()
    site.release("r2", soak_time=5)
    ran = site.swap("--release", "r2")
    assert (ran.code, ran.json["warm"], ran.json["stopped"]) == (0, [1], [])
    assert site.records()[0].state == "warm"

    with Visitors(site) as visitors:
        back = site.swap("--back", "--run-id", "run-1")

    assert visitors.lost == []
    assert (back.code, back.json["generation"], back.json["release"]) == (0, 1, "r1")
    assert (back.json["previous_generation"], back.json["stopped"]) == (2, [2])
    assert os.readlink(site.root / "current") == "releases/r1"
    assert site.serving().pid == old.pid
    site.assert_only(site.serving())

    again = site.swap("--back", "--run-id", "run-1")
    assert (again.code, again.json["changed"], again.json["generation"]) == (0, False, 1)


def test_back_without_a_warm_generation_is_refused(site: Site) -> None:
    site.first()
    ran = site.swap("--back")
    assert ran.code == 2
    assert ran.error["next"].startswith("fab rollback; one stays warm for the app.soak_time")
    assert site.generation() == 1


def test_back_under_the_run_id_of_the_swap_forward_goes_back(site: Site) -> None:
    site.first()
    site.release("r2", soak_time=5)
    site.swap("--release", "r2", "--run-id", "run-1")
    assert site.swap("--back", "--run-id", "run-1").json["generation"] == 1
    assert site.swap("--release", "r2", "--run-id", "run-1").json["generation"] == 3


def test_a_way_back_that_fails_stays_open(site: Site) -> None:
    site.first(soak_time=600)
    site.release("r2", soak_time=600)
    site.swap("--release", "r2")
    writes = calls_of(lambda under: site.swap("--back", under=under), WRITES)
    site.swap("--release", "r2")

    record = next(write for write in writes if write.name == "rename")
    full = site.swap("--back", under=failing_at(record, "ENOSPC"))
    assert (full.code, full.error["state"]) == (3, "generation 3 (release r2) serves, as before")
    site.host.stop_lighttpd()
    site.tune("barrier.py", "TIMEOUT = 120.0", "TIMEOUT = 0.5")
    unproved = site.swap("--back")
    assert unproved.code == 3
    assert unproved.error["state"].endswith("; generation 1 (release r1) stays warm")
    assert [record.state for record in site.records()] == ["warm", "serving"]
    site.host.start_lighttpd()
    site.tune("barrier.py", "TIMEOUT = 0.5", "TIMEOUT = 120.0")

    assert site.swap("--back").json["generation"] == 1


def test_only_the_last_old_generation_stays_warm(site: Site) -> None:
    site.first(soak_time=5)
    site.swap()
    ran = site.swap("--run-id", "run-3")
    assert (ran.json["generation"], ran.json["warm"], ran.json["stopped"]) == (3, [2], [1])
    again = site.swap("--run-id", "run-3")
    assert (again.json["changed"], again.json["warm"], again.json["stopped"]) == (False, [2], [])


def test_a_warm_generation_that_died_is_no_way_back(site: Site) -> None:
    site.first(soak_time=5)
    site.swap()
    warm = site.records()[0]
    kill(warm.pid, site.pid(warm))
    assert site.swap("--back").code == 2
    assert [record.generation for record in site.records()] == [2]


def test_a_warm_generation_is_stopped_by_itself_when_its_time_is_over(site: Site) -> None:
    site.first(soak_time=0.1)
    assert site.swap().json["warm"] == [1]
    wait_until(lambda: len(site.records()) == 1, timeout=10, what="the warm generation is reaped")
    wait_until(lambda: len(site.processes()) == 2, what="its timer ends")
    site.assert_only(site.serving())


# -- killed in between ----------------------------------------------------------------------------------


def test_a_swap_killed_at_any_moment_is_finished_by_the_next_one_and_nobody_notices(site: Site) -> None:
    site.first()
    site.release("r2")
    took = measured(lambda: site.swap("--release", "r2"))
    chance = random.Random(20)  # noqa: S311 - the moments should be the same in each run
    interrupted = 0

    with Visitors(site, count=3) as visitors:
        for number in range(8):
            arguments = ("--release", f"r{1 + number % 2}", "--run-id", f"run-{number}")
            swap = site.host.start("swap", *arguments)
            time.sleep(chance.uniform(0.2, 1.2) * took)
            swap.kill()
            swap.communicate()
            interrupted += swap.returncode == -signal.SIGKILL

            again = site.swap(*arguments)

            assert again.code == 0, again
            assert again.json["release"] == arguments[1]
            assert os.readlink(site.root / "current") == f"releases/{arguments[1]}"
            site.assert_only(site.serving())

    assert visitors.lost == []
    assert interrupted > 2, "the kills came too late to show anything"


def test_a_half_started_generation_of_a_killed_swap_is_cleaned_up(site: Site) -> None:
    old = site.first()
    site.release("slow", env={"START_DELAY": "60"}, start_timeout=60)
    swap = site.host.start("swap", "--release", "slow")
    wait_until(lambda: "generation 2 begins" in site.log())
    kill_swap(swap)
    assert len(site.generations()) == 2

    ran = site.swap()

    assert (ran.code, ran.json["generation"], sorted(ran.json["stopped"])) == (0, 3, [1, 2])
    assert site.serving().pid != old.pid
    site.assert_only(site.serving())


def test_a_swap_killed_while_it_drains_is_finished_under_the_same_run_id(
    site: Site, in_background: Callable[..., Future[Any]]
) -> None:
    site.first()
    site.release("r2")
    go = site.root / "go"
    slow = in_background(site.host.get, f"/until?{go}", timeout=60)
    wait_until(lambda: "until begins" in site.log())
    swap = site.host.start("swap", "--release", "r2", "--run-id", "run-1")
    wait_until(lambda: len(site.records()) == 2 and site.serving().generation == 2)
    kill_swap(swap)
    go.touch()

    ran = site.swap("--release", "r2", "--run-id", "run-1")

    assert (ran.code, ran.json["changed"], ran.json["stopped"]) == (0, False, [1])
    assert slow.result().status == 200
    assert os.readlink(site.root / "current") == "releases/r2"
    site.assert_only(site.serving())


def test_a_way_back_that_was_cut_off_before_its_barrier_keeps_what_it_leads_away_from(site: Site) -> None:
    site.first(soak_time=600)
    site.swap("--run-id", "run-1")
    steps = calls_of(lambda under: site.swap("--back", "--run-id", "run-2", under=under), "rename")
    flip = next(number for number, step in enumerate(steps) if step.line.endswith('/app.sock") = 0'))
    site.swap("--run-id", "run-3")
    cut = site.swap("--back", "--run-id", "run-4", under=killed_at(steps[flip + 1]))
    assert (cut.code, site.serving().generation) == (-signal.SIGKILL, 1)

    assert site.swap("--reap").code == 7
    assert [record.generation for record in site.records()] == [1, 3]
    assert site.swap("--back", "--run-id", "run-4").json["stopped"] == [3]
    site.assert_only(site.serving())


@pytest.mark.parametrize("then", [("--release", "bad"), ("--reap",)])
def test_half_a_flip_of_a_killed_swap_is_taken_back_whatever_comes_next(
    site: Site, then: tuple[str, ...]
) -> None:
    """Or the old generation of a PHP application goes on with the scripts of the new release."""
    old = site.first()
    site.release("r2")
    site.release("bad", env={"EXIT": "1"})
    steps = calls_of(lambda under: site.swap("--release", "r2", under=under), "rename")
    flip = next(step for step in steps if step.line.endswith('/app.sock") = 0'))
    site.swap("--release", "r1")
    assert site.swap("--release", "r2", under=killed_at(flip)).code == -signal.SIGKILL
    assert os.readlink(site.root / "current") == "releases/r2"

    assert site.swap(*then).code == (3 if "bad" in then else 0)

    assert os.readlink(site.root / "current") == "releases/r1"
    assert site.serving().generation == old.generation + 2
    site.assert_only(site.serving())
    assert site.swap().json["release"] == "r1"
    site.assert_only(site.serving())


def test_files_of_a_generation_without_a_record_are_removed_unless_somebody_listens(site: Site) -> None:
    site.first()
    for name in ("app.7.env", "app.7.life", "app.7.sock", "app.8.env"):
        (site.host.run_dir / name).touch()
    (site.host.run_dir / "app.9.d").mkdir()
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as bound_itself:
        listener.bind(str(site.host.run_dir / "app.8.sock"))
        bound_itself.bind(str(site.host.run_dir / "app.9.d" / "app.sock"))
        listener.listen()
        bound_itself.listen()
        assert site.swap().json["generation"] == 10
        assert {name for name in site.files() if name.startswith(("app.7", "app.8", "app.9"))} == {
            "app.8.env", "app.8.sock", "app.9.d",
        }  # fmt: skip
    site.swap()
    site.assert_only(site.serving())


def test_ctrl_c_while_it_starts_leaves_nothing_behind(site: Site) -> None:
    old = site.first()
    site.release("slow", env={"START_DELAY": "60"}, start_timeout=60)
    swap = site.host.start("swap", "--release", "slow")
    wait_until(lambda: "generation 2 begins" in site.log())
    swap.send_signal(signal.SIGINT)
    swap.communicate()
    assert swap.returncode == 130
    site.assert_only(old)


def test_of_two_swaps_at_once_the_second_is_sent_away(site: Site) -> None:
    site.first()
    site.release("slow", env={"START_DELAY": "1"})
    first = site.host.start("swap", "--release", "slow")
    wait_until(lambda: "generation 2 begins" in site.log())

    second = site.swap("--release", "slow")

    assert (second.code, second.error["what"]) == (5, "another swap is at work on this host")
    assert json.loads(first.communicate()[0])["generation"] == 2
    site.assert_only(site.serving())


@pytest.mark.parametrize("reap_comes_first", [True, False])
def test_a_swap_and_the_end_of_a_soak_time_wait_for_each_other(site: Site, reap_comes_first: bool) -> None:
    """`swap --reap` comes by itself: that is nobody's fault, and no reason to send anyone away."""
    site.first()
    with swaplock.one_swap_at_a_time(site.host.hostlib_config, reaping=reap_comes_first):
        waiting = site.host.start("swap", *([] if reap_comes_first else ["--reap"]))
        lock = site.host.run_dir / "swap.lock"
        wait_until(lambda: has_open(waiting.pid, lock) or waiting.poll() is not None)
    out, _ = waiting.communicate(timeout=60)

    assert waiting.returncode == 0, out
    assert site.generation() == (2 if reap_comes_first else 1)
    site.assert_only(site.serving())


def has_open(pid: int, path: Path) -> bool:
    with contextlib.suppress(OSError):
        return any(entry.resolve() == path for entry in Path(f"/proc/{pid}/fd").iterdir())
    return False


# -- after a reboot ---------------------------------------------------------------------------------------


def pull_the_plug(site: Site) -> None:
    """All processes are gone at once, and their sockets lie around."""
    kill(*(record.pid for record in site.records() if record.pid))
    while left := site.processes():
        kill(*left)


def test_after_a_reboot_the_serving_generation_is_started_again_under_its_number(site: Site) -> None:
    old = site.first()
    site.release("r2", soak_time=600)
    site.swap("--release", "r2")
    pull_the_plug(site)

    ran = site.swap("--boot")

    assert (ran.code, ran.json["changed"], ran.json["generation"]) == (0, True, 2), ran
    assert ran.json["stopped"] == [old.generation], "the warm one doesn't come back"
    assert site.generation() == 2
    site.assert_only(site.serving())
    again = site.swap("--boot")
    assert (again.code, again.json["changed"], again.json["generation"]) == (0, False, 2)


def test_after_a_reboot_its_socket_is_there_before_the_web_server_is_let_go(
    site: Site, in_background: Callable[..., Future[Any]]
) -> None:
    site.first(env={"START_DELAY": "2"})
    pull_the_plug(site)
    notified = site.root / "notified"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices:
        notices.bind(str(notified))
        notices.settimeout(60)
        booting = in_background(site.swap, "--boot", NOTIFY_SOCKET=str(notified))

        assert notices.recv(100) == b"READY=1"

        assert not booting.done(), "it goes on to see it healthy"
        assert site.host.get("/").status == 200, "a visitor waits in the socket"
    assert booting.result().code == 0


def test_a_reboot_between_the_two_renames_of_a_flip_ends_with_what_served(site: Site) -> None:
    site.first()
    site.release("r2")
    pull_the_plug(site)
    (site.root / "current").unlink()
    (site.root / "current").symlink_to("releases/r2")

    assert site.swap("--boot").json["release"] == "r1"
    assert os.readlink(site.root / "current") == "releases/r1"
    site.assert_only(site.serving())


def test_one_that_does_not_get_healthy_after_a_reboot_is_replaced_by_a_new_generation(site: Site) -> None:
    broken = site.root / "broken"
    site.first(
        command=f"sh -c 'test ! -e {broken} || exec sleep 600; exec {site.runtime.commands['fd0']}'",
        start_timeout=3,
        drain_timeout=0.1,
    )
    pull_the_plug(site)
    broken.touch()
    # It is mended while `swap` waits.
    booting = site.host.start("swap", "--boot")
    wait_until(lambda: any("sleep" in command for command in site.commands()), what="it hangs")
    broken.unlink()

    told = json.loads(booting.communicate()[0])

    assert (booting.returncode, told["generation"]) == (7, 2)
    assert [one["generation"] for one in told["kept"]] == [1], "a request waits in it: the one that asked"
    assert site.generation() == 2
    # Whoever waits in the socket of one that hangs is answered by the process that comes after it.
    os.kill(site.pid(site.records()[0]), signal.SIGKILL)
    wait_until(lambda: not unixsockets.connections(site.records()[0].socket).total)
    assert site.swap("--reap").json["stopped"] == [1]
    site.assert_only(site.serving())


def test_one_that_crashes_at_the_moment_is_left_to_its_supervisor(site: Site) -> None:
    """Another one would take its place on record, and it would run on unseen."""
    broken = site.root / "broken"
    site.first(command=f"sh -c 'test ! -e {broken} || exit 3; exec {site.runtime.commands['fd0']}'")
    broken.touch()
    kill(site.pid())
    wait_until(lambda: "started again in 1.6 s" in site.log(), timeout=30)
    broken.unlink()

    ran = site.swap("--boot")

    assert (ran.code, ran.json["changed"], ran.json["generation"]) == (0, False, 1), ran
    assert len(site.processes()) == 2
    site.assert_only(site.serving())


def test_what_somebody_who_killed_its_supervisor_left_ends_before_it_is_started_again(site: Site) -> None:
    kill(site.first().pid)
    assert site.swap("--boot").json["generation"] == 1
    assert len(site.processes()) == 2
    site.assert_only(site.serving())


def test_a_power_cut_may_have_left_anything_of_what_a_supervisor_told(site: Site) -> None:
    site.first()
    pull_the_plug(site)
    (site.host.run_dir / "app.1.life").write_bytes(bytes(512))
    assert site.host.run("status").json["problems"] == []
    assert site.swap("--boot").json["generation"] == 1
    site.assert_only(site.serving())


def test_a_host_where_nothing_was_deployed_boots_without_a_word_too_many(site: Site) -> None:
    ran = site.swap("--boot")
    assert (ran.code, ran.error["what"]) == (2, f"{site.root / 'current'} leads to no release")


# -- what it runs, and as whom ----------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_root_runs_the_application_as_its_user(make_site: Callable[..., Site]) -> None:
    """With Debian's php-cgi: the Python that runs the tests may be out of that user's reach."""
    site = make_site(runtime=PHP, config={"user": "www-data"}, username="www-data")
    site.release("r1")
    assert site.swap("--release", "r1").code == 0
    assert ids_of(site.serving().pid) == ids_of(site.pid()) == {33}
    assert (site.host.run_dir / "app.1.sock").stat().st_uid == 33
    assert (site.host.run_dir / "app.1.json").stat().st_uid == 0
    environment = (site.host.run_dir / "app.1.env").stat()
    assert (environment.st_uid, environment.st_mode & 0o777) == (0, 0o600)

    site.release("own", listen="path", env={"APP_SOCKET": "overruled"})
    assert site.swap("--release", "own").code == 0
    assert ids_of(site.pid()) == {33}
    assert site.generation() == 2


def ids_of(pid: int | None) -> set[int]:
    """Every user and group id that a process has or may get back."""
    rows = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {
        int(number)
        for row in rows
        if row.startswith(("Uid:", "Gid:", "Groups:"))
        for number in row.split()[1:]
    }


def test_what_the_operators_shell_ignores_or_forbids_reaches_neither_the_application_nor_status(
    site: Site,
) -> None:
    site.release("r1")
    code = (
        "import os, signal, sys; os.umask(0o077);"
        " [signal.signal(number, signal.SIG_IGN) for number in (1, 2, 3, 15, 17)];"
        " os.execv(sys.argv[1], sys.argv[1:])"
    )
    assert site.swap("--release", "r1", under=[sys.executable, "-c", code]).code == 0

    rows = dict(row.split(":\t", 1) for row in Path(f"/proc/{site.pid()}/status").read_text().splitlines())
    assert int(rows["SigIgn"], 16) & 1 << (signal.SIGCHLD - 1) == 0
    assert int(rows["SigIgn"], 16) & 1 << (signal.SIGHUP - 1) == 0
    assert (site.host.run_dir / "app.1.life").stat().st_mode & 0o777 == 0o644
    assert (site.root / "log" / "app.log").stat().st_mode & 0o777 == 0o640
    kill(site.pid())
    wait_until(lambda: site.host.get("/").status == 200, what="it is started again")
    assert site.swap().json["stopped"] == [1]


def test_the_application_gets_a_clean_environment_and_only_its_listener(site: Site) -> None:
    site.first(env={"COLOUR": "green", "LANG": "de_DE.UTF-8"})
    described = json.loads(site.host.get("/self").text)
    environment = described["environment"]
    assert set(environment) - {"LC_CTYPE"} == {
        "PATH", "HOME", "LANG", "COLOUR", "DEPLOYTOOLS_RELEASE", "DEPLOYTOOLS_GENERATION",
        "PHP_FCGI_MAX_REQUESTS",
    }  # fmt: skip
    assert (environment["COLOUR"], environment["LANG"]) == ("green", "de_DE.UTF-8")
    assert described["directory"] == str(site.root / "releases" / "r1")
    assert described["session"] == described["pid"] == site.pid()
    log = str(site.root / "log" / "app.log")
    inherited = [described["descriptors"][number] for number in "012"]
    assert inherited[0].startswith("socket:")
    assert inherited[1:] == [log, log]
    # Beyond those: the connection of this request, and whatever has no inode to lead anywhere.
    others = set(described["descriptors"].values()) - set(inherited)
    assert len([target for target in others if target.startswith("socket:")]) == 1
    assert not [target for target in others if target.startswith(str(site.host.base))]


def test_a_secret_of_the_environment_is_on_no_command_line_in_no_log_and_in_no_file_of_others(
    site: Site,
) -> None:
    secret = f"tell-nobody-{os.getpid()}"
    site.first(env={"DB_PASSWORD": secret})
    (site.root / "releases/r1/.deploytools.json").chmod(0o600)  # as `release stage` leaves it
    ran = site.swap()
    assert json.loads(site.get("/self").text)["environment"]["DB_PASSWORD"] == secret

    assert not any(secret in command for command in site.commands())
    assert secret not in site.log() + ran.out + ran.err + site.host.run("status").out
    holding = [
        path
        for path in site.root.rglob("*")
        if path.is_file() and not path.is_symlink() and secret.encode() in path.read_bytes()
    ]
    assert holding
    assert [path.name for path in holding if path.stat().st_mode & 0o077] == []


# -- bad input ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--release", "missing"), "there is no release missing in "),
        (("--release", "../r1"), "is no id"),
        ((), "current leads to no release"),
        (("--back",), "no warm generation"),
        (("--back", "--release", "r1"), "not allowed with"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_started(
    site: Site, arguments: tuple[str, ...], said: str
) -> None:
    ran = site.swap(*arguments, as_json=False)
    assert ran.code == 2
    assert said in ran.err
    assert "Traceback" not in ran.err
    assert site.files() == set()


def test_a_root_that_is_too_deep_for_a_socket_is_refused(site: Site) -> None:
    deep = site.root / ("d" * 60) / ("e" * 30)
    deep.parent.mkdir()
    for name in ("run", "releases", "log"):
        (deep / name).mkdir(parents=True)
    site.release("r1").rename(deep / "releases" / "r1")
    site.host.config["root"] = str(deep)
    site.host.write_config()

    ran = site.swap("--release", "r1")

    assert ran.code == 2
    assert "longer than 107 bytes" in ran.error["what"]
    assert {path.name for path in (deep / "run").iterdir()} == {"swap.lock", "generation"}


def test_an_account_that_does_not_exist_is_named(make_site: Callable[..., Site]) -> None:
    site = make_site(config={"user": "nobody-here"})
    site.release("r1")
    ran = site.swap("--release", "r1")
    assert (ran.code, ran.error["what"]) == (2, "there is no account nobody-here")


def test_a_host_that_was_not_set_up_is_told_so(site: Site) -> None:
    site.host.run_dir.rmdir()
    ran = site.swap("--release", "r1")
    assert (ran.code, ran.error["next"]) == (2, "fab setup")


def test_a_manager_that_this_host_does_not_have_is_named(site: Site) -> None:
    site.release("r1", manager="systemd")
    ran = site.swap("--release", "r1")
    assert (ran.code, ran.error["what"]) == (2, "this host can't run generations by systemd")
    assert site.files() == set()


@pytest.mark.parametrize("name", ["run/app.sock", "current"])
def test_what_is_not_ours_is_not_replaced(site: Site, name: str) -> None:
    site.release("r1")
    (site.root / name).mkdir()
    ran = site.swap("--release", "r1")
    assert ran.code == 2
    assert f"{name} is no symbolic link" in ran.error["what"]
    assert (site.root / name).is_dir()


# -- helpers ----------------------------------------------------------------------------------------------


def kill(*pids: int | None) -> None:
    """End processes for good, one after the other, and return when they are gone."""
    for pid in pids:
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
    for pid in pids:
        assert pid is not None
        wait_until(lambda: (process := processes.find(pid)) is None or process.dead)  # noqa: B023


def kill_swap(swap: subprocess.Popen[str]) -> None:
    swap.kill()
    swap.communicate()


def at_least_one_more(visitors: Visitors, generation: int) -> None:
    wait_until(lambda: visitors.generations[str(generation)], what="a visitor gets to the new generation")


def measured(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began
