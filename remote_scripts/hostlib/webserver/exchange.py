"""One HTTP/1.1 request on a connection, and its answer.

The standard library's client would do, but takes longer to import than the whole proof takes, and
closes its socket when the server announces to: then nobody can tell any more which worker answered.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from typing import NamedTuple

BODY_LIMIT = 1 << 20  # bytes of an answer's body that are read
HEAD_LIMIT = 1 << 16  # bytes of a status line and headers
# What may have to come before a request: nothing, TLS, or what a proxy says (HAProxy's PROXY protocol).
KINDS = PLAIN, TLS, PROXIED, PROXIED_TLS = range(4)
PROXY_LINE = b"PROXY UNKNOWN\r\n"


class NoAnswer(OSError):
    """The web server took the connection, but what came back is no complete HTTP answer."""


class Message(NamedTuple):
    """Status, headers (names in lower case) and body of an answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def speak(connection: socket.socket, kind: int, name: str) -> socket.socket:
    """Begin what has to come before a request to the site `name`; returns the socket to go on with.

    Raises OSError where the server has another `kind`; `connection` is closed then.
    """
    try:
        if kind in (PROXIED, PROXIED_TLS):
            connection.sendall(PROXY_LINE)
        return _wrapped(connection, name) if kind in (TLS, PROXIED_TLS) else connection
    except BaseException:
        connection.close()
        raise


def send(connection: socket.socket, method: str, path: str, headers: Mapping[str, str]) -> None:
    """Send a request without a body. Raises OSError."""
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    connection.sendall("\r\n".join(lines).encode("latin-1"))


def receive(connection: socket.socket, method: str, deadline: float) -> Message:
    """The answer to a `method` request that was sent, by `deadline` of the monotonic clock.

    Raises OSError, as NoAnswer where it is cut.
    """
    reader = _Reader(connection, deadline)
    while True:
        status, headers = reader.head()
        if status >= 200:
            break
    if method == "HEAD" or status in (204, 304):
        body = b""
    elif "chunked" in headers.get("transfer-encoding", ""):
        body = reader.chunked()
    elif "content-length" in headers:
        body = reader.exactly(_number(headers["content-length"], 10))
    else:
        body = reader.rest()
    return Message(status, headers, body)


class _Reader:
    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._connection, self._deadline, self._data = connection, deadline, b""

    def head(self) -> tuple[int, dict[str, str]]:
        head = self._until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        version, _, rest = head[0].partition(" ")
        if not version.startswith("HTTP/1."):
            raise NoAnswer(f"no complete HTTP answer, but {head[0][:80]!r}")
        pairs = (line.partition(":") for line in head[1:])
        return _number(rest[:3], 10), {name.strip().lower(): value.strip() for name, _, value in pairs}

    def exactly(self, count: int) -> bytes:
        """The next `count` bytes, but no more than BODY_LIMIT."""
        wanted = min(count, BODY_LIMIT)
        while len(self._data) < wanted:
            self._more()
        taken, self._data = self._data[:wanted], self._data[wanted:]
        return taken

    def chunked(self) -> bytes:
        body = b""
        while len(body) < BODY_LIMIT:
            size = _number(self._until(b"\r\n").partition(b";")[0].decode("latin-1"), 16)
            if not size:
                break
            body += self.exactly(size)
            self._until(b"\r\n")
        return body

    def rest(self) -> bytes:
        while len(self._data) < BODY_LIMIT and self._more(end_is_fine=True):
            pass
        return self._data

    def _until(self, end: bytes) -> bytes:
        while end not in self._data:
            if len(self._data) > HEAD_LIMIT:
                raise NoAnswer("no complete HTTP answer: its headers don't end")
            self._more()
        taken, _, self._data = self._data.partition(end)
        return taken

    def _more(self, *, end_is_fine: bool = False) -> bool:
        self._connection.settimeout(max(0.001, self._deadline - time.monotonic()))
        received = self._connection.recv(1 << 16)
        if not received and not end_is_fine:
            raise NoAnswer(f"no complete HTTP answer: it ends after {self._data[-80:]!r}")
        self._data += received
        return bool(received)


def _number(text: str, base: int) -> int:
    try:
        return int(text, base)
    except ValueError as error:
        raise NoAnswer(f"no complete HTTP answer: {text[:80]!r} is no number") from error


def _wrapped(connection: socket.socket, name: str) -> socket.socket:
    import ssl  # another 6 ms, which a site without TLS need not pay

    # This host talks to itself, and looks up who answers; a certificate that has expired or names
    # another host must not stand in the way of maintenance.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context.wrap_socket(connection, server_hostname=_without_port(name))


def _without_port(name: str) -> str:
    """`www.example.com:8443`, `[::1]:8443` or `[::1]` -> the host alone."""
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0]
