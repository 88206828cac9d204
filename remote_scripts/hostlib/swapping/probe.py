"""Whether a new generation is ready: real FastCGI requests on its own socket, before anybody else asks."""

from __future__ import annotations

import time
from urllib.parse import urlsplit

from hostlib.program import Config, Failure
from hostlib.releasing.manifest import App, Health
from hostlib.swapping import applog, fastcgi, unixsockets
from hostlib.swapping.generations import Record
from hostlib.swapping.managers import Managers

PATIENCE = 10.0  # seconds for one answer of a new generation before it is asked again
PAUSE = 0.005  # seconds; only where nobody listens yet
LOOKS = 5  # at the kernel's table, which is not read in one piece


def until_ready(
    config: Config,
    managers: Managers,
    new: Record,
    app: App,
    health: Health,
    log: applog.NewLines,
    *,
    patient: bool = False,
) -> float:
    """Return when `new` meets its health check, with the seconds that took.

    Raises Failure when its process ends (unless we are `patient`: its manager starts it again), after
    app.start_timeout seconds, or where `unixsockets` can't see who is connected to it.
    """
    release = config.releases / new.release
    host = config.host_header or urlsplit(config.url).netloc
    parameters = fastcgi.get(release / (config.document_root or ""), health.path, host)
    began = time.monotonic()
    deadline = began + app.start_timeout

    def not_ready(why: str) -> Failure:
        return Failure(
            f"{new} is not ready: {why}",
            next=f"look at {log.path}",
            details=log.last(),
        )

    def check_process() -> None:
        # Its socket stays open when the application ends, so waiting for an answer doesn't tell.
        if not patient and (end := managers.look(new).ended):
            raise not_ready(end)

    def look_for_us() -> None:
        nonlocal seen
        seen = any(unixsockets.connections(new.socket).total for _ in range(LOOKS))

    seen = False
    while True:
        patience = max(0.1, min(deadline - time.monotonic(), PATIENCE))
        try:
            answer = fastcgi.request(
                new.socket, parameters, timeout=patience, connected=look_for_us, waiting=check_process
            )
            healthy = health.met(answer.status, answer.body)
            last = f"the last answer was {answer.status} {answer.body[:200].decode(errors='replace')!r}"
        except OSError as error:
            healthy, last = False, f"the last try got no answer ({error})"
        check_process()
        if healthy and not seen:
            raise not_ready(
                f"it answers, but the kernel knows its socket by another path than {new.socket}, so"
                " nobody could tell when it has drained: it must bind to just that path"
            )
        if healthy:
            return round(time.monotonic() - began, 3)
        if time.monotonic() >= deadline:
            raise not_ready(f"it did not answer {health} within {app.start_timeout:g} s; {last}")
        time.sleep(PAUSE)
