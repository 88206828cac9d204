"""Which of lighttpd's addresses are another site's, so that they need not show the maintenance page.

By what happens: lighttpd counts its connections to the application, worker by worker. Where that worker's
count stays the same, the request didn't go there. As other requests may, the configuration must not lead
any to the application there, either; and it tells which counts are the application's: a site may lead to it
by a label of its own. Whatever can't be shown to be another site's counts as this one's.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from hostlib.program import Config, Failure
from hostlib.switch import maintstate
from hostlib.webserver import counters, web

if TYPE_CHECKING:
    from hostlib.webserver import lighttpd

# Requests that should reach the application: "/" does, unless it is a file of the document root; this
# one is no file.
TRACERS = ("/", "/maintenance-check")
TRIES = 3  # somebody else's request through the bypass may be counted in between
BACKENDS = ("fastcgi.server", "scgi.server")
TIMEOUT = 5.0  # seconds for one look at the counters, or one request


def is_elsewhere(config: Config, point: web.Point, deadline: float) -> bool:
    """True where `point` is shown to lead to another site than the application, by that monotonic time.

    The site has to be in maintenance, with a bypass.
    """
    try:
        bypass, found = maintstate.bypass_headers(config), _configuration(config)
        facts = {"host": urlsplit(f"//{point.name}").hostname or "", "socket": str(point.listener)}
        for key in BACKENDS:
            if any(list(_labels(config, block.settings[key])) for block in found.possible(key, facts)):
                return False
        labels = {
            label
            for block in found.blocks
            for key in BACKENDS
            for label in _labels(config, block.settings.get(key))
        }
        for tracer in TRACERS:
            if _reaches(config, None, tracer, bypass, labels, deadline):  # so the count would tell
                return _reaches(config, point, tracer, {}, labels, deadline) is False
    except (Failure, OSError):
        pass  # the counters can't be had: nothing is shown
    return False


def _configuration(config: Config) -> lighttpd.Configuration:
    """lighttpd's configuration as it understands it. Raises Failure or OSError."""
    import subprocess  # most hosts have no other site, and `down` is to begin at once

    from hostlib.webserver import lighttpd

    program = lighttpd.program()
    if program is None:
        raise Failure("there is no lighttpd to ask for its configuration", next="apt-get install lighttpd")
    try:
        return lighttpd.read(program, config.lighttpd_config)
    except subprocess.SubprocessError as error:
        raise Failure(
            f"lighttpd does not print its configuration: {error}",
            next=f"lighttpd -p -f {config.lighttpd_config}",
        ) from error


def _labels(config: Config, backends: Any) -> Iterator[str]:
    """The labels, in a `fastcgi.server`, of all that leads to the application's sockets."""
    from hostlib.webserver import lighttpd

    for label, options in lighttpd.backends(backends):
        if _is_the_applications(config, str(options.get("socket", ""))):
            yield label


def _is_the_applications(config: Config, socket: str) -> bool:
    place = Path(os.path.realpath(os.path.dirname(socket)))
    return place.is_relative_to(os.path.realpath(config.run)) or (
        os.path.realpath(socket) == os.path.realpath(config.run / "app.sock")
    )


def _reaches(
    config: Config,
    point: web.Point | None,
    path: str,
    headers: Mapping[str, str],
    labels: set[str],
    deadline: float,
) -> bool | None:
    """Whether a request gets through to the application; None where that can't be told."""

    def left() -> float:
        return max(0.0, min(TIMEOUT, deadline - time.monotonic()))

    for _ in range(TRIES):
        before = counters.read(config, timeout=left(), labels=labels)
        answer = web.request(config, path, headers=headers, timeout=left(), at=point)
        after = counters.read(config, timeout=left(), labels=labels)
        if answer.worker is None or answer.worker not in before or answer.worker not in after:
            return None
        if before[answer.worker].connected == after[answer.worker].connected:
            return False
    return True
