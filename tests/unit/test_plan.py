"""Plans compared as data."""

from __future__ import annotations

from dataclasses import replace

import pytest

from deploytools import commands
from deploytools import plan as plans
from deploytools.commands import Command
from deploytools.errors import UsageError
from deploytools.plan import Plan, Scope, Target
from deploytools.saga import Progress
from deploytools.settings import Hooks
from tests.support.values import BASE, settings


def names(plan: Plan) -> list[str]:
    return [step.name for step in plan.steps]


def test_the_window_is_the_table_of_the_design() -> None:
    assert plans.downtime_plan(BASE, settings()) == replace(
        BASE,
        window=True,
        hooks=Hooks(),
        steps=(
            plans.LOCK,
            plans.COMPARE,
            plans.PREFLIGHT,
            plans.STAGE,
            plans.CHECK_MIGRATIONS,
            plans.SAME_DATABASE,
            plans.ARM,
            plans.MAINTENANCE_ON,
            plans.DRAIN,
            plans.MIGRATE,
            plans.SWAP,
            plans.VERIFY,
            plans.MAINTENANCE_OFF,
            plans.RETIRE,
            plans.PRUNE,
            plans.UNLOCK,
        ),
    )


def limited(*names: str) -> Plan:
    return replace(BASE, targets=tuple(plans.Target(name, None) for name in names))


@pytest.mark.parametrize("only", ["web1", "web2"])
def test_a_window_that_minus_h_limits_never_migrates_under_the_other_hosts(only: str) -> None:
    plan = plans.downtime_plan(limited(only), settings())

    assert not plan.has("migrate")
    assert not plan.has("arm")
    (check,) = commands.do(plan, plans.CHECK_MIGRATIONS, Progress(), settings())
    assert isinstance(check, Command)
    assert check.argv[-3:] == ("--expect", "current", "--json")


def test_a_host_that_is_excluded_by_name_counts_as_gone_but_not_the_one_that_migrates() -> None:
    assert plans.downtime_plan(limited("web1"), settings(), exclude=["web2"]).has("migrate")
    assert not plans.downtime_plan(limited("web2"), settings(), exclude=["web1"]).has("migrate")


def test_the_lock_host_has_the_release_whose_migrations_it_looks_at() -> None:
    plan = plans.rolling_plan(limited("web2"), settings())

    assert plan.hosts_of(plans.STAGE) == ("web2", "web1")
    assert plan.hosts_of(plans.SWAP) == ("web2",)
    assert plans.rolling_plan(limited("web2"), settings(migrate=None)).hosts_of(plans.STAGE) == ("web2",)


def warm(release: str, **differing: object) -> dict[str, object]:
    other = {"generation": 3, "release": release, "state": "warm", "alive": True, **differing}
    return {"others": [other]}


def test_the_way_back_to_a_warm_generation_looks_at_the_schema_before() -> None:
    statuses = {"web1": warm("r1"), "web2": warm("r1"), "web3": warm("r0", state="draining")}

    release = plans.warm_release(statuses)
    back = plans.hotswap_plan(replace(BASE, release=release), settings(), back=True)

    assert release == "r1"
    assert names(back) == ["lock", "check-migrations", "swap-back", "unlock"]


def test_warm_generations_of_different_releases_are_no_way_back() -> None:
    with pytest.raises(UsageError, match="not of one release"):
        plans.warm_release({"web1": warm("r1"), "web2": warm("r2")})


def test_without_a_warm_generation_every_host_says_so_itself() -> None:
    assert plans.warm_release({"web1": warm("r1", alive=False), "web2": {"others": []}}) is None


def test_hooks_add_their_steps_where_the_design_has_them() -> None:
    hooks = {"quiesce": "stop-workers", "resume": "start-workers", "backup": "pg_dump"}

    found = names(plans.downtime_plan(BASE, settings(hooks=hooks)))

    assert found[7:12] == ["maintenance-on", "quiesce", "drain", "backup", "migrate"]
    assert found[-5:] == ["maintenance-off", "retire", "resume-workers", "prune", "unlock"]


def test_an_application_without_a_database_has_no_migration_steps() -> None:
    found = names(plans.downtime_plan(BASE, settings(migrate=None)))

    assert not {"check-migrations", "arm", "migrate"} & set(found)


def test_nothing_of_the_release_is_done_while_the_site_is_down_that_could_be_done_before() -> None:
    found = names(plans.downtime_plan(BASE, settings()))

    before, inside = found[: found.index("maintenance-on")], found[found.index("maintenance-on") :]
    looked = {"compare", "preflight", "check-migrations", "same-database"}
    assert {"lock", *looked, "stage", "arm"} == set(before)
    assert not {"stage", "preflight"} & set(inside)


def test_a_deploy_without_downtime_never_switches_maintenance_on() -> None:
    plan = plans.rolling_plan(BASE, settings(), batch=2)

    assert names(plan) == [
        "lock",
        "compare",
        "preflight",
        "stage",
        "check-migrations",
        "migrate",
        "swap",
        "prune",
        "unlock",
    ]
    assert plan.steps[6].scope is Scope.ROLLING
    assert plan.steps[6].batch == 2
    assert not plan.window


def test_a_deploy_without_downtime_migrates_first_and_only_if_no_host_is_left_out() -> None:
    plan = plans.rolling_plan(BASE, settings())
    assert plans.MIGRATE_ONLINE in plan.steps
    assert plans.MIGRATE not in plan.steps

    assert not plans.rolling_plan(limited("web1"), settings()).has("migrate")
    assert plans.rolling_plan(limited("web1"), settings(), exclude=["web2"]).has("migrate")


def test_with_a_command_that_takes_a_migration_back_an_abort_is_offered_and_nothing_does_it_by_itself() -> (
    None
):
    command = {"adapter": "command", "status": "x", "apply": "x"}
    with_, without = (
        plans.downtime_plan(BASE, settings(migrate={**command, **back})) for back in ({"rollback": "x"}, {})
    )

    assert next(step.undo for step in with_.steps if step.name == "migrate") == "take the migration back"
    assert "take the migration back" not in plans.policy(with_)[0]
    assert "fab deploy --abort" in plans.policy(with_)[-1]
    assert plans.MIGRATE in without.steps
    assert "--abort" not in "".join(plans.policy(without))


def test_the_printed_plan_of_a_deploy_without_downtime_says_what_is_not_migrated() -> None:
    printed = "\n".join(plans.describe(plans.rolling_plan(BASE, settings())))

    assert "not labelled online-safe" in printed
    assert "no way back" not in printed


def test_a_rollback_ships_nothing_examines_nothing_and_is_on_every_host_at_once() -> None:
    plan = plans.rollback_plan(BASE, settings())

    assert names(plan) == ["lock", "compare", "check-migrations", "swap", "prune", "unlock"]
    assert plans.SWAP in plan.steps
    assert names(plans.rollback_plan(BASE, settings(migrate=None)))[2:] == ["swap", "prune", "unlock"]
    careful = next(step for step in plans.rollback_plan(BASE, settings(), batch=3).steps if step.undo)
    assert "on one host, then 3 at a time" in "".join(
        plans.describe(plans.rollback_plan(BASE, settings(), batch=3))
    )
    assert careful.name == "lock"


def test_a_plan_that_does_not_swap_back_by_itself_says_so() -> None:
    plan = plans.rolling_plan(BASE, settings(), rollback=False)

    assert "swap back to the release before" not in plans.policy(plan)[0]
    assert "fab deploy --abort" in "".join(plans.policy(plan))
    assert "migrate.rollback" not in "".join(plans.policy(plan))


def test_maintenance_by_hand_belongs_to_nobodys_window() -> None:
    down = plans.maintenance_plan(BASE, down=True, drain=True)

    assert names(down) == ["lock", "maintenance-on", "drain", "unlock"]
    assert not down.window
    assert names(plans.maintenance_plan(BASE, down=False)) == ["lock", "maintenance-off", "unlock"]


def test_a_once_step_runs_on_the_lock_host_alone() -> None:
    assert BASE.hosts_of(plans.MIGRATE) == ("web1",)
    assert BASE.hosts_of(plans.SWAP) == ("web1", "web2")


@pytest.mark.parametrize(
    ("text", "hosts", "size"),
    [("1", 10, 1), ("3", 10, 3), ("25%", 10, 2), ("1%", 10, 1), ("100%", 10, 10), ("50", 10, 10)],
)
def test_a_batch_is_a_number_or_a_share_of_the_hosts(text: str, hosts: int, size: int) -> None:
    assert plans.batch_size(text, hosts) == size


@pytest.mark.parametrize("text", ["0", "-1", "101%", "x", "", "%", "1.5"])
def test_any_other_batch_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the caller says it in the operator's words
        plans.batch_size(text, 10)


def listed(*names: str, current: str, **differing: object) -> dict[str, object]:
    """What `release list` tells, newest first; each release came while the one after it served."""
    items = [
        {
            "id": name,
            "current": name == current,
            "served": before,
            "state": "deployed",
            "commit": f"commit-{name}",
        }
        for name, before in zip(names, (*names[1:], None), strict=True)
    ]
    for item in items:
        item.update(differing.get(str(item["id"]), {}))  # type: ignore[call-overload]
    return {"releases": items}


def test_a_rollback_goes_to_what_served_before_if_every_host_has_it() -> None:
    on_hosts = {
        "web1": listed("r4", "r3", "r2", "r1", current="r4"),
        "web2": listed("r4", "r2", "r1", current="r4"),
    }

    assert plans.rollback_target(on_hosts, None) == "r2"
    assert plans.rollback_target(on_hosts, "r1") == "r1"


def test_a_rollback_goes_by_what_served_and_not_by_names_which_a_clock_gives() -> None:
    clock = {"web1": listed("2026-01", "2026-09", "2026-08", current="2026-01")}
    rolled_back_before = {"web1": listed("r4", "r3", "r2", current="r4", r4={"served": "r2"})}

    assert plans.rollback_target(clock, None) == "2026-09"
    assert plans.rollback_target(rolled_back_before, None) == "r2"


def test_a_rollback_skips_what_failed_or_was_never_deployed_whole_but_goes_there_if_told_to() -> None:
    web1 = listed("r4", "r3", "r2", "r1", current="r4", r2={"state": "staged"})
    web2 = listed("r4", "r3", "r2", "r1", current="r4", r3={"state": "failed"})

    assert plans.rollback_target({"web1": web1, "web2": web2}, None) == "r1"
    assert plans.rollback_target({"web1": web1, "web2": web2}, "r3") == "r3"


def test_hosts_that_differ_go_back_from_the_newest_release_that_serves() -> None:
    ahead, behind = (listed("r3", "r2", "r1", current=current) for current in ("r3", "r2"))

    assert plans.rollback_target({"web1": ahead, "web2": behind}, None) == "r2"
    assert plans.rollback_target({"web1": behind, "web2": ahead}, None) == "r2"


@pytest.mark.parametrize("away", ["web1", "web2"])
def test_a_host_that_was_away_does_not_make_the_rollback_go_back_one_release_too_far(away: str) -> None:
    """It never had the newest release, so the one before that is what the fleet comes together on."""
    on_hosts = {host: listed("r3", "r2", "r1", current="r3") for host in ("web1", "web2")}
    on_hosts[away] = listed("r2", "r1", current="r2")

    assert plans.rollback_target(on_hosts, None) == "r2"


def test_where_nothing_says_what_served_before_the_rollback_goes_to_the_newest_before_the_current_one() -> (
    None
):
    unknown = listed("r4", "r3", "r2", current="r3", r3={"served": None})

    assert plans.rollback_target({"web1": unknown}, None) == "r2"


@pytest.mark.parametrize("wanted", ["v2", "0123456", "0123456789"])
def test_a_rollback_to_a_ref_or_a_commit_is_told_the_newest_release_of_it(wanted: str) -> None:
    made = {"ref": "v2", "commit": "0123456789"}
    on_hosts = {"web1": listed("r4", "r3", "r2", "r1", current="r4", r2=made, r3=made)}

    with pytest.raises(UsageError) as caught:
        plans.rollback_target(on_hosts, wanted)
    assert caught.value.next == "fab rollback --to r3"
    assert caught.value.details == (f"releases of {wanted} on every host: r3, r2",)


def test_a_rollback_to_a_ref_is_not_told_the_release_that_serves() -> None:
    made = {"ref": "v2"}
    two = {"web1": listed("r3", "r2", "r1", current="r3", r3=made, r2=made)}
    one = {"web1": listed("r3", "r2", "r1", current="r3", r3=made)}

    for on_hosts, step in ((two, "fab rollback --to r2"), (one, "fab status: that one serves already")):
        with pytest.raises(UsageError) as caught:
            plans.rollback_target(on_hosts, "v2")
        assert caught.value.next == step


@pytest.mark.parametrize("wanted", ["r3", "nonsense", None])
def test_a_rollback_to_what_is_not_everywhere_is_refused_and_told_what_is(wanted: str | None) -> None:
    on_hosts = {"web1": listed("r4", "r3", current="r4"), "web2": listed("r4", current="r4")}

    with pytest.raises(UsageError) as caught:
        plans.rollback_target(on_hosts, wanted)
    assert "r4" in f"{caught.value.next} {caught.value.details}" or wanted == "nonsense"
    assert "fab deploy" in f"{caught.value.next} {caught.value.details}"
    if wanted == "r3":
        assert caught.value.next == "fab deploy --ref commit-r3, which ships it anew"
        assert "not on web2" in caught.value.details


def test_a_rollback_before_the_first_deploy_says_what_there_is_to_do() -> None:
    with pytest.raises(UsageError, match="no earlier release") as caught:
        plans.rollback_target({"web1": {"releases": []}}, None)
    assert caught.value.next == "fab deploy"


def test_a_hotswap_where_nothing_is_deployed_is_refused_before_anything_begins() -> None:
    base = replace(BASE, targets=(BASE.targets[0], replace(BASE.targets[1], release=None)))

    with pytest.raises(UsageError, match=r"nothing is deployed yet on web2$") as caught:
        plans.hotswap_plan(base, settings())
    assert caught.value.next == "fab deploy"


def test_the_printed_plan_names_hosts_steps_and_what_happens_when_one_fails() -> None:
    text = "\n".join(plans.describe(plans.downtime_plan(BASE, settings())))

    assert "web2 (serves r1)" in text
    assert "maintenance on, proved, on every host at once  [undo: maintenance off, proved]" in text
    assert "exit code 3" in text
    assert "fab deploy --resume" in text


def test_the_swap_of_a_first_release_is_a_pivot_for_there_is_no_way_back_from_it() -> None:
    first = replace(BASE, targets=(Target("web1", None), Target("web2", "r1")))

    (swap,) = (step for step in plans.downtime_plan(first, settings()).steps if step.name == "swap")

    assert (swap.kind, swap.undo) == (plans.Kind.PIVOT, None)


def test_lifting_a_window_by_force_takes_no_lock_for_its_run_may_have_it() -> None:
    assert names(plans.maintenance_plan(replace(BASE, force="run-0"), down=False)) == ["maintenance-off"]


def in_window(run_id: str | None) -> dict[str, object]:
    return {"maintenance": {"state": "down" if run_id else "up", "run_id": run_id}}


def test_a_window_whose_run_is_over_is_found_so_that_a_new_one_can_take_it_over() -> None:
    assert plans.open_window({"web1": in_window("run-0"), "web2": in_window(None)}) == "run-0"
    assert plans.open_window({"web1": in_window(None)}) is None
    with pytest.raises(UsageError, match="different runs"):
        plans.open_window({"web1": in_window("run-0"), "web2": in_window("run-1")})
