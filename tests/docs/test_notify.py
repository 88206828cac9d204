"""The hooks of howto/notify.md, as they stand there, tell a real web server and a (small) mail server."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from invoke.util import yaml

from deploytools import journal, notification
from deploytools.plan import downtime_plan
from tests.docs.walk import blocks
from tests.support.values import BASE, settings

BLOCKS = list(blocks("howto/notify.md"))
RUN = json.loads(next(block.text for block in BLOCKS if block.language == "json"))
FILES = {block.marks["file"]: block.text for block in BLOCKS if "file" in block.marks}
CHAT, MAIL = (
    yaml.safe_load(block.text)["deploy"]["hooks"]["notify"] for block in BLOCKS if block.language == "yaml"
)
Hook = Callable[..., str]


class Chat(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        said = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.said.append(json.loads(said)["text"])  # type: ignore[attr-defined]
        self.send_response(204 if self.path == "/secret" else 403)
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
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server.said  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def hook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hook:
    """Call it with a hook of the document, a run and variables; its files are in the project."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)

    def run(command: str, about: dict[str, Any], **variables: str) -> str:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return notification.tell(command, about, patience=60)

    return run


def test_the_chat_is_told_what_became_of_a_run(hook: Hook) -> None:
    server = HTTPServer(("127.0.0.1", 0), Chat)
    with listening(server) as said:
        address = f"http://127.0.0.1:{server.server_port}"
        assert hook(CHAT, RUN, CHAT_WEBHOOK=f"{address}/secret") == ""
        assert hook(CHAT, {**RUN, "verdict": "held"}, CHAT_WEBHOOK=f"{address}/secret") == ""
        assert "HTTP Error 403" in hook(CHAT, RUN, CHAT_WEBHOOK=f"{address}/old")

    assert said[:2] == ["✅ deploy of guestbook: done, ...", "🚨 deploy of guestbook: done, ..."]


def test_without_the_chats_address_nobody_is_told(hook: Hook) -> None:
    assert hook(CHAT, RUN, CHAT_WEBHOOK="") == ""


@pytest.mark.parametrize(("verdict", "mails"), [("done", 0), ("held", 1)])
def test_mail_comes_where_somebody_is_needed(hook: Hook, verdict: str, mails: int) -> None:
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Mail)
    run = {**RUN, "verdict": verdict, "error": {"details": ["web1: it broke"]}}
    with listening(server) as said:
        assert hook(MAIL, run, MAIL_SERVER="127.0.0.1", MAIL_PORT=str(server.server_address[1])) == ""

    assert len(said) == mails
    assert all("Subject: guestbook: deploy held" in text and "web1: it broke" in text for text in said)


def test_the_example_has_the_keys_of_a_run() -> None:
    begun = {**journal.begin(downtime_plan(BASE, settings())), "at": 1.0}

    assert RUN.keys() == notification.message([begun], None, None).keys()
