"""The FastCGI client: against php-cgi and flup, and against answers that neither can be made to give."""

from __future__ import annotations

import hashlib
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hostlib.swapping import fastcgi
from hostlib.swapping.fastcgi import BadAnswer

from tests.support.runtimes import HERE
from tests.support.webhost import end

PHP = "/usr/bin/php-cgi"
STDOUT, STDERR, END = 6, 7, 3
FINISHED = bytes(8)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Start a FastCGI application on a listener of its own; returns the socket's path."""
    with ExitStack() as stack:

        def start(*argv: str, **env: str) -> str:
            path = str(tmp_path / "app.sock")
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(path)
                listener.listen()
                environment = {"PATH": os.environ["PATH"], **env}
                process = subprocess.Popen(
                    argv, cwd=tmp_path, stdin=listener, env=environment, start_new_session=True
                )
            stack.callback(end, process, group=True)
            return path

        yield start


@pytest.fixture
def answering(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """A listener that gives the next client these bytes, one at a time if `slowly`, and hangs up."""
    with ExitStack() as stack:

        def start(answer: bytes, *, slowly: bool = False) -> str:
            path = str(tmp_path / "raw.sock")
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(path)
            listener.listen()

            def answer_one() -> None:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(1 << 16)
                    for piece in [bytes([byte]) for byte in answer] if slowly else [answer]:
                        connection.sendall(piece)

            thread = threading.Thread(target=answer_one)
            thread.start()
            stack.callback(thread.join)
            return path

        yield start


def record(kind: int, content: bytes, request_id: int = 1, padding: int = 0) -> bytes:
    return struct.pack("!BBHHBx", 1, kind, request_id, len(content), padding) + content + bytes(padding)


def get(path: str, url: str = "/", root: Path = Path("/nowhere")) -> fastcgi.Answer:
    return fastcgi.request(path, fastcgi.get(root, url, "www.example.com"), timeout=5)


# -- real applications -----------------------------------------------------------------------------


def test_php_runs_the_script_that_the_path_names(serve: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "hello there.php").write_text(
        "<?php header('X-Colour: green'); echo $_SERVER['SCRIPT_NAME'], '|', $_GET['a'], '|',"
        " $_SERVER['HTTP_HOST'], '|', __FILE__;"
    )
    answer = get(serve(PHP), "/hello%20there.php?a=1%262", tmp_path)
    assert answer.status == 200
    assert answer.headers["x-colour"] == "green"
    assert answer.body.decode() == f"/hello there.php|1&2|www.example.com|{tmp_path}/hello there.php"


def test_php_runs_the_front_controller_for_a_path_that_is_no_file(
    serve: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "index.php").write_text("<?php echo $_SERVER['PATH_INFO'], '|', $_SERVER['REQUEST_URI'];")
    assert get(serve(PHP), "/healthz", tmp_path).body == b"/healthz|/healthz"


def test_php_tells_of_a_missing_script_by_its_status_and_on_stderr(
    serve: Callable[..., str], tmp_path: Path
) -> None:
    answer = get(serve(PHP), "/", tmp_path)
    assert answer.status == 404
    assert "PHP Warning" in answer.errors


def test_a_fatal_error_of_php_is_an_answer_with_status_500(serve: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "index.php").write_text("<?php no_such_function();")
    assert get(serve(PHP, "-d", "display_errors=0"), "/", tmp_path).status == 500


def test_a_body_of_many_records_arrives_and_an_answer_of_many_is_read(
    serve: Callable[..., str], tmp_path: Path
) -> None:
    body = hashlib.sha256(b"seed").digest() * 10_000
    path = serve(sys.executable, str(HERE / "app.py"), DEPLOYTOOLS_GENERATION="1", DEPLOYTOOLS_RELEASE="r1")
    parameters = {
        **fastcgi.get(tmp_path, "/echo", "localhost"),
        "REQUEST_METHOD": "POST",
        "CONTENT_LENGTH": str(len(body)),
        "HTTP_LONG": "x" * 70_000,
    }
    answer = fastcgi.request(path, parameters, body=body, timeout=5)
    assert (answer.status, answer.body) == (200, body)


# -- what an answer can look like ------------------------------------------------------------------


def test_an_answer_may_come_byte_by_byte_padded_and_with_records_that_are_not_for_us(
    answering: Callable[..., str],
) -> None:
    answer = get(
        answering(
            record(STDOUT, b"Content-Type: text/plain\r\nSta", padding=5)
            + record(STDERR, b"a warning")
            + record(10, b"values", request_id=0)
            + record(STDOUT, b"tus: 418 I'm a teapot\r\n\r\nshort and")
            + record(STDOUT, b" stout\n\n")
            + record(STDOUT, b"")
            + record(END, FINISHED),
            slowly=True,
        )
    )
    assert (answer.status, answer.body, answer.errors) == (418, b"short and stout\n\n", "a warning")
    assert answer.headers["content-type"] == "text/plain"


@pytest.mark.parametrize(
    ("headers", "status"), [(b"X: y", 200), (b"Location: /there", 302), (b"status:  204", 204)]
)
def test_the_status_is_what_cgi_says(answering: Callable[..., str], headers: bytes, status: int) -> None:
    path = answering(record(STDOUT, headers + b"\n\n") + record(END, FINISHED))
    assert get(path).status == status


@pytest.mark.parametrize(
    ("answer", "because"),
    [
        (b"", "closed before the answer was complete"),
        (record(STDOUT, b"Status: 200\n\nhello"), "closed before the answer was complete"),
        (record(STDOUT, b"Status: 200\n\nhello")[:-3], "closed before the answer was complete"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "not FastCGI"),
        (record(END, FINISHED), "no end of headers"),
        (record(STDOUT, b"Status: fine\n\n") + record(END, FINISHED), "status is 'fine'"),
        (record(END, bytes([0, 0, 0, 0, 2, 0, 0, 0])), "it is overloaded"),
    ],
)
def test_what_is_no_complete_answer_is_an_error(
    answering: Callable[..., str], answer: bytes, because: str
) -> None:
    with pytest.raises(BadAnswer, match=because):
        get(answering(answer))


def test_the_time_is_limited_as_a_whole_and_not_per_byte(
    answering: Callable[..., str], tmp_path: Path
) -> None:
    path = str(tmp_path / "silent.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()  # accepts nothing: the request waits in the queue
        began = time.monotonic()
        with pytest.raises(OSError, match="timed out"):
            fastcgi.request(path, {}, timeout=0.2)
    assert 0.2 <= time.monotonic() - began < 1


def test_nobody_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        get(str(tmp_path / "none.sock"))
