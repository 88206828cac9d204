"""What visitors get while a run is at work: this computer asks for the site, a few times a second.

One request at a time, each on a connection of its own and past the caches that heed that, as a visitor who
comes for the first time. It is one visitor's view, over one way to the site: of other ways, and of what
becomes of the visitors' own requests, it knows nothing.
"""

from __future__ import annotations

import http.client
import ipaddress
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple
from urllib.parse import urlsplit

SITE = "site"  # an answer of the site itself, whatever it says below 500
MAINTENANCE = "maintenance"  # the maintenance page, marked as such
LOST = "lost"  # an unmarked 5xx, or no whole answer
KINDS = (SITE, MAINTENANCE, LOST)

# Between the starts of two requests, and until one without an answer is lost, in seconds.
EVERY, TIMEOUT = 0.25, 10.0


class Sample(NamedTuple):
    """One request.

    Args:
        at: seconds since the epoch when it was sent.
        seconds: until it was answered or lost.
        kind: one of KINDS.
        status: of HTTP; 0 where no answer came.
        why: what went wrong, where it was lost.
    """

    at: float
    seconds: float
    kind: str
    status: int = 0
    why: str = ""


@dataclass(frozen=True)
class Seen:
    """What samples add up to.

    Args:
        answered, maintenance, lost: how many there are of each kind.
        downtime: seconds in which the site didn't answer, each time from the first request without its
            answer to the next one with it; None where it answered all.
        from_start, to_end: the site didn't answer the first request, or the last: then it was down before,
            or still is, and `downtime` is only what was seen of it.
    """

    answered: int
    maintenance: int
    lost: int
    downtime: float | None = None
    from_start: bool = False
    to_end: bool = False

    @property
    def sent(self) -> int:
        return self.answered + self.maintenance + self.lost


def seen(samples: Iterable[Sample]) -> Seen | None:
    """Given samples, return what they add up to; None where the site was never reached."""
    ordered = sorted(samples)
    counts = {kind: sum(sample.kind == kind for sample in ordered) for kind in KINDS}
    if not any(sample.status for sample in ordered):
        return None
    down = sum(after.at - sample.at for sample, after in pairwise(ordered) if sample.kind != SITE)
    return Seen(
        answered=counts[SITE],
        maintenance=counts[MAINTENANCE],
        lost=counts[LOST],
        downtime=None if counts[SITE] == len(ordered) else round(down, 3),
        from_start=ordered[0].kind != SITE,
        to_end=ordered[-1].kind != SITE,
    )


def address(public_url: str | None, url: str) -> str | None:
    """What to ask for, given `webserver.public_url` and `webserver.url`; None where neither is for visitors.

    The latter is how a host reaches its own site: most often a loopback address, which is another's here.
    """
    if public_url is not None:
        return public_url
    host = urlsplit(url).hostname or ""
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    return None if loopback else url


class Probe:
    """Asks `url` every EVERY seconds between `__enter__` and `__exit__`, and gives each sample to `tell`."""

    def __init__(
        self, url: str, tell: Callable[[Sample], None], *, every: float = EVERY, timeout: float = TIMEOUT
    ) -> None:
        self._url, self._tell, self._every, self._timeout = url, tell, every, timeout
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._context: ssl.SSLContext | None = None

    def __enter__(self) -> Probe:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """The request in hand is waited for, but no longer than one more of them takes."""
        self._over.set()
        self._thread.join(2 * self._every)

    def _work(self) -> None:
        due = time.monotonic()
        while not self._over.wait(max(0.0, due - time.monotonic())):
            due = max(due + self._every, time.monotonic())
            self._tell(ask(self._url, self._timeout, self._tls()))

    def _tls(self) -> ssl.SSLContext | None:
        if self._context is None and self._url.startswith("https:"):
            self._context = ssl.create_default_context()
        return self._context


def ask(url: str, timeout: float = TIMEOUT, context: ssl.SSLContext | None = None) -> Sample:
    """Send one request as a visitor, and tell what came of it."""
    parts = urlsplit(url)
    at, begun = time.time(), time.monotonic()
    connection = (
        http.client.HTTPSConnection(parts.hostname or "", parts.port, timeout=timeout, context=context)
        if parts.scheme == "https"
        else http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout)
    )
    headers = {"User-Agent": "deploytools probe", "Cache-Control": "no-cache", "Connection": "close"}
    status, marked, why = 0, False, ""
    try:
        connection.request("GET", parts.path or "/", headers=headers)
        answer = connection.getresponse()
        status, marked = answer.status, answer.getheader("X-Maintenance-Mode") == "1"
        answer.read()
    except (
        OSError,
        http.client.HTTPException,
        ValueError,
    ) as error:  # ValueError: of odd names
        why = f"{'cut short: ' if status else ''}{error or type(error).__name__}"
    finally:
        connection.close()
    return Sample(round(at, 3), round(time.monotonic() - begun, 3), _kind(status, marked, why), status, why)


def _kind(status: int, marked: bool, why: str) -> str:
    if why:
        return LOST
    if status == 503 and marked:
        return MAINTENANCE
    return LOST if status >= 500 else SITE
