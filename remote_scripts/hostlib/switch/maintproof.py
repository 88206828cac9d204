"""Seeing that the maintenance switch did what it should, and telling why where it did not."""

from __future__ import annotations

import time
from pathlib import Path

from hostlib.program import Config, Failure
from hostlib.switch import maintstate
from hostlib.switch.maintscript import PROOF
from hostlib.switch.maintstate import answered_for, is_marked, lua_file, public_path
from hostlib.webserver import web
from hostlib.webserver.elsewhere import is_elsewhere

# A script that lighttpd can't run shows visitors a 500. The application's own 500s are over sooner than
# this: an old script is kept for a second at most.
BROKEN_AFTER = 2.0  # seconds
# Seconds after which an answer that is still the old one won't become another; and the same where
# mod_magnet does not seem to be loaded.
LATE, HOPELESS = 5.0, 1.0
RESTORE_TIMEOUT = 5.0  # seconds to prove that what was there before is back
ASK_WHOSE = {PROOF: "whose"}


def down(config: Config, told: str, timeout: float) -> web.Proof:
    """See every worker answer, on every address, by the maintenance script that tells `told`.

    By any such script if that is "". Raises NotProved.
    """
    began = time.monotonic()

    def shows_this_page(answer: web.Answer) -> bool:
        if answer.status == 500 and time.monotonic() > began + BROKEN_AFTER:
            raise web.NotProved("lighttpd answers 500", seen=0, workers=0, last=answer)
        return is_marked(answer) and told in ("", answer.headers.get(PROOF.lower()))

    return web.prove(
        config,
        shows_this_page,
        path=public_path(config),
        headers=ASK_WHOSE,
        timeout=timeout,
        patience=lambda: LATE if _magnet_is_loaded(config) else HOPELESS,
        everywhere=True,
        elsewhere=lambda point, _: is_elsewhere(config, point, began + timeout),
    )


def up(config: Config, timeout: float) -> web.Proof:
    """See that no worker shows the page on any address, and that every worker gives an answer.

    The first is asked by the path of lighttpd's counters: the script is the same for every path, and the
    application need not answer as many times as there are workers and addresses. Raises NotProved.
    """
    deadline = time.monotonic() + timeout

    def is_ours(answer: web.Answer) -> bool:
        """Another application's page is none of our business, on an address that we share."""
        return is_marked(answer) and answered_for(answer) in (None, config.application)

    proof = web.prove(
        config,
        lambda answer: not is_ours(answer),
        path=config.statistics_path,
        headers=ASK_WHOSE,
        timeout=timeout,
        patience=lambda: LATE,
        everywhere=True,
        # Written by hand, by others: ours would be seen at config.url, too, by the same worker.
        elsewhere=lambda _, answer: answered_for(answer) is None,
    )
    web.prove(
        config,
        lambda answer: not is_marked(answer),
        path=public_path(config),
        timeout=max(0.0, deadline - time.monotonic()),
    )
    return proof


def as_before(config: Config, before: maintstate.State) -> str:
    """Which state the host is in after what was there before was put back, in words."""
    if before.state == "unknown":
        return f"{lua_file(config)} is as before"
    wanted = before.state == "down"
    told = "still in maintenance as before" if wanted else "up as before"
    try:
        web.prove(
            config,
            lambda answer: is_marked(answer) == wanted,
            path=public_path(config),
            timeout=RESTORE_TIMEOUT,
        )
    except Failure as failure:
        return f"the files are as before, and should leave the site {told}; but {failure.what}"
    return f"the site is {told}"


def cause(config: Config, failure: web.NotProved) -> tuple[str, str]:
    """The probable cause of a proof that failed, and the remedy."""
    answer = failure.last if isinstance(failure.last, web.Answer) else None
    point = failure.point
    if point is not None and (not point.is_home or (answer and point.name in config.aliases)):
        return _cause_elsewhere(config, point, answer)
    if answer is None:
        return (
            f"No web server answers at {config.url}",
            "systemctl start lighttpd; if it runs, correct webserver.url and run fab setup",
        )
    if answer.status == 500:
        return (
            f"lighttpd can't run {lua_file(config)}",
            "read lighttpd's error log; lighttpd must be 1.4.60 or newer and may read that file",
        )
    if not _magnet_is_loaded(config):
        return (
            "mod_magnet does not seem to be loaded",
            'install lighttpd-modules-lua, put "mod_magnet" first in server.modules, restart lighttpd',
        )
    return (
        "lighttpd does not run this script, or has not looked at it again",
        f'set magnet.attract-raw-url-to = ("{lua_file(config)}") and server.stat-cache-engine = "disable",'
        " restart lighttpd",
    )


def _cause_elsewhere(config: Config, point: web.Point, answer: web.Answer | None) -> tuple[str, str]:
    if answer is None:
        return (
            f"Nothing that {point.listener} was asked got an answer, by HTTP, TLS or the PROXY protocol",
            "mend that; or, where it takes a client certificate, say, let webserver.unproved in fabric.yaml"
            f' name "{point.listener}", then fab setup',
        )
    return (
        f"lighttpd does not run {lua_file(config)} there, and nothing shows that it is another site",
        "look for a condition in lighttpd's configuration that sets magnet.attract-raw-url-to once more"
        f" for {point.name} or {point.listener}; fab doctor",
    )


def _magnet_is_loaded(config: Config) -> bool:
    """True where a worker has mod_magnet in its memory, or there is none to look at."""
    pids = web.workers(config)
    return not pids or any(map(_maps_mod_magnet, pids))


def _maps_mod_magnet(pid: int) -> bool:
    try:
        return "mod_magnet" in Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return False
