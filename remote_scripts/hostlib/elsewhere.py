"""Which of lighttpd's addresses are another site's, so that they need not show the maintenance page.

Not by what is configured, which need not be what runs, but by what happens: lighttpd counts its
connections to the application, worker by worker. Where that worker's count stays the same, the request
didn't go there. Whatever can't be shown to be another site's counts as this one's.
"""

from __future__ import annotations

from collections.abc import Mapping

from hostlib import counters, maintstate, web
from hostlib.program import Config, Failure

# Requests that should reach the application: "/" does, unless it is a file of the document root; this
# one is no file.
TRACERS = ("/", "/maintenance-check")
TRIES = 3  # somebody else's request through the bypass may be counted in between
TIMEOUT = 5.0  # seconds for one look at the counters, or one request


def is_elsewhere(config: Config, point: web.Point) -> bool:
    """True where `point` is shown to lead to another site than the application.

    The site has to be in maintenance, with a bypass.
    """
    try:
        bypass = maintstate.bypass_headers(config)
        for tracer in TRACERS:
            if _reaches(config, None, tracer, bypass):  # so the count would tell
                return _reaches(config, point, tracer, {}) is False
    except (Failure, OSError):
        pass  # the counters can't be had: nothing is shown
    return False


def _reaches(config: Config, point: web.Point | None, path: str, headers: Mapping[str, str]) -> bool | None:
    """Whether a request gets through to the application; None where that can't be told."""
    for _ in range(TRIES):
        before = counters.read(config, timeout=TIMEOUT)
        answer = web.request(config, path, headers=headers, timeout=TIMEOUT, at=point)
        after = counters.read(config, timeout=TIMEOUT)
        if answer.worker is None or answer.worker not in before or answer.worker not in after:
            return None
        if before[answer.worker].connected == after[answer.worker].connected:
            return False
    return True
