"""Ask this host's own web server, and know which of its worker processes answered.

Each lighttpd worker has caches of its own, and each of its addresses may be configured otherwise. So a
change counts as proved when every worker was seen to answer as wanted after it, on every address: see
`prove`.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

from hostlib.program import Config, Failure
from hostlib.webserver import exchange, listeners
from hostlib.webserver.exchange import NoAnswer
from hostlib.webserver.listeners import Listener, workers

__all__ = [
    "Answer",
    "NoAnswer",
    "NotProved",
    "Point",
    "Proof",
    "points",
    "prove",
    "rehearse",
    "request",
    "workers",
]

LARGEST_BURST = 16  # concurrent requests to reach a worker that another one is quicker than
LARGEST_ROUND = 64  # concurrent requests altogether
SHORTEST_PAUSE, LONGEST_PAUSE = 0.001, 0.05  # seconds between two rounds of `prove`
SHORTEST_PATIENCE = 0.5  # seconds for a request; so `prove` may take that much longer than its timeout
# lighttpd's stat cache "simple" looks at maint.lua again when the second changes. Where the workers
# can't be told apart, wanted answers must at least go on for longer than that.
BLIND_SECONDS, BLIND_ANSWERS = 1.2, 20
LOOK_AGAIN = 0.5  # seconds after which the list of workers is taken as out of date
REHEARSAL = 1.0  # seconds for what may as well not come about
TLS_PORTS = (443, 8443)  # asked by TLS first; others too, where plain HTTP gets no answer


class Point(NamedTuple):
    """One of the site's names at one of lighttpd's addresses."""

    listener: Listener
    name: str
    is_home: bool = False  # the address of config.url, which is the site's by definition

    def __str__(self) -> str:
        return f"{self.listener} ({self.name})"


@dataclass(frozen=True)
class Answer:
    """An HTTP answer; header names in lower case; `worker` is the answering process, if it can be told."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    worker: int | None


@dataclass(frozen=True)
class Proof:
    """Every worker answered as wanted at each of the `addresses`, but for those that are `elsewhere`.

    Not `certain`: answers were right, but whose they are is unknown.
    """

    workers: int
    certain: bool
    took: float
    addresses: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.certain:
            return (
                "as every answer was right; but which worker gave it can't be told without root"
                " or the web server's own account"
            )
        who = "proved by the only worker" if self.workers == 1 else f"proved by all {self.workers} workers"
        return who if len(self.addresses) < 2 else f"{who} on {', '.join(self.addresses)}"


class NotProved(Failure):
    """Not every worker answered as wanted in time; `last` is the last answer that was not wanted.

    `point` is where that was.
    """

    def __init__(
        self,
        what: str,
        *,
        seen: int,
        workers: int,
        last: Answer | OSError | None,
        point: Point | None = None,
    ) -> None:
        super().__init__(what, seen=seen, workers=workers)
        self.last, self.point = last, point


# -- one request ---------------------------------------------------------------------------------


def request(
    config: Config,
    path: str = "/",
    *,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    timeout: float = 10.0,
    at: Point | None = None,
) -> Answer:
    """One request to `at` (config.url's server if None) on a new connection; `timeout` is in seconds.

    Raises OSError where there is no answer (refused, timeout, cut short).
    """
    question = _Question(path, method, headers or {}, timeout)
    home = _home(config)
    speech, among = _Speech(config, home), workers(config)
    for _ in exchange.KINDS if at else (None,):
        answer = _ask(question, [at or home], among, speech)[0]
        if isinstance(answer, Answer):
            return answer
    raise answer


def rehearse(config: Config) -> None:
    """Ask for the counters, for nothing: what a proof loads and compiles late is there when it is its turn.

    For a program that waits to be told. Whatever is wrong shows in its turn.
    """
    with contextlib.suppress(Failure, OSError):
        prove(config, lambda _: True, path=config.statistics_path, timeout=REHEARSAL, everywhere=True)


class _Question(NamedTuple):
    path: str
    method: str
    headers: Mapping[str, str]
    timeout: float


class _Speech:
    """How each address wants to be spoken to (see exchange): known of config.url, guessed of the others."""

    def __init__(self, config: Config, home: Point) -> None:
        self._home = home.listener
        self._kinds = {self._home: exchange.TLS if _url(config).scheme == "https" else exchange.PLAIN}

    def kind(self, listener: Listener) -> int:
        guess = exchange.TLS if listener.port in TLS_PORTS else exchange.PLAIN
        return self._kinds.setdefault(listener, guess)

    def not_understood(self, listener: Listener) -> None:
        """Guess again."""
        if listener != self._home:
            self._kinds[listener] = (self._kinds[listener] + 1) % len(exchange.KINDS)


def _ask(
    question: _Question, at: Sequence[Point], among: Sequence[int], speech: _Speech
) -> list[Answer | OSError]:
    """Ask at each of the points at the same time; `among` are the processes that may answer."""
    deadline = time.monotonic() + question.timeout
    with contextlib.ExitStack() as stack:
        sent = [_sent(question, point, speech, stack) for point in at]
        received = [
            connection if isinstance(connection, OSError) else _received(connection, question, deadline)
            for connection in sent
        ]
        answered = [
            connection
            for connection, message in zip(sent, received)  # noqa: B905
            if isinstance(connection, socket.socket) and not isinstance(message, OSError)
        ]
        given_by = iter(listeners.owners(answered, among))
    outcomes: list[Answer | OSError] = []
    for point, message in zip(at, received):  # noqa: B905
        if isinstance(message, OSError):
            outcomes.append(message)
            if not isinstance(message, (TimeoutError, ConnectionRefusedError)):
                speech.not_understood(point.listener)
        else:
            outcomes.append(Answer(message.status, message.headers, message.body, next(given_by)))
    return outcomes


def _sent(
    question: _Question, point: Point, speech: _Speech, stack: contextlib.ExitStack
) -> socket.socket | OSError:
    """The connection on which the question was sent; closed when the stack is."""
    try:
        plain = point.listener.connect(question.timeout)
        connection = exchange.speak(plain, speech.kind(point.listener), point.name)
        stack.callback(connection.close)
        about = {"Host": point.name, "Accept-Encoding": "identity", **question.headers}
        exchange.send(connection, question.method, question.path, about)
    except OSError as error:
        return error
    return connection


def _received(connection: socket.socket, question: _Question, deadline: float) -> exchange.Message | OSError:
    try:
        return exchange.receive(connection, question.method, deadline)
    except OSError as error:
        return error


# -- where -----------------------------------------------------------------------------------------


def points(config: Config, pids: Sequence[int]) -> tuple[Point, ...]:
    """Each name of the site at each address that lighttpd's workers accept on, config.url's first.

    That one alone where there is no worker whose sockets we may see.
    """
    found = listeners.of(pids) if pids else ()
    first = listeners.of_url(config, found)
    others = [one for one in found if one != first and str(one) not in config.unproved]
    return tuple(
        Point(listener, name, listener == first)
        for listener in (first, *others)
        for name in _names(config, listener)
    )


def _home(config: Config) -> Point:
    listener = listeners.of_url(config)
    return Point(listener, _names(config, listener)[0], is_home=True)


def _names(config: Config, listener: Listener) -> tuple[str, ...]:
    """The site's names as browsers send them; without any the address is as good as another."""
    if config.host_header:
        return (config.host_header, *config.aliases)
    host = _url(config).hostname or ""
    usual = listener.port in (0, 443 if _url(config).scheme == "https" else 80)
    host = f"[{host}]" if ":" in host else host
    return (host if usual else f"{host}:{listener.port}", *config.aliases)


def _url(config: Config) -> SplitResult:
    return urlsplit(config.url)


# -- proof -----------------------------------------------------------------------------------------


def prove(
    config: Config,
    holds: Callable[[Answer], bool],
    *,
    path: str = "/",
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    timeout: float = 30.0,
    patience: Callable[[], float] | None = None,
    everywhere: bool = False,
    elsewhere: Callable[[Point, Answer], bool] | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Proof:
    """Keep asking until every worker was seen to give an answer for which `holds` is true.

    They are asked where config.url leads, or `everywhere`: by each of the site's names, at each of their
    addresses. Then an unwanted answer doesn't count at an address that belongs to another site, which
    `elsewhere` tells. `holds` may raise Failure to end it at once. Raises NotProved after `timeout`
    seconds, and after `patience()` seconds where answers are still not the wanted ones.
    """
    began = clock()
    seen = _Seen(config, everywhere, began)
    speech = _Speech(config, seen.points[0])
    pause, burst = SHORTEST_PAUSE, 1
    while True:
        left = began + timeout - clock()
        question = _Question(path, method, headers or {}, max(SHORTEST_PATIENCE, min(left, timeout / 3)))
        open_points = [point for point in seen.points if not seen.done(point)] or seen.points[:1]
        at = [
            point for point in open_points for _ in range(min(burst, LARGEST_ROUND // len(open_points) + 1))
        ]
        wanted = True
        for point, answer in zip(at, _ask(question, at, seen.workers, speech)):  # noqa: B905
            if isinstance(answer, Answer) and holds(answer):
                seen.good(point, answer.worker, clock())
                continue
            wanted = False
            seen.bad(point, answer)
            if elsewhere and isinstance(answer, Answer) and seen.may_ask_elsewhere(point, clock()):
                seen.answered_elsewhere(point, elsewhere(point, answer))
        seen.look_again(clock())
        took = round(clock() - began, 3)
        if wanted and all(map(seen.done, seen.points)):
            return seen.proof(took)
        if took >= timeout or (patience is not None and seen.unwanted() and took >= patience()):
            raise seen.not_proved(took)
        # Unwanted answers take patience. A worker that does not show up takes more connections at a
        # time than the others can snatch.
        burst = min(LARGEST_BURST, burst * 2) if wanted and seen.any_good else 1
        sleep(min(pause, max(0.0, left)))
        pause = min(LONGEST_PAUSE, pause * 2)


class _Seen:
    """What `prove` has seen so far, point by point."""

    def __init__(self, config: Config, everywhere: bool, now: float) -> None:
        self._config, self._everywhere = config, everywhere
        self._good: dict[Point, set[int]] = {}
        self._unknown: dict[Point, list[float]] = {}  # when good answers came of nobody knows which worker
        self._bad: dict[Point, Answer | OSError] = {}  # the last one
        self._elsewhere: dict[Point, bool] = {}
        self._asked_elsewhere: dict[Point, float] = {}
        self._look(now)

    def _look(self, now: float) -> None:
        self.workers = workers(self._config)
        found = points(self._config, self.workers)
        self.points = found if self._everywhere else found[:1]
        self._looked = now

    def look_again(self, now: float) -> None:
        """A worker may have died, and another been started; a reload may have brought new addresses."""
        if now - self._looked > LOOK_AGAIN:
            self._look(now)

    @property
    def any_good(self) -> bool:
        return any(self._good.values())

    def good(self, point: Point, worker: int | None, now: float) -> None:
        if worker is None:
            self._unknown.setdefault(point, []).append(now)
        else:
            self._good.setdefault(point, set()).add(worker)

    def bad(self, point: Point, answer: Answer | OSError) -> None:
        self._bad[point] = answer
        self._unknown.pop(point, None)
        if isinstance(answer, Answer) and answer.worker:
            self._good.get(point, set()).discard(answer.worker)

    def may_ask_elsewhere(self, point: Point, now: float) -> bool:
        """Finding that out takes requests of its own."""
        if point.is_home or now - self._asked_elsewhere.get(point, 0) < LOOK_AGAIN:
            return False
        self._asked_elsewhere[point] = now
        return True

    def answered_elsewhere(self, point: Point, elsewhere: bool) -> None:
        self._elsewhere[point] = elsewhere

    def done(self, point: Point) -> bool:
        if self._elsewhere.get(point):
            return True
        good = self._good.get(point, set())
        return good.issuperset(self.workers) if self.workers and good else self._blind(point)

    def _blind(self, point: Point) -> bool:
        when = self._unknown.get(point, [])
        return len(when) >= BLIND_ANSWERS and when[-1] - when[0] >= BLIND_SECONDS

    def unwanted(self) -> bool:
        """True where a point gives answers, but not the wanted ones."""
        return any(isinstance(self._bad.get(point), Answer) for point in self.points if not self.done(point))

    def proof(self, took: float) -> Proof:
        ours = [point for point in self.points if not self._elsewhere.get(point)]
        addresses = tuple(dict.fromkeys(str(point.listener) for point in ours))
        elsewhere = tuple(str(point) for point in self.points if self._elsewhere.get(point))
        certain = not any(map(self._blind, ours))
        return Proof(len(self.workers) if certain else 0, certain, took, addresses, elsewhere)

    def not_proved(self, took: float) -> NotProved:
        left = [point for point in self.points if not self.done(point)] or self.points[:1]
        point = next((point for point in left if point in self._bad), left[0])
        seen, last = len(self._good.get(point, set()).intersection(self.workers)), self._bad.get(point)
        where = self._config.url if point == self.points[0] else str(point)
        return NotProved(
            f"{seen} of {len(self.workers)} workers at {where} answered as expected"
            f" within {round(took, 1):g} s; {_describe(last)}",
            seen=seen,
            workers=len(self.workers),
            last=last,
            point=point,
        )


def _describe(last: Answer | OSError | None) -> str:
    if last is None:
        return "no worker answered otherwise"
    if isinstance(last, OSError):
        return f"the last try got no answer ({last})"
    marked = "with" if last.headers.get("x-maintenance-mode") else "without"
    return f"the last other answer was {last.status} {marked} X-Maintenance-Mode"
