"""A second application on the same host has its own switch, and never disturbs the first."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hostlib.program import DONE
from hostlib.switch import maintenance

from tests.support.manysites import SharingHost, sites
from tests.support.switching import is_page, lua, switch_down, switch_up, token
from tests.support.webhost import wait_until

NAMED = {"host_header": "www.example.com", "aliases": ["example.com"]}
OTHER = {"host_header": "forum.example.com"}
ARRANGEMENTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "both by name": (NAMED, OTHER),
    "one for all other names": ({}, OTHER),
    "the same the other way round": (OTHER, {}),
}

# A page of the forum's own, as in 2008.
BY_HAND = 'lighty.header["X-Maintenance-Mode"] = "1"\nlighty.content = { "closed" }\nreturn 503\n'

# Each site is by name in one of them, and for all other names in one; the third has the two change places.
SOME_OF_THEM = [
    pytest.param(both, marks=[pytest.mark.exhaustive] if both == (OTHER, {}) else [])
    for both in ARRANGEMENTS.values()
]

Pair = tuple[SharingHost, SharingHost]


@pytest.fixture(scope="module", params=SOME_OF_THEM, ids=ARRANGEMENTS)
def shared_pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    one, other = request.param
    with sites(max_workers=2, guestbook=one, forum=other) as (first, second):
        yield first, second


@pytest.fixture
def pair(shared_pair: Pair) -> Pair:
    for host in shared_pair:
        host.reset_maintenance()
    return shared_pair


def serves(host: SharingHost) -> bool:
    reply = host.get()
    return (reply.status, reply.body) == (200, b"app /") and host.get("/headers").text.count(host.name) == 1


def files(host: SharingHost) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in host.maintenance_dir.iterdir() if path.is_file()}


def test_each_goes_down_and_up_on_its_own(pair: Pair) -> None:
    for mine, theirs in (pair, pair[::-1]):
        before = files(theirs)
        for command in ("down", "down", "up", "up"):
            ran = mine.run(command)
            assert (ran.code, ran.json["workers"], ran.json["elsewhere"]) == (DONE, 2, [])
            assert mine.get().in_maintenance == (command == "down")
            assert serves(theirs)
        assert files(theirs) == before


def test_each_has_its_own_window_page_end_and_bypass(pair: Pair) -> None:
    for number, host in enumerate(pair, 1):
        (host.maintenance_dir / "maint.html").write_text(f"{host.application}: {{reason}}")
        switch_down(host, by=f"ann{number}", reason=f"reason {number}", until=2_000_000_000 * number)
    first, second = pair
    assert [host.get().text for host in pair] == ["guestbook: reason 1", "forum: reason 2"]
    assert int(second.get().headers["retry-after"]) > 2 * int(first.get().headers["retry-after"]) - 10
    states = [maintenance.read_state(host.hostlib_config).as_result() for host in pair]
    assert [state["by"] for state in states] == ["ann1", "ann2"]
    assert token(first) != token(second)
    for mine, theirs in (pair, pair[::-1]):
        own = {"X-Maintenance-Bypass": token(mine)}
        assert mine.get(headers=own).text == "app /"
        assert theirs.get(headers=own).in_maintenance


def test_one_comes_up_while_the_other_stays_down(pair: Pair) -> None:
    for mine, theirs in (pair, pair[::-1]):
        for host in pair:
            switch_down(host)
        assert mine.run("up").code == DONE
        assert serves(mine)
        assert theirs.get().in_maintenance
        assert theirs.run("up").code == DONE


def test_a_page_of_the_others_that_a_hand_put_in_place_is_none_of_ones_business(pair: Pair) -> None:
    mine, theirs = pair
    lua(theirs, ".new").write_text(BY_HAND)
    lua(theirs, ".new").replace(lua(theirs))
    for command in ("down", "up"):
        assert mine.run(command).code == DONE
    assert serves(mine)
    assert theirs.get().in_maintenance


def test_a_drain_waits_for_ones_own_requests_only(pair: Pair) -> None:
    mine, theirs = pair
    go = theirs.base / "go"
    busy = threading.Thread(target=theirs.get, args=(f"/until?{go}",))
    busy.start()
    try:
        wait_until(
            lambda: "gw.backend.forum.load: 1" in theirs.get("/server-statistics").text, what="it is busy"
        )
        ran = mine.run("down", "--drain", "--timeout", "10")
        assert (ran.code, ran.json["in_flight"]) == (DONE, 0)
        assert theirs.run("down").code == DONE
        ran = theirs.run("drain", "--timeout", "0.3")
        assert "1 requests in lighttpd" in ran.error["what"]
    finally:
        go.touch()
        busy.join()


def test_visitors_of_one_notice_nothing_of_the_others_flips(pair: Pair) -> None:
    mine, theirs = pair
    seen, strange, stop = Counter[str](), [], threading.Event()

    def visitor() -> None:
        while not stop.wait(0.005):
            reply = theirs.get()
            seen["app"] += 1
            if (reply.status, reply.body) != (200, b"app /"):
                strange.append(reply)

    visitors = [threading.Thread(target=visitor) for _ in range(2)]
    for thread in visitors:
        thread.start()
    try:
        for _ in range(5):
            switch_down(mine)
            assert is_page(mine.get())
            switch_up(mine)
    finally:
        stop.set()
        for thread in visitors:
            thread.join()
    assert strange == []
    assert seen["app"] > 50


def test_two_operators_of_two_applications_do_not_wait_for_each_other(pair: Pair) -> None:
    for command in ("down", "up", "down", "up"):
        running = [host.start(command) for host in pair]
        assert [process.wait(timeout=60) for process in running] == [DONE, DONE]
        assert {host.get().in_maintenance for host in pair} == {command == "down"}


def test_further_names_of_a_site_belong_to_its_switch() -> None:
    with sites(guestbook=NAMED, forum=OTHER) as (guestbook, forum):
        switch_down(guestbook)
        for name in ("www.example.com", "example.com", "EXAMPLE.com", "example.com:8080", "example.com."):
            assert guestbook.get(headers={"Host": name}).in_maintenance, name
        for name in ("forum.example.com", "examplexcom", "www.example.com.evil.example", "x.example.com"):
            assert not guestbook.get(headers={"Host": name}).in_maintenance, name
        assert serves(forum)
