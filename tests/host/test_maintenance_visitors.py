"""What each kind of visitor gets: in maintenance, while the switch is flipped, and after it."""

from __future__ import annotations

import http.client
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import pytest
from hostlib.switch import maintenance, maintscript

from tests.support.certificates import self_signed
from tests.support.http2 import Http2
from tests.support.ports import free_port
from tests.support.switching import is_page, lua, switch_down, switch_up
from tests.support.webhost import Reply, WebHost, wait_until

LARGE = b"x" * (20 << 20)


class Raw:
    """A connection that says what it is told, byte by byte."""

    def __init__(self, host: WebHost) -> None:
        self.socket = socket.create_connection(("127.0.0.1", host.port), timeout=20)
        self._heard = Unread(self.socket.makefile("rb"))

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def say(self, *lines: str, end: str = "\r\n\r\n") -> None:
        self.socket.sendall(("\r\n".join(lines) + end).encode("latin-1"))

    def hear(self, method: str = "GET") -> Reply:
        """The next answer on the connection."""
        response = http.client.HTTPResponse(self._heard, method=method)  # type: ignore[arg-type]
        response.begin()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Reply(response.status, headers, response.read())

    def hear_all(self) -> bytes:
        """Everything until the server closes."""
        parts = []
        while part := self.socket.recv(1 << 16):
            parts.append(part)
        return b"".join(parts)


class Unread:
    """What came on a connection and isn't read yet: an HTTPResponse of its own would keep the next answer."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def makefile(self, mode: str) -> Unread:
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def flush(self) -> None: ...
    def close(self) -> None: ...


@pytest.fixture
def raw(site: WebHost) -> Iterator[Raw]:
    with Raw(site) as connection:
        yield connection


@pytest.fixture(scope="module")
def shared_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebHost]:
    """With a TLS port, for HTTP/2 as browsers speak it."""
    port = free_port()
    extra = f"""
        server.modules += ("mod_openssl")
        $SERVER["socket"] == "127.0.0.1:{port}" {{
            ssl.engine = "enable" ssl.pemfile = "{self_signed(tmp_path_factory.mktemp("tls"))}"
        }}
    """
    with WebHost(extra=extra, liveness=("/live",)) as host:
        host.tls_port = port  # type: ignore[attr-defined]
        host.serve()
        yield host


def http2(host: WebHost) -> Http2:
    return Http2(("127.0.0.1", host.tls_port))  # type: ignore[attr-defined]


class TestInMaintenance:
    @pytest.fixture(autouse=True)
    def down(self, site: WebHost) -> None:
        switch_down(site)

    @pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND"])
    def test_every_method_gets_the_page(self, site: WebHost, method: str) -> None:
        assert is_page(site.request(method, body=None if method == "GET" else b"body"))

    def test_head_gets_the_length_of_the_page_and_no_page_and_the_connection_goes_on(self, raw: Raw) -> None:
        raw.say("HEAD / HTTP/1.1", "Host: x")
        head = raw.hear("HEAD")
        assert head.in_maintenance
        assert head.body == b""
        raw.say("GET / HTTP/1.1", "Host: x")
        page = raw.hear()
        assert is_page(page)
        assert head.headers.get("content-length") in (None, str(len(page.body)))

    def test_a_liveness_path_is_200_for_get_and_head_and_for_it_alone(self, site: WebHost) -> None:
        assert (site.get("/live").status, site.get("/live").body) == (200, b"ok\n")
        assert (site.request("HEAD", "/live").status, site.request("HEAD", "/live").body) == (200, b"")
        for path in ("/live/", "/live.php", "/x/live", "/Live", "/livex", "/live/../", "/live%2f"):
            assert site.get(path).in_maintenance, path

    @pytest.mark.parametrize("size", [10, 100_000, len(LARGE)])
    def test_a_body_of_any_size_gets_the_whole_page_and_never_reaches_the_application(
        self, site: WebHost, size: int
    ) -> None:
        assert is_page(site.request("POST", "/upload", body=LARGE[:size]))

    def test_who_asks_before_sending_a_body_is_told_not_to(self, raw: Raw) -> None:
        raw.say("POST / HTTP/1.1", "Host: x", "Content-Length: 1000000", "Expect: 100-continue")
        assert is_page(raw.hear())

    def test_a_body_that_never_comes_is_not_waited_for(self, raw: Raw) -> None:
        raw.say("POST / HTTP/1.1", "Host: x", "Content-Length: 1000000")
        assert is_page(raw.hear())

    def test_a_chunked_body_that_never_ends_is_not_waited_for(self, raw: Raw) -> None:
        raw.say("POST / HTTP/1.1", "Host: x", "Transfer-Encoding: chunked")
        raw.say("5", "hello", end="\r\n")
        assert is_page(raw.hear())

    def test_headers_that_never_end_get_nothing_and_cost_nobody_else_anything(
        self, raw: Raw, site: WebHost
    ) -> None:
        raw.say("GET / HTTP/1.1", "Host: x", end="\r\n")
        assert is_page(site.get())
        raw.say("", end="\r\n")
        assert is_page(raw.hear())

    def test_pipelined_requests_get_a_page_each(self, raw: Raw) -> None:
        raw.say(*["GET / HTTP/1.1\r\nHost: x\r\n"] * 5, end="\r\n")
        for _ in range(5):
            assert is_page(raw.hear())

    def test_a_websocket_is_not_upgraded(self, raw: Raw) -> None:
        raw.say(
            "GET /chat HTTP/1.1", "Host: x", "Connection: Upgrade", "Upgrade: websocket",
            "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        )  # fmt: skip
        assert is_page(raw.hear())

    @pytest.mark.parametrize(
        "header",
        [
            "Range: bytes=0-9",
            "Range: bytes=999999-",
            "If-Modified-Since: Fri, 01 Jan 2100 00:00:00 GMT",
            "If-None-Match: *",
            "Accept: application/json",
            "Accept-Encoding: gzip, br",
            "Cache-Control: only-if-cached",
        ],
    )
    def test_no_header_makes_the_page_another_answer(self, raw: Raw, header: str) -> None:
        raw.say("GET / HTTP/1.1", "Host: x", header)
        assert is_page(raw.hear())

    def test_a_client_of_http_1_0_gets_the_whole_page_and_then_the_end(self, raw: Raw) -> None:
        raw.say("GET / HTTP/1.0")
        answer = raw.hear_all()
        assert answer.startswith(b"HTTP/1.0 503 Service Unavailable\r\n")
        assert b"\r\nX-Maintenance-Mode: 1\r\n" in answer
        assert answer.rstrip().endswith(b"</html>")

    @pytest.mark.parametrize(
        "host", ["evil.example", "a" * 250, "127.0.0.1", "[::1]", "x:1", "xn--caf-dma.example"]
    )
    def test_any_host_gets_the_page(self, raw: Raw, host: str) -> None:
        raw.say("GET / HTTP/1.1", f"Host: {host}")
        assert is_page(raw.hear())

    def test_a_long_address_gets_the_page_up_to_lighttpds_own_limit(self, raw: Raw) -> None:
        raw.say(f"GET /{'x' * 7000}?{'y' * 500} HTTP/1.1", "Host: x")
        assert is_page(raw.hear())

    @pytest.mark.parametrize(
        ("line", "status"),
        [
            (f"GET /{'x' * 20_000} HTTP/1.1", (400, 414, 431)),
            ("GET /\x01 HTTP/1.1", (400,)),
            ("nonsense", (400,)),
        ],
        ids=["too long", "control character", "no HTTP"],
    )
    def test_what_lighttpd_refuses_itself_it_refuses_as_ever(
        self, site: WebHost, line: str, status: tuple[int, ...]
    ) -> None:
        for command in (switch_down, switch_up):
            command(site)
            with Raw(site) as connection:
                connection.say(line, "Host: x")
                assert connection.hear().status in status

    def test_options_for_the_whole_server_gets_the_page(self, raw: Raw) -> None:
        raw.say("OPTIONS * HTTP/1.1", "Host: x")
        assert is_page(raw.hear())


class TestHttp2:
    def test_in_maintenance_every_stream_of_a_connection_gets_the_page(self, site: WebHost) -> None:
        switch_down(site)
        with http2(site) as connection:
            streams = [
                connection.ask(method, body=b"body" if method == "POST" else b"")
                for method in ("GET", "POST", "HEAD", "GET", "OPTIONS")
            ]
            replies = [connection.answer(stream) for stream in streams]
        assert [reply.in_maintenance for reply in replies] == [True] * 5, replies
        assert [is_page(reply) for reply in replies] == [True, True, False, True, True]
        assert replies[0].headers["retry-after"] == "120"

    def test_a_connection_that_stays_open_sees_the_switch_flip_both_ways(self, site: WebHost) -> None:
        with http2(site) as connection:
            for _ in range(3):
                assert connection.get().body == b"app /"
                switch_down(site)
                assert is_page(connection.get())
                switch_up(site)

    def test_an_upload_that_was_accepted_before_ends_well_and_one_after_gets_the_page(
        self, site: WebHost
    ) -> None:
        with http2(site) as connection:
            accepted = connection.ask("POST", body=b"half.", more=True, length=10)
            connection.settle()
            switch_down(site)
            refused = connection.ask("POST", body=b"half.", more=True, length=10)
            assert is_page(connection.answer(refused))
            connection.send(accepted, b"done.")
            assert connection.answer(accepted).body == b"got 10"
            assert is_page(connection.get())

    def test_the_bypass_holds_for_its_own_stream_only(self, site: WebHost) -> None:
        switch_down(site)
        bypass = {
            name.lower(): value for name, value in maintenance.bypass_headers(site.hostlib_config).items()
        }
        with http2(site) as connection:
            streams = [connection.ask("GET", headers=headers) for headers in (bypass, {}, bypass, {})]
            replies = [connection.answer(stream) for stream in streams]
        assert [reply.body == b"app /" for reply in replies] == [True, False, True, False]
        assert [is_page(reply) for reply in replies] == [False, True, False, True]

    def test_the_cookie_may_come_in_crumbs(self, site: WebHost) -> None:
        switch_down(site)
        (secret,) = maintenance.bypass_headers(site.hostlib_config).values()
        with http2(site) as connection:
            cookies = [("cookie", "a=b"), ("cookie", f"maintenance_bypass={secret}"), ("cookie", "c=d")]
            assert connection.answer(connection.ask("GET", headers=cookies)).body == b"app /"

    def test_curl_gets_the_page_over_http_2_and_after_an_upgrade(self, site: WebHost) -> None:
        switch_down(site)
        for options in (
            ["--insecure", "--http2", f"https://127.0.0.1:{site.tls_port}/"],  # type: ignore[attr-defined]
            ["--http2-prior-knowledge", f"http://127.0.0.1:{site.port}/"],
            ["--http2", f"http://127.0.0.1:{site.port}/"],
        ):
            argv = [
                "curl",
                "--silent",
                "--write-out",
                "%{http_code} %{http_version}",
                "--output",
                "/dev/null",
            ]
            done = subprocess.run([*argv, *options], capture_output=True, text=True, check=True)
            assert done.stdout == "503 2"


class TestAcrossTheFlip:
    def test_an_idle_connection_sees_it_at_its_next_request_both_ways(self, site: WebHost, raw: Raw) -> None:
        for _ in range(3):
            raw.say("GET / HTTP/1.1", "Host: x")
            assert raw.hear().body == b"app /"
            switch_down(site)
            raw.say("GET / HTTP/1.1", "Host: x")
            assert is_page(raw.hear())
            switch_up(site)

    def test_headers_that_were_begun_before_it_get_the_page(self, site: WebHost, raw: Raw) -> None:
        raw.say("GET / HTTP/1.1", "Host: x", end="\r\n")
        switch_down(site)
        raw.say("", end="\r\n")
        assert is_page(raw.hear())

    def test_an_upload_that_was_accepted_before_it_ends_well(self, site: WebHost, raw: Raw) -> None:
        raw.say("POST / HTTP/1.1", "Host: x", "Content-Length: 10", end="\r\n\r\nhalf.")
        wait_until(lambda: "fastcgi" in site.get("/server-statistics").text, what="lighttpd is alive")
        switch_down(site)
        raw.say("done.", end="")
        assert raw.hear().body == b"got 10"

    def test_an_answer_that_was_begun_before_it_comes_whole(self, site: WebHost, raw: Raw) -> None:
        go = site.base / "go"
        go.unlink(missing_ok=True)
        raw.say(f"GET /until?{go} HTTP/1.1", "Host: x")
        wait_until(
            lambda: "gw.backend.guestbook.load: 1" in site.get("/server-statistics").text,
            what="it is being worked on",
        )
        switch_down(site)
        go.touch()
        assert raw.hear().body == b"app /until"

    @pytest.mark.parametrize(
        "kind", ["get", "head", "post", "large post", "expect", "pipelined", "1.0", "http2", "range"]
    )
    def test_nobody_gets_anything_but_the_application_or_the_page(self, site: WebHost, kind: str) -> None:
        visit, seen = VISITS[kind], Counter[str]()
        stop, trouble = threading.Event(), []

        def visitor() -> None:
            while not stop.is_set():
                try:
                    seen.update(visit(site))
                except (OSError, http.client.HTTPException, AssertionError) as error:
                    trouble.append(repr(error))

        switch_down(site)
        scripts = maintscript.UP, lua(site).read_text()
        threads = [threading.Thread(target=visitor) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            for flip in range(40):
                before = seen.total()
                maintenance.write_atomic(lua(site), scripts[flip % 2])
                wait_until(lambda: trouble or seen.total() > before + 2, timeout=30)  # noqa: B023
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert trouble == []
        assert set(seen) == {"app", "page"}
        assert min(seen.values()) >= 20


def told(reply: Reply, app: bytes = b"app /") -> str:
    """Which of the two it is; AssertionError for anything else."""
    if reply.in_maintenance:
        assert reply.body == b"" or is_page(reply), reply
        return "page"
    assert reply.status in (200, 206), reply  # the second where a range of it was asked for
    assert reply.body == app, reply
    return "app"


def visit_head(host: WebHost) -> list[str]:
    reply = host.request("HEAD")
    assert reply.body == b""
    return ["page" if reply.in_maintenance else told(reply, b"")]


def visit_post(host: WebHost, body: bytes = b"x" * 50_000) -> list[str]:
    return [told(host.request("POST", body=body), f"got {len(body)}".encode())]


def visit_expecting(host: WebHost) -> list[str]:
    with Raw(host) as connection:
        connection.say("POST / HTTP/1.1", "Host: x", "Content-Length: 5", "Expect: 100-continue")
        first = connection.socket.recv(12, socket.MSG_PEEK)
        if first == b"HTTP/1.1 100":
            connection.socket.recv(len(b"HTTP/1.1 100 Continue\r\n\r\n"))
            connection.say("hello", end="")
        return [told(connection.hear(), b"got 5")]


def visit_pipelined(host: WebHost) -> list[str]:
    with Raw(host) as connection:
        connection.say(*["GET / HTTP/1.1\r\nHost: x\r\n"] * 3, end="\r\n")
        return [told(connection.hear()) for _ in range(3)]


def visit_in_1_0(host: WebHost) -> list[str]:
    with Raw(host) as connection:
        connection.say("GET / HTTP/1.0")
        return [told(connection.hear())]


def visit_by_http2(host: WebHost) -> list[str]:
    with http2(host) as connection:
        streams = [connection.ask("GET") for _ in range(4)]
        return [told(connection.answer(stream)) for stream in streams]


VISITS: dict[str, Callable[[WebHost], list[str]]] = {
    "get": lambda host: [told(host.get())],
    "head": visit_head,
    "post": visit_post,
    "large post": lambda host: visit_post(host, LARGE[: 2 << 20]),
    "expect": visit_expecting,
    "pipelined": visit_pipelined,
    "1.0": visit_in_1_0,
    "http2": visit_by_http2,
    "range": lambda host: [told(host.get(headers={"Range": "bytes=0-1000000"}))],
}
