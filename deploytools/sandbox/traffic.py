"""Visitors: requests under load, each answer told apart, and what they add up to.

    python -m deploytools.sandbox.traffic --url http://127.0.0.1:8080/ --seconds 10 --out result.json

Prints `sending` when the first requests are on their way. Ends after --seconds, or on SIGTERM and
SIGINT, and then writes its result.
"""

from __future__ import annotations

import argparse
import http.client
import ipaddress
import json
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit

APP = "app"  # the application answered
MAINTENANCE = "maintenance"  # the maintenance page, marked as such
UNMARKED = "unmarked_5xx"
REFUSED = "refused"
RESET = "reset"  # closed or reset before a byte of the answer
TRUNCATED = "truncated"  # closed or reset within the answer
TIMEOUT = "timeout"
OTHER = "other"
CLASSES = (APP, MAINTENANCE, UNMARKED, REFUSED, RESET, TRUNCATED, TIMEOUT, OTHER)
LOST = CLASSES[2:]

# How many requests a connection serves, drawn for each: as many new ones as kept ones.
LIVES = (1, 1, 2, 10, 50)
# One request in so many signs the guestbook; the others read it.
SIGN_EVERY = 10
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


class Record(NamedTuple):
    """One request.

    Args:
        start: seconds after the run began at which it was first sent.
        seconds: until it was answered or lost.
        kind: one of CLASSES.
        schema: what the application met in the database; `expected` is what its code was written for.
        retried: it was sent again because the server had closed a kept connection it had not used.
    """

    start: float
    seconds: float
    kind: str
    status: int = 0
    release: str = ""
    generation: str = ""
    schema: str = ""
    expected: str = ""
    retried: bool = False

    @property
    def mismatch(self) -> bool:
        """Whether code met a schema it wasn't written for."""
        return bool(self.schema) and self.schema != self.expected


def classify(status: int, headers: Mapping[str, str | None]) -> str:
    """Given a complete answer, return its class. `headers` has the names in lower case."""
    if status == 503 and headers.get("x-maintenance-mode") == "1":
        return MAINTENANCE
    if 200 <= status < 400 and headers.get("x-schema-expected"):
        return APP
    return UNMARKED if 500 <= status < 600 else OTHER


def classify_error(error: Exception, *, answer_begun: bool) -> str:
    """Given what went wrong with a request, return its class."""
    if isinstance(error, TimeoutError):
        return TIMEOUT
    if isinstance(error, ConnectionRefusedError):
        return REFUSED
    if answer_begun or isinstance(error, http.client.IncompleteRead):
        return TRUNCATED
    if isinstance(error, ConnectionError):
        return RESET
    return TRUNCATED if isinstance(error, http.client.HTTPException) else OTHER


def downtime(records: Iterable[Record]) -> dict[str, Any] | None:
    """The visible downtime; None where every request was answered by the application.

    It lasts from the first request that got the maintenance page or nothing to the first one after the
    last of these that the application answered, both by the time they were sent. `over` is false
    where no such request came; it lasts until the last request of all then.
    """
    ordered = sorted(records)
    bad = [record.start for record in ordered if record.kind != APP]
    if not bad:
        return None
    after = [record.start for record in ordered if record.start > bad[-1]]
    end = after[0] if after else ordered[-1].start
    return {"seconds": round(end - bad[0], 3), "start": bad[0], "end": end, "over": bool(after)}


def summary(records: list[Record], *, began: float, seconds: float) -> dict[str, Any]:
    """What the records of a run add up to.

    Args:
        began: Unix time at which the run began.
        seconds: how long it lasted.
    """
    kinds = Counter(record.kind for record in records)
    durations = sorted(record.seconds for record in records if record.kind == APP)
    lost = [record for record in records if record.kind in LOST]
    return {
        "began": began,
        "seconds": round(seconds, 3),
        "sent": len(records),
        "rate": round(len(records) / seconds, 1) if seconds > 0 else 0.0,
        "classes": {kind: kinds[kind] for kind in CLASSES},
        "lost": len(lost),
        "retried": sum(record.retried for record in records),
        "mismatches": sum(record.mismatch for record in records),
        "downtime": downtime(records),
        "releases": dict(Counter(record.release for record in records if record.kind == APP)),
        "generations": dict(Counter(record.generation for record in records if record.kind == APP)),
        "median_ms": _milliseconds(durations, 0.5),
        "p99_ms": _milliseconds(durations, 0.99),
        "slowest_ms": _milliseconds(durations, 1.0),
        "per_second": per_second(records),
        "examples": [record._asdict() for record in lost[:20]],
    }


def per_second(records: Iterable[Record]) -> list[dict[str, Any]]:
    """A row for each second in which a request was sent: how many of each class, and from which releases."""
    rows: dict[int, dict[str, Any]] = {}
    for record in sorted(records):
        second = int(record.start)
        row = rows.setdefault(second, {"second": second, "classes": {}, "releases": {}})
        row["classes"][record.kind] = row["classes"].get(record.kind, 0) + 1
        if record.kind == APP:
            row["releases"][record.release] = row["releases"].get(record.release, 0) + 1
    return list(rows.values())


def _milliseconds(durations: list[float], part: float) -> float | None:
    """The duration that `part` of the requests didn't exceed."""
    if not durations:
        return None
    return round(1000 * durations[min(len(durations) - 1, int(part * len(durations)))], 1)


class Visitor(threading.Thread):
    """Sends one request after the other, on connections that serve some requests each.

    Args:
        site: where to.
        number: of this visitor; what it sends is the same each time.
        interval: seconds between the starts of two requests; 0 for as fast as it goes.
        timeout: seconds that any wait of a request may take.
        began: monotonic time at which the run began.
        over: set when the run ends.
    """

    def __init__(
        self, site: Site, number: int, *, interval: float, timeout: float, began: float, over: threading.Event
    ) -> None:
        super().__init__(name=f"visitor {number}", daemon=True)
        self.site, self.number, self.interval, self.timeout = site, number, interval, timeout
        self.began, self.over = began, over
        self.records: list[Record] = []
        self.connection: http.client.HTTPConnection | None = None
        self.left = 0  # requests that the connection is still to serve
        self.random = random.Random(number)  # noqa: S311 - any draw will do, as long as it is the same
        self.form = urlencode({"name": f"Visitor {number}", "message": "I was here."}).encode()

    def run(self) -> None:
        due = self.began + self.interval * self.random.random()
        while not (self.over.wait(due - time.monotonic()) if self.interval else self.over.is_set()):
            self.records.append(self.visit())
            # One that was late doesn't make up for it with a burst.
            due = max(due + self.interval, time.monotonic())
        self.hang_up()

    def visit(self) -> Record:
        """Send one request; once more where the server had closed the connection before it."""
        start = time.monotonic()
        kept = self.connection is not None
        record = self.send(start)
        if kept and record.kind == RESET:
            record = self.send(start)._replace(retried=True)
        return record

    def send(self, start: float) -> Record:
        """Send one request on the connection or on a new one."""
        answer: http.client.HTTPResponse | None = None
        try:
            if self.connection is None:
                self.connection = http.client.HTTPConnection(
                    self.site.host, self.site.port, timeout=self.timeout
                )
                self.left = self.random.choice(LIVES)
            if len(self.records) % SIGN_EVERY == self.number % SIGN_EVERY:
                self.connection.request("POST", self.site.path + "sign", self.form, FORM)
            else:
                self.connection.request("GET", self.site.path)
            answer = self.connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException) as error:
            self.hang_up()
            kind = classify_error(error, answer_begun=answer is not None)
            return Record(start - self.began, time.monotonic() - start, kind)
        seconds = time.monotonic() - start
        self.left -= 1
        if self.left <= 0 or answer.will_close:
            self.hang_up()
        headers = {name.lower(): value for name, value in answer.getheaders()}
        return Record(
            start - self.began,
            seconds,
            classify(answer.status, headers),
            answer.status,
            headers.get("x-release", ""),
            headers.get("x-generation", ""),
            headers.get("x-schema", ""),
            headers.get("x-schema-expected", ""),
        )

    def hang_up(self) -> None:
        """Close the connection, if there is one."""
        if self.connection is not None:
            self.connection.close()
            self.connection = None


class Site(NamedTuple):
    """Where the requests go to: `path` ends with a slash."""

    host: str
    port: int
    path: str


def site_of(url: str) -> Site:
    """Given a URL, return its parts; raises ValueError where it isn't plain HTTP to a private address.

    This is a load generator: it has no business with machines of others.
    """
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError("expected http://ADDRESS:PORT/")
    if parts.hostname != "localhost" and not ipaddress.ip_address(parts.hostname).is_private:
        raise ValueError("only sites on this machine or in a private network")
    return Site(parts.hostname, parts.port or 80, parts.path.rstrip("/") + "/")


def watch(
    site: Site,
    *,
    seconds: float,
    clients: int,
    rate: float,
    timeout: float,
    at_least: int,
    stop: threading.Event,
) -> tuple[list[Record], dict[str, Any]]:
    """Send requests until `seconds` have passed or `stop` is set; return the records and their summary.

    Args:
        at_least: how many are sent before `stop` counts.
        clients: how many requests are under way at once, at most.
        rate: requests a second, all clients together; 0 for as fast as it goes.
        timeout: seconds that any wait of a request may take.
    """
    began, began_at = time.monotonic(), time.time()
    over = threading.Event()
    visitors = [
        Visitor(
            site, number, interval=clients / rate if rate else 0.0, timeout=timeout, began=began, over=over
        )
        for number in range(clients)
    ]
    for visitor in visitors:
        visitor.start()
    print("sending", flush=True)
    while time.monotonic() < began + seconds:
        if stop.is_set() and sum(len(visitor.records) for visitor in visitors) >= at_least:
            break
        time.sleep(0.05)
    over.set()
    for visitor in visitors:
        visitor.join()
    records = [record for visitor in visitors for record in visitor.records]
    return records, summary(records, began=began_at, seconds=time.monotonic() - began)


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(
        prog="python -m deploytools.sandbox.traffic", description=__doc__.split("\n")[0]
    )
    add = parser.add_argument
    add("--url", required=True, help="the site, for instance http://127.0.0.1:8080/")
    add("--seconds", type=_number(0.1, 3600), default=60.0, help="how long, at most")
    add("--clients", type=_number(1, 256, int), default=8, help="requests under way at once")
    add("--rate", type=_number(0, 1e5), default=0.0, help="requests a second; 0 for no limit")
    add("--at-least", type=_number(0, 10**7, int), default=0, help="requests before a signal counts")
    add("--timeout", type=_number(0.1, 300), default=30.0, help="seconds until a request is lost")
    add("--out", type=Path, required=True, help="where the summary goes, as JSON")
    add("--records", type=Path, help="where every request goes, as one JSON list a line")
    arguments = parser.parse_args()
    try:
        site = site_of(arguments.url)
    except ValueError as error:
        parser.error(f"--url {arguments.url}: {error}")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    records, result = watch(
        site,
        seconds=arguments.seconds,
        clients=arguments.clients,
        rate=arguments.rate,
        timeout=arguments.timeout,
        at_least=arguments.at_least,
        stop=stop,
    )
    if arguments.records:
        lines = (json.dumps(record) for record in sorted(records))
        arguments.records.write_text("".join(f"{line}\n" for line in lines))
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


def _number(least: float, most: float, kind: type[float] = float) -> Callable[[str], float]:
    """The type of an argument that must be a number within these bounds."""

    def number(text: str) -> float:
        value = kind(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text} is not between {least:g} and {most:g}")
        return value

    return number


if __name__ == "__main__":
    main()
