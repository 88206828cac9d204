"""maint-down and maint-up: the switch alone, over the whole fleet; maint-preview: what visitors see then."""

from __future__ import annotations

from typing import Any

from deploytools.tasks.task import EVENTS, operation


@operation(
    run=True,
    name="maint-down",
    help={
        "reason": "why, for `fab status` and the colleagues",
        "until": "when it is expected to end: +30m, HH:MM or an ISO 8601 time; sets Retry-After",
        "drain": "also wait until no request is being worked on",
        "exclude": "a HOST to leave out; may be given several times",
        **EVENTS,
    },
    iterable=["exclude"],
)
def maint_down(
    c: Any,
    reason: str | None = None,
    until: str | None = None,
    drain: bool = False,
    exclude: Any = None,
    json: bool = False,
) -> None:
    """Put every host into maintenance, proved.

    Returns when each was seen to answer 503; if one host can't, all come back up.
    """
    from deploytools import plan as plans
    from deploytools.moments import parse_until

    ends = parse_until(until) if until else None
    _switch(
        c, "maint-down", exclude, json, lambda base: plans.maintenance_plan(base, down=True, drain=drain),
        reason=reason, until=ends,
    )  # fmt: skip


@operation(
    run=True,
    name="maint-up",
    help={
        "force": "lift the window of this run or person, though it isn't yours: as `fab status` has it",
        "exclude": "a HOST to leave out; may be given several times",
        **EVENTS,
    },
    iterable=["exclude"],
)
def maint_up(c: Any, force: str | None = None, exclude: Any = None, json: bool = False) -> None:
    """Bring every host back from maintenance, proved.

    Returns when each was seen to answer for itself again. A deploy's own window is lifted only with --force
    and its run id, somebody else's only with --force and their name.
    """
    from deploytools import plan as plans

    _switch(c, "maint-up", exclude, json, lambda base: plans.maintenance_plan(base, down=False), force=force)


def _switch(c: Any, name: str, exclude: Any, json: bool, shape: Any, **about: Any) -> None:
    from deploytools import operation as op
    from deploytools.executor import current_settings
    from deploytools.report.reporting import Reporting

    settings = current_settings(c)
    with (
        op.opened(settings, exclude) as fleet,
        Reporting(json=json, environment=settings.environment) as reporter,
    ):
        plan = shape(op.base_plan(name, settings, exclude=exclude, **about))
        plan = op.get_ready(plan, settings, fleet)
        op.carry_out(plan, settings, fleet, reporter)


@operation(
    name="maint-preview",
    help={
        "output": "write it to this file instead of opening it in the browser; - is standard output",
        "reason": "as for maint-down; a page of your own may show it",
        "until": "as for maint-down: +30m, HH:MM or an ISO 8601 time",
        "sent": "what somebody gets who has sent a form",
        "policy": "print the Content-Security-Policy that the page needs, where lighttpd sends a strict one",
    },
)
def maint_preview(
    c: Any,
    output: str | None = None,
    reason: str | None = None,
    until: str | None = None,
    sent: bool = False,
    policy: bool = False,
) -> None:
    """Show the maintenance page as visitors will get it.

    It is made on this computer: no host is asked.
    """
    import sys
    import time
    from datetime import datetime

    from deploytools import preview
    from deploytools.executor import current_settings
    from deploytools.moments import parse_until

    settings, now = current_settings(c), time.time()
    ends = datetime.fromisoformat(parse_until(until)).timestamp() if until else 0
    page = preview.page(settings, reason=reason, ends=int(ends), sent=sent, now=now)
    if policy:
        print(preview.policy(page))
    elif output == "-":
        sys.stdout.buffer.write(page)
    elif output is not None:
        print(f"wrote {preview.write(page, output)}")
    else:
        print(f"opened {preview.show(page, settings.application)}")
