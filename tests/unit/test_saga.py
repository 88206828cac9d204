"""The failure policy, tested as data: every crash point and every mix of outcomes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploytools import plan as plans
from deploytools.plan import Kind, Plan, Scope, Step, Target
from deploytools.saga import (
    Act,
    End,
    Mark,
    Progress,
    State,
    TurnBack,
    Verdict,
    barring,
    decide,
    in_maintenance,
    may_abort,
    may_turn_back,
)
from tests.support.values import BASE

HOSTS = ("web1", "web2")
STAGE, DOWN, MIGRATE, SWAP, UP, PRUNE = (
    plans.STAGE,
    plans.MAINTENANCE_ON,
    plans.MIGRATE,
    plans.SWAP,
    plans.MAINTENANCE_OFF,
    plans.PRUNE,
)
WINDOW = replace(
    BASE,
    steps=(plans.LOCK, STAGE, DOWN, MIGRATE, SWAP, plans.VERIFY, UP, PRUNE, plans.UNLOCK),
    window=True,
)
OK = Mark(State.OK)
FAILED = Mark(State.FAILED)


def done_up_to(step: Step, plan: Plan = WINDOW) -> Progress:
    """Every step before `step` went well everywhere."""
    progress = Progress()
    for earlier in plan.steps[: plan.steps.index(step)]:
        progress = all_hosts(progress, earlier, OK, plan)
    return progress


def all_hosts(
    progress: Progress, step: Step, mark: Mark, plan: Plan = WINDOW, undo: bool = False
) -> Progress:
    for host in plan.hosts_of(step):
        progress = progress.with_mark(step.name, host, mark, undo=undo)
    return progress


def test_a_new_run_begins_with_the_lock_on_the_lock_host() -> None:
    assert decide(WINDOW, Progress()) == Act(plans.LOCK, ("web1",))


def test_a_step_runs_on_every_host_at_once() -> None:
    assert decide(WINDOW, done_up_to(STAGE)) == Act(STAGE, HOSTS)


def test_a_step_is_a_barrier() -> None:
    progress = done_up_to(DOWN).with_mark(DOWN.name, "web1", OK, undo=False)

    assert decide(WINDOW, progress) == Act(DOWN, ("web2",))


FIVE = tuple(Target(f"web{number}", "r1") for number in range(1, 6))


def rolling(kind: Kind = Kind.COMPENSATED) -> tuple[Plan, Step, Progress]:
    """Two at a time on five hosts; the lock is taken, and the release is on all of them."""
    step = replace(SWAP, scope=Scope.ROLLING, batch=2, kind=kind)
    plan = replace(WINDOW, steps=(plans.LOCK, STAGE, step), targets=FIVE, window=False)
    progress = all_hosts(all_hosts(Progress(), plans.LOCK, OK), STAGE, OK, plan)
    return plan, step, progress


def test_a_rolling_step_begins_with_one_host_and_goes_on_with_a_batch_at_a_time() -> None:
    plan, step, progress = rolling()

    assert decide(plan, progress) == Act(step, ("web1",))
    progress = progress.with_mark("swap", "web1", OK, undo=False)
    assert decide(plan, progress) == Act(step, ("web2", "web3"))
    progress = progress.with_mark("swap", "web2", OK, undo=False)
    progress = progress.with_mark("swap", "web3", OK, undo=False)
    assert decide(plan, progress) == Act(step, ("web4", "web5"))


def test_the_second_of_five_that_fails_its_health_check_stops_the_roll_and_has_the_first_swapped_back() -> (
    None
):
    plan, step, progress = rolling()
    unchanged = Mark(State.FAILED, {"unchanged": True})
    for host, mark in (("web1", OK), ("web2", unchanged), ("web3", OK)):
        progress = progress.with_mark("swap", host, mark, undo=False)

    assert isinstance(decide(plan, progress), TurnBack)
    progress = replace(progress, reverting=True)
    assert decide(plan, progress) == Act(step, ("web1", "web3"), undo=True)
    for host in ("web1", "web3"):
        progress = progress.with_mark("swap", host, OK, undo=True)
    assert decide(plan, progress) == Act(STAGE, plan.hosts, undo=True)


def test_told_not_to_swap_back_it_holds_and_an_abort_does() -> None:
    plan, step, progress = rolling(Kind.PIVOT)
    progress = progress.with_mark("swap", "web1", OK, undo=False)
    progress = progress.with_mark("swap", "web2", Mark(State.FAILED, {"unchanged": True}), undo=False)

    assert decide(plan, progress) == End(Verdict.HELD)
    assert may_abort(plan, progress)
    assert decide(plan, replace(progress, reverting=True)) == Act(step, ("web1",), undo=True)
    assert decide(plan, progress.forget_failures()) == Act(step, ("web2", "web3"))


@pytest.mark.parametrize("mark", [Mark(State.INTENDED), Mark(State.UNKNOWN), Mark(State.FAILED)])
def test_whatever_became_of_a_swap_an_abort_takes_it_back(mark: Mark) -> None:
    """As where the operator's process was killed in the middle of it."""
    plan, step, progress = rolling(Kind.PIVOT)
    progress = progress.with_mark("swap", "web1", OK, undo=False).with_mark("swap", "web2", mark, undo=False)

    assert may_abort(plan, progress)
    assert decide(plan, replace(progress, reverting=True)) == Act(step, ("web1", "web2"), undo=True)


def test_told_not_to_swap_back_a_first_host_that_fails_is_undone_for_nothing_is_on_the_new_release() -> None:
    plan, _, progress = rolling(Kind.PIVOT)
    progress = progress.with_mark("swap", "web1", Mark(State.FAILED, {"unchanged": True}), undo=False)

    assert isinstance(decide(plan, progress), TurnBack)


def test_the_public_is_let_in_on_one_host_first_and_on_the_others_once_that_is_proved() -> None:
    three = replace(WINDOW, targets=(*BASE.targets, Target("web3", "r1")))
    progress = done_up_to(UP, three)

    assert decide(three, progress) == Act(UP, ("web1",))
    assert decide(three, progress.with_mark(UP.name, "web1", Mark(State.INTENDED), undo=False)) == Act(
        UP, ("web1",)
    )
    assert decide(three, progress.with_mark(UP.name, "web1", FAILED, undo=False)) == End(Verdict.HELD)
    assert decide(three, progress.with_mark(UP.name, "web1", OK, undo=False)) == Act(UP, ("web2", "web3"))


def test_all_done_is_done() -> None:
    progress = all_hosts(done_up_to(plans.UNLOCK), plans.UNLOCK, OK)

    assert decide(WINDOW, progress) == End(Verdict.DONE)


@pytest.mark.parametrize("step", [STAGE, DOWN])
@pytest.mark.parametrize("state", [State.FAILED, State.UNKNOWN])
def test_a_failure_before_the_pivot_turns_back(step: Step, state: State) -> None:
    progress = all_hosts(done_up_to(step), step, OK).with_mark(step.name, "web2", Mark(state), undo=False)

    action = decide(WINDOW, progress)

    assert isinstance(action, TurnBack)
    assert "web2" in action.because


def test_undoing_goes_backwards_through_what_was_attempted() -> None:
    progress = replace(all_hosts(done_up_to(DOWN), DOWN, OK), reverting=True)

    assert decide(WINDOW, progress) == Act(DOWN, HOSTS, undo=True)
    progress = all_hosts(progress, DOWN, OK, undo=True)
    assert decide(WINDOW, progress) == Act(STAGE, HOSTS, undo=True)
    progress = all_hosts(progress, STAGE, OK, undo=True)
    assert decide(WINDOW, progress) == Act(plans.LOCK, ("web1",), undo=True)
    progress = all_hosts(progress, plans.LOCK, OK, undo=True)
    assert decide(WINDOW, progress) == End(Verdict.REVERTED)


def test_what_a_host_proved_not_to_have_done_is_not_undone() -> None:
    progress = all_hosts(done_up_to(DOWN), DOWN, OK)
    progress = progress.with_mark(DOWN.name, "web2", Mark(State.FAILED, {"unchanged": True}), undo=False)

    assert decide(WINDOW, replace(progress, reverting=True)) == Act(DOWN, ("web1",), undo=True)


def test_a_compensation_that_fails_holds_and_keeps_the_lock() -> None:
    progress = replace(all_hosts(done_up_to(DOWN), DOWN, OK), reverting=True)
    progress = all_hosts(progress, DOWN, FAILED, undo=True)

    assert decide(WINDOW, progress) == End(Verdict.HELD)


def test_litter_that_can_not_be_discarded_does_not_stop_the_way_back() -> None:
    progress = replace(all_hosts(done_up_to(DOWN), STAGE, OK), reverting=True)
    progress = all_hosts(progress, STAGE, FAILED, undo=True)

    assert decide(WINDOW, progress) == Act(plans.LOCK, ("web1",), undo=True)


@pytest.mark.parametrize("mark", [FAILED, Mark(State.UNKNOWN), Mark(State.FAILED, {"unchanged": False})])
def test_a_migration_that_may_have_changed_something_holds(mark: Mark) -> None:
    progress = done_up_to(MIGRATE).with_mark(MIGRATE.name, "web1", mark, undo=False)

    assert decide(WINDOW, progress) == End(Verdict.HELD)


def test_a_migration_that_proved_to_have_changed_nothing_turns_back() -> None:
    unchanged = Mark(State.FAILED, {"unchanged": True})
    progress = done_up_to(MIGRATE).with_mark(MIGRATE.name, "web1", unchanged, undo=False)

    assert isinstance(decide(WINDOW, progress), TurnBack)


@pytest.mark.parametrize(("applied", "action"), [(["0002"], End), ([], TurnBack)])
def test_a_swap_that_fails_goes_back_only_if_no_migration_was_applied(
    applied: list[str], action: type
) -> None:
    migrated = Mark(State.OK, {"applied": applied, "unchanged": not applied})
    progress = done_up_to(SWAP).with_mark(MIGRATE.name, "web1", migrated, undo=False)

    assert isinstance(decide(WINDOW, progress.with_mark(SWAP.name, "web2", FAILED, undo=False)), action)


def test_once_the_public_was_let_in_there_is_no_way_back() -> None:
    nothing = Mark(State.OK, {"applied": [], "unchanged": True})
    progress = done_up_to(UP).with_mark(MIGRATE.name, "web1", nothing, undo=False)

    assert decide(WINDOW, progress.with_mark(UP.name, "web2", FAILED, undo=False)) == End(Verdict.HELD)


def test_a_failure_that_stops_nothing_is_passed_over() -> None:
    progress = all_hosts(done_up_to(PRUNE), PRUNE, FAILED)

    assert decide(WINDOW, progress) == Act(plans.UNLOCK, ("web1",))


def test_an_intent_without_an_outcome_is_repeated_which_is_asking() -> None:
    progress = done_up_to(MIGRATE).with_mark(MIGRATE.name, "web1", Mark(State.INTENDED), undo=False)

    assert decide(WINDOW, progress) == Act(MIGRATE, ("web1",))


def test_resuming_repeats_what_failed_and_still_knows_the_pivot_was_passed() -> None:
    held = done_up_to(MIGRATE).with_mark(MIGRATE.name, "web1", Mark(State.UNKNOWN), undo=False)

    resumed = held.forget_failures()

    assert decide(WINDOW, resumed) == Act(MIGRATE, ("web1",))
    assert not may_turn_back(WINDOW, resumed)


BACK = replace(MIGRATE, undo="take the migration back")
ABORTABLE = replace(WINDOW, steps=tuple(BACK if step is MIGRATE else step for step in WINDOW.steps))
MIGRATED = Mark(State.OK, {"applied": ["0002"]})


def test_a_migration_that_can_be_taken_back_is_so_only_when_the_operator_asks_for_it() -> None:
    progress = done_up_to(SWAP, ABORTABLE).with_mark("migrate", "web1", MIGRATED, undo=False)
    progress = progress.with_mark("swap", "web1", OK, undo=False).with_mark(
        "swap", "web2", FAILED, undo=False
    )

    assert decide(ABORTABLE, progress) == End(Verdict.HELD)
    assert not may_turn_back(ABORTABLE, progress)
    assert may_abort(ABORTABLE, progress)
    assert not may_abort(WINDOW, progress)


def test_the_schema_goes_back_before_the_code_does_and_what_fails_there_holds() -> None:
    progress = all_hosts(done_up_to(plans.VERIFY, ABORTABLE), plans.VERIFY, FAILED, ABORTABLE)
    progress = replace(progress.with_mark("migrate", "web1", MIGRATED, undo=False), reverting=True)

    assert decide(ABORTABLE, progress) == Act(BACK, ("web1",), undo=True)
    assert decide(ABORTABLE, all_hosts(progress, BACK, FAILED, ABORTABLE, undo=True)) == End(Verdict.HELD)
    progress = all_hosts(progress, BACK, OK, ABORTABLE, undo=True)
    assert decide(ABORTABLE, progress) == Act(SWAP, HOSTS, undo=True)
    progress = all_hosts(progress, SWAP, OK, ABORTABLE, undo=True)
    assert decide(ABORTABLE, progress) == Act(DOWN, HOSTS, undo=True)


@pytest.mark.parametrize("mark", [FAILED, Mark(State.UNKNOWN), Mark(State.INTENDED)])
def test_a_migration_that_is_not_known_to_be_done_is_not_taken_back(mark: Mark) -> None:
    assert not may_abort(ABORTABLE, all_hosts(done_up_to(BACK, ABORTABLE), BACK, mark, ABORTABLE))


def test_once_a_visitor_may_have_been_let_in_nothing_is_taken_back() -> None:
    progress = done_up_to(UP, ABORTABLE).with_mark("migrate", "web1", MIGRATED, undo=False)

    assert may_abort(ABORTABLE, progress)
    assert barring(ABORTABLE, progress.with_mark(UP.name, "web1", Mark(State.INTENDED), undo=False)) == (
        UP.name,
    )


ONLINE = replace(
    BASE,
    steps=(
        plans.LOCK,
        STAGE,
        plans.MIGRATE_ONLINE,
        replace(SWAP, scope=Scope.ROLLING, batch=1),
        plans.UNLOCK,
    ),
)


@pytest.mark.parametrize("mark", [FAILED, Mark(State.UNKNOWN), Mark(State.INTENDED)])
def test_an_online_migration_bars_the_way_back_while_nobody_knows_how_it_ended(mark: Mark) -> None:
    progress = all_hosts(done_up_to(plans.MIGRATE_ONLINE, ONLINE), plans.MIGRATE_ONLINE, mark, ONLINE)

    assert not may_turn_back(ONLINE, progress)
    if mark.bad:
        assert decide(ONLINE, progress) == End(Verdict.HELD)


def test_an_online_migration_that_is_done_stays_and_the_swap_after_it_can_go_back() -> None:
    swap = ONLINE.steps[3]
    progress = all_hosts(
        done_up_to(swap, ONLINE), plans.MIGRATE_ONLINE, Mark(State.OK, {"applied": ["0002"]}), ONLINE
    )
    progress = progress.with_mark("swap", "web1", OK, undo=False).with_mark(
        "swap", "web2", FAILED, undo=False
    )

    assert isinstance(decide(ONLINE, progress), TurnBack)
    undoing = replace(progress, reverting=True)
    assert decide(ONLINE, undoing) == Act(swap, HOSTS, undo=True)
    assert decide(ONLINE, all_hosts(undoing, swap, OK, ONLINE, undo=True)) == Act(STAGE, HOSTS, undo=True)


def test_an_online_migration_that_proved_to_have_changed_nothing_turns_back() -> None:
    unchanged = Mark(State.FAILED, {"unchanged": True})
    progress = all_hosts(done_up_to(plans.MIGRATE_ONLINE, ONLINE), plans.MIGRATE_ONLINE, unchanged, ONLINE)

    assert isinstance(decide(ONLINE, progress), TurnBack)


def test_what_proved_to_have_changed_nothing_is_not_undone_by_a_run_that_is_resumed_on_its_way_back() -> None:
    unchanged = Mark(State.FAILED, {"unchanged": True})
    progress = done_up_to(MIGRATE).with_mark(MIGRATE.name, "web1", unchanged, undo=False)
    back = replace(
        WINDOW, steps=tuple(replace(s, undo="take it back") if s is MIGRATE else s for s in WINDOW.steps)
    )

    resumed = replace(progress, reverting=True).forget_failures()

    assert decide(back, resumed) == Act(DOWN, HOSTS, undo=True)


def test_in_maintenance_are_the_hosts_not_proved_to_be_back() -> None:
    progress = all_hosts(done_up_to(UP), UP, OK)

    assert in_maintenance(WINDOW, done_up_to(DOWN)) == ()
    assert in_maintenance(WINDOW, done_up_to(MIGRATE)) == HOSTS
    assert in_maintenance(WINDOW, progress.with_mark(UP.name, "web2", FAILED, undo=False)) == ("web2",)
    assert in_maintenance(WINDOW, progress) == ()


# What a host can say of a step.
outcomes = st.sampled_from(
    [
        OK,
        OK,
        OK,
        OK,
        FAILED,
        Mark(State.UNKNOWN),
        Mark(State.FAILED, {"unchanged": True}),
        Mark(State.OK, {"unchanged": True}),
    ]
)


@settings(deadline=None)  # a busy machine is no counterexample
@given(data=st.data(), crashes=st.integers(0, 3))
def test_whatever_happens_a_run_ends_and_its_invariants_hold(data: st.DataObject, crashes: int) -> None:
    progress = Progress()
    truth = data.draw(outcomes)
    migrated = False
    for _ in range(200):
        action = decide(WINDOW, progress)
        if isinstance(action, End):
            check_end(progress, action.verdict, migrated)
            if action.verdict is not Verdict.HELD or crashes == 0:
                return
            crashes -= 1
            progress = progress.forget_failures()
        elif isinstance(action, TurnBack):
            assert may_turn_back(WINDOW, progress)
            assert not migrated
            progress = replace(progress, reverting=True, because=action.because)
        else:
            if action.step is MIGRATE:
                assert all(mark_of(progress, DOWN, host) is State.OK for host in HOSTS)
            if action.step is UP and not action.undo:
                assert all(mark_of(progress, SWAP, host) is State.OK for host in HOSTS)
            for host in action.hosts:
                # A migration has one outcome, however often it is asked for; it may just not be known yet.
                asked = st.sampled_from([truth, Mark(State.UNKNOWN)]) if action.step is MIGRATE else outcomes
                mark = data.draw(asked)
                progress = progress.with_mark(action.step.name, host, mark, undo=action.undo)
                if action.step is MIGRATE and truth.value.get("unchanged") is not True:
                    migrated = True
            if crashes and data.draw(st.booleans()):
                crashes -= 1
                progress = progress.forget_failures()
    pytest.fail("the run never ended")


@settings(deadline=None)
@given(data=st.data(), turns=st.integers(0, 4))
def test_however_often_it_is_resumed_an_abort_never_swaps_back_to_code_on_a_schema_that_it_does_not_know(
    data: st.DataObject, turns: int
) -> None:
    progress = Progress()
    for _ in range(200):
        action = decide(ABORTABLE, progress)
        if isinstance(action, End):
            if action.verdict is Verdict.REVERTED:
                migrated = progress.mark(BACK, "web1")
                if migrated and migrated.value.get("unchanged") is not True:
                    back = progress.mark(BACK, "web1", undo=True)
                    assert back is not None
                    assert back.state is State.OK
                assert in_maintenance(ABORTABLE, progress) == ()
            if action.verdict is not Verdict.HELD or turns == 0:
                return
            turns -= 1
            progress = progress.forget_failures()
            if may_abort(ABORTABLE, progress) and data.draw(st.booleans()):
                let_in = [progress.mark(UP, host) for host in HOSTS]
                assert not any(mark and mark.value.get("unchanged") is not True for mark in let_in)
                progress = replace(progress, reverting=True)
        elif isinstance(action, TurnBack):
            progress = replace(progress, reverting=True, because=action.because)
        else:
            if action.undo and action.step is SWAP:
                migrated = progress.mark(BACK, "web1")
                back = progress.mark(BACK, "web1", undo=True)
                nothing = migrated is None or migrated.value.get("unchanged") is True
                assert nothing or (back is not None and back.state is State.OK)
            for host in action.hosts:
                progress = progress.with_mark(action.step.name, host, data.draw(outcomes), undo=action.undo)
    pytest.fail("the run never ended")


def mark_of(progress: Progress, step: Step, host: str) -> State | None:
    mark = progress.mark(step, host)
    return mark.state if mark else None


def check_end(progress: Progress, verdict: Verdict, migrated: bool) -> None:
    if verdict is Verdict.REVERTED:
        assert not migrated, "a run whose migration may have changed the schema is never undone"
        assert in_maintenance(WINDOW, progress) == ()
    if verdict is Verdict.DONE:
        assert all(mark_of(progress, step, host) is State.OK for step in (SWAP, UP) for host in HOSTS)


def test_every_step_of_the_window_is_of_a_kind_that_the_policy_knows() -> None:
    assert {step.kind for step in WINDOW.steps} <= set(Kind)
