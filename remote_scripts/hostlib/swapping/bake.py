"""The bake time: a generation that serves is watched before the one before it is let go.

The health check goes on through the web server, a crash counts, and visitors' 5xx answers are compared with
those of the time before. What doesn't stand it is taken back by one rename.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from hostlib.program import Config, Failure
from hostlib.releasing.manifest import Health
from hostlib.swapping import barrier
from hostlib.swapping.generations import Life
from hostlib.switch import maintenance
from hostlib.webserver import web
from hostlib.webserver.accesslog import LAG, AccessLog, Answers

PAUSE = 1.0  # seconds between two looks
BEFORE = 300.0  # seconds before the swap that are compared with, or the bake time where that is longer
# It takes so many 5xx answers, and a share of them that is beyond twice the one before by a hundredth.
FEWEST, TIMES, MARGIN = 3, 2.0, 0.01


def watch(
    config: Config,
    health: Health,
    look: Callable[[], Life],
    seconds: float,
    *,
    started: int,
    clock: Callable[[], float] = time.time,
) -> dict[str, Any]:
    """Return what was seen in `seconds`, or raise Failure as soon as it is worse than the time before.

    It is worse, too, where it was `started` again more often than so.
    Where nobody tells what visitors are answered, `unknown` says why.
    """
    began, now = time.monotonic(), clock()
    try:
        log = AccessLog.of(config)
    except Failure as failure:
        log, unknown = None, failure.what
    since = int(now) + 1  # the log tells seconds, and the one of the flip belongs to both
    before = log.before(now - max(BEFORE, seconds), now) if log else Answers()
    after = Answers()
    healthy = barrier.judge(health, look, started=started)
    ours: list[float] = []

    def counted(answer: web.Answer) -> bool:
        ours.append(time.monotonic())
        return healthy(answer)

    try:
        while True:
            web.prove(
                config,
                counted,
                path=health.path,
                headers=maintenance.bypass_headers(config),
                timeout=barrier.TIMEOUT,
            )
            if log:
                # Where the clock was set back since, so are the times in the log.
                jumped = clock() - now - (time.monotonic() - began)
                more = log.after(since + min(0.0, jumped))
                after = Answers(after.total + more.total, after.bad + more.bad)
                visitors = of_visitors(after, ours, began, time.monotonic())
                if worse(visitors, before):
                    raise Failure(
                        f"since it serves {visitors} were 5xx ({visitors.share:.0%}), before it {before}"
                        f" ({before.share:.1%})"
                    )
            left = began + seconds - time.monotonic()
            if left <= 0:
                break
            time.sleep(min(PAUSE, left))
    finally:
        if log:
            log.close()
    if log is None:
        return {"seconds": seconds, "unknown": unknown}
    visitors = of_visitors(after, ours, began, time.monotonic())
    return {"seconds": seconds, "before": before._asdict(), "after": visitors._asdict()}


def of_visitors(logged: Answers, ours: Sequence[float], began: float, now: float) -> Answers:
    """Without our own health checks, whose good answers would hide what a few visitors get.

    `ours` are the moments of these. Those of the first second don't count, as in the log, nor do the last
    ones, which may not be in it yet.
    """
    own = sum(began + 1 <= moment < now - LAG for moment in ours)
    return Answers(max(logged.total - own, logged.bad), logged.bad)


def worse(after: Answers, before: Answers) -> bool:
    """Whether visitors get so many more errors that it isn't chance.

    Where every second answer was one before, as in and after a window, twice that is none: half of what was
    good is the limit then.
    """
    limit = min(TIMES * before.share + MARGIN, (1 + before.share) / 2)
    return after.bad >= FEWEST and after.share > limit


def told(seen: dict[str, Any]) -> str:
    """What was seen, for a person."""
    if "unknown" in seen:
        return f"watched for {seen['seconds']:g} s, but for the answers that visitors got: {seen['unknown']}"
    return f"watched for {seen['seconds']:g} s: {Answers(**seen['after'])} were 5xx"
