"""A guestbook: visitors read what others wrote, and sign.

Serves FastCGI on the listening socket that it finds as standard input. It knows nothing of deploys
and of graceful shutdown: a signal ends it at once, with whatever it is just doing.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from html import escape
from http import HTTPStatus
from pathlib import Path
from string import Template
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import entries  # type: ignore[import-not-found]
from flup.server.fcgi import WSGIServer

HOME = Path(__file__).resolve().parent
DATABASE = HOME / "var" / "guestbook.db"
RELEASE = os.environ.get("DEPLOYTOOLS_RELEASE") or HOME.name
GENERATION = os.environ.get("DEPLOYTOOLS_GENERATION", "")
# The code and the migrations of a release travel together: it is written for the newest of them.
EXPECTED = max(path.name.partition("_")[0] for path in HOME.glob("migrations/versions/[0-9]*.py"))

MAX_FORM = 10_000  # bytes
MAX_NAME, MAX_MESSAGE = 60, 500  # characters
MAX_SLOW = 60.0  # seconds
BAD_FORM = f"guestbook: a name (up to {MAX_NAME} characters) and a message (up to {MAX_MESSAGE}), please\n"

HTML, TEXT = "text/html; charset=utf-8", "text/plain; charset=utf-8"


def load_page() -> Template:
    """The page; ends the program where the template is broken, before anybody sees it."""
    page = Template((HOME / "page.html").read_text(encoding="utf-8"))
    try:
        page.substitute(entries="", release="", schema="")
    except (KeyError, ValueError) as error:
        sys.exit(f"guestbook: page.html can't be used: {error}")
    return page


class Request(NamedTuple):
    """What a visitor wants; a name and a message where they sign."""

    path: str
    name: str = ""
    message: str = ""


class Answer(NamedTuple):
    """What a visitor gets."""

    status: HTTPStatus
    body: str
    kind: str = TEXT
    location: str = ""


class Database(threading.local):
    """One connection per thread, opened when first used."""

    connection: sqlite3.Connection | None = None
    inode = 0

    def open(self) -> sqlite3.Connection:
        """The connection; a new one where the file was replaced, as restoring a backup does.

        Raises OSError or sqlite3.Error where there is no database yet: making it is the migrations' job.
        """
        inode = DATABASE.stat().st_ino
        if self.connection is None or inode != self.inode:
            self.connection = sqlite3.connect(
                f"{DATABASE.as_uri()}?mode=rw", uri=True, timeout=5, isolation_level=None
            )
            self.inode = inode
        return self.connection


DATABASES = Database()
WRITING = threading.Lock()


@contextmanager
def transaction(*, writing: bool) -> Iterator[sqlite3.Connection]:
    """One transaction for a whole answer, so that the schema it tells is the schema it met."""
    db = DATABASES.open()
    # SQLite lets waiting writers sleep in growing steps; among our own threads a lock is quicker.
    with WRITING if writing else nullcontext():
        db.execute("BEGIN IMMEDIATE" if writing else "BEGIN")
        try:
            yield db
            db.execute("COMMIT")
        finally:
            if db.in_transaction:
                db.execute("ROLLBACK")


class Guestbook:
    """The WSGI application."""

    def __init__(self, page: Template) -> None:
        self.page = page

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        request = read_request(environ)
        schema = ""
        try:
            with transaction(writing=request.path == "/sign") as db:
                schema = read_schema(db)
                answer = self.answer(db, request, schema)
        except (OSError, sqlite3.Error) as error:
            answer = Answer(HTTPStatus.INTERNAL_SERVER_ERROR, f"guestbook: the database: {error}\n")
        body = answer.body.encode()
        headers = [
            ("Content-Type", answer.kind),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            ("X-Release", RELEASE),
            ("X-Generation", GENERATION),
            ("X-Schema", schema),
            ("X-Schema-Expected", EXPECTED),
        ]
        if answer.location:
            headers.append(("Location", answer.location))
        start_response(f"{answer.status.value} {answer.status.phrase}", headers)
        return [body]

    def answer(self, db: sqlite3.Connection, request: Request, schema: str) -> Answer:
        """Answer one request inside its transaction."""
        match request.path:
            case "/" | "/slow":
                page = self.page.substitute(
                    entries="\n".join(show(entry) for entry in entries.latest(db, 20)),
                    release=escape(RELEASE),
                    schema=escape(schema),
                )
                return Answer(HTTPStatus.OK, page, HTML)
            case "/sign" if not request.name:
                return Answer(HTTPStatus.BAD_REQUEST, BAD_FORM)
            case "/sign":
                entries.sign(db, request.name, request.message)
                return Answer(HTTPStatus.SEE_OTHER, "", location="/")
            case "/health" if schema != EXPECTED:
                return Answer(
                    HTTPStatus.INTERNAL_SERVER_ERROR,
                    f"guestbook: the schema is {schema}, this code needs {EXPECTED}\n",
                )
            case "/health":
                entries.latest(db, 1)
                return Answer(HTTPStatus.OK, "ok\n")
        return Answer(HTTPStatus.NOT_FOUND, "guestbook: there is no such page\n")


def read_schema(db: sqlite3.Connection) -> str:
    """The revision that Alembic left in the database."""
    row = db.execute("SELECT version_num FROM alembic_version").fetchone()
    return row[0] if row else ""


def show(entry: entries.Entry) -> str:
    """One entry as HTML."""
    times = f" &middot; entry {entry.number} of theirs" if entry.number else ""
    return (
        f"<li><p>{escape(entry.message)}</p>"
        f"<footer>{escape(entry.name)} &middot; {escape(entry.signed_at)}{times}</footer></li>"
    )


def read_request(environ: dict[str, Any]) -> Request:
    """What is asked for; /slow?s=3 takes three seconds to read."""
    url = urlsplit(environ.get("REQUEST_URI") or environ["SCRIPT_NAME"] + environ["PATH_INFO"])
    if url.path == "/slow":
        time.sleep(seconds_in(url.query))
    if environ["REQUEST_METHOD"] != "POST":
        return Request(url.path)
    return Request(url.path, *read_form(environ))


def read_form(environ: dict[str, Any]) -> tuple[str, str]:
    """Name and message of a posted form, both empty where it is none that we take."""
    length = environ.get("CONTENT_LENGTH") or ""
    if not (length.isdigit() and int(length) <= MAX_FORM):
        return "", ""
    fields = parse_qs(environ["wsgi.input"].read(int(length)).decode("utf-8", "replace"))
    name, message = (fields.get(key, [""])[0].strip() for key in ("name", "message"))
    if not (0 < len(name) <= MAX_NAME and 0 < len(message) <= MAX_MESSAGE):
        return "", ""
    return name, message


def seconds_in(query: str) -> float:
    """How long a slow request is to take: at most MAX_SLOW, 1 where the number isn't one."""
    try:
        wanted = float(parse_qs(query).get("s", ["1"])[0])
    except ValueError:
        return 1.0
    return wanted if 0 <= wanted <= MAX_SLOW else MAX_SLOW


class Server(WSGIServer):  # type: ignore[misc]
    """flup's threaded server, without its handlers for signals: they take up to a second to notice."""

    def _installSignalHandlers(self) -> None:
        pass

    def _restoreSignalHandlers(self) -> None:
        pass


if __name__ == "__main__":
    # Many spare threads: flup starts one per waiting request above them, and ends it again.
    Server(Guestbook(load_page()), minSpare=4, maxSpare=32).run()
