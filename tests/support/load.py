"""Clients that ask a web host all the time, and everything that they saw.

with Load(host, allow={"app": is_app, "maintenance": is_page}) as load:
    ...
assert load.strange == []

with Visitors(address, script="/index.php") as visitors:
    ...
assert visitors.lost == []

Every request that was sent ends in exactly one class of deploytools.sandbox.traffic (or of `allow`), or
is still counted as a hang. What is complete is told by the length that the server announced and by what the
answer should be.
"""

from __future__ import annotations

import hashlib
import http.client
import itertools
import threading
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

from deploytools.sandbox.traffic import APP, MAINTENANCE, OTHER, TRUNCATED, UNMARKED, classify_error
from tests.support.runtimes import BIG
from tests.support.webhost import Reply, WebHost

Address = tuple[str, int]

# Seconds between the requests of a client. Without a pause the clients would have most of the processor, and
# all that the test is about would be the slower for it; `make soak` is where they ask as fast as it goes.
LOAD_INTERVAL, VISITORS_INTERVAL = 0.01, 0.02


class Ask(NamedTuple):
    """A request, and how its answer is told apart: `kind` names its class.

    `rests` are the seconds that the application is asked to do nothing before it answers; they don't count
    as time that the answer took.
    """

    kind: Callable[[Reply], str]
    method: str = "GET"
    path: str = "/"
    body: bytes | None = None
    rests: float = 0


class Clients:
    """Threads that send requests until the block is left; every second one keeps its connection.

    Args:
        asks: given the number of a client, what it sends.
        count: how many clients there are.
        seconds, requests: bounds, the latter over all clients.
        deadline: seconds until a request that isn't answered in full counts as a hang.
        interval: seconds between the requests of a client; 0 for as fast as it goes. With an interval
            requests that a stall held up are sent after it, and the time that an answer took counts from
            when its request was due: so a stall is seen by all of them, not by those under way alone. The
            time that an application is asked to do nothing comes on top of the interval.
    """

    def __init__(
        self,
        address: Address,
        asks: Callable[[int], Iterator[Ask]],
        *,
        count: int = 6,
        seconds: float = 600,
        requests: int = 1_000_000,
        deadline: float = 20,
        interval: float = 0,
    ) -> None:
        self.seen: Counter[str] = Counter()
        self.generations: Counter[str] = Counter()
        self.first: dict[str, float] = {}  # monotonic time at which each generation was met
        self.details: list[str] = []  # of the requests of an unwanted class
        self.lost_at = array("d")  # monotonic time, in step with `details`
        self.began = array("d")  # monotonic time; of each answered request, in step with `took`
        self.took = array("d")
        self._address, self._asks = address, asks
        self._deadline, self._interval = deadline, interval
        self._until = seconds
        self._left = itertools.count(-requests)
        self._leave = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._work, args=(number,), daemon=True) for number in range(count)
        ]

    @property
    def requests(self) -> int:
        """How many have come to an end."""
        return sum(self.seen.values())

    def __enter__(self):  # type: ignore[no-untyped-def]
        self._until += time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._leave.set()
        for thread in self._threads:
            thread.join(timeout=2 * self._deadline + 5)
        waiting = sum(thread.is_alive() for thread in self._threads)
        assert not waiting, f"{waiting} clients are still waiting for an answer"

    @property
    def is_busy(self) -> bool:
        """Whether not all clients have come to their bounds."""
        return any(thread.is_alive() for thread in self._threads)

    def wait(self) -> None:
        """Return when all clients have come to their bounds."""
        for thread in self._threads:
            thread.join()

    def _work(self, number: int) -> None:
        connection = http.client.HTTPConnection(*self._address, timeout=self._deadline)
        due = time.monotonic() + self._interval * number / len(self._threads)
        for ask in self._asks(number):
            if self._leave.wait(max(0.0, due - time.monotonic()) if self._interval else 0):
                break
            if time.monotonic() > self._until or next(self._left) >= 0:
                break
            self._one(connection, ask, due if self._interval else time.monotonic())
            if number % 2:
                connection.close()
            due += self._interval + ask.rests
        connection.close()

    def _one(self, connection: http.client.HTTPConnection, ask: Ask, began: float) -> None:
        answer: http.client.HTTPResponse | None = None
        generation = ""
        try:
            connection.request(ask.method, ask.path, ask.body)
            answer = connection.getresponse()
            body = self._whole(connection, answer)
            headers = {name.lower(): value for name, value in answer.getheaders()}
            generation = headers.get("x-generation", "")
            kind = ask.kind(Reply(answer.status, headers, body))
            detail = f"{answer.status}, generation {generation}, {len(body)} bytes {body[:60]!r}"
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            kind, detail = classify_error(error, answer_begun=answer is not None), repr(error)
        ended = time.monotonic()
        with self._lock:
            self.seen[kind] += 1
            if self._unwanted(kind):
                self.lost_at.append(began)
                self.details.append(f"{ask.method} {ask.path}: {kind}: {detail}")
                return
            self.generations[generation] += 1
            self.first.setdefault(generation, ended)
            self.began.append(began)
            self.took.append(ended - began - ask.rests)

    def _whole(self, connection: http.client.HTTPConnection, answer: http.client.HTTPResponse) -> bytes:
        """The body; raises IncompleteRead where it was cut, TimeoutError where it isn't there in time."""
        deadline = time.monotonic() + self._deadline
        parts = []
        while part := answer.read1(1 << 16):
            parts.append(part)
            if time.monotonic() > deadline:
                connection.close()
                raise TimeoutError("still not complete")
        # Empty, and the end of the answer; or IncompleteRead, where read1 takes a cut for the end.
        return b"".join(parts) + answer.read()

    def _unwanted(self, kind: str) -> bool:
        return kind != APP


class Load(Clients):
    """An answer to GET `path` counts in `seen` under the first name of `allow` whose test it passes; any
    other answer, and every refused, reset or cut connection, is told in `strange`."""

    def __init__(
        self,
        host: WebHost,
        *,
        allow: Mapping[str, Callable[[Reply], bool]],
        clients: int = 4,
        path: str = "/",
        seconds: float = 30,
        requests: int = 200_000,
        interval: float = LOAD_INTERVAL,
    ) -> None:
        def kind(reply: Reply) -> str:
            return next((name for name, fits in allow.items() if fits(reply)), OTHER)

        self._names = frozenset(allow)
        super().__init__(
            ("127.0.0.1", host.port),
            lambda _: itertools.repeat(Ask(kind, "GET", path)),
            count=clients,
            seconds=seconds,
            requests=requests,
            deadline=10,
            interval=interval,
        )

    @property
    def strange(self) -> list[str]:
        return self.details

    def _unwanted(self, kind: str) -> bool:
        return kind not in self._names


class Visitors(Clients):
    """Visitors of the application of tests/support/runtimes, who check all that they get.

    They send small GETs, GETs with a large answer, and POSTs with a body that is told back; every third
    one sends GETs that take long enough to be caught by whoever stops an application too early.

    Args:
        script: the script of the application, where it has one.
        options: of Clients.
    """

    def __init__(
        self, address: Address, *, script: str = "", interval: float = VISITORS_INTERVAL, **options: float
    ) -> None:
        asks = partial(_over_and_over, script)
        super().__init__(address, asks, interval=interval, **options)  # type: ignore[arg-type]

    @property
    def answered(self) -> int:
        return self.seen[APP]

    @property
    def lost(self) -> list[str]:
        return self.details


def _over_and_over(script: str, number: int) -> Iterator[Ask]:
    return itertools.cycle(visits(number, script))


def visits(number: int, script: str) -> Iterable[Ask]:
    """What the visitor `number` sends, over and over."""
    if number % 3 == 2:
        return [Ask(answered(None), "GET", script + "/slow?0.2", rests=0.2)]
    body = hashlib.sha256(bytes([number])).digest() * 1000
    return [
        Ask(answered(None), "GET", script + "/"),
        Ask(answered(b"x" * BIG), "GET", script + "/big"),
        Ask(answered(body), "POST", script + "/echo", body),
    ]


def answered(wanted: bytes | None) -> Callable[[Reply], str]:
    """What class an answer is of, where the application should say `wanted` (None: greet)."""

    def kind(reply: Reply) -> str:
        if reply.in_maintenance:
            return MAINTENANCE
        if reply.status != 200 or "x-generation" not in reply.headers:
            return UNMARKED if reply.status >= 500 else OTHER
        if reply.body == wanted or (wanted is None and reply.body.startswith(b"hello from ")):
            return APP
        return TRUNCATED if (wanted or b"hello from ").startswith(reply.body) else OTHER

    return kind
