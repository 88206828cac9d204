"""Waits until nothing is being worked on any more, once maintenance keeps new requests out.

The 503 does not stop what was accepted before it: an upload that is still coming in reaches the
application after it. So lighttpd's own count of requests per backend is read (of every worker: each
counts for itself), and the application's sockets are looked at in the kernel.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from hostlib.program import TOOLS, Config, Failure, Result
from hostlib.swapping import generations, unixsockets
from hostlib.switch.maintstate import read_state
from hostlib.webserver import counters

SPACING = 0.02  # seconds between two samples: no sample is atomic, so two zeros in a row count
LOOK = 1.0  # seconds for a look that may as well not come about


@dataclass(frozen=True)
class InFlight:
    """Requests that lighttpd has for the application, and connections at the application's sockets."""

    requests: int
    queued: int
    accepted: int

    @property
    def total(self) -> int:
        return self.requests + self.queued + self.accepted

    def __str__(self) -> str:
        return (
            f"{self.requests} requests in lighttpd,"
            f" {self.queued} connections waiting and {self.accepted} open at the application"
        )


def drain(
    config: Config,
    *,
    timeout: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Result:
    """Return when nothing was in flight in two samples in a row; Failure after `timeout` seconds."""
    if read_state(config).state != "down":
        raise Failure(
            "this host is not in maintenance: new requests keep coming in",
            state="nothing was changed",
            next=f"{config.maintenance_dir}/down",
        )
    began = clock()
    empty = 0
    while True:
        seen = in_flight(config, timeout=max(1.0, began + timeout - clock()))
        empty = 0 if seen.total else empty + 1
        took = round(clock() - began, 3)
        if empty == 2:
            return {"in_flight": 0, "took": took, "message": f"nothing is in flight ({took} s)"}
        if seen.total and took >= timeout:
            raise Failure(
                f"still in flight after {timeout:g} s: {seen}",
                state="the site is in maintenance; what was accepted before is still being worked on",
                next=f"{TOOLS}/drain again, with a longer --timeout; or find out what takes so long",
                in_flight=seen.total,
                requests=seen.requests,
                queued=seen.queued,
                accepted=seen.accepted,
            )
        sleep(SPACING)


def at_once(config: Config) -> int | None:
    """How many requests are in flight right after `down` has proved itself; None where that can't be told.

    0 is as certain as what `drain` says: nobody new comes in until maintenance goes off.
    """
    try:
        found = in_flight(config, timeout=LOOK).total
        if not found:
            time.sleep(SPACING)
            found = in_flight(config, timeout=LOOK).total
    except (Failure, OSError):
        return None
    return found


def in_flight(config: Config, *, timeout: float) -> InFlight:
    """One sample over all workers and all generations."""
    counted = counters.read(config, timeout=timeout)
    paths = {str(path) for path in config.run.glob("app.*.sock")}
    # An application that binds its socket itself does so in a directory of its own.
    paths |= {record.socket for record in generations.records(config)}
    sockets = [unixsockets.connections(path) for path in paths]
    return InFlight(
        sum(worker.load for worker in counted.values()),
        sum(seen.queued for seen in sockets),
        sum(seen.accepted for seen in sockets),
    )
