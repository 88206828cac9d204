"""The clients of the other tests: whatever a server does to a request, they notice and name it."""

from __future__ import annotations

import contextlib
import itertools
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.support.load import Ask, Clients, Visitors, answered

OK = b"HTTP/1.1 200 OK\r\nX-Generation: 1\r\n"
WANTED = b"0123456789"
WHOLE = OK + b"Content-Length: 10\r\n\r\n" + WANTED


@contextlib.contextmanager
def server(behave: Callable[[socket.socket], None]) -> Iterator[tuple[str, int]]:
    """A server that reads a request and then behaves that way, once for each connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        over = threading.Event()

        def serve() -> None:
            while True:
                connection, _ = listener.accept()
                with connection:
                    if over.is_set():
                        return
                    connection.recv(65536)
                    with contextlib.suppress(OSError):
                        behave(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        address = listener.getsockname()
        try:
            yield address
        finally:
            over.set()
            socket.create_connection(address).close()
            thread.join()


def says(*parts: bytes, reset: bool = False) -> Callable[[socket.socket], None]:
    def behave(connection: socket.socket) -> None:
        for part in parts:
            connection.sendall(part)
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    return behave


def drips(connection: socket.socket) -> None:
    """Always says something, and never comes to an end."""
    connection.sendall(OK + b"Transfer-Encoding: chunked\r\n\r\n")
    while True:
        connection.sendall(b"1\r\nx\r\n")
        time.sleep(0.01)


def hangs(connection: socket.socket) -> None:
    connection.recv(1)  # until the client gives up


@pytest.mark.parametrize(
    ("behave", "kind"),
    [
        (says(WHOLE), "app"),
        (says(OK + b"Transfer-Encoding: chunked\r\n\r\na\r\n0123456789\r\n0\r\n\r\n"), "app"),
        (says(OK + b"Connection: close\r\n\r\n" + WANTED), "app"),
        (says(), "reset"),
        (says(reset=True), "reset"),
        (says(WHOLE[:-1]), "truncated"),
        (says(WHOLE[:-1], reset=True), "truncated"),
        (says(OK + b"Content-Length: 10\r\n"), "truncated"),
        (says(OK + b"Transfer-Encoding: chunked\r\n\r\na\r\n0123456789\r\n"), "truncated"),
        (says(OK + b"Transfer-Encoding: chunked\r\n\r\na\r\n01234"), "truncated"),
        (says(OK + b"Connection: close\r\n\r\n012345678"), "truncated"),
        (says(OK + b"Content-Length: 10\r\n\r\n01234X6789"), "other"),
        (says(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n" + WANTED), "other"),
        (says(b"HTTP/1.1 404 No\r\nX-Generation: 1\r\nContent-Length: 0\r\n\r\n"), "other"),
        (says(b"HTTP/1.1 500 No\r\nX-Generation: 1\r\nContent-Length: 0\r\n\r\n"), "unmarked_5xx"),
        (says(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n"), "unmarked_5xx"),
        (says(b"HTTP/1.1 503 No\r\nX-Maintenance-Mode: 1\r\nContent-Length: 0\r\n\r\n"), "maintenance"),
        (drips, "timeout"),
        (hangs, "timeout"),
    ],
)
def test_every_end_of_a_request_is_counted_under_its_name(
    behave: Callable[[socket.socket], None], kind: str
) -> None:
    with server(behave) as address:
        clients = one_request(address)
    assert clients.seen == {kind: 1}
    assert bool(clients.details) == (kind != "app")
    assert len(clients.took) == (kind == "app")


def test_where_nobody_listens_it_is_refused() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        assert one_request(nobody.getsockname()).seen == {"refused": 1}


def one_request(address: tuple[str, int]) -> Clients:
    with Clients(address, asks, count=2, requests=1, deadline=0.3) as clients:
        clients.wait()
    return clients


def asks(_: int) -> Iterator[Ask]:
    return itertools.repeat(Ask(answered(WANTED)))


def test_no_more_requests_are_sent_than_allowed_and_none_after_the_time() -> None:
    with server(says(WHOLE)) as address:
        with Clients(address, asks, count=3, requests=20) as clients:
            clients.wait()
        assert clients.requests == 20
        with Clients(address, asks, count=3, seconds=0.05) as clients:
            clients.wait()
        assert 0 < clients.requests < 5000


def test_at_intervals_a_stall_counts_for_every_request_that_was_due_meanwhile() -> None:
    """Otherwise one client hides a second's stall behind a single slow answer."""
    first = threading.Event()

    def stalls_once(connection: socket.socket) -> None:
        if not first.is_set():
            first.set()
            time.sleep(0.3)
        connection.sendall(WHOLE.replace(b"OK\r\n", b"OK\r\nConnection: close\r\n"))

    with (
        server(stalls_once) as address,
        Clients(address, asks, count=4, requests=20, interval=0.04) as clients,
    ):
        clients.wait()
    assert clients.seen == {"app": 20}
    assert sum(took > 0.1 for took in clients.took) >= 8


def test_visitors_send_what_they_can_check() -> None:
    wrong = OK + b"Content-Length: 5\r\n\r\nhello"
    with server(says(wrong)) as address, Visitors(address, count=3, requests=9, deadline=1) as visitors:
        visitors.wait()
    assert visitors.answered == 0
    assert len(visitors.lost) == 9
