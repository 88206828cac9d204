"""What a person reads."""

from __future__ import annotations

import io
from typing import Any

import pytest

from deploytools.commands import Answer
from deploytools.plan import downtime_plan
from deploytools.report import PlainReporter, setup_text, status_text
from deploytools.saga import Mark, State
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


def test_status_says_what_to_type_where_a_run_is_open() -> None:
    lock = {"by": "ann", "laptop": "desk", "since": "noon", "operation": "deploy", "run_id": "run-1"}

    assert "fab deploy --resume, or fab deploy --abort" in status_text("guestbook", {}, lock)
    assert "--resume" not in status_text("guestbook", {}, None)


def test_what_the_application_printed_before_it_failed_is_shown() -> None:
    plan, out = downtime_plan(BASE, settings()), io.StringIO()
    printed = {"details": ["python3: can't open file 'nope.py'"]}
    reporter = PlainReporter(out)

    reporter.step(plan, plan.steps[0], plan.hosts, undo=False)
    reporter.answer(plan.steps[0], "web1", Answer(Mark(State.FAILED, printed), {"what": "not ready"}, 3), 0.1)

    assert "FAILED: not ready" in out.getvalue()
    assert "web1  | python3: can't open file 'nope.py'" in out.getvalue()


@pytest.mark.parametrize(
    ("status", "site"),
    [
        ({"maintenance": {"state": "down"}, "release": "r1", "serving": {"alive": True}}, "maintenance"),
        ({"maintenance": {"state": "up"}, "release": "r1", "serving": {"alive": True, "pid": 7}}, "up"),
        ({"maintenance": {"state": "up"}, "release": "r1", "serving": {"alive": False}}, "not running"),
        ({"maintenance": {"state": "up"}, "release": None, "serving": None}, "nothing deployed"),
    ],
)
def test_status_says_what_visitors_of_a_host_get(status: dict[str, Any], site: str) -> None:
    row = status_text("guestbook", {"web1": status}, None).splitlines()[2]

    assert row.startswith(f"web1  {site}")
    assert status_text("guestbook", {}, None, ["web2"]).splitlines()[2].startswith("web2  no answer")
