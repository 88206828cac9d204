"""What a person reads."""

from __future__ import annotations

import io

from deploytools import journal
from deploytools.commands import Answer
from deploytools.plan import downtime_plan
from deploytools.report import PlainReporter, past, setup_text
from deploytools.saga import Mark, State, Verdict
from tests.support.values import BASE, settings

TOOLS = "/usr/local/lib/deploytools/guestbook"


def change(path: str, diff: str = "") -> dict[str, str]:
    return {"what": "create", "path": path, "diff": diff}


def test_setup_shows_what_is_the_operators_business_and_counts_our_own_programs() -> None:
    changes = [
        change(f"{TOOLS}/swap", "+a thousand lines"),
        change(f"{TOOLS}/hostlib/web.py", "+a thousand lines"),
        change(f"{TOOLS}/config.json", "+{}"),
        change("/etc/sudoers.d/deploytools-guestbook", "+deploy ALL=(root)"),
    ]

    shown = setup_text("web1", changes, TOOLS, diffs=True)

    assert "2 files in " + TOOLS in shown
    assert "a thousand lines" not in shown
    assert "    +{}" in shown
    assert "    +deploy ALL=(root)" in shown
    assert "+" not in setup_text("web1", changes, TOOLS, diffs=False)
    assert setup_text("web1", [], TOOLS, diffs=True) == "web1: nothing to change"


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
