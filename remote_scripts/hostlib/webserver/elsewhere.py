"""Which of lighttpd's addresses are another site's, so that they need not show the maintenance page.

Not by what is configured, which need not be what runs, but by what happens: lighttpd counts its
connections to the application, worker by worker. Where that worker's count stays the same, the request
didn't go there. The configuration only tells which counts are the application's: a site may lead to it by a
label of its own. Whatever can't be shown to be another site's counts as this one's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from hostlib.program import Config, Failure
from hostlib.switch import maintstate
from hostlib.webserver import counters, web

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
        bypass, labels = maintstate.bypass_headers(config), _labels(config)
        for tracer in TRACERS:
            if _reaches(config, None, tracer, bypass, labels):  # so the count would tell
                return _reaches(config, point, tracer, {}, labels) is False
    except (Failure, OSError):
        pass  # the counters can't be had: nothing is shown
    return False


def _labels(config: Config) -> set[str]:
    """The labels of all that leads to the application's sockets. Raises Failure or OSError."""
    import subprocess  # most hosts have no other site, and `down` is to begin at once

    from hostlib.webserver import lighttpd

    program = lighttpd.program()
    if program is None:
        raise Failure("there is no lighttpd to ask for its configuration")
    try:
        blocks = lighttpd.read(program, config.lighttpd_config).blocks
    except subprocess.SubprocessError as error:
        raise Failure(f"lighttpd does not print its configuration: {error}") from error
    return {
        label
        for block in blocks
        for key in ("fastcgi.server", "scgi.server")
        for label, options in lighttpd.backends(block.settings.get(key))
        if _is_the_applications(config, str(options.get("socket", "")))
    }


def _is_the_applications(config: Config, socket: str) -> bool:
    place = Path(os.path.realpath(os.path.dirname(socket)))
    return place.is_relative_to(os.path.realpath(config.run)) or (
        os.path.realpath(socket) == os.path.realpath(config.run / "app.sock")
    )


def _reaches(
    config: Config, point: web.Point | None, path: str, headers: Mapping[str, str], labels: set[str]
) -> bool | None:
    """Whether a request gets through to the application; None where that can't be told."""
    for _ in range(TRIES):
        before = counters.read(config, timeout=TIMEOUT, labels=labels)
        answer = web.request(config, path, headers=headers, timeout=TIMEOUT, at=point)
        after = counters.read(config, timeout=TIMEOUT, labels=labels)
        if answer.worker is None or answer.worker not in before or answer.worker not in after:
            return None
        if before[answer.worker].connected == after[answer.worker].connected:
            return False
    return True
