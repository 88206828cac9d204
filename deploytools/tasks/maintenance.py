"""maint-down and maint-up: the switch alone, over the whole fleet."""

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
        "exclude": "leave this host out; may be given several times",
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
        "exclude": "leave this host out; may be given several times",
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
    with op.opened(settings, exclude) as fleet, Reporting(json=json) as reporter:
        plan = shape(op.base_plan(name, settings, exclude=exclude, **about))
        plan = op.get_ready(plan, settings, fleet)
        op.carry_out(plan, settings, fleet, reporter)
