"""The examples of howto/notify.md tell of a run, to a real web server and a real (small) mail server."""

from __future__ import annotations

import json
import os
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from deploytools import journal
from deploytools.plan import downtime_plan
from deploytools.report.runs import described
from tests.docs.walk import blocks
from tests.support.values import BASE, settings

PAGE = {block.marks.get("file", block.language): block.text for block in blocks("howto/notify.md")}
RUN = json.loads(PAGE["json"])


class Chat(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        said = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.said.append(json.loads(said)["text"])  # type: ignore[attr-defined]
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class Mail(socketserver.StreamRequestHandler):
    """As much of SMTP as it takes to be handed a message."""

    def handle(self) -> None:
        self.wfile.write(b"220 here\r\n")
        for line in self.rfile:
            verb = line.strip().upper()
            if verb == b"DATA":
                self.wfile.write(b"354 go on\r\n")
                text = b"".join(iter(self.rfile.readline, b".\r\n"))
                self.server.said.append(text.decode())  # type: ignore[attr-defined]
            self.wfile.write(b"221 bye\r\n" if verb == b"QUIT" else b"250 ok\r\n")
            if verb == b"QUIT":
                return


@contextmanager
def listening(server: socketserver.BaseServer) -> Iterator[list[str]]:
    server.said = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.said  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def tell(script: str, run: dict[str, Any], **variables: str) -> None:
    subprocess.run(
        [sys.executable, "-c", PAGE[script]],
        input=json.dumps(run),
        env={**os.environ, **variables},
        text=True,
        timeout=60,
        check=True,
    )


def test_the_chat_is_told_what_became_of_a_run() -> None:
    server = HTTPServer(("127.0.0.1", 0), Chat)
    with listening(server) as said:
        tell("deploy/tell.py", RUN, CHAT_WEBHOOK=f"http://127.0.0.1:{server.server_port}/secret")

    assert said == ["OK: deploy of guestbook by ann, 20260301T201455Z-9b01c2d3, down for 6 s"]


@pytest.mark.parametrize(("verdict", "mails"), [("done", 0), ("held", 1)])
def test_mail_comes_where_somebody_is_needed(verdict: str, mails: int) -> None:
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Mail)
    with listening(server) as said:
        port = str(server.server_address[1])
        tell("deploy/mail.py", {**RUN, "verdict": verdict}, MAIL_SERVER="127.0.0.1", MAIL_PORT=port)

    assert len(said) == mails
    assert all("Subject: guestbook: deploy held" in text for text in said)


def test_the_example_has_the_keys_of_a_run() -> None:
    begun = {**journal.begin(downtime_plan(BASE, settings())), "at": 1.0}

    assert RUN.keys() == described([begun]).keys()
