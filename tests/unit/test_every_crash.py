"""Whatever dies, whenever: a window ends all-new, all-old, or safely in maintenance.

The engine, the journal and the policy are the real ones. The hosts are a model, with effects: what serves,
what is in maintenance, where the schema is. Faults strike at any call of a host program or of the journal,
before its effect or after it; then the run is resumed or aborted from what the lock host has. After every
effect: nobody among the public meets code with another release's schema, and a migration begins once, with
every host down.

The same for a deploy without downtime, whose migration fits both releases.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from deploytools import journal, saga
from deploytools import plan as plans
from deploytools.commands import Command
from deploytools.engine import Engine, JournalLost, Stop
from deploytools.fleet import Lost, Ok, Outcome
from deploytools.journal import Journal
from deploytools.plan import Plan, Target
from deploytools.remote import LinkLost, Result
from deploytools.saga import Progress, Verdict
from tests.support.values import BASE, settings
from tests.unit.test_engine import Clock, Silent

HOSTS = ("web1", "web2")
COMMAND = {"adapter": "command", "status": "./status", "apply": "./apply", "rollback": "./rollback"}
SETTINGS = settings(hooks={"quiesce": "stop-workers", "resume": "start-workers", "backup": "dump"})
WINDOW = replace(plans.downtime_plan(BASE, SETTINGS), digest="abc")
# One whose migration an abort takes back.
WITH_A_WAY_BACK = replace(plans.downtime_plan(BASE, settings(migrate=COMMAND)), digest="abc")
# To a fleet with a host that is new, and serves nothing yet.
GROWN = replace(BASE, targets=(Target("web1", "r1"), Target("web2", None)))
ROLLING = replace(plans.rolling_plan(GROWN, SETTINGS), digest="abc")
# What the migration comes to, whoever asks however often.
APPLIED, NOTHING_CHANGED, HALF_CHANGED = "applied", "nothing changed", "half changed"
# What strikes at a call. A program "dies" after its effect without an answer that says so.
FAULTS = ("crash before", "crash after", "lost before", "lost after", "refuses", "dies", "ctrl-c")


class Crash(BaseException):
    """The operator's process is killed."""


@dataclass
class Hosts:
    """The fleet, and the lock host's disk.

    Args:
        faults: by the number of a call.
        migration: what the migration comes to.
    """

    faults: Mapping[int, str]
    migration: str = APPLIED
    plan: Plan = WINDOW
    calls: int = 0
    stop: Stop = field(default_factory=Stop)
    stored: list[dict[str, Any]] = field(default_factory=list)
    locked: bool = False
    down: set[str] = field(default_factory=set)
    serves: dict[str, str | None] = field(default_factory=dict)
    schema: str = "r1"
    migrated: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.serves = self.before

    @property
    def before(self) -> dict[str, str | None]:
        return {target.host: target.release for target in self.plan.targets}

    def map(self, work: Callable[[Any], Any], hosts: Sequence[str]) -> dict[str, Outcome[Any]]:
        outcomes: dict[str, Outcome[Any]] = {}
        for name in hosts:
            try:
                outcomes[name] = Ok(work(OneHost(name, self)))
            except LinkLost as error:
                outcomes[name] = Lost(error)
        return outcomes

    def call(self, effect: Callable[[], tuple[int, dict[str, Any]]]) -> tuple[int, dict[str, Any]]:
        """Make one call, with the fault that strikes at it."""
        self.calls += 1
        fault = self.faults.get(self.calls, "")
        if fault == "ctrl-c":
            self.stop.press()
        if fault == "crash before":
            raise Crash
        if fault == "lost before":
            raise LinkLost("a host", None, "the connection was lost")
        if fault == "refuses":
            return 3, {"ok": False, "error": {"what": "it refuses"}}
        answer = effect()
        self.check_what_the_public_meets()
        if fault == "crash after":
            raise Crash
        if fault == "lost after":
            raise LinkLost("a host", None, "the connection was lost")
        return (1, {"ok": False, "error": {"what": "it died"}}) if fault == "dies" else answer

    def check_what_the_public_meets(self) -> None:
        if self.plan is ROLLING:
            assert not self.down
            return
        met = {(self.serves[host], self.schema) for host in HOSTS if host not in self.down}
        assert met <= {("r1", "r1"), ("r2", "r2")}, f"the public meets {met}"

    def obey(self, host: str, command: Command) -> tuple[int, dict[str, Any]]:
        """The effect of a host program."""
        name, *arguments = [word for word in command.argv if word != "--json"]
        match name.rsplit("/", 1)[-1], arguments[0] if arguments else "":
            case "lock", "acquire":
                assert not self.stored or self.locked, "its journal is older than its lock"
                if not self.locked:
                    self.stored += [json.loads(line) for line in (command.stdin or b"").splitlines()]
                self.locked = True
            case "lock", "release":
                self.locked = False
            case "down", _:
                self.down.add(host)
            case "up", _:
                self.down.discard(host)
            case "swap", "--reap":
                pass
            case "swap", "--off":
                self.serves[host] = None
            case "swap", release:
                self.serves[host] = release.removeprefix("--release=")
            case "migrate", "check":
                return 0, {"ok": True, "state": "pending", "current": ["1"], "target": ["2"], "same": True}
            case "migrate", "run":
                return self.migrate()
            case "migrate", "back":
                assert self.down == set(HOSTS), "a migration is taken back with every host down"
                self.schema = "r1"
        return 0, {"ok": True}

    def migrate(self) -> tuple[int, dict[str, Any]]:
        """At most once by the run's id; afterwards the same answer for ever."""
        if not self.migrated:
            assert self.plan is ROLLING or self.down == set(HOSTS), "a migration begins with every host down"
            self.migrated.append(self.migration)
            self.schema = {APPLIED: "r2", NOTHING_CHANGED: "r1", HALF_CHANGED: "half"}[self.migration]
        if self.migration == APPLIED:
            return 0, {"ok": True, "applied": ["2"], "seconds": 1.0}
        unchanged = self.migration == NOTHING_CHANGED
        return 3, {"ok": False, "unchanged": unchanged, "error": {"what": "a syntax error"}}

    def keep(self, line: bytes) -> tuple[int, dict[str, Any]]:
        """The journal's program."""
        wanted = json.loads(line)
        records = [json.loads(text) for text in wanted["lines"]]
        beyond = self.stored[wanted["expect"] :]
        assert records[: len(beyond)] == beyond, "a record was lost, or written over"
        self.stored += records[len(beyond) :]
        return 0, {"ok": True}


@dataclass
class OneHost:
    name: str
    hosts: Hosts

    def run(self, command: Command, on_line: object = None, dialog: object = None) -> Result:
        code, value = self.hosts.call(lambda: self.hosts.obey(self.name, command))
        return Result(code, json.dumps(value), "", 0.0)

    def ask(self, command: Command, line: bytes) -> bytes:
        return json.dumps(self.hosts.call(lambda: self.hosts.keep(line))[1]).encode()

    def get_ready(self, programs: Sequence[Command]) -> None: ...

    def dismiss(self, command: Command) -> None: ...


def carry_on(hosts: Hosts, path: Path, *, abort: bool = False) -> Progress | None:
    """Begin the run, or go on with it from what the lock host has; None where the operator's process dies."""
    clock, hosts.stop = Clock(), Stop()
    log = Journal(path / "run.jsonl", clock, list(hosts.stored), stored=len(hosts.stored))
    if hosts.stored:
        progress = journal.fold(hosts.stored)
        log.append(journal.resumed("bob", "sofa"))
        if abort and not progress.reverting and saga.may_abort(hosts.plan, progress):
            log.append(journal.turn_back("aborted by bob"))
    else:
        log.append(journal.begin(hosts.plan))
    engine = Engine(
        plan=hosts.plan,
        settings=SETTINGS,
        fleet=hosts,  # type: ignore[arg-type]
        journal=log,
        reporter=Silent(),
        stop=hosts.stop,
        clock=clock,
        wait=clock.wait,
    )
    if hosts.stored:
        engine.attach()
    try:
        return engine.run()
    except (Crash, JournalLost):
        return None


def bring_to_an_end(hosts: Hosts, path: Path, aborts: Sequence[bool]) -> None:
    """Begin, and go on by `aborts` (or resume) until the run is over; check how it ends."""
    progress = carry_on(hosts, path)
    for abort in (*aborts, *[False] * len(hosts.faults)):
        if hosts.locked:
            progress = carry_on(hosts, path, abort=abort)
    hosts.faults = {}
    if hosts.locked:
        progress = carry_on(hosts, path)
    if hosts.locked:
        assert hosts.migration == HALF_CHANGED, f"it never ends: {progress}"
        assert progress is not None
        assert progress.verdict is Verdict.HELD
        assert hosts.down == (set(HOSTS) if hosts.plan.window else set())
    else:
        assert hosts.down == set()
        assert hosts.serves in (hosts.before, dict.fromkeys(HOSTS, "r2")), "all new, or all as before"
        # What fits both releases stays where the deploy was undone.
        assert hosts.schema in (*hosts.serves.values(), *(["r2"] if hosts.plan is ROLLING else []))
    assert len(hosts.migrated) <= 1


@pytest.fixture(autouse=True)
def _no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of runs; that records are on the laptop's disk is tested elsewhere."""
    monkeypatch.setattr("deploytools.journal.os.fsync", lambda _: None)


def calls_of(plan: Plan, path: Path) -> int:
    hosts = Hosts({}, plan=plan)
    bring_to_an_end(hosts, path, [])
    assert (hosts.schema, hosts.migrated) == ("r2", [APPLIED])
    return hosts.calls


@pytest.mark.parametrize(
    ("abort", "plan"),
    [
        pytest.param(False, WINDOW, id="resume-window"),
        # It differs from the one before in what an abort does.
        pytest.param(False, WITH_A_WAY_BACK, id="resume-way back", marks=pytest.mark.exhaustive),
        pytest.param(False, ROLLING, id="resume-rolling"),
        pytest.param(True, WINDOW, id="abort-window"),
        pytest.param(True, WITH_A_WAY_BACK, id="abort-way back"),
        pytest.param(True, ROLLING, id="abort-rolling"),
    ],
)
@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_strikes_at_any_call_a_run_ends_well(
    fault: str, abort: bool, plan: Plan, tmp_path: Path
) -> None:
    for call in range(1, calls_of(plan, tmp_path) + 1):
        bring_to_an_end(Hosts({call: fault}, plan=plan), tmp_path, [abort])


@pytest.mark.parametrize(
    "plan",
    [
        pytest.param(WINDOW, id="window"),
        pytest.param(WITH_A_WAY_BACK, id="way back", marks=pytest.mark.exhaustive),
    ],
)
@pytest.mark.parametrize("migration", [NOTHING_CHANGED, HALF_CHANGED])
@pytest.mark.parametrize("fault", ["crash before", "crash after", "lost after", "dies"])
def test_a_migration_that_fails_ends_all_old_or_in_maintenance(
    migration: str, fault: str, plan: Plan, tmp_path: Path
) -> None:
    for call in range(1, calls_of(plan, tmp_path) + 1):
        bring_to_an_end(Hosts({call: fault}, migration, plan), tmp_path, [])


@hypothesis_settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    faults=st.dictionaries(st.integers(1, 120), st.sampled_from(FAULTS), max_size=6),
    aborts=st.lists(st.booleans(), max_size=4),
    migration=st.sampled_from([APPLIED, APPLIED, NOTHING_CHANGED, HALF_CHANGED]),
    plan=st.sampled_from([WINDOW, WITH_A_WAY_BACK, ROLLING]),
)
def test_whatever_strikes_again_and_again_a_run_ends_well(
    faults: dict[int, str], aborts: list[bool], migration: str, plan: Plan, tmp_path: Path
) -> None:
    bring_to_an_end(Hosts(faults, migration, plan), tmp_path, aborts)
