"""Ask this host's own web server, and know which of its worker processes answered.

Each lighttpd worker has caches of its own, so one good answer proves one worker. A change counts as
proved when every worker was seen to answer as wanted after it: see `prove`.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

from hostlib import tcpsockets
from hostlib.program import USAGE, Config, Failure

BODY_LIMIT = 1 << 20  # bytes of an answer's body that are read
LARGEST_BURST = 16  # concurrent requests to reach a worker that another one is quicker than
SHORTEST_PAUSE, LONGEST_PAUSE = 0.001, 0.05  # seconds between two rounds of `prove`
SHORTEST_PATIENCE = 0.5  # seconds for a request; so `prove` may take that much longer than its timeout
# lighttpd's stat cache "simple" looks at maint.lua again when the second changes. Where the workers
# can't be told apart, wanted answers must at least go on for longer than that.
BLIND_SECONDS, BLIND_ANSWERS = 1.2, 20
LOOK_AGAIN = 0.5  # seconds after which the list of workers is taken as out of date


class NoAnswer(OSError):
    """The web server took the request, but what came back is no complete HTTP answer."""


@dataclass(frozen=True)
class Answer:
    """An HTTP answer; header names in lower case; `worker` is the answering process, if it can be told."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    worker: int | None


@dataclass(frozen=True)
class Proof:
    """Every worker answered as wanted. Not `certain`: answers were right, but whose they are is unknown."""

    workers: int
    certain: bool
    took: float

    def __str__(self) -> str:
        if not self.certain:
            return (
                "as every answer was right; but which worker gave it can't be told without root"
                " or the web server's own account"
            )
        return "proved by the only worker" if self.workers == 1 else f"proved by all {self.workers} workers"


class NotProved(Failure):
    """Not every worker answered as wanted in time; `last` is the last answer that was not wanted."""

    def __init__(self, what: str, *, seen: int, workers: int, last: Answer | OSError | None) -> None:
        super().__init__(what, seen=seen, workers=workers)
        self.last = last


# -- one request ---------------------------------------------------------------------------------


def request(
    config: Config,
    path: str = "/",
    *,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    timeout: float = 10.0,
) -> Answer:
    """One request to config.url's server on a new connection; `timeout` is in seconds.

    Raises OSError where there is no answer (refused, timeout, cut short).
    """
    question = _Question(path, method, headers or {}, timeout)
    answer = _ask(config, question, 1, workers(config))[0]
    if isinstance(answer, OSError):
        raise answer
    return answer


@dataclass(frozen=True)
class _Question:
    path: str
    method: str
    headers: Mapping[str, str]
    timeout: float


def _exchange(config: Config, question: _Question) -> tuple[Answer, socket.socket]:
    """The answer, and the still open connection by which its giver can be found."""
    url = urlsplit(config.url)
    host = url.hostname or "127.0.0.1"
    connection: http.client.HTTPConnection
    if url.scheme == "https":
        # This host talks to itself, and looks up who answers; a certificate that has expired
        # or names another host must not stand in the way of maintenance.
        trusting = ssl.create_default_context()
        trusting.check_hostname = False
        trusting.verify_mode = ssl.CERT_NONE
        connection = http.client.HTTPSConnection(host, url.port, timeout=question.timeout, context=trusting)
    else:
        connection = http.client.HTTPConnection(host, url.port, timeout=question.timeout)
    own = {"Host": config.host_header} if config.host_header else {}
    try:
        connection.connect()
        # http.client closes its socket when the server announces that it will close; this one stays.
        held = socket.socket(fileno=os.dup(connection.sock.fileno()))
        try:
            connection.request(question.method, question.path, headers={**own, **question.headers})
            response = connection.getresponse()
            body = _read(response, time.monotonic() + question.timeout)
        except BaseException:
            held.close()
            raise
        received = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, received, body, None), held
    except http.client.HTTPException as error:
        raise NoAnswer(f"no complete answer from {config.url}: {error!r}") from error
    finally:
        connection.close()


def _read(response: http.client.HTTPResponse, deadline: float) -> bytes:
    body = b""
    while len(body) < BODY_LIMIT and time.monotonic() < deadline:
        chunk = response.read1(1 << 16)
        if not chunk:
            if response.length:
                raise http.client.IncompleteRead(body, response.length)
            break
        body += chunk
    return body


# -- which process ---------------------------------------------------------------------------------


def workers(config: Config) -> tuple[int, ...]:
    """The processes that accept on config.url's address; () where we may not see whose socket it is.

    A parent that only supervises (server.max-worker) or passed the socket on (systemd) is not one.
    """
    inodes = _listeners(config)
    holders = {pid for pid in _processes() if inodes and not inodes.isdisjoint(_sockets(pid))}
    return tuple(sorted(holders - {_parent(pid) for pid in holders}))


def _listeners(config: Config) -> set[int]:
    """The inodes of the sockets that listen where config.url points."""
    url = urlsplit(config.url)
    port = url.port or (443 if url.scheme == "https" else 80)
    try:
        addresses = socket.getaddrinfo(url.hostname, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise Failure(
            f"this host can't resolve {url.hostname} of webserver.url: {error.strerror}",
            state="nothing was changed",
            next="correct webserver.url in fabric.yaml, then fab setup",
            exit_code=USAGE,
        ) from error
    listening = tcpsockets.listeners(port)
    for *_, (address, *_) in addresses:
        # The more specific listener is the one that the kernel connects us to. One on [::] may take
        # IPv4 as well.
        anywhere = listening.get("0.0.0.0", set()) | listening.get("::", set())  # noqa: S104
        inodes = listening.get(str(address)) or anywhere
        if inodes:
            return inodes
    return set()


def _owners(connections: Sequence[socket.socket], among: Sequence[int]) -> list[int | None]:
    """Which of the processes holds the server's side of each connection; None where none is seen to."""
    held_by = {inode: pid for pid in among for inode in _sockets(pid)}

    def owner(connection: socket.socket) -> int | None:
        try:
            ours, theirs = connection.getsockname(), connection.getpeername()
        except OSError:  # reset right behind the answer
            return None
        return held_by.get(tcpsockets.inode(theirs[:2], ours[:2]))

    return [owner(connection) for connection in connections]


def _processes() -> Iterator[int]:
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def _sockets(pid: int) -> set[int]:
    """The inodes of a process's sockets; empty where it has ended or we may not look."""
    inodes = set()
    with contextlib.suppress(OSError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):  # closed meanwhile
                target = str(descriptor.readlink())
                if target.startswith("socket:["):
                    inodes.add(int(target[8:-1]))
    return inodes


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


# -- proof -----------------------------------------------------------------------------------------


def prove(
    config: Config,
    holds: Callable[[Answer], bool],
    *,
    path: str = "/",
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    timeout: float = 30.0,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Proof:
    """Keep asking until every worker was seen to give an answer for which `holds` is true.

    `holds` may raise Failure to end it at once. Raises NotProved after `timeout` seconds.
    """
    began = clock()
    proved: set[int] = set()
    unknown: list[float] = []  # when wanted answers came that can't be put down to a worker
    last: Answer | OSError | None = None
    pause, burst = SHORTEST_PAUSE, 1
    current = workers(config)
    looked = began
    while True:
        left = began + timeout - clock()
        question = _Question(path, method, headers or {}, max(SHORTEST_PATIENCE, min(left, timeout / 3)))
        wanted = True
        for answer in _ask(config, question, burst, current):
            if isinstance(answer, OSError) or not holds(answer):
                last, wanted = answer, False
                unknown.clear()
                if isinstance(answer, Answer) and answer.worker:
                    proved.discard(answer.worker)
            elif answer.worker is None:
                unknown.append(clock())
            else:
                proved.add(answer.worker)
        if clock() - looked > LOOK_AGAIN:  # a worker may have died, and another been started
            current, looked = workers(config), clock()
        took = round(clock() - began, 3)
        if wanted and current and proved.issuperset(current):
            return Proof(len(current), True, took)
        if not proved and len(unknown) >= BLIND_ANSWERS and unknown[-1] - unknown[0] >= BLIND_SECONDS:
            return Proof(0, False, took)
        if took >= timeout:
            raise NotProved(
                f"{len(proved.intersection(current))} of {len(current)} workers at {config.url} answered as"
                f" expected within {timeout:g} s; {_describe(last)}",
                seen=len(proved.intersection(current)),
                workers=len(current),
                last=last,
            )
        # Unwanted answers take patience. A worker that does not show up takes more connections at a
        # time than the others can snatch.
        burst = min(LARGEST_BURST, burst * 2) if wanted and proved else 1
        sleep(min(pause, max(0.0, left)))
        pause = min(LONGEST_PAUSE, pause * 2)


def _ask(config: Config, question: _Question, count: int, among: Sequence[int]) -> list[Answer | OSError]:
    """Ask `count` times at the same time; `among` are the processes that may answer."""

    def ask(_: int) -> tuple[Answer, socket.socket] | OSError:
        try:
            return _exchange(config, question)
        except OSError as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        outcomes = list(pool.map(ask, range(count)))
    answers = [outcome for outcome in outcomes if not isinstance(outcome, OSError)]
    owners = _owners([connection for _, connection in answers], among)
    for _, connection in answers:
        connection.close()
    return [
        *(replace(answer, worker=owner) for (answer, _), owner in zip(answers, owners)),  # noqa: B905
        *(outcome for outcome in outcomes if isinstance(outcome, OSError)),
    ]


def _describe(last: Answer | OSError | None) -> str:
    if last is None:
        return "no worker answered otherwise"
    if isinstance(last, OSError):
        return f"the last try got no answer ({last})"
    marked = "with" if last.headers.get("x-maintenance-mode") else "without"
    return f"the last other answer was {last.status} {marked} X-Maintenance-Mode"
