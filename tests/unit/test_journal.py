from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deploytools import journal
from deploytools import plan as plans
from deploytools.journal import Journal
from deploytools.plan import Target
from deploytools.saga import Mark, Progress, State, Verdict
from tests.support.values import BASE, failed, ok, settings

WINDOW = plans.downtime_plan(BASE, settings())
HOOKS = {"quiesce": "stop", "resume": "start", "backup": "dump"}


def log(path: Path) -> Journal:
    return Journal(path / "journal" / "run-1.jsonl", clock=lambda: 1000.0)


def test_what_is_appended_is_on_the_disk_as_one_line_each(tmp_path: Path) -> None:
    written = log(tmp_path)

    written.append(journal.begin(WINDOW))
    written.append(journal.intent("lock", ["web1"], undo=False), journal.interrupted())

    lines = written.mirror.read_text().splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["begin", "intent", "interrupted"]
    assert json.loads(lines[1])["at"] == 1000.0


def test_the_lock_host_gets_everything_it_does_not_have_in_one_go(tmp_path: Path) -> None:
    stored: list[tuple[int, int]] = []

    def store(lines: Sequence[str], expect: int) -> None:
        stored.append((expect, len(lines)))

    written = log(tmp_path)
    written.append(journal.begin(WINDOW))
    written.flush()  # nobody to give it to yet
    written.store = store
    written.append(journal.interrupted())
    written.flush()
    written.flush()
    written.append(journal.interrupted())
    written.flush()

    assert stored == [(0, 2), (2, 1)]


def test_what_could_not_be_stored_is_stored_next_time(tmp_path: Path) -> None:
    stored: list[str] = []
    broken = [True]

    def store(lines: Sequence[str], expect: int) -> None:
        if broken.pop() if broken else False:
            raise ConnectionError
        stored.extend(lines)

    written = log(tmp_path)
    written.store = store
    written.append(journal.interrupted())
    with pytest.raises(ConnectionError):
        written.flush()
    written.append(journal.end(Verdict.DONE))
    written.flush()

    assert [json.loads(line)["kind"] for line in stored] == ["interrupted", "end"]


def test_another_laptop_gets_the_plan_and_the_progress_back(tmp_path: Path) -> None:
    written = log(tmp_path)
    written.append(
        journal.begin(WINDOW),
        journal.intent("lock", ["web1"], undo=False),
        journal.outcome("lock", "web1", ok(message="taken"), undo=False, seconds=0.1),
        journal.intent("stage", ["web1", "web2"], undo=False),
        journal.outcome("stage", "web1", failed(), undo=False, seconds=1),
        journal.turn_back("stage the release: failed on web1"),
        journal.intent("stage", ["web1"], undo=True),
    )

    read = [json.loads(line) for line in written.mirror.read_text().splitlines()]

    assert journal.plan_of(read) == WINDOW
    assert journal.fold(read) == Progress(
        marks={
            ("lock", "web1"): Mark(State.OK, {"message": "taken"}),
            ("stage", "web1"): Mark(State.FAILED, {"unchanged": True}),
            ("stage", "web2"): Mark(State.INTENDED),
        },
        undone={("stage", "web1"): Mark(State.INTENDED)},
        reverting=True,
        because="stage the release: failed on web1",
    )


def test_a_resumed_run_asks_again_for_all_that_is_not_known_to_be_done() -> None:
    progress = journal.fold(
        [
            journal.begin(WINDOW),
            journal.outcome("lock", "web1", ok(), undo=False, seconds=0),
            journal.outcome("migrate", "web1", failed(exit_code=4), undo=False, seconds=0),
            journal.end(Verdict.HELD),
            journal.resumed("bob", "sofa"),
        ]
    )

    assert progress.verdict is None
    assert progress.marks["lock", "web1"].state is State.OK
    assert progress.marks["migrate", "web1"].state is State.INTENDED


def test_a_journal_without_a_plan_is_refused() -> None:
    with pytest.raises(ValueError, match="begins with its plan"):
        journal.plan_of([])


def test_downtime_runs_from_the_first_host_told_to_go_down_to_the_last_proved_up() -> None:
    def at(moment: float, record: journal.Record) -> journal.Record:
        return {"at": moment, **record}

    times = journal.times(
        [
            at(0, journal.begin(WINDOW)),
            at(10, journal.intent("maintenance-on", ["web1", "web2"], undo=False)),
            at(11, journal.outcome("maintenance-on", "web1", ok(), undo=False, seconds=1)),
            at(14, journal.outcome("migrate", "web1", ok(seconds=2.5), undo=False, seconds=2.7)),
            at(15, journal.outcome("maintenance-off", "web1", ok(), undo=False, seconds=0)),
            at(16, journal.outcome("maintenance-off", "web2", ok(), undo=False, seconds=0)),
            at(17, journal.end(Verdict.DONE)),
        ]
    )

    assert times == journal.Times(started=0, ended=17, downtime=6, migration=2.5)


def test_a_site_that_was_down_before_the_run_was_down_since_then_as_its_hosts_tell() -> None:
    base = replace(
        BASE, operation="maint-up", targets=(Target("web1", "r1", down=True), Target("web2", "r1"))
    )
    up = plans.maintenance_plan(base, down=False)

    def ended(host: str, lasted: int | None) -> journal.Record:
        return {
            "at": 3,
            **journal.outcome("maintenance-off", host, ok(lasted=lasted), undo=False, seconds=0),
        }

    records = [{"at": 1, **journal.begin(up)}, ended("web1", 725), ended("web2", 900)]

    assert journal.times(records).downtime == 725
    assert journal.times([*records[:1], ended("web1", None)]).downtime is None


def test_a_run_without_a_window_has_no_downtime() -> None:
    assert journal.times([{"at": 1, **journal.begin(WINDOW)}]) == journal.Times(1, None, None, None)


def window(downtime: float, migration: float, verdict: str = "done", **more: Any) -> list[journal.Record]:
    """A past window, as its journal has it."""
    plan = replace(BASE, window=True)
    answer = ok(seconds=migration)
    return [
        {"at": 0.0, **journal.begin(plan)},
        {"at": 10.0, **journal.intent("maintenance-on", ["web1"], undo=False)},
        {"at": 11.0, **journal.outcome("migrate", "web1", answer, undo=False, seconds=migration)},
        *more.get("between", ()),
        {"at": 10 + downtime, **journal.outcome("maintenance-off", "web1", ok(), undo=False, seconds=0.1)},
        {"at": 99.0, "kind": "end", "verdict": verdict},
    ]


def test_past_windows_tell_how_long_the_next_one_may_take() -> None:
    runs = [window(3.0, 2.5), window(1.0, 0.6), window(9.0, 8.0)]

    found = journal.estimate(runs)

    assert found == journal.Estimate(3, 1.0, 3.0, 9.0, pytest.approx(0.5))
    assert str(found) == (
        "down for about 3.0 s, as in the last 3 windows (1.0 to 9.0 s, of which 0.5 s beside the migration)"
    )
    assert str(journal.estimate(runs, count=1)) == "down for about 3.0 s, as in the last window"


@pytest.mark.parametrize(
    "run",
    [
        window(3.0, 2.0, verdict="held"),
        window(3.0, 2.0, between=[journal.resumed("bob", "sofa")]),
        [{"at": 0.0, **journal.begin(BASE)}, {"at": 9.0, "kind": "end", "verdict": "done"}],
        [
            {"at": 0.0, **journal.begin(replace(BASE, window=True, targets=(Target("web1", down=True),)))},
            *window(3.0, 2.0)[1:],
        ],
    ],
    ids=["held", "resumed", "no window", "down before"],
)
def test_a_window_that_waited_for_a_person_tells_nothing(run: list[journal.Record]) -> None:
    assert journal.estimate([run]) is None


def test_a_run_goes_on_with_the_hooks_that_it_was_begun_with_whatever_the_checkout_has() -> None:
    plan = plans.downtime_plan(BASE, settings(hooks={**HOOKS, "notify": "mail ann"}))
    begun = json.loads(json.dumps(journal.begin(plan)))
    here = settings(hooks={"quiesce": "exit 9", "notify": "mail bob"}).hooks

    assert journal.hooks([begun], here) == settings(hooks={**HOOKS, "notify": "mail bob"}).hooks
    assert "mail ann" not in json.dumps(begun), "what the laptop runs is nobody else's"


@pytest.mark.parametrize(
    ("step", "undo", "mended"),
    [
        ("quiesce", False, "quiesce"),
        ("quiesce", True, "resume"),
        ("backup", False, "backup"),
        ("resume-workers", False, "resume"),
    ],
)
def test_a_hook_that_has_failed_in_the_run_may_have_been_mended_in_the_checkout(
    step: str, undo: bool, mended: str
) -> None:
    plan = plans.downtime_plan(BASE, settings(hooks=HOOKS))
    wrong = journal.outcome(step, "web1", failed(), undo=undo, seconds=0)
    well = journal.outcome(step, "web2", ok(), undo=undo, seconds=0)
    here = settings(hooks=dict.fromkeys(HOOKS, "mended")).hooks

    assert journal.hooks([journal.begin(plan), well], here) == settings(hooks=HOOKS).hooks
    found = journal.hooks([journal.begin(plan), well, wrong], here)
    assert found == settings(hooks={**HOOKS, mended: "mended"}).hooks


def records(**plan: Any) -> list[dict[str, Any]]:
    begun = json.loads(json.dumps({"at": 1000.0, **journal.begin(WINDOW)}))
    begun["plan"].update(plan)
    return [begun, {"at": 1001.0, **journal.intent("lock", ["web1"], undo=False)}]


def test_the_records_of_a_run_can_be_read() -> None:
    journal.check(records())


NOVEL = {"name": "novel", "title": "?", "scope": "each", "kind": "read-only"}


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (records(novel=True), "unknown: novel"),
        (records(steps=[NOVEL]), "unknown: novel"),
        (records(steps=[{**NOVEL, "kind": "novel"}]), "steps.0.kind: Input should be"),
        (records(laptop=None), "laptop: Input should be a valid string"),
        ([*records(), {"at": 1.0}], "'kind'"),
        ([*records(), {"at": 1.0, "kind": "end", "verdict": "novel"}], "'novel' is not a valid Verdict"),
        ([{"at": 1.0, "kind": "begin", "plan": None}], "Input should be a dictionary"),
        (records()[1:], "begins with its plan"),
        ([], "begins with its plan"),
    ],
)
def test_those_of_another_version_or_that_are_damaged_are_refused(
    found: list[dict[str, Any]], why: str
) -> None:
    with pytest.raises(ValueError, match=why):
        journal.check(found)


def finished(release: str, hosts: str, verdict: Verdict = Verdict.DONE, **about: Any) -> list[journal.Record]:
    """The records of a run that took these hosts to a release."""
    plan = replace(BASE, targets=tuple(map(Target, hosts.split())), release=release, **about)
    return [json.loads(json.dumps(record)) for record in (journal.begin(plan), journal.end(verdict))]


def test_what_other_hosts_run_is_what_the_newest_run_there_brought_them() -> None:
    first = finished("r1", "web1 web2", digest="d1")
    second = finished("r2", "web1 web2", digest="d2")
    failed = finished("r3", "web1 web2", Verdict.REVERTED, digest="d3")
    alone = finished("r4", "web3", digest="d4")
    back = finished("r1", "web1 web2", operation="rollback", digest=None)

    def found(*runs: list[journal.Record]) -> str | None:
        plan = journal.latest_elsewhere(runs, ("web3",))
        return plan.digest if plan else None

    assert found(alone, failed, second, first) == "d2"
    assert found(back, second, first) == "d1"
    assert found(back, second) is None, "nobody remembers what r1 was"
    assert found(alone) is None


def test_this_computer_forgets_old_runs_with_their_events_but_none_that_is_open(tmp_path: Path) -> None:
    ends = {
        "newest": journal.end(Verdict.DONE),
        "held": journal.end(Verdict.HELD),
        "open": journal.interrupted(),
        "undone": journal.end(Verdict.REVERTED),
        "over": journal.end(Verdict.DONE),
    }
    for age, (run_id, last) in enumerate(ends.items()):
        copy = Journal(tmp_path / f"{run_id}.jsonl", lambda: 0.0)
        copy.append({"kind": "begin"}, last)
        (tmp_path / f"{run_id}.events").touch()
        os.utime(copy.mirror, (10**9 - age, 10**9 - age))
    with (tmp_path / "open.jsonl").open("a") as file:
        file.write('{"kind": "e')
    os.utime(tmp_path / "open.jsonl", (10**9 - 2, 10**9 - 2))

    assert journal.prune(tmp_path, 1) == ["undone", "over"]

    left = {"newest", "held", "open"}
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{run_id}.{kind}" for run_id in left for kind in ("jsonl", "events")
    }
