"""What a person reads."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deploytools import journal
from deploytools.commands import Answer
from deploytools.errors import OperationFailed
from deploytools.plan import Target, downtime_plan
from deploytools.probe import LOST, SITE, Sample, Seen
from deploytools.report.events import EventsReporter, Recorder
from deploytools.report.plain import PlainReporter
from deploytools.report.reporting import on_terminal
from deploytools.report.runs import history_text, past, release_state, summary
from deploytools.report.setup import alike, setup_text
from deploytools.report.text import addressed, error_text, table, wrapped, writable
from deploytools.saga import Mark, State, Verdict
from deploytools.setup.command import Work
from deploytools.tasks import ns
from tests.support.pastrun import PastRun
from tests.support.values import BASE, failed, ok, settings

TOOLS = "/usr/local/lib/deploytools/guestbook"


def change(path: str, diff: str = "", *, program: bool = False) -> dict[str, Any]:
    return {"what": "create", "path": path, "diff": diff, "program": program}


def test_setup_shows_what_is_the_operators_business_and_counts_our_own_programs() -> None:
    changes = [
        change(f"{TOOLS}/swap", "", program=True),
        change(f"{TOOLS}/hostlib/webserver/web.py", "", program=True),
        change(f"{TOOLS}/config.json", "+{}"),
        change("/etc/sudoers.d/deploytools-guestbook", "+deploy ALL=(root)"),
    ]
    work = Work(changes, ["lighttpd is reloaded"])

    shown = setup_text("web1", work, settings(), diffs=True)

    assert "2 files in " + TOOLS in shown
    assert f"{TOOLS}/swap" not in shown
    assert "    +{}" in shown
    assert "    +deploy ALL=(root)" in shown
    assert shown.endswith("note: lighttpd is reloaded")
    assert "+" not in setup_text("web1", work, settings(), diffs=False)
    assert setup_text("web1", Work([], []), settings(), diffs=True) == "web1: nothing to change"


def test_hosts_on_which_setup_changes_the_same_are_told_once() -> None:
    same, other = [change("/etc/x", "+x")], [change("/etc/x", "+y")]
    works = {"web1": Work(same, []), "db1": Work(other, []), "web2": Work([*same], [])}

    assert [(hosts, work.changes) for hosts, work in alike(works)] == [("web1, web2", same), ("db1", other)]
    assert [hosts for hosts, _ in alike({"web1": works["web1"], "web2": works["web2"]})] == ["all 2 hosts"]


def test_what_an_upgrade_changes_in_our_own_programs_is_shown_in_full() -> None:
    upgrade = {**change(f"{TOOLS}/swap", "-old\n+new", program=True), "what": "change"}
    new = change(f"{TOOLS}/verify", "+whole", program=True)

    shown = setup_text("web1", Work([upgrade, new], []), settings(), diffs=True)

    assert f"change: {TOOLS}/swap\n    -old\n    +new" in shown
    assert f"create: {TOOLS}/verify\n    +whole" in shown


def test_a_host_without_anything_of_the_application_is_told_as_that() -> None:
    told = setup_text("web1", Work([], ["kept: /srv/guestbook/log"]), settings(), diffs=False, removal=True)

    assert told == "web1: nothing of guestbook is there\n  kept: /srv/guestbook/log"


def shown(answers: dict[str, Answer], lines: tuple[tuple[str, str], ...] = ()) -> list[str]:
    """What a step with these answers looks like, in which hosts said these lines before."""
    base = replace(BASE, targets=tuple(Target(host) for host in answers))
    plan, out = downtime_plan(base, settings(hosts=list(answers))), list[str]()
    reporter = PlainReporter(out.append)
    reporter.step(plan, plan.steps[0], plan.hosts, undo=False)
    for host, text in lines:
        reporter.line(host, text)
    seconds = {host: float(number) for number, host in enumerate(answers, 1)}
    reporter.answers(plan.steps[0], answers, seconds)
    return out


def test_what_the_application_printed_before_it_failed_is_shown() -> None:
    printed = {"details": ["python3: can't open file 'nope.py'"]}

    told = shown({"web1": Answer(Mark(State.FAILED, printed), {"what": "not ready"}, 3), "db": ok()})

    assert told[1:] == [
        "  web1  | python3: can't open file 'nope.py'",
        "  web1  FAILED: not ready (1.0 s)",
        "  db    done (2.0 s)",
    ]


def test_what_a_host_has_said_while_it_ran_is_not_told_twice() -> None:
    answer = Answer(Mark(State.FAILED, {"details": ["no such table", "the end"]}), {"what": "it failed"}, 3)

    told = shown({"web1": answer}, lines=(("web1", "no such table\n"),))

    assert told[1:] == ["  web1  | no such table", "  web1  | the end", "  web1  FAILED: it failed (1.0 s)"]


def test_a_hundred_hosts_that_say_the_same_are_told_in_a_line() -> None:
    answers = {f"web{number}": ok(message=f"generation {number} serves") for number in range(1, 101)}
    answers["web7"] = failed("not ready")

    assert shown(answers)[1:] == [
        "  web[1-6], web[8-100] (99 of 100 hosts)  generation 1 serves (1.0 to 100.0 s)",
        "  web7    FAILED: not ready (7.0 s)",
    ]


def test_a_long_upload_is_told_now_and_then_and_how_far_the_first_and_the_last_have_come() -> None:
    now, out = [0.0], list[str]()
    plan = downtime_plan(BASE, settings())
    reporter = PlainReporter(out.append, lambda: now[0])
    reporter.step(plan, plan.steps[0], plan.hosts, undo=False)

    for at, host, done in ((1, "web1", 10), (11, "web2", 40), (12, "web1", 50), (22, "web1", 100)):
        now[0] = at
        reporter.progress(plan.steps[0], host, done, 100)

    assert out[1:] == ["  10% to 40% of all 2 hosts", "  40% to 100% of all 2 hosts"]


def test_an_answer_of_several_lines_has_its_host_before_each() -> None:
    told = shown({"web1": ok(message="warning: low\n  remedy: free some\n46 of 47")})

    assert told[1:] == ["  web1  warning: low", "  web1    remedy: free some", "  web1  46 of 47 (1.0 s)"]


def test_one_journal_that_is_none_hides_no_other_run() -> None:
    whole = [journal.begin(BASE), journal.end(Verdict.DONE)]
    whole = [{**record, "at": 1.0} for record in whole]

    runs, left_out = past({"good": whole, "bad": [{"kind": "begin"}], "worse": [{}]})

    assert [run["run_id"] for run in runs] == ["run-1"]
    assert set(left_out) == {"bad", "worse"}
    assert "no journal of ours" in left_out["bad"]


WINDOW = PastRun()


def test_a_summary_says_what_who_what_it_cost_and_what_is_next() -> None:
    visitors = Seen(answered=40, maintenance=54, lost=2, downtime=13.5)

    assert summary(WINDOW.records, visitors).splitlines() == [
        "deploy of guestbook: done, 20260920T091500Z-07391399 -> 20260921T141310Z-14640da9",
        "  hosts      web[1-3].example.com",
        "  who        ann on desk",
        "  why        visitors get a table of <their> own",
        "  downtime   13.5 s seen by the probe; 13.5 s from the first host told to go down to the last"
        " proved up",
        "  migration  11.4 s",
        "  lost       2 of the probe's 96 requests",
        "  took       24.2 s",
        "  run        20260921T141320Z-5d1e9a",
        "  next       nothing",
    ]


def test_what_nobody_measured_is_no_zero() -> None:
    told = summary(WINDOW.records)

    assert "down to the last proved up; not measured as visitors see it" in told
    assert "  lost       not measured" in told


def test_a_run_that_holds_says_so_and_what_to_type() -> None:
    held = PastRun(fails="swap")
    visitors = Seen(answered=40, maintenance=54, lost=0, downtime=13.5, to_end=True)

    told = summary(held.records, visitors, "fab deploy --resume")

    assert "guestbook: holds, and needs the operator" in told
    assert "at least 13.5 s seen by the probe, and it was not back at the end" in told
    assert told.endswith("  next       fab deploy --resume")


def test_a_run_that_was_interrupted_is_told_as_that() -> None:
    records = [{"at": 1.0, **journal.begin(BASE)}, {"at": 2.0, **journal.interrupted()}]

    assert summary(records).startswith("deploy of guestbook: interrupted, and open, r1 -> r2\n")


def test_a_deploy_that_was_undone_is_not_told_as_if_it_had_led_anywhere() -> None:
    records = [{"at": 1.0, **journal.begin(BASE)}, {"at": 2.0, **journal.turn_back("it failed")}]
    records.append({"at": 3.0, **journal.end(Verdict.REVERTED)})

    assert summary(records).startswith("deploy of guestbook: undone (it failed), still on r1, not on r2\n")


def test_an_error_of_several_lines_stays_below_its_head() -> None:
    error = OperationFailed("it failed", details=["web1: one\ntwo"], state="as before", next="fab status")

    assert error_text(error).splitlines()[1:3] == ["    web1: one", "    two"]


def test_a_swap_to_the_release_that_was_there_leads_nowhere_else() -> None:
    same = replace(BASE, operation="hotswap", release="r1")
    records = [{"at": 1.0, **journal.begin(same)}, {"at": 2.0, **journal.end(Verdict.DONE)}]

    assert summary(records).startswith("hotswap of guestbook: done, on r1\n")


def test_the_switch_alone_says_what_ends_it_and_nothing_of_visitors() -> None:
    down = replace(BASE, operation="maint-down", release=None)
    records = [{"at": 1.0, **journal.begin(down)}, {"at": 2.0, **journal.end(Verdict.DONE)}]

    assert "downtime" not in summary(records)
    assert summary(records).endswith("  next       fab maint-up ends maintenance")


def test_the_end_of_maintenance_says_how_long_the_site_was_down() -> None:
    base = replace(BASE, operation="maint-up", release=None, targets=(Target("web1", "r1", down=True),))
    off = journal.outcome("maintenance-off", "web1", ok(lasted=725), undo=False, seconds=0.1)
    records = [{"at": 1.0, **journal.begin(base)}, {"at": 2.0, **off}]
    records.append({"at": 2.0, **journal.end(Verdict.DONE)})

    assert "  downtime   12 min 5 s until the last host was proved up" in summary(records)
    assert "not measured" not in summary(records)


def test_a_swap_in_maintenance_says_that_the_site_is_down_as_before_and_what_ends_it() -> None:
    swap = replace(BASE, operation="hotswap", release="r1", targets=(Target("web1", "r1", down=True),))
    records = [{"at": 1.0, **journal.begin(swap)}, {"at": 2.0, **journal.end(Verdict.DONE)}]

    assert summary(records).endswith("  next       web1 in maintenance as before: fab maint-up ends that")


def test_commands_are_told_for_the_environment_that_was_chosen() -> None:
    told = "fab deploy --resume, or fab -H web1 maint-up; else fab init, fab --list, fab sandbox.up"
    there = "fab on my-stage deploy --resume, or fab -H web1 on my-stage maint-up"

    assert addressed(told, None) == told
    assert addressed(told, "my-stage") == f"{there}; else fab init, fab --list, fab sandbox.up"
    assert addressed(addressed(told, "stage"), "stage") == addressed(told, "stage")
    here = {"on", "init", *(name for name in ns.task_names if name.startswith("sandbox."))}
    for name in set(ns.task_names) - here:
        assert addressed(f"fab {name}", "stage") == f"fab on stage {name}"


def test_a_plan_on_a_narrow_terminal_breaks_between_words_and_goes_on_below_its_beginning() -> None:
    lines = [
        "  source   v3 of /srv/shop by Ann",
        " 10. maintenance on, proved",
        "If a step fails: undo it",
        "",
    ]

    assert wrapped(lines, None) == lines
    assert wrapped(lines, 20) == [
        "  source   v3 of",
        "      /srv/shop by",
        "      Ann",
        " 10. maintenance on,",
        "     proved",
        "If a step fails:",
        "  undo it",
        "",
    ]


def test_what_an_encoding_does_not_have_is_written_as_an_escape() -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="iso-8859-1")

    writable(out)
    print("gr\xfcn, \u043f\u0440\u0438", file=out, flush=True)

    assert raw.getvalue() == b"gr\xfcn, \\u043f\\u0440\\u0438\n"


def test_history_fits_on_a_narrow_terminal() -> None:
    runs, _ = past({"a": WINDOW.records})

    assert history_text(runs).count("\n") == 1
    assert "what       deploy\nresult     done\n" in history_text(runs, 40)
    assert max(map(len, history_text(runs, 40).splitlines())) <= 40


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environ", "drawn"),
    [
        ({"TERM": "xterm"}, True),
        ({"TERM": "xterm", "NO_COLOR": ""}, True),  # as no-color.org has it: set and not empty
        ({"TERM": "xterm", "NO_COLOR": "1"}, False),
        ({"TERM": "xterm", "CI": "true"}, False),
        ({"TERM": "dumb"}, False),
        ({}, False),
    ],
)
def test_a_live_view_is_for_a_terminal_that_can_and_a_person_who_wants_it(
    environ: dict[str, str], drawn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr", Terminal())
    assert on_terminal(environ) == drawn
    monkeypatch.setattr("sys.stderr", io.StringIO())
    assert not on_terminal(environ)


# -- for machines ----------------------------------------------------------------------------------


def test_every_event_is_a_line_of_json_with_its_name_and_its_time() -> None:
    written: list[str] = []
    reporter = EventsReporter(written.append, lambda: 5.0)
    plan = downtime_plan(BASE, settings())
    stage = next(step for step in plan.steps if step.name == "stage")

    reporter.begin(plan, [])
    reporter.step(plan, stage, ["web1"], undo=False)
    for done in (1, 2, 3, 100):
        reporter.progress(stage, "web1", done, 100)
    reporter.answers(stage, {"web1": failed("full disk")}, {"web1": 1.23456})
    reporter.line("web1", "out\n")
    reporter.sample(Sample(4.5, 0.1, LOST, 0, "refused"))

    events = [json.loads(line) for line in written]
    assert [event["event"] for event in events] == [
        *("begin", "step", "progress", "progress", "answer", "line", "sample"),
    ]
    assert [event["done"] for event in events if event["event"] == "progress"] == [1, 100]
    assert [event["at"] for event in events] == [5.0] * 6 + [4.5]
    answer = events[4]
    assert (answer["state"], answer["error"]["what"], answer["seconds"]) == ("failed", "full disk", 1.235)


def test_what_was_seen_of_a_run_is_kept_and_goes_on_where_it_is_resumed(tmp_path: Path) -> None:
    for at in (1.0, 2.0):
        recorder = Recorder(lambda: tmp_path)
        recorder.begin(BASE, [{"kind": "begin"}])
        recorder.sample(Sample(at, 0.1, SITE, 200))

    assert [sample.at for sample in recorder.samples] == [1.0, 2.0]


def test_what_is_left_of_a_damaged_record_is_read_and_a_resumed_run_goes_on(tmp_path: Path) -> None:
    whole = {"event": "sample", **Sample(1.0, 0.1, SITE, 200)._asdict()}
    lines = ["1", "null", "[]", '{"event": []}', '{"event": "sample"}', "{", "\0", json.dumps(whole)]
    lines += [json.dumps({**whole, "kind": "novel"}), '{"event": "line", "host": "web1"}']
    (tmp_path / "run-1.events").write_text("\n".join(lines))
    recorder = Recorder(lambda: tmp_path)

    recorder.begin(downtime_plan(BASE, settings()), [])

    assert recorder.samples == [Sample(1.0, 0.1, SITE, 200)]


def test_a_disk_without_room_for_events_changes_nothing_about_the_run(tmp_path: Path) -> None:
    recorder = Recorder(lambda: tmp_path / "not" / "there")

    recorder.begin(BASE, [])
    recorder.sample(Sample(1.0, 0.1, SITE, 200))

    assert len(recorder.samples) == 1


@pytest.mark.parametrize(
    ("item", "told"),
    [
        ({"current": True, "state": "deployed"}, "current"),
        ({"current": False, "previous": True, "state": "deployed"}, "previous"),
        ({"current": False, "state": "failed"}, "failed"),
        ({"current": True, "state": "staged"}, "current, never deployed whole"),
        ({"current": False, "state": "deployed"}, ""),
        ({"current": False, "state": "damaged"}, "damaged: its .deploytools.json can't be read"),
    ],
)
def test_a_release_is_told_by_what_became_of_it(item: dict[str, object], told: str) -> None:
    assert release_state(item) == told


OBEYED = "\x1b]0;title\x07\x1b[2Jgone\u202e"


def test_nothing_that_a_terminal_would_obey_gets_there_from_another_machine() -> None:
    said: list[str] = []
    PlainReporter(said.append).note(OBEYED)
    error = OperationFailed(OBEYED, where=OBEYED, state=OBEYED, next=OBEYED, details=[OBEYED])
    records = PastRun().records
    run = {**records[0], "plan": {**records[0]["plan"], "reason": OBEYED, "by": OBEYED}}

    for text in (*said, error_text(error), table([{"by": OBEYED}], ["by"]), summary([run, *records[1:]])):
        assert "gone" in text
        assert all(line.isprintable() for line in text.split("\n"))
