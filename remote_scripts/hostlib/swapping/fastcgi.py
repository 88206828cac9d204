"""A FastCGI client for one request at a time: what the swap asks a new generation with.

See the FastCGI specification 1.0 for the record types. The request is written at once, because
libfcgi drops a unix connection that is silent for two seconds.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

VERSION, REQUEST_ID, RESPONDER = 1, 1, 1
BEGIN_REQUEST, END_REQUEST, PARAMS, STDIN, STDOUT, STDERR = 1, 3, 4, 5, 6, 7
HEADER = struct.Struct("!BBHHBx")  # version, type, request id, content length, padding length
LARGEST_CONTENT = 0xFFFF
LOOK_UP = 0.05  # seconds between two calls of `waiting`
LARGEST_ANSWER = 16 << 20  # bytes; an answer that goes on beyond is refused
REFUSALS = {1: "it can't multiplex", 2: "it is overloaded", 3: "it does not know the responder role"}


class BadAnswer(OSError):
    """The application took the request, but what came back is no complete FastCGI answer."""


@dataclass(frozen=True)
class Answer:
    """A complete answer; header names in lower case; `errors` is what was written to FCGI_STDERR."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    errors: str = field(default="", repr=False)


def get(document_root: Path, url_path: str, host: str) -> dict[str, str]:
    """The parameters of a GET of `url_path` (which may have a query), as lighttpd would send them.

    Where the path names a file below `document_root` it is a script, as CGI has it. Otherwise the
    front controller index.php answers, if there is one; applications in other languages only look at
    PATH_INFO or REQUEST_URI.
    """
    path, _, query = url_path.partition("?")
    path = unquote(path)
    script = document_root / path.lstrip("/")
    front = document_root / "index.php"
    is_script = script.is_file()
    return {
        "GATEWAY_INTERFACE": "CGI/1.1",
        "SERVER_SOFTWARE": "deploytools",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_NAME": host.partition(":")[0],
        "SERVER_ADDR": "127.0.0.1",
        "SERVER_PORT": host.partition(":")[2] or "80",
        "REMOTE_ADDR": "127.0.0.1",
        "REMOTE_PORT": "0",
        "REQUEST_METHOD": "GET",
        "REQUEST_SCHEME": "http",
        "REQUEST_URI": url_path,
        "QUERY_STRING": query,
        "CONTENT_LENGTH": "0",
        "DOCUMENT_ROOT": str(document_root),
        "SCRIPT_FILENAME": str(front if not is_script and front.is_file() else script),
        "SCRIPT_NAME": path if is_script else "",
        "PATH_INFO": "" if is_script else path,
        "REDIRECT_STATUS": "200",  # php-cgi refuses to work without it
        "HTTP_HOST": host,
    }


def request(
    path: str,
    parameters: Mapping[str, str],
    *,
    body: bytes = b"",
    timeout: float = 10.0,
    connected: Callable[[], None] = lambda: None,
    waiting: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.monotonic,
) -> Answer:
    """Send one request to the application that listens on the unix socket `path`.

    `timeout` is in seconds and covers all of it. `connected` is called before anything is written, `waiting`
    now and then while no answer comes; it may raise what it likes, to end the waiting. Raises OSError:
    TimeoutError, ConnectionError, or BadAnswer where the application speaks, but not FastCGI.
    """
    deadline = clock() + timeout
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:

        def wait_for_data() -> None:
            while not select.select([connection], [], [], min(LOOK_UP, max(0.0, deadline - clock())))[0]:
                if clock() >= deadline:
                    raise TimeoutError("timed out")
                waiting()

        def read(size: int) -> bytes:
            data = b""
            while len(data) < size:
                wait_for_data()
                chunk = connection.recv(size - len(data))
                if not chunk:
                    raise BadAnswer("the connection was closed before the answer was complete")
                data += chunk
            return data

        connection.settimeout(timeout)
        connection.connect(path)
        connected()
        # It may answer without reading all of the body; if it does not answer, reading tells.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(_encode(parameters, body))
        return _read_answer(read)


def _encode(parameters: Mapping[str, str], body: bytes) -> bytes:
    pairs = b"".join(
        _length(len(name)) + _length(len(value)) + name + value
        for name, value in ((name.encode(), value.encode()) for name, value in parameters.items())
    )
    begin = struct.pack("!HB5x", RESPONDER, 0)  # 0: close the connection afterwards
    return _record(BEGIN_REQUEST, begin) + _stream(PARAMS, pairs) + _stream(STDIN, body)


def _length(number: int) -> bytes:
    return bytes([number]) if number < 0x80 else struct.pack("!I", number | 0x80000000)


def _stream(kind: int, content: bytes) -> bytes:
    """`content` in as many records as it takes, and the empty record that ends a stream."""
    parts = [content[at : at + LARGEST_CONTENT] for at in range(0, len(content), LARGEST_CONTENT)]
    return b"".join(_record(kind, part) for part in [*parts, b""])


def _record(kind: int, content: bytes) -> bytes:
    return HEADER.pack(VERSION, kind, REQUEST_ID, len(content), 0) + content


def _read_answer(read: Callable[[int], bytes]) -> Answer:
    output, errors = bytearray(), bytearray()
    while True:
        version, kind, request_id, length, padding = HEADER.unpack(read(HEADER.size))
        if version != VERSION:
            raise BadAnswer("the answer is not FastCGI")
        content = read(length)
        read(padding)
        if request_id != REQUEST_ID:
            continue  # management records have request id 0
        if kind == STDOUT:
            output += content
        elif kind == STDERR:
            errors += content
        elif kind == END_REQUEST:
            refusal = content[4] if len(content) > 4 else 0
            if refusal:
                raise BadAnswer(f"the application refused: {REFUSALS.get(refusal, f'status {refusal}')}")
            return _parse(bytes(output), errors.decode(errors="replace"))
        if len(output) + len(errors) > LARGEST_ANSWER:
            raise BadAnswer(f"the answer is larger than {LARGEST_ANSWER} bytes")


def _parse(output: bytes, errors: str) -> Answer:
    """Split a CGI answer into headers and body. Without a Status header it is 200, or 302 with Location."""
    lines, rest = [], output
    while True:
        line, newline, rest = rest.partition(b"\n")
        if not newline:
            raise BadAnswer(f"the answer has no end of headers; it wrote to stderr: {errors.strip()!r}")
        line = line.rstrip(b"\r")
        if not line:
            break
        lines.append(line.decode("latin-1"))
    pairs = (line.partition(":") for line in lines)
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    status = headers.get("status", "302" if "location" in headers else "200").split()
    if not status or not status[0].isdigit():
        raise BadAnswer(f"the answer's status is {headers.get('status')!r}")
    return Answer(int(status[0]), headers, rest, errors)
