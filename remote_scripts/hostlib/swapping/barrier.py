"""The barrier: after it, no request can reach the old generation any more.

lighttpd is single-threaded, so a worker that has answered a request after the flip is not about to
connect by the old link; and a connection to the new socket, seen in the kernel's table, shows that
it comes through to the new generation, whatever its configuration says.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from hostlib.program import TOOLS, Config, Failure
from hostlib.releasing.manifest import Health
from hostlib.swapping import unixsockets
from hostlib.swapping.generations import Life, Record
from hostlib.switch import maintenance
from hostlib.webserver import web

TIMEOUT = 15.0
UNSEEN_FOR = 5.0  # seconds of good answers without a connection to the new generation being seen
# Seconds for which answers may be bad: the public gets them, too. But where a queue is full for a moment
# lighttpd says 500 at once.
BAD_ANSWERS_FOR = 1.0
# When lighttpd could not connect, as to a generation that had died, it gives the application up for some
# ticks of its clock, and says 503 meanwhile: for 2.0 to 3.0 s in 25 tries, and a tick may be late.
GIVEN_UP, GIVEN_UP_FOR = 503, 4.0
LOOK_PAUSE = 0.0005


def behind(
    config: Config, new: Record, health: Health, known: frozenset[int], look: Callable[[], Life]
) -> None:
    """Return when every worker answered as `health` wants, and a connection to `new` was seen that is not
    one of the `known` ones; else raise Failure.

    Args:
        look: tells how `new` is. One that ends while it answers badly is not given another chance.
    """
    healthy = judge(health, look)
    bypass = maintenance.bypass_headers(config)
    with _connection_to(new.socket, known) as seen:
        web.prove(config, healthy, path=health.path, headers=bypass, timeout=TIMEOUT)
        deadline = time.monotonic() + UNSEEN_FOR
        while not seen.is_set():
            if time.monotonic() >= deadline:
                raise Failure(
                    f"the web server answered {health.path} without a connection to {new.socket}:"
                    f" does its fastcgi.server use {config.run / 'app.sock'}?",
                    next=f"{TOOLS}/doctor",
                )
            web.prove(config, healthy, path=health.path, headers=bypass, timeout=TIMEOUT)


def judge(
    health: Health, look: Callable[[], Life], *, started: int | None = None
) -> Callable[[web.Answer], bool]:
    """What tells for each answer whether it is as `health` wants it; raises Failure where it is hopeless.

    That is where it crashes while it answers badly; and even where it answers well, if it was `started` again
    more often than so.
    """
    bad_since: float | None = None
    restarts = look().restarts if started is None else started

    def healthy(answer: web.Answer) -> bool:
        nonlocal bad_since
        good = health.met(answer.status, answer.body)
        if good:
            bad_since = None
        if good and started is None:
            return True
        life = look()
        if life.pid is None and life.ended is None:
            return False  # it ends at this moment, and its manager doesn't know yet how
        if life.pid is None or life.restarts > restarts:
            raise Failure(f"behind the web server {life.ended}")
        if good:
            return True
        bad_since = bad_since or time.monotonic()
        if time.monotonic() - bad_since > (GIVEN_UP_FOR if answer.status == GIVEN_UP else BAD_ANSWERS_FOR):
            raise Failure(f"the web server answers {answer.status}, not {health}")
        return False

    return healthy


@contextlib.contextmanager
def _connection_to(path: str, known: frozenset[int]) -> Iterator[threading.Event]:
    """Watch the socket `path`; the event is set once a connection is seen that is not a `known` one.

    A short one can be missed in the kernel's table. But the kernel also sets the access time of a socket's
    file when somebody connects to it, unless its file system is mounted noatime.
    """
    seen, enough = threading.Event(), threading.Event()
    unixsockets.forget_access(path)

    def watch() -> None:
        while not (seen.is_set() or enough.wait(LOOK_PAUSE)):
            with contextlib.suppress(FileNotFoundError):  # an application that crashed may make it anew
                if unixsockets.was_accessed(path) or unixsockets.connections(path).inodes - known:
                    seen.set()

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        enough.set()
        watcher.join()
