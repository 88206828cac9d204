"""deploytools.sandbox.traffic: how answers are told apart, and what they add up to."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from deploytools.sandbox import traffic
from deploytools.sandbox.traffic import (
    APP,
    MAINTENANCE,
    OTHER,
    REFUSED,
    RESET,
    TIMEOUT,
    TRUNCATED,
    UNMARKED,
    Record,
    Site,
    Visitor,
)

APP_HEADERS = {"x-release": "r1", "x-schema": "0001", "x-schema-expected": "0001"}


class TestAnAnswer:
    @pytest.mark.parametrize("status", [200, 204, 303])
    def test_that_names_its_schema_is_the_applications(self, status: int) -> None:
        assert traffic.classify(status, APP_HEADERS) == APP

    def test_of_the_web_server_itself_is_not_the_applications(self) -> None:
        assert traffic.classify(200, {"server": "lighttpd"}) == OTHER

    def test_with_the_mark_is_maintenance(self) -> None:
        assert traffic.classify(503, {"x-maintenance-mode": "1"}) == MAINTENANCE

    @pytest.mark.parametrize("headers", [{}, {"x-maintenance-mode": "0"}, APP_HEADERS])
    def test_of_503_without_the_mark_is_none(self, headers: dict[str, str]) -> None:
        assert traffic.classify(503, headers) == UNMARKED

    def test_of_another_status_with_the_mark_is_no_maintenance(self) -> None:
        assert traffic.classify(500, {"x-maintenance-mode": "1"}) == UNMARKED
        assert traffic.classify(200, {"x-maintenance-mode": "1"}) == OTHER

    def test_that_blames_the_visitor_is_something_else(self) -> None:
        assert traffic.classify(404, APP_HEADERS) == OTHER


@pytest.mark.parametrize(
    ("error", "answer_begun", "kind"),
    [
        (ConnectionRefusedError(), False, REFUSED),
        (ConnectionResetError(), False, RESET),
        (BrokenPipeError(), False, RESET),
        (http.client.RemoteDisconnected(), False, RESET),
        (ConnectionResetError(), True, TRUNCATED),
        (http.client.IncompleteRead(b"half"), True, TRUNCATED),
        (http.client.BadStatusLine("HT"), False, TRUNCATED),
        (TimeoutError(), False, TIMEOUT),
        (TimeoutError(), True, TIMEOUT),
        (OSError(99, "no address left"), False, OTHER),
    ],
)
def test_a_request_without_an_answer_has_a_class(error: Exception, answer_begun: bool, kind: str) -> None:
    assert traffic.classify_error(error, answer_begun=answer_begun) == kind


def seen(*kinds: tuple[float, str]) -> list[Record]:
    return [Record(start, 0.001, kind) for start, kind in kinds]


class TestVisibleDowntime:
    def test_is_none_where_the_application_always_answered(self) -> None:
        assert traffic.downtime(seen((0.0, APP), (1.0, APP))) is None
        assert traffic.downtime([]) is None

    def test_lasts_from_the_first_page_to_the_first_answer_after_the_last(self) -> None:
        records = seen((1.0, APP), (2.0, MAINTENANCE), (3.0, MAINTENANCE), (4.5, APP), (5.0, APP))
        assert traffic.downtime(records) == {"seconds": 2.5, "start": 2.0, "end": 4.5, "over": True}

    def test_counts_answers_in_between_as_down(self) -> None:
        records = seen((1.0, MAINTENANCE), (2.0, APP), (3.0, MAINTENANCE), (4.0, APP))
        assert traffic.downtime(records)["seconds"] == 3.0  # type: ignore[index]

    def test_counts_lost_requests_too(self) -> None:
        records = seen((1.0, RESET), (2.0, MAINTENANCE), (3.0, UNMARKED), (4.0, APP))
        assert traffic.downtime(records)["seconds"] == 3.0  # type: ignore[index]

    def test_goes_by_when_requests_were_sent_not_by_when_they_were_noted(self) -> None:
        records = seen((4.0, APP), (2.0, MAINTENANCE), (1.0, APP), (3.0, MAINTENANCE))
        assert traffic.downtime(records)["seconds"] == 2.0  # type: ignore[index]

    def test_is_not_over_where_nothing_came_back(self) -> None:
        records = seen((1.0, APP), (2.0, MAINTENANCE), (6.0, TIMEOUT))
        assert traffic.downtime(records) == {"seconds": 4.0, "start": 2.0, "end": 6.0, "over": False}


class TestASummary:
    def test_counts_every_class_and_what_was_lost(self) -> None:
        kinds = (APP, APP, MAINTENANCE, UNMARKED, REFUSED, RESET, TRUNCATED, TIMEOUT, OTHER)
        result = traffic.summary(seen(*((0.0, kind) for kind in kinds)), began=0.0, seconds=2.0)
        assert result["classes"] == {kind: kinds.count(kind) for kind in traffic.CLASSES}
        assert (result["sent"], result["lost"], result["rate"]) == (9, 6, 4.5)

    def test_shows_some_of_what_was_lost(self) -> None:
        result = traffic.summary(seen((0.0, APP), (1.0, REFUSED)), began=0.0, seconds=2.0)
        assert [example["kind"] for example in result["examples"]] == [REFUSED]

    def test_counts_code_on_a_schema_that_is_not_its_own(self) -> None:
        right = Record(0.0, 0.1, APP, 200, "r1", "1", "0001", "0001")
        old_code = Record(0.1, 0.1, APP, 200, "r1", "1", "0002", "0001")
        failing = old_code._replace(kind=UNMARKED, status=500)
        page = Record(0.2, 0.1, MAINTENANCE, 503)
        result = traffic.summary([right, old_code, failing, page], began=0.0, seconds=1.0)
        assert result["mismatches"] == 2

    def test_has_a_row_for_every_second_with_requests(self) -> None:
        records = [Record(0.2, 0.1, APP, release="r1"), *seen((0.9, MAINTENANCE), (2.1, MAINTENANCE))]
        records.append(Record(2.2, 0.1, APP, release="r2"))
        assert traffic.per_second(records) == [
            {"second": 0, "classes": {APP: 1, MAINTENANCE: 1}, "releases": {"r1": 1}},
            {"second": 2, "classes": {APP: 1, MAINTENANCE: 1}, "releases": {"r2": 1}},
        ]

    def test_tells_how_long_visitors_waited(self) -> None:
        records = [Record(0.0, number / 1000, APP) for number in range(1, 101)]
        result = traffic.summary(records, began=0.0, seconds=1.0)
        assert (result["median_ms"], result["p99_ms"], result["slowest_ms"]) == (51.0, 100.0, 100.0)

    def test_of_nothing_is_possible(self) -> None:
        result = traffic.summary([], began=0.0, seconds=0.0)
        assert (result["sent"], result["rate"], result["median_ms"], result["downtime"]) == (
            0,
            0.0,
            None,
            None,
        )


class TestASite:
    def test_is_an_address_with_a_path(self) -> None:
        assert traffic.site_of("http://127.0.0.1:8080/") == Site("127.0.0.1", 8080, "/")
        assert traffic.site_of("http://localhost/book") == Site("localhost", 80, "/book/")

    @pytest.mark.parametrize(
        "url", ["https://127.0.0.1/", "127.0.0.1:80", "http://192.0.2.1.example/", "http://8.8.8.8/"]
    )
    def test_is_nobody_elses(self, url: str) -> None:
        with pytest.raises(ValueError, match=r"expected|only sites|address"):
            traffic.site_of(url)


ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Release: r1\r\nX-Generation: 7\r\n"
    b"X-Schema: 0001\r\nX-Schema-Expected: 0001\r\n\r\nok"
)
Behaviour = Callable[[socket.socket, int], None]


@contextmanager
def server(behave: Behaviour) -> Iterator[int]:
    """A server that does `behave(connection, number)` with each connection; gives its port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def accept() -> None:
            number = 0
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    behave(connection, number)
                number += 1

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield int(listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def visitor(port: int, timeout: float = 5.0) -> Visitor:
    """One who only reads, because a request without a body arrives in one piece."""
    return Visitor(
        Site("127.0.0.1", port, "/"),
        1,
        interval=0.0,
        timeout=timeout,
        began=time.monotonic(),
        over=threading.Event(),
    )


def answering(count: int) -> Behaviour:
    """Answer so many requests, then hang up without a word."""

    def behave(connection: socket.socket, _number: int) -> None:
        for _ in range(count):
            if not connection.recv(65536):
                return
            connection.sendall(ANSWER)
        connection.recv(1, socket.MSG_PEEK)  # so that the next request is under way when we hang up

    return behave


class TestAVisitor:
    def test_notes_who_answered(self) -> None:
        with server(answering(1)) as port:
            record = visitor(port).visit()
        assert record[2:] == (APP, 200, "r1", "7", "0001", "0001", False)
        assert not record.mismatch

    def test_asks_again_where_a_kept_connection_was_closed_under_it(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(traffic, "LIVES", (2,))
        with server(answering(1)) as port:
            guest = visitor(port)
            first, second = guest.visit(), guest.visit()
            guest.hang_up()
        assert (first.kind, first.retried) == (APP, False)
        assert (second.kind, second.retried) == (APP, True)

    def test_does_not_ask_again_on_a_new_connection(self) -> None:
        with server(answering(0)) as port:
            record = visitor(port).visit()
        assert (record.kind, record.retried) == (RESET, False)

    def test_asks_again_once_only(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def once(connection: socket.socket, number: int) -> None:
            answering(1 if number == 0 else 0)(connection, number)

        monkeypatch.setattr(traffic, "LIVES", (2,))
        with server(once) as port:
            guest = visitor(port)
            guest.visit()
            record = guest.visit()
        assert (record.kind, record.retried) == (RESET, True)

    def test_notes_an_answer_that_breaks_off(self) -> None:
        def half(connection: socket.socket, _number: int) -> None:
            connection.recv(65536)
            connection.sendall(ANSWER[:-1])

        with server(half) as port:
            assert visitor(port).visit().kind == TRUNCATED

    def test_does_not_wait_for_ever(self) -> None:
        def silent(connection: socket.socket, _number: int) -> None:
            while connection.recv(65536):  # until the visitor goes
                pass

        with server(silent) as port:
            assert visitor(port, timeout=0.2).visit().kind == TIMEOUT

    def test_notes_that_nobody_listens(self) -> None:
        with server(answering(0)) as port:
            pass
        assert visitor(port).visit().kind == REFUSED
