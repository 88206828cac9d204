"""A client of HTTP/2 over TLS, stream by stream."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.events

from tests.support.webhost import Reply


@dataclass
class Stream:
    """What has come of one request so far."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    ended: bool = False
    reset: int | None = None


class Http2:
    """One connection; AssertionError where the server resets a stream or closes the connection."""

    def __init__(self, address: tuple[str, int], timeout: float = 20) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
        self._socket = context.wrap_socket(socket.create_connection(address, timeout=timeout))
        assert self._socket.selected_alpn_protocol() == "h2"
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self._streams: dict[int, Stream] = {}
        self._pinged = 0
        self._h2.initiate_connection()
        self._flush()

    def __enter__(self) -> Http2:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(
        self,
        method: str,
        path: str = "/",
        *,
        headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        body: bytes = b"",
        more: bool = False,
        length: int | None = None,
    ) -> int:
        """Begin a request; returns its stream. With `more` the body goes on to `length`, see `send`."""
        stream = self._h2.get_next_available_stream_id()
        self._streams[stream] = Stream()
        own = [(":method", method), (":scheme", "https"), (":authority", "x"), (":path", path)]
        given = list(headers.items()) if isinstance(headers, Mapping) else list(headers)
        if body:  # lighttpd answers 411 to a POST that doesn't tell
            given.append(("content-length", str(len(body) if length is None else length)))
        self._h2.send_headers(stream, own + given, end_stream=not body and not more)
        if body:
            self._h2.send_data(stream, body, end_stream=not more)
        self._flush()
        return stream

    def send(self, stream: int, rest: bytes) -> None:
        """The end of a body."""
        self._h2.send_data(stream, rest, end_stream=True)
        self._flush()

    def settle(self) -> None:
        """Return when the server has read what was sent."""
        before = self._pinged
        self._h2.ping(b"settled?")
        self._flush()
        while self._pinged == before:
            self._read()

    def answer(self, stream: int) -> Reply:
        """The whole answer to a request."""
        found = self._streams[stream]
        while not found.ended:
            assert found.reset is None or found.status, f"stream {stream} was reset: {found.reset}"
            self._read()
        return Reply(found.status, found.headers, found.body)

    def get(self, path: str = "/") -> Reply:
        return self.answer(self.ask("GET", path))

    def _flush(self) -> None:
        self._socket.sendall(self._h2.data_to_send())

    def _read(self) -> None:
        data = self._socket.recv(1 << 16)
        assert data, "the server closed the connection"
        for event in self._h2.receive_data(data):
            if isinstance(event, h2.events.ResponseReceived):
                pairs = dict(event.headers)
                found = self._streams[event.stream_id]
                found.status = int(pairs.pop(":status"))
                found.headers = {str(name): str(value) for name, value in pairs.items()}
            elif isinstance(event, h2.events.DataReceived):
                self._streams[event.stream_id].body += event.data
                self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                self._streams[event.stream_id].ended = True
            elif isinstance(event, h2.events.StreamReset):
                self._streams[event.stream_id].reset = event.error_code
            elif isinstance(event, h2.events.PingAckReceived):
                self._pinged += 1
        self._flush()
