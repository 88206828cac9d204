"""What a person reads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from deploytools import journal
from deploytools.commands import Answer
from deploytools.plan import Target, downtime_plan
from deploytools.report.plain import PlainReporter
from deploytools.report.runs import past
from deploytools.report.setup import alike, setup_text
from deploytools.saga import Mark, State, Verdict
from deploytools.setup.command import Work
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
