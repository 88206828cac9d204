"""The loop, with a fleet that answers what a test tells it to. Real hosts are in tests/integration."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from deploytools import engine as engines
from deploytools import journal
from deploytools import plan as plans
from deploytools.commands import Command
from deploytools.conclusion import conclude
from deploytools.engine import Engine, JournalLost, Stop, Superseded
from deploytools.errors import InMaintenance, Interrupted, LockHeld, OperationFailed
from deploytools.fleet import Failed, Fleet, Lost, Ok, Outcome, Unreached
from deploytools.journal import Journal
from deploytools.plan import Plan, Target
from deploytools.remote import LinkLost, Result
from deploytools.reporter import Reporter
from deploytools.saga import Verdict
from deploytools.settings import Host
from tests.support.values import BASE, settings

SETTINGS = settings()
WINDOW = replace(plans.downtime_plan(BASE, SETTINGS), digest="abc")
DOWN = plans.maintenance_plan(replace(BASE, operation="maint-down", release=None), down=True, drain=True)


@dataclass
class Clock:
    """Time that passes only when somebody waits."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


@dataclass
class FakeHost:
    name: str
    world: World

    def run(self, command: Command, on_line: object = None, dialog: object = None) -> Result:
        return self.world.answer(self.name, command)

    def dismiss(self, command: Command) -> None:
        self.world.dismissed.append((self.name, " ".join(_words(command)).strip()))

    def get_ready(self, programs: Sequence[Command]) -> None:
        self.world.ready[self.name] = [" ".join(_words(program)).strip() for program in programs]

    def ask(self, command: Command, line: bytes) -> bytes:
        return self.world.keep(self.name, line)


@dataclass
class World:
    """Hosts whose programs succeed, but for what `scripted` says, first come first served."""

    scripted: dict[tuple[str, str], list[Any]] = field(default_factory=dict)
    said: list[tuple[str, str]] = field(default_factory=list)
    stored: list[dict[str, Any]] = field(default_factory=list)
    before: Callable[[str, str], None] = lambda host, word: None
    ready: dict[str, list[str]] = field(default_factory=dict)
    lines: list[bytes] = field(default_factory=list)
    dismissed: list[tuple[str, str]] = field(default_factory=list)

    def map(self, work: Callable[[Any], Any], hosts: Sequence[str]) -> dict[str, Outcome[Any]]:
        outcomes: dict[str, Outcome[Any]] = {}
        for host in hosts:
            try:
                outcomes[host] = Ok(work(FakeHost(host, self)))
            except LinkLost as error:
                outcomes[host] = Lost(error)
            except ConnectionError as error:
                outcomes[host] = Unreached(error)
            except OSError as error:
                outcomes[host] = Failed(error)
        return outcomes

    def answer(self, host: str, command: Command) -> Result:
        word = " ".join(part for part in _words(command) if part)
        self.before(host, word)
        self.said.append((host, word))
        orders = self._obey(host, word)
        if isinstance(orders, Result):
            return orders
        code, value = orders or (0, {"ok": True, "target": ["0002"], "seconds": 1.0})
        if word == "lock acquire" and code == 0 and not value.get("without"):
            assert not self.stored
            self.stored += [json.loads(line) for line in (command.stdin or b"").splitlines()]
        return Result(code, json.dumps(value), "", 0.0)

    def keep(self, host: str, line: bytes) -> bytes:
        """The journal on the lock host."""
        self.before(host, "journal")
        self.lines.append(line)
        orders = self._obey(host, "journal")
        if orders:
            return json.dumps(orders[1]).encode()
        wanted = json.loads(line)
        assert wanted["expect"] == len(self.stored)
        self.stored += [json.loads(text) for text in wanted["lines"]]
        return b'{"ok": true}'

    def _obey(self, host: str, word: str) -> Any:
        script = self.scripted.get((host, word)) or self.scripted.get(("*", word))
        orders = script.pop(0) if script else None
        if isinstance(orders, Exception):
            raise orders
        return orders


def _words(command: Command) -> tuple[str, str]:
    name = command.argv[0].rsplit("/", 1)[-1]
    if "--reap" in command.argv:
        return name, "--reap"
    return name, command.argv[1] if name in ("lock", "release", "migrate", "journal") else ""


class Silent(Reporter):
    """For whom nobody listens."""


def engine(world: World, tmp_path: Path, plan: Plan = WINDOW, stop: Stop | None = None) -> Engine:
    clock = Clock()
    log = Journal(tmp_path / "run.jsonl", clock)
    log.append(journal.begin(plan))
    return Engine(
        plan=plan,
        settings=SETTINGS,
        fleet=world,  # type: ignore[arg-type]
        journal=log,
        reporter=Silent(),
        stop=stop or Stop(),
        clock=clock,
        wait=clock.wait,
    )


def failing(what: str = "it broke", code: int = 3, **value: Any) -> tuple[int, dict[str, Any]]:
    return code, {"ok": False, "error": {"what": what}, **value}


def lost() -> LinkLost:
    return LinkLost("web1", None, "the connection was lost")


ALL_STEPS = [
    ("web1", "lock acquire"),
    *((host, "status") for host in ("web1", "web2")),
    *((host, "doctor") for host in ("web1", "web2")),
    ("web1", "release stage"),
    ("web2", "release stage"),
    ("web1", "migrate check"),
    *((host, "migrate check") for host in ("web1", "web2")),
    ("web1", "migrate arm"),
    *((host, "down") for host in ("web1", "web2")),
    *((host, "drain") for host in ("web1", "web2")),
    ("web1", "migrate run"),
    *((host, "swap") for host in ("web1", "web2")),
    *((host, "verify") for host in ("web1", "web2")),
    *((host, "up") for host in ("web1", "web2")),
    *((host, "swap --reap") for host in ("web1", "web2")),
    *((host, "release prune") for host in ("web1", "web2")),
    ("web1", "lock release"),
]


def test_a_window_runs_every_step_in_order_and_ends_done(tmp_path: Path) -> None:
    world = World()

    progress = engine(world, tmp_path).run()

    assert progress.verdict is Verdict.DONE
    assert world.said == ALL_STEPS


def test_the_lock_host_has_every_record_once_and_in_order(tmp_path: Path) -> None:
    world = World()
    running = engine(world, tmp_path)

    running.run()

    assert world.stored == [json.loads(line) for line in running.journal.mirror.read_text().splitlines()]


def test_from_the_lock_until_it_is_let_go_each_record_is_written_under_it(tmp_path: Path) -> None:
    world = World()
    engine(world, tmp_path).run()

    locked = [json.loads(line)["locked"] for line in world.lines]
    assert locked == [True] * (len(locked) - 1) + [False], "the end comes after it was let go"


def test_a_run_whose_lock_somebody_has_freed_does_nothing_more(tmp_path: Path) -> None:
    freed = (0, {"ok": False, "freed": True, "error": {"what": "the lock of run run-1 was freed"}})
    world = World({("web1", "journal"): [None, freed]})
    with pytest.raises(Superseded) as caught:
        engine(world, tmp_path).run()

    assert caught.value.details == ("the lock of run run-1 was freed",)
    assert world.said == ALL_STEPS[: len(world.said)]
    assert ("web1", "down") not in world.said


def test_a_laptop_whose_disk_fails_goes_on_with_the_journal_of_the_lock_host(tmp_path: Path) -> None:
    world, notes = World(), list[str]()
    running = engine(world, tmp_path)
    running.reporter.note = notes.append  # type: ignore[method-assign]

    def before(host: str, word: str) -> None:
        if word == "migrate run":
            running.journal.mirror = Path("/dev/full")

    world.before = before

    assert running.run().verdict is Verdict.DONE
    assert world.said == ALL_STEPS
    assert [record["kind"] for record in (world.stored[0], world.stored[-1])] == ["begin", "end"]
    (note,) = notes
    assert "No space left" in note
    assert "without a copy of the journal" in note


def test_an_intent_is_on_the_lock_host_before_a_host_is_told_to_act(tmp_path: Path) -> None:
    world = World()
    seen: list[bool] = []

    def before(host: str, word: str) -> None:
        if word == "migrate run":
            seen.append(("intent", "migrate") in [(r["kind"], r.get("step")) for r in world.stored])

    world.before = before
    engine(world, tmp_path).run()

    assert seen == [True]


def test_a_failure_before_the_migration_is_undone_everywhere(tmp_path: Path) -> None:
    world = World({("web2", "down"): [failing("no mod_magnet")]})

    progress = engine(world, tmp_path).run()

    assert progress.verdict is Verdict.REVERTED
    after = world.said[world.said.index(("web2", "down")) + 1 :]
    assert after == [
        ("web1", "up"),
        ("web1", "migrate disarm"),
        ("web1", "release discard"),
        ("web2", "release discard"),
        ("web1", "lock release"),
    ]
    assert ("web1", "migrate run") not in world.said
    # What has a generation of that release stand by ends before the release is discarded.
    assert world.dismissed == [("web1", "swap"), ("web2", "swap")]


def test_a_window_begins_when_everything_for_it_stands_ready(tmp_path: Path) -> None:
    world = World()
    seen: list[dict[str, list[str]]] = []
    world.before = lambda host, word: seen.append(dict(world.ready)) if word == "down" else None

    assert engine(world, tmp_path).run().verdict is Verdict.DONE

    web2 = ["down", "up", "drain", "swap", "verify"]
    web1 = ["down", "up", "drain", "migrate run", "swap", "verify", "journal follow"]
    assert seen == [{"web1": web1, "web2": web2}] * 2


def test_a_step_that_only_looks_does_not_wait_for_its_intent_to_be_durable(tmp_path: Path) -> None:
    world = World()
    stored: dict[str, list[str]] = {}
    world.before = lambda host, word: stored.setdefault(
        word, [record["step"] for record in world.stored if record["kind"] == "intent"]
    )

    engine(world, tmp_path).run()

    assert stored["down"][-1] == "maintenance-on"
    assert stored["drain"][-1] == "maintenance-on"
    assert stored["migrate run"][-2:] == ["drain", "migrate"]


def idle(count: int | None = 0) -> tuple[int, dict[str, Any]]:
    return 0, {"ok": True, "changed": True, "in_flight": count}


def test_a_host_where_nothing_was_in_flight_when_it_went_down_is_not_asked_to_drain(tmp_path: Path) -> None:
    world = World({("web1", "down"): [idle(3)], ("web2", "down"): [idle()]})
    running = engine(world, tmp_path)

    assert running.run().verdict is Verdict.DONE

    assert world.said == [item for item in ALL_STEPS if item != ("web2", "drain")]
    drained = [
        (record["host"], record["state"], record["value"].get("in_flight"))
        for record in world.stored
        if (record["kind"], record.get("step")) == ("outcome", "drain")
    ]
    assert drained == [("web1", "ok", None), ("web2", "ok", 0)]


def test_a_run_that_is_resumed_before_its_drain_asks_every_host_again(tmp_path: Path) -> None:
    world = World({("*", "down"): [idle(), idle()]})
    running = engine(world, tmp_path)
    world.before = lambda host, word: running.stop.press() if (host, word) == ("web2", "down") else None
    assert running.run().verdict is None
    world.before = lambda host, word: None
    running.stop = Stop()
    running.journal.append(journal.resumed("ann", "laptop"))

    assert running.run().verdict is Verdict.DONE

    assert [host for host, word in world.said if word == "drain"] == ["web1", "web2"]


def test_a_host_that_has_changed_since_the_plan_was_made_stops_it_with_nothing_changed(
    tmp_path: Path,
) -> None:
    changed = failing("it serves r3, up; when this run was planned it was otherwise", next="plan anew")
    world = World({("web2", "status"): [changed]})
    running = engine(world, tmp_path)

    progress = running.run()

    assert [word for _, word in world.said] == ["lock acquire", "status", "status", "lock release"]
    with pytest.raises(OperationFailed) as caught:
        conclude(running.plan, progress, running.journal.records)
    assert caught.value.details == (
        "web2: compare: it serves r3, up; when this run was planned it was otherwise",
    )


def test_a_window_that_lasts_beyond_its_end_is_told_once_and_while_it_lasts(tmp_path: Path) -> None:
    world = World()
    running = engine(world, tmp_path, replace(WINDOW, until="1970-01-01T00:20:00+00:00"))
    notes: list[str] = []
    running.reporter.note = notes.append  # type: ignore[method-assign]

    def look(host: str, word: str) -> None:
        if word == "migrate run":
            running.beat()
            assert notes == []
            running.clock.now = 1201.0  # type: ignore[attr-defined]
        if host == "web1" and word in ("migrate run", "swap"):
            running.beat()

    world.before = look
    running.beat()
    assert running.run().verdict is Verdict.DONE
    running.clock.now = 9999.0  # type: ignore[attr-defined]
    running.beat()

    (note,) = notes
    assert "was to end at 1970-01-01T00:20:00+00:00, and goes on" in note


def test_the_first_host_that_comes_up_comes_up_alone(tmp_path: Path) -> None:
    world = World({("web1", "up"): [failing("the site does not answer", unchanged=False)]})
    running = engine(world, tmp_path)

    assert running.run().verdict is Verdict.HELD
    assert ("web2", "up") not in world.said


def test_a_beat_tells_the_phase_and_brings_what_the_lock_host_does_not_have(tmp_path: Path) -> None:
    world = World()
    running = engine(world, tmp_path)
    seen: list[tuple[str, str]] = []
    told: list[dict[str, Any]] = []

    def look(host: str, word: str) -> None:
        if word == "drain" and host == "web1":
            running.beat()
            running.beat()
            seen.extend((record["kind"], record.get("step", "")) for record in world.stored[-1:])
            told.extend(json.loads(line) for line in world.lines[-2:])

    world.before = look
    running.beat()  # without a lock there is nothing to tell
    assert world.lines == []
    assert running.run().verdict is Verdict.DONE

    assert seen == [("intent", "drain")]
    assert [len(words["lines"]) > 0 for words in told] == [True, False]
    assert [words["phase"] for words in told] == ["drain", "drain"]


def test_a_beat_that_does_not_get_through_changes_nothing(tmp_path: Path) -> None:
    world = World()
    running = engine(world, tmp_path)
    world.scripted = {("web1", "journal"): [None, None]}

    def look(host: str, word: str) -> None:
        if word == "drain" and host == "web1":
            world.scripted = {("web1", "journal"): [lost()]}
            running.beat()

    world.before = look
    assert running.run().verdict is Verdict.DONE
    assert world.stored[-1]["kind"] == "end"


def test_the_lock_and_the_first_records_come_in_one(tmp_path: Path) -> None:
    world = World()
    kinds: list[list[str]] = []
    world.before = lambda host, word: kinds.append([record["kind"] for record in world.stored])

    engine(world, tmp_path).run()

    assert kinds[0] == []
    assert kinds[1] == ["begin", "intent"], "once it has the lock"


def test_a_run_that_crashed_right_after_it_took_the_lock_is_aborted_from_its_journal(tmp_path: Path) -> None:
    world = World()
    crashed = engine(world, tmp_path)
    world.before = lambda host, word: (_ for _ in ()).throw(KeyboardInterrupt) if word == "doctor" else None
    with pytest.raises(KeyboardInterrupt):
        crashed.run()
    records, world.before = list(world.stored), lambda host, word: None
    world.said.clear()

    log = Journal(tmp_path / "other.jsonl", crashed.clock, records=records, stored=len(records))
    log.append(journal.resumed("bob", "sofa"), journal.turn_back("aborted by bob"))
    other = replace(crashed, journal=log)
    other.attach()

    assert other.run().verdict is Verdict.REVERTED
    assert world.said == [("web1", "lock release")]


def test_a_migration_that_changed_nothing_is_undone(tmp_path: Path) -> None:
    world = World({("web1", "migrate run"): [failing(unchanged=True)]})

    assert engine(world, tmp_path).run().verdict is Verdict.REVERTED
    assert ("web2", "up") in world.said


def test_a_migration_that_may_have_changed_something_keeps_the_site_in_maintenance(tmp_path: Path) -> None:
    world = World({("web1", "migrate run"): [failing(unchanged=False)]})

    assert engine(world, tmp_path).run().verdict is Verdict.HELD
    assert world.said[-1] == ("web1", "migrate run")


def test_a_held_run_goes_on_where_it_stopped_and_repeats_nothing(tmp_path: Path) -> None:
    world = World({("web2", "swap"): [failing("not ready")]})
    held = engine(world, tmp_path)
    assert held.run().verdict is Verdict.HELD
    world.said.clear()

    other = replace(held, journal=Journal(tmp_path / "other.jsonl", held.clock, records=list(world.stored)))
    other.journal.stored = len(world.stored)
    other.journal.append(journal.resumed("bob", "sofa"))
    other.attach()

    assert other.run().verdict is Verdict.DONE
    assert world.said[0] == ("web2", "swap")
    assert ("web1", "migrate run") not in world.said
    assert ("web1", "swap") not in world.said


def test_a_host_that_was_lost_is_asked_again_under_the_same_run_id(tmp_path: Path) -> None:
    world = World({("web1", "migrate run"): [lost(), ConnectionError("no route"), lost()]})

    progress = engine(world, tmp_path).run()

    assert progress.verdict is Verdict.DONE
    assert world.said.count(("web1", "migrate run")) == 4


def test_a_host_that_was_lost_late_in_a_long_step_is_asked_again_for_as_long(tmp_path: Path) -> None:
    world = World({("web1", "migrate run"): [lost()] * 20})
    made = engine(world, tmp_path)
    clock = made.clock
    world.before = lambda _, word: clock.wait(3600) if ("web1", word) not in world.said else None  # type: ignore[attr-defined]

    assert made.run().verdict is Verdict.DONE


def test_a_host_that_stays_lost_is_unknown_and_never_failed(tmp_path: Path) -> None:
    world = World({("web1", "migrate run"): [lost()] * 1000})

    progress = engine(world, tmp_path).run()

    assert progress.verdict is Verdict.HELD
    assert progress.marks["migrate", "web1"].state.value == "unknown"


def test_a_host_that_was_never_reached_has_not_changed(tmp_path: Path) -> None:
    world = World({("web2", "down"): [ConnectionError("no route")]})

    progress = engine(world, tmp_path).run()

    assert progress.verdict is Verdict.REVERTED
    assert ("web2", "up") not in world.said


def test_a_host_that_refuses_for_a_moment_holds_nobody_up_where_there_is_no_way_back(tmp_path: Path) -> None:
    world = World({("web2", "swap"): [ConnectionError("refused")]})

    progress = engine(world, tmp_path).run()

    assert progress.verdict is Verdict.DONE
    assert world.said.count(("web2", "swap")) == 2


def test_the_first_ctrl_c_finishes_the_barrier_in_hand_and_stops_resumably(tmp_path: Path) -> None:
    stop = Stop()
    world = World(before=lambda host, word: stop.press() if (host, word) == ("web1", "down") else None)

    progress = engine(world, tmp_path, stop=stop).run()

    assert progress.verdict is None
    assert world.said[-1] == ("web2", "down")
    assert world.stored[-1]["kind"] == "interrupted"


def test_the_second_ctrl_c_stops_asking_a_lost_host(tmp_path: Path) -> None:
    stop = Stop()

    def press_twice(host: str, word: str) -> None:
        if word == "migrate run":
            stop.press()
            stop.press()

    world = World({("web1", "migrate run"): [lost()]}, before=press_twice)

    progress = engine(world, tmp_path, stop=stop).run()

    assert progress.marks["migrate", "web1"].state.value == "unknown"
    assert world.said.count(("web1", "migrate run")) == 1


@pytest.mark.parametrize(
    "trouble", [[lost()] * 1000, [failing("No space left on device")]], ids=["link lost", "disk full"]
)
def test_nothing_is_done_whose_intent_can_not_be_made_durable(tmp_path: Path, trouble: list[Any]) -> None:
    world = World({("web1", "journal"): [None, None, None, *trouble]})

    with pytest.raises(JournalLost, match="can't be written"):
        engine(world, tmp_path).run()

    assert world.said == ALL_STEPS[: len(world.said)]
    assert ("web1", "migrate run") not in world.said


def test_a_laptop_whose_run_was_resumed_elsewhere_does_nothing_more_and_says_so(tmp_path: Path) -> None:
    world = World({("web1", "journal"): [None, None, None, failing("28 records, not 14", count=28)]})

    with pytest.raises(Superseded, match="isn't this laptop's any more") as caught:
        engine(world, tmp_path).run()

    assert caught.value.exit_code == 5
    assert caught.value.next == "fab status"


def test_a_journal_that_was_away_for_a_moment_is_written_again(tmp_path: Path) -> None:
    world = World({("web1", "journal"): [None, lost(), lost()]})

    assert engine(world, tmp_path).run().verdict is Verdict.DONE


def test_what_is_left_over_does_not_stop_a_run(tmp_path: Path) -> None:
    world = World({("web1", "swap"): [failing("generation 3 has a request", code=7)]})

    assert engine(world, tmp_path).run().verdict is Verdict.DONE


def test_the_newest_outcome_of_a_step_counts() -> None:
    records = [
        {"kind": "outcome", "step": "swap", "host": "web1", "undo": False, "state": "failed"},
        {"kind": "outcome", "step": "swap", "host": "web1", "undo": False, "state": "ok"},
        {"kind": "intent", "step": "swap", "hosts": ["web1"], "undo": False},
    ]

    assert engines.answers_of(records)["swap", "web1", False]["state"] == "ok"


ROLLING = replace(plans.rolling_plan(BASE, SETTINGS), digest="abc")


def test_a_lost_swap_that_is_still_at_work_is_asked_again_until_it_is_done(tmp_path: Path) -> None:
    world = World({("web2", "swap"): [lost(), failing("another swap is at work", code=5)]})

    assert engine(world, tmp_path, ROLLING).run().verdict is Verdict.DONE
    assert world.said.count(("web2", "swap")) == 3


def test_a_lost_swap_that_stays_at_work_is_unknown_and_so_swapped_back(tmp_path: Path) -> None:
    world = World({("web2", "swap"): [lost(), *[failing("another swap is at work", code=5)] * 120]})

    progress = engine(world, tmp_path, ROLLING).run()

    assert progress.marks["swap", "web2"].state.value == "unknown"
    assert ("swap", "web2") in progress.undone


def test_a_second_call_that_changed_nothing_does_not_say_that_the_first_one_did_not(tmp_path: Path) -> None:
    world = World({("web2", "swap"): [lost(), failing("it serves already, but is sick")]})

    progress = engine(world, tmp_path, ROLLING).run()

    assert progress.verdict is Verdict.REVERTED
    assert ("swap", "web2") in progress.undone


def test_another_holder_of_the_lock_is_certain_however_often_it_is_asked_for(tmp_path: Path) -> None:
    world = World({("web1", "lock acquire"): [lost(), failing("held by bob", code=5, unchanged=True)]})

    assert engine(world, tmp_path).run().verdict is Verdict.REVERTED
    assert ("web1", "lock release") not in world.said


def test_a_migration_that_may_run_is_not_taken_for_untouched_when_its_host_is_out_of_reach(
    tmp_path: Path,
) -> None:
    world = World({("web1", "migrate run"): [lost()] * 1000})
    held = engine(world, tmp_path)
    assert held.run().verdict is Verdict.HELD
    world.scripted = {("web1", "migrate run"): [ConnectionError("no route")] * 1000}

    resumed = replace(held, journal=Journal(tmp_path / "other.jsonl", held.clock, list(world.stored)))
    resumed.journal.append(journal.resumed("bob", "sofa"))

    assert resumed.run().verdict is Verdict.HELD


def test_what_goes_wrong_on_the_laptop_says_nothing_of_a_migration_that_was_started(tmp_path: Path) -> None:
    world = World({("web1", "migrate run"): [BlockingIOError("the terminal takes no more lines")]})

    assert engine(world, tmp_path).run().verdict is Verdict.HELD
    assert ("web1", "up") not in world.said


def test_a_hook_is_not_started_a_second_time_while_the_first_may_run(tmp_path: Path) -> None:
    hooked = settings(hooks={"backup": "pg_dump > dump"})
    plan = replace(plans.downtime_plan(BASE, hooked), digest="abc")
    world = World({("web1", "backup"): [lost()]})

    progress = replace(engine(world, tmp_path, plan), settings=hooked).run()

    assert progress.verdict is Verdict.REVERTED
    assert world.said.count(("web1", "backup")) == 1
    assert ("web1", "migrate run") not in world.said


def test_a_host_that_is_up_but_silent_has_let_the_public_in(tmp_path: Path) -> None:
    silent = failing("the site does not answer", unchanged=False)
    nothing = (0, {"ok": True, "applied": []})
    world = World({("*", "up"): [silent] * 2, ("web1", "migrate run"): [nothing]})

    assert engine(world, tmp_path).run().verdict is Verdict.HELD
    assert world.said.count(("web1", "swap")) == 1


@pytest.mark.parametrize("window", [True, False])
def test_a_host_that_was_in_maintenance_before_is_not_brought_up_by_backing_out(
    tmp_path: Path, window: bool
) -> None:
    targets = (Target("web1", "r1", down=True), Target("web2", "r1"))
    plan = WINDOW if window else DOWN
    world = World({("web2", "drain" if window else "down"): [failing("it did not", unchanged=False)]})
    running = engine(world, tmp_path, replace(plan, targets=targets))

    progress = running.run()

    assert progress.verdict is Verdict.REVERTED
    assert [said for said in world.said if said[1] == "up"] == [("web2", "up")]
    with pytest.raises(OperationFailed) as caught:
        conclude(running.plan, progress, running.journal.records)
    assert "web1 in maintenance" in (caught.value.state or "")


def test_the_second_ctrl_c_in_a_migration_is_an_interruption_that_can_be_resumed(tmp_path: Path) -> None:
    """With the real fleet, which takes no more work once waiting was given up."""
    stop, ended = Stop(), threading.Event()

    class SlowHost(FakeHost):
        sent = 0

        def open(self) -> None: ...
        def close(self) -> None: ...
        def run(self, command: Command, on_line: object = None, dialog: object = None) -> Result:
            if _words(command) == ("migrate", "run"):
                stop.press()
                stop.press()
                ended.wait(10)
            return super().run(command, on_line)

    world = World()
    with Fleet([Host("web1"), Host("web2")], lambda host: SlowHost(str(host), world)) as fleet:
        fleet.cancel = stop.cancel
        running = replace(engine(world, tmp_path, stop=stop), fleet=fleet)  # type: ignore[arg-type]
        progress = running.run()
        ended.set()

    assert progress.verdict is None
    with pytest.raises(Interrupted):
        conclude(running.plan, progress, running.journal.records)


def test_a_run_that_is_done_is_done_even_if_its_last_record_can_not_be_stored(tmp_path: Path) -> None:
    world = World()
    world.before = lambda host, word: world.scripted.update(
        {("web1", "journal append"): [failing("No space left")] * 1000} if word == "lock release" else {}
    )

    assert engine(world, tmp_path).run().verdict is Verdict.DONE


class TestTheSwitchAlone:
    """maint-down and maint-up: the same command again is all it takes to go on, so little stops them."""

    def test_a_lock_host_without_room_has_no_lock_and_no_journal_and_the_fleet_goes_down(
        self, tmp_path: Path
    ) -> None:
        world = World({("web1", "lock acquire"): [(0, {"ok": True, "without": True, "message": "no room"})]})

        assert engine(world, tmp_path, DOWN).run().verdict is Verdict.DONE
        assert [said for said in world.said if said[1] == "down"] == [("web1", "down"), ("web2", "down")]
        assert world.stored == []

    @pytest.mark.parametrize("trouble", [lost(), failing("No space left on device")])
    def test_a_journal_that_is_lost_is_told_and_not_waited_for(self, tmp_path: Path, trouble: Any) -> None:
        world = World({("web1", "journal"): [None, trouble]})
        running = engine(world, tmp_path, DOWN)
        notes: list[str] = []
        running.reporter.note = notes.append  # type: ignore[method-assign]
        began = running.clock()

        assert running.run().verdict is Verdict.DONE
        assert running.clock() == began
        assert any("going on, as the same command again is all it takes" in note for note in notes)

    def test_requests_that_do_not_end_leave_the_fleet_down_and_unlocked(self, tmp_path: Path) -> None:
        world = World({("web2", "drain"): [failing("still in flight after 30 s: 1 requests")]})
        running = engine(world, tmp_path, DOWN)

        progress = running.run()

        assert ("web1", "up") not in world.said
        assert world.said[-1] == ("web1", "lock release")
        with pytest.raises(InMaintenance, match="still being worked on") as caught:
            conclude(running.plan, progress, running.journal.records)
        assert caught.value.details == ("web2: drain: still in flight after 30 s: 1 requests",)
        assert "fab maint-down --drain waits on" in (caught.value.next or "")

    def test_one_host_that_can_not_go_down_brings_all_up_again_and_is_named(self, tmp_path: Path) -> None:
        world = World({("web2", "down"): [failing("mod_magnet does not seem to be loaded")]})
        running = engine(world, tmp_path, DOWN)

        progress = running.run()

        assert [said for said in world.said if said[1] == "up"] == [("web1", "up")]
        with pytest.raises(OperationFailed) as caught:
            conclude(running.plan, progress, running.journal.records)
        assert caught.value.exit_code == 3
        assert caught.value.details == ("web2: maintenance-on: mod_magnet does not seem to be loaded",)

    def test_a_host_that_is_lost_on_the_way_is_told_as_perhaps_down_and_the_lock_is_let_go(
        self, tmp_path: Path
    ) -> None:
        gone = [ConnectionError("no route")] * 1000
        world = World({("web2", "down"): [lost(), *gone], ("web2", "up"): gone})
        running = engine(world, tmp_path, DOWN)

        progress = running.run()

        assert ("web1", "up") in world.said
        assert world.said[-1] == ("web1", "lock release")
        with pytest.raises(InMaintenance) as caught:
            conclude(running.plan, progress, running.journal.records)
        assert "may still be in maintenance: web2; every other host is as before" in (
            caught.value.state or ""
        )
        assert caught.value.next == "mend the cause, then fab maint-up"

    def test_somebody_elses_window_is_not_lifted_by_accident(self, tmp_path: Path) -> None:
        about = {"by": "bob", "run_id": None, "unchanged": True}
        refused = failing("maintenance was put on by bob since 2026: moving the database", 5, **about)
        world = World({("*", "up"): [refused] * 2})
        plan = plans.maintenance_plan(replace(BASE, operation="maint-up", release=None), down=False)
        running = engine(world, tmp_path, plan)

        progress = running.run()

        with pytest.raises(LockHeld) as caught:
            conclude(running.plan, progress, running.journal.records)
        assert caught.value.exit_code == 5
        assert caught.value.where == "web1, web2"
        assert caught.value.state == "nothing was changed"
        assert "by bob since 2026: moving the database" in caught.value.details[0]
        assert caught.value.next == "ask bob, then fab maint-up --force bob"
