"""What a person reads."""

from __future__ import annotations

import io
from typing import Any

from deploytools import journal
from deploytools.commands import Answer
from deploytools.plan import downtime_plan
from deploytools.report import PlainReporter, alike, past, setup_text
from deploytools.saga import Mark, State, Verdict
from deploytools.setup.command import Work
from tests.support.values import BASE, settings

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


def test_what_the_application_printed_before_it_failed_is_shown() -> None:
    plan, out = downtime_plan(BASE, settings()), io.StringIO()
    printed = {"details": ["python3: can't open file 'nope.py'"]}
    reporter = PlainReporter(out)

    reporter.step(plan, plan.steps[0], plan.hosts, undo=False)
    reporter.answer(plan.steps[0], "web1", Answer(Mark(State.FAILED, printed), {"what": "not ready"}, 3), 0.1)

    assert "FAILED: not ready" in out.getvalue()
    assert "web1  | python3: can't open file 'nope.py'" in out.getvalue()


def test_one_journal_that_is_none_hides_no_other_run() -> None:
    whole = [journal.begin(BASE), journal.end(Verdict.DONE)]
    whole = [{**record, "at": 1.0} for record in whole]

    runs, left_out = past({"good": whole, "bad": [{"kind": "begin"}], "worse": [{}]})

    assert [run["run_id"] for run in runs] == ["run-1"]
    assert set(left_out) == {"bad", "worse"}
    assert "no journal of ours" in left_out["bad"]
