"""Waiting until nothing is being worked on, on a real lighttpd."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator

import pytest
from hostlib.program import DONE, FAILED, IN_MAINTENANCE
from hostlib.switch import draining, maintenance

from tests.support.webhost import WebHost, read_reply, wait_until


@pytest.fixture
def site(web_host: WebHost) -> WebHost:
    web_host.serve()
    return web_host


class Held:
    """A request that the application works on until it is let go."""

    def __init__(self, host: WebHost) -> None:
        self._file = host.base / f"let-go-{id(self)}"
        self._connection = http.client.HTTPConnection("127.0.0.1", host.port, timeout=20)
        before = in_flight(host).accepted
        self._connection.request("GET", f"/until?{self._file}")
        # A request of before may be counted late.
        wait_until(lambda: in_flight(host).accepted > before, what="the request is being worked on")

    def let_go(self) -> None:
        self._file.touch()

    def answered(self) -> bool:
        """True if the answer has arrived, and is the application's."""
        assert self._connection.sock
        self._connection.sock.settimeout(0.2)
        return read_reply(self._connection).body == b"app /until"


@contextlib.contextmanager
def upload(host: WebHost) -> Iterator[socket.socket]:
    """A request of which the last 5 bytes are still to come."""
    with socket.create_connection(("127.0.0.1", host.port), timeout=20) as connection:
        connection.sendall(b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf.")
        yield connection


def switch_down(host: WebHost) -> None:
    maintenance.down(host.hostlib_config, by="x", reason=None, until=None, run_id=None, timeout=10)


def in_flight(host: WebHost) -> draining.InFlight:
    return draining.in_flight(host.hostlib_config, timeout=5)


def still_running(process: subprocess.Popen[str]) -> bool:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=0.5)
        return False
    return True


def test_an_idle_site_is_drained_at_once(site: WebHost) -> None:
    switch_down(site)
    ran = site.run("drain")
    assert (ran.code, ran.json["in_flight"]) == (DONE, 0)
    assert ran.json["took"] < 5


def test_down_tells_how_many_requests_are_in_flight_and_waits_for_none(site: WebHost) -> None:
    ran = site.run("down", "--count")
    assert (ran.code, ran.json["in_flight"]) == (DONE, 0)
    site.run("up")
    held = Held(site)

    ran = site.run("down", "--count")

    assert (ran.code, ran.json["state"], ran.json["in_flight"]) == (DONE, "down", in_flight(site).total)
    assert ran.json["in_flight"]
    held.let_go()


def test_down_says_so_where_nobody_can_tell_what_is_in_flight(site: WebHost) -> None:
    site.config["statistics_path"] = "/no-such-page"
    site.write_config()
    ran = site.run("down", "--count")
    assert (ran.code, ran.json["in_flight"]) == (DONE, None)
    assert "in flight: can't be told" in ran.json["message"]


def test_a_request_that_is_being_worked_on_is_waited_for(site: WebHost) -> None:
    held = Held(site)
    switch_down(site)
    drain = site.start("drain")
    assert still_running(drain)
    held.let_go()
    drain.communicate(timeout=20)
    assert drain.returncode == DONE
    assert held.answered()


def test_an_upload_that_is_still_coming_in_is_waited_for(site: WebHost) -> None:
    with upload(site) as rest:
        wait_until(lambda: in_flight(site).requests == 1, what="lighttpd counts the upload")
        switch_down(site)
        drain = site.start("drain")
        assert still_running(drain)
        rest.sendall(b"done.")
        assert b"got 10" in rest.recv(4096)  # it did reach the application after `down`
        drain.communicate(timeout=20)
        assert drain.returncode == DONE


def test_past_the_deadline_it_tells_what_is_left(site: WebHost) -> None:
    Held(site)
    switch_down(site)
    ran = site.run("drain", "--timeout", "0.3")
    assert ran.code == FAILED
    assert {key: ran.json[key] for key in ("requests", "queued", "accepted", "in_flight")} == {
        "requests": 1,
        "queued": 0,
        "accepted": 1,
        "in_flight": 2,
    }
    assert "1 requests in lighttpd, 0 connections waiting and 1 open" in ran.error["what"]
    assert "the site is in maintenance" in ran.error["state"]


def test_requests_in_the_applications_queue_count(site: WebHost) -> None:
    application = site.serve(2)
    wait_until(lambda: in_flight(site).total == 0, what="the application has taken what there was")
    os.kill(application, signal.SIGSTOP)
    switch_down(site)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(site.run_dir / "app.2.sock"))
        assert in_flight(site) == draining.InFlight(requests=0, queued=1, accepted=0)


def test_old_generations_count_too(site: WebHost) -> None:
    held = Held(site)
    site.serve(2)
    switch_down(site)
    drain = site.start("drain")
    assert still_running(drain)
    held.let_go()
    drain.communicate(timeout=20)
    assert drain.returncode == DONE
    assert held.answered()


def test_every_worker_is_asked_for_its_own_count(make_web_host: Callable[..., WebHost]) -> None:
    host = make_web_host(max_workers=3)
    host.serve()
    with contextlib.ExitStack() as stack:
        rests = [stack.enter_context(upload(host)) for _ in range(9)]
        wait_until(lambda: in_flight(host).requests == 9, what="all of them are counted")
        switch_down(host)
        assert in_flight(host).requests == 9
        for rest in rests:
            rest.sendall(b"done.")
        assert host.run("drain").code == DONE
        assert all(b"got 10" in rest.recv(4096) for rest in rests)


def test_down_can_drain_as_well(site: WebHost) -> None:
    held = Held(site)
    down = site.start("down", "--drain")
    wait_until(lambda: site.get().in_maintenance, what="the site is in maintenance")
    assert still_running(down)
    held.let_go()
    told = json.loads(down.communicate(timeout=20)[0])
    assert (down.returncode, told["state"], told["in_flight"]) == (DONE, "down", 0)
    assert held.answered()


def test_a_down_that_cannot_drain_leaves_the_site_in_maintenance(site: WebHost) -> None:
    Held(site)
    ran = site.run("down", "--drain", "--timeout", "1.5")
    assert ran.code == IN_MAINTENANCE
    assert "still in flight after 1.5 s" in ran.error["what"]
    assert site.get().in_maintenance


def test_a_site_that_is_up_is_not_drained(site: WebHost) -> None:
    ran = site.run("drain")
    assert ran.code == FAILED
    assert "not in maintenance" in ran.error["what"]
    assert ran.error["next"] == f"{site.maintenance_dir}/down"


def test_without_the_counters_it_says_what_to_configure(site: WebHost) -> None:
    switch_down(site)
    site.config["statistics_path"] = "/no-such-page"
    site.write_config()
    ran = site.run("drain")
    assert ran.code == FAILED
    assert "does not tell gw.backend.guestbook.load at /no-such-page (it answered 200)" in ran.error["what"]
    assert 'status.statistics-url = "/no-such-page"' in ran.error["next"]


def test_the_drain_of_a_busy_site_ends(site: WebHost) -> None:
    """Visitors go on asking; they get the page, which is no work for the application."""
    stop = threading.Event()

    def visit() -> None:
        while not stop.is_set():
            site.get("/slow?0.05")

    visitors = [threading.Thread(target=visit) for _ in range(4)]
    for visitor in visitors:
        visitor.start()
    try:
        assert site.run("down").code == DONE
        assert site.run("drain").code == DONE
    finally:
        stop.set()
        for visitor in visitors:
            visitor.join()
