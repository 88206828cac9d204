"""What the end of a run is told as."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from deploytools import journal
from deploytools import plan as plans
from deploytools.conclusion import LastLook, conclude, is_looked_at, seen
from deploytools.errors import (
    DeployError,
    InMaintenance,
    Interrupted,
    LockHeld,
    NeedsWindow,
    OperationFailed,
    Unfinished,
    Unreachable,
)
from deploytools.journal import Record
from deploytools.plan import Plan, Target
from deploytools.saga import Mark, State, Verdict
from tests.support.values import BASE, failed, ok, settings


def concluded(plan: Plan, verdict: Verdict, *records: Record) -> DeployError:
    every = [journal.begin(plan), *records, journal.end(verdict)]
    with pytest.raises(DeployError) as caught:
        conclude(plan, journal.fold(every), every)
    return caught.value


def test_a_run_that_is_done_raises_nothing() -> None:
    plan = plans.downtime_plan(BASE, settings())
    records = [journal.begin(plan), journal.end(Verdict.DONE)]

    conclude(plan, journal.fold(records), records)


def test_a_maint_up_that_missed_a_host_says_which_are_up_and_keeps_exit_code_4() -> None:
    plan = plans.maintenance_plan(replace(BASE, operation="maint-up"), down=False)

    error = concluded(
        plan,
        Verdict.REVERTED,
        journal.outcome("maintenance-off", "web1", ok(), undo=False, seconds=0),
        journal.outcome("maintenance-off", "web2", failed("lighttpd is dead"), undo=False, seconds=0),
    )

    assert isinstance(error, InMaintenance)
    assert error.state == "up: web1; the others may still be in maintenance"
    assert error.details == ("web2: maintenance-off: lighttpd is dead",)


def test_a_hotswap_that_stopped_half_way_says_which_hosts_were_swapped() -> None:
    plan = plans.hotswap_plan(replace(BASE, operation="hotswap", release=None), settings())

    error = concluded(
        plan,
        Verdict.REVERTED,
        journal.outcome("swap", "web1", ok(), undo=False, seconds=0),
        journal.outcome("swap", "web2", failed("not ready"), undo=False, seconds=0),
    )

    assert isinstance(error, OperationFailed)
    assert error.state == "swapped already: web1; every other host is up on what it ran before"


def test_a_deploy_that_was_undone_says_that_the_site_is_as_it_was() -> None:
    plan = plans.rolling_plan(BASE, settings())

    error = concluded(
        plan, Verdict.REVERTED, journal.outcome("swap", "web2", failed(), undo=False, seconds=0)
    )

    assert error.state == "the site is up on what it ran before"
    assert error.exit_code == 3


def test_a_deploy_without_a_window_that_finds_migrations_pending_names_the_one_with_a_window() -> None:
    plan = plans.rolling_plan(BASE, settings())
    pending = failed("2 are pending", state="pending", details=["0003: its author hasn't labelled it"])

    error = concluded(
        plan, Verdict.REVERTED, journal.outcome("check-migrations", "web1", pending, undo=False, seconds=0)
    )

    assert isinstance(error, NeedsWindow)
    assert error.next == "fab deploy --with-downtime"
    assert error.details == ("0003: its author hasn't labelled it",)


def test_a_deploy_that_only_a_host_out_of_reach_has_stopped_may_leave_that_host_out() -> None:
    plan = plans.rolling_plan(BASE, settings())
    away = failed("no answer from web2", exit_code=6)

    error = concluded(plan, Verdict.REVERTED, journal.outcome("stage", "web2", away, undo=False, seconds=0))

    assert isinstance(error, Unreachable)
    assert error.what == "deploy stopped: a host could not be reached"
    assert error.state == "what had been done was undone; the site is up on what it ran before"
    assert "--exclude HOST" in str(error.next)


def status(release: str | None = "r1", *, maintenance: str = "up", alive: bool = True) -> dict[str, Any]:
    return {
        "release": release,
        "serving": {"alive": alive} if release else None,
        "maintenance": {"state": maintenance},
    }


UNDONE = [
    *(journal.outcome("compare", host, ok(), undo=False, seconds=0) for host in ("web1", "web2")),
    journal.outcome("swap", "web2", failed(), undo=False, seconds=0),
]


@pytest.mark.parametrize(
    ("on_web2", "code", "told"),
    [
        (status(), 3, "web2: swap: "),
        (status("r2"), 4, "web2: it is on r2, not on r1"),
        (status(alive=False), 4, "web2: the application is not running"),
        (status(maintenance="down"), 4, "web2: maintenance is down"),
        (status(maintenance="unknown"), 4, "web2: maintenance is unknown"),
        (None, 6, "web2: swap: "),
    ],
)
def test_exit_code_3_is_said_only_where_every_host_was_seen_to_be_as_before(
    on_web2: dict[str, Any] | None, code: int, told: str
) -> None:
    plan = plans.rolling_plan(BASE, settings())
    records = [journal.begin(plan), *UNDONE, journal.end(Verdict.REVERTED)]
    progress = journal.fold(records)
    statuses = {"web1": status(), **({"web2": on_web2} if on_web2 else {})}

    assert is_looked_at(plan, progress)
    with pytest.raises(DeployError) as caught:
        conclude(plan, progress, records, seen(plan, progress, statuses))

    assert caught.value.exit_code == code
    assert caught.value.details[0].startswith(told)
    if on_web2 is None:
        assert "as far as can be told without web2" in str(caught.value.state)


def test_a_host_that_was_down_before_the_run_or_served_nothing_is_as_before() -> None:
    targets = (Target("web1", "r1", down=True), Target("web2", None))
    plan = plans.rolling_plan(replace(BASE, targets=targets), settings())
    progress = journal.fold([journal.begin(plan), *UNDONE, journal.end(Verdict.REVERTED)])

    look = seen(plan, progress, {"web1": status(maintenance="down"), "web2": status(None)})

    assert look == LastLook()


def test_hosts_that_were_otherwise_than_planned_are_not_looked_at() -> None:
    plan = plans.rolling_plan(BASE, settings())
    otherwise = journal.outcome("compare", "web2", failed(), undo=False, seconds=0)
    progress = journal.fold([journal.begin(plan), *UNDONE[:1], otherwise, journal.end(Verdict.REVERTED)])

    assert not is_looked_at(plan, progress)


@pytest.mark.parametrize(
    ("said", "typed"),
    [
        ("mend that", "mend that; then fab deploy --resume"),
        ("fab migrate.resolve; fab deploy --resume", "fab migrate.resolve; fab deploy --resume"),
        (None, "fab deploy --resume"),
    ],
)
def test_a_deploy_that_holds_says_how_it_goes_on_whatever_a_host_says(said: str | None, typed: str) -> None:
    bad = replace(failed("not it"), error={"what": "not it", "next": said})
    plan = plans.downtime_plan(BASE, settings())

    error = concluded(plan, Verdict.HELD, journal.outcome("verify", "web1", bad, undo=False, seconds=0))

    assert isinstance(error, InMaintenance)
    assert error.next == typed


def test_a_rollback_that_holds_is_gone_on_with_as_a_deploy_is() -> None:
    plan = plans.rollback_plan(replace(BASE, operation="rollback"), settings())
    bad = replace(failed("not ready"), error={"what": "not ready", "next": "look at /srv/x/log/app.log"})

    error = concluded(plan, Verdict.HELD, journal.outcome("swap", "web1", bad, undo=True, seconds=0))

    assert error.next == "look at /srv/x/log/app.log on web1; then fab deploy --resume"


def test_what_is_left_over_is_told_with_exit_code_7() -> None:
    plan = plans.hotswap_plan(replace(BASE, operation="hotswap", release=None), settings())
    kept = replace(ok(), exit_code=7, error={"what": "generation 3 has a request", "next": "swap --reap"})

    error = concluded(plan, Verdict.DONE, journal.outcome("swap", "web1", kept, undo=False, seconds=0))

    assert isinstance(error, Unfinished)
    assert error.next == "swap --reap"


@pytest.mark.parametrize(
    ("last", "offered"),
    [("maintenance-on", "fab deploy --resume, or fab deploy --abort"), ("migrate", "fab deploy --resume")],
)
def test_an_interrupted_run_offers_only_the_ways_out_that_are_open(last: str, offered: str) -> None:
    plan = plans.downtime_plan(BASE, settings())
    staged = [journal.outcome("stage", host, ok(), undo=False, seconds=0) for host in plan.hosts]
    records = [
        journal.begin(plan),
        journal.outcome("lock", "web1", ok(), undo=False, seconds=0),
        *staged,
        journal.intent(last, ["web1"], undo=False),
        journal.interrupted(),
    ]

    with pytest.raises(Interrupted) as caught:
        conclude(plan, journal.fold(records), records)

    assert caught.value.what == "deploy was interrupted; it can be resumed"
    assert caught.value.next == offered


def test_a_run_whose_release_is_not_on_every_host_offers_no_way_but_back() -> None:
    plan = plans.downtime_plan(BASE, settings())
    locked, staged = (
        journal.outcome(step, "web1", ok(), undo=False, seconds=0) for step in ("lock", "stage")
    )
    records = [journal.begin(plan), locked, staged, journal.interrupted()]

    with pytest.raises(Interrupted) as caught:
        conclude(plan, journal.fold(records), records)

    assert caught.value.what == "deploy was interrupted; its release is not on the hosts yet"
    assert str(caught.value.next).startswith("fab deploy --abort, then fab deploy as before")

    turned = [*records[:-1], journal.turn_back("stage: failed"), journal.interrupted()]
    with pytest.raises(Interrupted) as caught:
        conclude(plan, journal.fold(turned), turned)
    assert str(caught.value.next).startswith("fab deploy --resume")


def test_a_run_that_was_interrupted_before_its_lock_has_nothing_to_resume() -> None:
    plan = plans.downtime_plan(BASE, settings())
    records = [journal.begin(plan), journal.interrupted()]

    with pytest.raises(Interrupted) as caught:
        conclude(plan, journal.fold(records), records)

    assert caught.value.what == "deploy was interrupted before it began"
    assert caught.value.state == "no host is in maintenance by this run; it has no lock"
    assert caught.value.next == "fab deploy, the same command again"


def test_an_interrupted_switch_without_a_lock_never_offers_to_go_on_with_the_run_that_has_it() -> None:
    base = replace(BASE, operation="maint-up", force="run-0")
    records = [
        journal.begin(plans.maintenance_plan(base, down=False)),
        journal.intent("maintenance-off", ["web1", "web2"], undo=False),
        journal.interrupted(),
    ]

    with pytest.raises(Interrupted) as caught:
        conclude(journal.plan_of(records), journal.fold(records), records)

    assert caught.value.next == "fab maint-up --force run-0, the same command again"
    assert "it has no lock" in str(caught.value.state)


@pytest.mark.parametrize(
    ("said", "kind", "told"),
    [
        ({"by": "bob", "run_id": None}, LockHeld, "fab maint-up --force bob"),
        ({}, InMaintenance, "mend the cause"),  # only another program at work there
    ],
)
def test_maint_up_names_whose_window_it_is_where_it_is_somebodys(
    said: dict[str, str | None], kind: type[DeployError], told: str
) -> None:
    plan = plans.maintenance_plan(replace(BASE, operation="maint-up"), down=False)
    refused = failed("not now", exit_code=5, **said)

    error = concluded(
        plan, Verdict.REVERTED, journal.outcome("maintenance-off", "web1", refused, undo=False, seconds=0)
    )

    assert isinstance(error, kind)
    assert told in str(error.next)


def test_what_is_said_of_the_site_is_not_said_of_a_host_that_is_away() -> None:
    error = concluded(
        plans.rolling_plan(BASE, settings()),
        Verdict.REVERTED,
        journal.outcome("swap", "web1", failed("not ready"), undo=False, seconds=0),
        journal.outcome("swap", "web2", failed("no route", exit_code=6), undo=False, seconds=0),
    )

    assert error.exit_code == 3
    assert error.state is not None
    assert error.state.endswith("without web2, which can't be reached")


def test_a_hotswap_says_nothing_of_a_host_that_was_lost_in_it() -> None:
    plan = plans.hotswap_plan(replace(BASE, operation="hotswap", release=None), settings())
    lost = replace(failed("no answer", exit_code=4), mark=Mark(State.UNKNOWN))
    records = (
        journal.outcome("swap", "web1", ok(), undo=False, seconds=0),
        journal.outcome("swap", "web2", lost, undo=False, seconds=0),
    )

    assert str(concluded(plan, Verdict.REVERTED, *records).state).endswith(
        "as far as can be told without web2, which can't be reached"
    )
    undone = journal.outcome("swap", "web2", ok(), undo=True, seconds=0)
    rolled = concluded(plans.rolling_plan(BASE, settings()), Verdict.REVERTED, *records, undone)
    assert rolled.state == "the site is up on what it ran before"


def test_a_run_that_holds_says_which_hosts_are_on_the_new_release() -> None:
    plan = plans.rolling_plan(BASE, settings(), rollback=False)

    error = concluded(
        plan,
        Verdict.HELD,
        journal.outcome("swap", "web1", ok(), undo=False, seconds=0),
        journal.outcome("swap", "web2", failed("not ready"), undo=False, seconds=0),
    )

    assert error.state is not None
    assert "on r2: web1; " in error.state
    assert "fab deploy --resume" in str(error.next)


def test_a_new_host_that_failed_to_swap_is_as_before() -> None:
    plan = plans.rolling_plan(replace(BASE, targets=(Target("web1", "r1"), Target("web3"))), settings())

    error = concluded(
        plan, Verdict.REVERTED, journal.outcome("swap", "web3", failed("not ready"), undo=False, seconds=0)
    )

    assert error.state == "the site is up on what it ran before"
