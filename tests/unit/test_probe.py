"""What one visitor gets, from a real server, and what that adds up to."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from deploytools.probe import LOST, MAINTENANCE, SITE, Probe, Sample, Seen, address, ask, seen

PAGE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


@contextmanager
def server(answer: bytes) -> Iterator[str]:
    """Gives the same bytes to whoever comes, and hangs up."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:

        def serve() -> None:
            while True:
                try:
                    visitor, _ = listener.accept()
                except OSError:
                    return
                with visitor:
                    visitor.recv(65536)
                    visitor.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/page"


@pytest.mark.parametrize(
    ("answer", "kind", "status"),
    [
        (PAGE, SITE, 200),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", SITE, 404),
        (b"HTTP/1.1 503 Down\r\nX-Maintenance-Mode: 1\r\nContent-Length: 0\r\n\r\n", MAINTENANCE, 503),
        (b"HTTP/1.1 503 Down\r\nContent-Length: 0\r\n\r\n", LOST, 503),
        (PAGE[:-1], LOST, 200),
        (b"", LOST, 0),
    ],
)
def test_an_answer_is_the_sites_the_maintenance_page_or_lost(answer: bytes, kind: str, status: int) -> None:
    with server(answer) as url:
        got = ask(url)

    assert (got.kind, got.status) == (kind, status)
    assert bool(got.why) == (answer in (PAGE[:-1], b""))


def test_who_is_refused_is_lost_and_says_why() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and listens not: so nobody else gets this port
        got = ask(f"http://127.0.0.1:{nobody.getsockname()[1]}/")

    assert got.kind == LOST
    assert "refused" in got.why


def test_a_name_that_can_have_no_address_is_lost_too() -> None:
    assert ask(f"http://{'x' * 64}.example.com/").kind == LOST


def test_it_asks_until_it_is_left_and_gives_each_answer_away() -> None:
    got: list[Sample] = []
    enough = threading.Event()

    def tell(sample: Sample) -> None:
        got.append(sample)
        if len(got) == 3:
            enough.set()

    with server(PAGE) as url, Probe(url, tell, every=0.001):
        assert enough.wait(60)

    assert {sample.kind for sample in got[:3]} == {SITE}


def samples(kinds: str) -> list[Sample]:
    """One a second, as a letter each: . is an answer of the site, m the maintenance page, x lost."""
    names = {".": (SITE, 200), "m": (MAINTENANCE, 503), "x": (LOST, 0)}
    return [Sample(100.0 + at, 0.1, *names[kind]) for at, kind in enumerate(kinds)]


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ("...", Seen(3, 0, 0)),
        ("..mmx..", Seen(4, 2, 1, downtime=3.0)),
        (".m.x.", Seen(3, 1, 1, downtime=2.0)),
        ("mm..", Seen(2, 2, 0, downtime=2.0, from_start=True)),
        (".mm", Seen(1, 2, 0, downtime=1.0, to_end=True)),
        ("xxx", None),
        ("", None),
    ],
)
def test_the_downtime_is_the_time_from_each_answer_that_is_missing_to_the_next_that_is_there(
    kinds: str, expected: Seen | None
) -> None:
    assert seen(samples(kinds)) == expected


@pytest.mark.parametrize(
    ("public", "url", "asked"),
    [
        ("https://shop.example.com/", "http://127.0.0.1/", "https://shop.example.com/"),
        (None, "https://shop.example.com/", "https://shop.example.com/"),
        (None, "http://127.0.0.1:8080/", None),
        (None, "http://[::1]/", None),
        (None, "http://localhost/", None),
    ],
)
def test_what_is_a_loopback_address_for_a_host_is_never_asked_from_here(
    public: str | None, url: str, asked: str | None
) -> None:
    assert address(public, url) == asked
