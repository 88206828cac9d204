"""Whether a new generation is ready: real FastCGI requests on its own socket, before anybody else asks."""

from __future__ import annotations

import time
from urllib.parse import urlsplit

from hostlib.program import Config, Failure
from hostlib.releasing.manifest import App, Health
from hostlib.swapping import applog, fastcgi
from hostlib.swapping.generations import Record
from hostlib.swapping.managers import Managers

PATIENCE = 10.0  # seconds for one answer of a new generation before it is asked again
PAUSE = 0.005  # seconds; only where nobody listens yet


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

    Raises Failure when its process ends (unless we are `patient`: its manager starts it again), or after
    app.start_timeout seconds.
    """
    release = config.releases / new.release
    host = config.host_header or urlsplit(config.url).netloc
    parameters = fastcgi.get(release / (config.document_root or ""), health.path, host)
    began = time.monotonic()
    deadline = began + app.start_timeout

    def not_ready(why: str) -> Failure:
        return Failure(
            f"{new} is not ready: {why}",
            state="it was stopped; nothing else was changed",
            next=f"look at {log.path}",
            details=log.last(),
        )

    def check_process() -> None:
        # Its socket stays open when the application ends, so waiting for an answer doesn't tell.
        if not patient and (end := managers.look(new).ended):
            raise not_ready(end)

    while True:
        patience = max(0.1, min(deadline - time.monotonic(), PATIENCE))
        try:
            answer = fastcgi.request(new.socket, parameters, timeout=patience, waiting=check_process)
            healthy = health.met(answer.status, answer.body)
            last = f"the last answer was {answer.status} {answer.body[:200].decode(errors='replace')!r}"
        except OSError as error:
            healthy, last = False, f"the last try got no answer ({error})"
        check_process()
        if healthy:
            return round(time.monotonic() - began, 3)
        if time.monotonic() >= deadline:
            raise not_ready(f"it did not answer {health} within {app.start_timeout:g} s; {last}")
        time.sleep(PAUSE)
