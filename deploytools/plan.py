"""What an operation consists of, as data. Pure: nothing here touches a host.

A plan is compared with ==, printed by --plan, journaled, resumed and compensated from the same
objects. The steps' order and kinds are the table "The window" of docs/design.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from deploytools.errors import UsageError
from deploytools.settings import Hooks, Settings


class Scope(str, Enum):
    """Where a step runs.

    ONE_FIRST is on one host, and then on all others at once. ALL is EACH, and the lock host if the plan looks
    for pending migrations there: it does so with the release's own, even where -H leaves that host out.
    """

    ONCE = "once"
    EACH = "each"
    ONE_FIRST = "one first"
    ALL = "all"
    ROLLING = "rolling"


class Kind(str, Enum):
    """What a failure of a step means for the steps before it.

    EXPAND: what it changes fits what was there before, so once it is done it stays, and bars no way back.
    """

    READ_ONLY = "read-only"
    COMPENSATED = "compensated"
    EXPAND = "expand"
    PIVOT = "pivot"
    RETRIABLE = "retriable"


@dataclass(frozen=True)
class Step:
    """One step of a plan; a barrier: the next begins when every host is done with it.

    Args:
        name: what `commands` knows it by.
        title: what a person reads.
        undo: what compensates it, in words; None where nothing has to.
        batch: with Scope.ROLLING, how many hosts at a time, after the first one alone.
        required: False where a failure is told but stops nothing.
        undo_required: False where a failed compensation leaves nothing worse than litter.
        looks: True where it changes nothing and may be repeated: then it begins before its intent is on the
            lock host's disk.
    """

    name: str
    title: str
    scope: Scope
    kind: Kind
    undo: str | None = None
    batch: int = 0
    required: bool = True
    undo_required: bool = True
    looks: bool = False


@dataclass(frozen=True)
class Target:
    """One host as it was when the plan was made.

    Args:
        release: what it served; None: nothing yet.
        down: it was in maintenance already, so backing out of the plan must not bring it up.
        window: the run whose maintenance that was, if one's.
        since: from when on, ISO 8601 by the host's own clock.
    """

    host: str
    release: str | None = None
    down: bool = False
    window: str | None = None
    since: str | None = None


@dataclass(frozen=True)
class Plan:
    """An operation: what, where, by whom, and its steps.

    Args:
        operation: the task, as typed: deploy, hotswap, rollback, maint-down, maint-up.
        run_id: names this run everywhere: lock, journal, migration, window.
        lock_host: holds the lock and the journal; `once` steps run there.
        release: the release to activate; None where none changes.
        digest: SHA-256 of the release's listing; None where nothing is shipped.
        until: when the operator expects the window to end, ISO 8601; None if not said.
        window: True where maintenance belongs to this run alone.
        force: the run whose window is lifted or taken over, although it isn't ours.
        hooks: the window's, as fabric.yaml had them: whoever resumes the run may have others.
    """

    operation: str
    run_id: str
    application: str
    targets: tuple[Target, ...]
    lock_host: str
    steps: tuple[Step, ...]
    by: str
    laptop: str
    release: str | None = None
    digest: str | None = None
    reason: str | None = None
    until: str | None = None
    window: bool = False
    force: str | None = None
    hooks: Hooks | None = None

    @property
    def hosts(self) -> tuple[str, ...]:
        return tuple(target.host for target in self.targets)

    def hosts_of(self, step: Step) -> tuple[str, ...]:
        """The hosts that `step` runs on, in the order of the settings."""
        if step.scope is Scope.ONCE:
            return (self.lock_host,)
        if step.scope is Scope.ALL and self.has(CHECK_MIGRATIONS.name) and self.lock_host not in self.hosts:
            return (*self.hosts, self.lock_host)
        return self.hosts

    def previous(self, host: str) -> str | None:
        """The release that `host` served when the plan was made."""
        return next((target.release for target in self.targets if target.host == host), None)

    @property
    def down_before(self) -> tuple[str, ...]:
        """The hosts that were in maintenance when the plan was made."""
        return tuple(target.host for target in self.targets if target.down)

    def has(self, name: str) -> bool:
        return any(step.name == name for step in self.steps)

    @property
    def repeatable(self) -> bool:
        """True for the switch alone: to go on takes nothing but the same command again. So neither a lock
        nor a journal that can't be written is a reason not to take a site down."""
        return all(
            step.name in ("lock", "maintenance-on", "drain", "maintenance-off", "unlock")
            for step in self.steps
        )


LOCK = Step("lock", "take the lock", Scope.ONCE, Kind.COMPENSATED, undo="release the lock")
COMPARE = Step("compare", "compare the hosts with the plan", Scope.EACH, Kind.READ_ONLY, looks=True)
PREFLIGHT = Step("preflight", "check the hosts", Scope.EACH, Kind.READ_ONLY, looks=True)
STAGE = Step(
    "stage",
    "stage the release",
    Scope.ALL,
    Kind.COMPENSATED,
    undo="discard the release",
    undo_required=False,
)
CHECK_MIGRATIONS = Step(
    "check-migrations", "look for pending migrations", Scope.ONCE, Kind.READ_ONLY, looks=True
)
SAME_DATABASE = Step(
    "same-database", "see whether every host finds the same database", Scope.EACH, Kind.READ_ONLY, looks=True
)
ARM = Step(
    "arm",
    "get the migration ready",
    Scope.ONCE,
    Kind.COMPENSATED,
    undo="stop what is ready",
    undo_required=False,
)
MAINTENANCE_ON = Step(
    "maintenance-on", "maintenance on, proved", Scope.EACH, Kind.COMPENSATED, undo="maintenance off, proved"
)
QUIESCE = Step("quiesce", "quiesce workers", Scope.EACH, Kind.COMPENSATED, undo="resume workers")
DRAIN = Step("drain", "drain requests in flight", Scope.EACH, Kind.READ_ONLY, looks=True)
BACKUP = Step("backup", "back up", Scope.ONCE, Kind.READ_ONLY)
MIGRATE = Step("migrate", "migrate the schema", Scope.ONCE, Kind.PIVOT)
MIGRATE_ONLINE = Step(
    "migrate", "migrate what is labelled online-safe, the site being up", Scope.ONCE, Kind.EXPAND
)
SWAP = Step(
    "swap", "activate and hot-swap", Scope.EACH, Kind.COMPENSATED, undo="swap back to the release before"
)
RETIRE = Step("retire", "stop the old generations", Scope.EACH, Kind.RETRIABLE, required=False)
SWAP_BACK = Step("swap-back", "swap back to the warm generation", Scope.EACH, Kind.RETRIABLE)
VERIFY = Step("verify", "verify behind the maintenance page", Scope.EACH, Kind.RETRIABLE, looks=True)
MAINTENANCE_OFF = Step("maintenance-off", "maintenance off, proved", Scope.ONE_FIRST, Kind.PIVOT)
RESUME_WORKERS = Step("resume-workers", "resume workers", Scope.EACH, Kind.RETRIABLE)
PRUNE = Step("prune", "prune old releases", Scope.ALL, Kind.RETRIABLE, required=False)
UNLOCK = Step("unlock", "release the lock", Scope.ONCE, Kind.RETRIABLE, required=False)


def downtime_plan(base: Plan, settings: Settings, *, ship: bool = True, exclude: Sequence[str] = ()) -> Plan:
    """Given who and what, return the whole window; `ship` is False where the release is on the hosts.

    It has no migration, and so insists on a schema that is current, where `left_out` names a host.
    Where a host serves nothing yet there is no way back from the swap: an app that doesn't verify then
    stays behind the maintenance page.
    """
    hooks, check = settings.hooks, settings.migrate is not None
    migrate = check and not left_out(base, settings, exclude)
    first = any(target.release is None for target in base.targets)
    return _with(
        replace(base, hooks=replace(hooks, notify=None)),
        [
            LOCK,
            COMPARE,
            PREFLIGHT,
            ship and STAGE,
            check and CHECK_MIGRATIONS,
            check and len(base.targets) > 1 and SAME_DATABASE,
            migrate and ARM,
            MAINTENANCE_ON,
            hooks.quiesce and QUIESCE,
            DRAIN,
            hooks.backup and BACKUP,
            migrate and _migrate(settings),
            replace(SWAP, kind=Kind.PIVOT, undo=None) if first else SWAP,
            VERIFY,
            MAINTENANCE_OFF,
            RETIRE,
            hooks.resume and RESUME_WORKERS,
            PRUNE,
            UNLOCK,
        ],
        window=True,
    )


def _migrate(settings: Settings) -> Step:
    """The pivot. Nothing undoes it by itself; with a command that takes it back, an abort does."""
    back = settings.migrate is not None and settings.migrate.rollback
    return replace(MIGRATE, undo="take the migration back") if back else MIGRATE


def left_out(base: Plan, settings: Settings, exclude: Sequence[str] = ()) -> tuple[str, ...]:
    """The hosts that would serve old code on a new schema if `base` migrated.

    That is whoever -H left out. A host in `exclude` counts as gone, on the operator's word; but not
    the lock host, which is not gone: migrations run there.
    """
    gone = set(exclude) - {base.lock_host}
    return tuple(name for name in map(str, settings.all_hosts) if name not in {*base.hosts, *gone})


def rolling_plan(
    base: Plan, settings: Settings, *, batch: int = 1, exclude: Sequence[str] = (), rollback: bool = True
) -> Plan:
    """Given who and what, return a deploy without downtime: one host, then `batch` hosts at a time.

    It migrates what is labelled online-safe, and stops where anything else is pending; where `left_out` names
    a host, it insists on a schema that is current. Without `rollback` it holds where a host fails after
    others are on the new release: they stay there, until the operator resumes or aborts.
    """
    check = settings.migrate is not None
    kind = Kind.COMPENSATED if rollback else Kind.PIVOT
    return _with(
        base,
        [
            LOCK,
            COMPARE,
            PREFLIGHT,
            STAGE,
            check and CHECK_MIGRATIONS,
            check and not left_out(base, settings, exclude) and MIGRATE_ONLINE,
            replace(SWAP, scope=Scope.ROLLING, batch=batch, kind=kind),
            PRUNE,
            UNLOCK,
        ],
    )


def rollback_plan(base: Plan, settings: Settings, *, batch: int | None = None) -> Plan:
    """Given who, and a release that is on every host, return the way back to it.

    On every host at once, as it has served before and haste is likely; or first on one, then on `batch` at a
    time. Nothing is examined that the swap doesn't prove itself, but whether the schema is the one it knows.
    """
    swap = SWAP if batch is None else replace(SWAP, scope=Scope.ROLLING, batch=batch)
    return _with(
        base, [LOCK, COMPARE, settings.migrate is not None and CHECK_MIGRATIONS, swap, PRUNE, UNLOCK]
    )


def hotswap_plan(base: Plan, settings: Settings, *, batch: int = 1, back: bool = False) -> Plan:
    """Given who, return a swap on the release that each host has, or back to the warm generation.

    The way back leads to `base.release`, which may be older than the schema: then that is looked at before.
    Raises UsageError where a host has no release yet.
    """
    new = [target.host for target in base.targets if target.release is None]
    if new:
        raise UsageError(
            f"nothing is deployed yet on {', '.join(new)}", state="nothing was changed", next="fab deploy"
        )
    title = "hot-swap the application"
    swap = replace(SWAP, scope=Scope.ROLLING, batch=batch, title=title, undo=None, kind=Kind.RETRIABLE)
    check = back and base.release is not None and settings.migrate is not None and CHECK_MIGRATIONS
    return _with(base, [LOCK, check, SWAP_BACK if back else swap, UNLOCK])


def warm_release(statuses: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Given what the hosts say, return the release of their warm generations; None where there are none.

    Raises UsageError where they are not of one release.
    """
    newest: dict[str, str] = {}
    for host, status in statuses.items():
        for other in sorted(status["others"], key=lambda other: int(other["generation"])):
            if other["state"] == "warm" and other["alive"]:
                newest[host] = other["release"]
    if len(set(newest.values())) > 1:
        raise UsageError(
            "the warm generations are not of one release",
            where="--back",
            state="nothing was changed",
            next="fab rollback --to RELEASE",
            details=[f"{host}: {release}" for host, release in newest.items()],
        )
    return next(iter(newest.values()), None)


def maintenance_plan(base: Plan, *, down: bool, drain: bool = False) -> Plan:
    """Given who and why, return the plan of maint-down or maint-up.

    With `force` it takes no lock: the run whose window it lifts may hold it, and goes on holding it.
    Requests that don't end are no reason to come up again, and a host that doesn't is none to keep the lock.
    """
    if down:
        on = replace(MAINTENANCE_ON, undo_required=False)
        return _with(base, [LOCK, on, drain and replace(DRAIN, required=False), UNLOCK])
    off = replace(MAINTENANCE_OFF, kind=Kind.RETRIABLE, scope=Scope.EACH)
    return _with(base, [off] if base.force else [LOCK, off, UNLOCK])


def open_window(statuses: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Given what the hosts say, return the run whose window they are in; None where they are in none.

    A new window takes it over once it has the lock, which shows that that run is over.
    Raises UsageError where they are in different ones.
    """
    runs = {
        host: status["maintenance"]["run_id"]
        for host, status in statuses.items()
        if status["maintenance"]["state"] == "down" and status["maintenance"].get("run_id")
    }
    if len(set(runs.values())) > 1:
        raise UsageError(
            "the hosts are in maintenance by different runs",
            state="nothing was changed",
            next="fab maint-up --force RUN_ID for all runs but one",
            details=[f"{host}: {run}" for host, run in runs.items()],
        )
    return next(iter(runs.values()), None)


def rollback_target(on_hosts: Mapping[str, Mapping[str, Any]], wanted: str | None) -> str:
    """Given what `release list` says of every host, return the release to go back to.

    Without `wanted` that is the one that served before the current one was deployed; where that failed or
    isn't on every host, the one before it, and so on. Where nothing says what served before: the newest
    that was staged before the current one. Raises UsageError where there is none, naming what there is.
    """
    listed = {host: {item["id"]: item for item in told["releases"]} for host, told in on_hosts.items()}
    order = _in_one_order(listed.values())
    everywhere = [name for name in order if all(name in items for items in listed.values())]
    if wanted is not None:
        if wanted not in everywhere:
            raise _not_everywhere(wanted, listed, everywhere)
        return wanted
    items = [item for of_host in listed.values() for item in of_host.values()]
    bad = {item["id"] for item in items if item.get("state", "deployed") != "deployed"}
    before = {item["id"]: item["served"] for item in items if item.get("served")}
    current = [item["id"] for item in items if item["current"]]
    # On hosts that differ: back from the newest.
    newest = min(current, key=order.index, default=None)
    older = order[order.index(newest) + 1 :] if newest else order
    chain: list[str] = []
    name = before.get(newest)
    while name and name not in chain and name != newest:
        chain.append(name)
        name = before.get(name)
    for name in (*chain, *older):
        if name in everywhere and name not in bad:
            return name
    raise UsageError(
        "there is no earlier release that every host has",
        state="nothing was changed",
        next=f"fab rollback --to {everywhere[0]}" if everywhere and newest is None else "fab deploy",
        details=[f"on every host: {', '.join(everywhere) or 'none'}"],
    )


def _in_one_order(lists: Iterable[Iterable[str]]) -> list[str]:
    """What hosts list newest first, as one such list: what one host lacks stands where the others have it."""
    order: list[str] = []
    for names in lists:
        place = len(order)
        for name in reversed(list(names)):
            if name in order:
                place = order.index(name)
            else:
                order.insert(place, name)
    return order


def _not_everywhere(
    wanted: str, listed: Mapping[str, Mapping[str, Any]], everywhere: Sequence[str]
) -> UsageError:
    """Where a release that was asked for is, where not, and what there is instead."""
    has = [host for host, items in listed.items() if wanted in items]
    commit = next((listed[host][wanted].get("commit") for host in has), None)
    of_it = [
        name
        for name in everywhere
        if any(_made_of(items.get(name, {}), wanted) for items in listed.values()) and not has
    ]
    other = [name for name in of_it if not all(items[name]["current"] for items in listed.values())]
    if of_it:
        return UsageError(
            f"{wanted} is no release, but what one was made of",
            where="--to",
            state="nothing was changed",
            next=f"fab rollback --to {other[0]}" if other else "fab status: that one serves already",
            details=[f"releases of {wanted} on every host: {', '.join(of_it)}"],
        )
    lacking = [host for host in listed if host not in has]
    return UsageError(
        f"{wanted} is not on every host" if has else f"{wanted} is not on the hosts: pruned, or never there",
        where="--to",
        state="nothing was changed",
        next=f"fab deploy --ref {commit}, which ships it anew"
        if commit
        else "fab releases lists what is there; fab deploy --ref COMMIT ships one anew",
        details=[f"not on {', '.join(lacking)}", f"on every host: {', '.join(everywhere) or 'none'}"]
        if has
        else [f"on every host: {', '.join(everywhere) or 'none'}"],
    )


def _made_of(item: Mapping[str, Any], wanted: str) -> bool:
    """Whether a release is of the ref or the commit `wanted`, which may be shortened as git does it."""
    commit = str(item.get("commit") or "")
    return item.get("ref") == wanted or (len(wanted) >= 7 and commit.startswith(wanted))


def step_names() -> set[str]:
    """What this version's plans may consist of."""
    return {step.name for step in globals().values() if isinstance(step, Step)}


def batch_size(text: str, hosts: int) -> int:
    """Given `--batch` as N or P%, return a number of hosts from 1 to `hosts`.

    Raises ValueError for anything else.
    """
    number = int(text.removesuffix("%"))
    if number < 1 or (text.endswith("%") and number > 100):
        raise ValueError(text)
    if text.endswith("%"):
        number = hosts * number // 100
    return max(1, min(number, hosts))


def describe(plan: Plan, expected: str | None = None, about: Sequence[str] = ()) -> list[str]:
    """Return the lines that --plan prints: hosts, what is `expected`, steps, what happens when one fails.

    `about` are lines about the release, such as where it comes from.
    """
    lines = [f"{plan.operation} of {plan.application}, run {plan.run_id}"]
    if plan.release:
        lines.append(f"  release  {plan.release}")
    lines += [f"  {line}" for line in about]
    for target in plan.targets:
        lines.append(f"  host     {target.host} (serves {target.release or 'nothing yet'})")
    lines.append(f"  lock on  {plan.lock_host}")
    if plan.window and expected:
        lines.append(f"  expected {expected}")
    lines.append("")
    for number, step in enumerate(plan.steps, 1):
        where = {
            Scope.ONCE: f"on {plan.lock_host}",
            Scope.EACH: "on every host at once",
            Scope.ONE_FIRST: "on one host, then on all others",
            Scope.ALL: "on every host at once",
            Scope.ROLLING: "on one host, then "
            + (f"{step.batch} at a time" if step.batch > 1 else "one after the other"),
        }[step.scope]
        lines.append(f"{number:3}. {step.title}, {where}" + (f"  [undo: {step.undo}]" if step.undo else ""))
    lines.append("")
    lines += policy(plan)
    return lines


def policy(plan: Plan) -> list[str]:
    """Return the plan's failure policy in words; `saga` is the policy itself."""
    undoing = [step.undo for step in reversed(plan.steps) if step.undo and step.kind is not Kind.PIVOT]
    pivots = {step.name: step for step in plan.steps if step.kind is Kind.PIVOT}
    served = any(target.release for target in plan.targets)
    stays = "the site stays up on what it ran before" if served else "nothing is served, as before"
    lines = [f"If a step fails: {', '.join(undoing)}; {stays} (exit code 3)."]
    if MIGRATE_ONLINE in plan.steps:
        lines += [
            "Where anything is pending that its author has not labelled online-safe, nothing is changed.",
            "What was migrated stays; while nobody knows how that ended, everything waits (exit code 4).",
        ]
    if not plan.window and SWAP.name in pivots:
        lines += [
            "Once a host is on the new release it stays there: a host that fails after it stops the run,"
            " which waits for `fab deploy --resume`, or `fab deploy --abort` to swap back (exit code 4).",
        ]
    if MIGRATE.name in pivots:
        lines += [
            "Once the migration may have changed the schema there is no way back: a failure then holds"
            " maintenance, says where each host stands, and waits for `fab deploy --resume` (exit code 4).",
        ]
    if MIGRATE.name in pivots and pivots[MIGRATE.name].undo:
        lines += ["Until visitors are let in, `fab deploy --abort` takes it back by migrate.rollback."]
    return lines


def _with(base: Plan, steps: Sequence[Step | str | bool | None], *, window: bool = False) -> Plan:
    return replace(base, steps=tuple(step for step in steps if isinstance(step, Step)), window=window)
