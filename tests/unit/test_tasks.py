"""Command lines that our tasks refuse before they look at a host, each with the real `fab`."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from deploytools import plan as plans
from deploytools.tasks import deploy
from tests.support.fabproject import Project
from tests.support.values import BASE, settings


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path)
    (tmp_path / "fabfile.py").write_text("from deploytools.tasks import ns\n")
    return made


def test_a_plan_for_a_machine_has_no_hook_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    plan = plans.downtime_plan(BASE, settings(hooks={"backup": "mysqldump -p1234 shop > dump"}))

    deploy._show(plan, None, json=True, about=["from main"])

    told = json.loads(capsys.readouterr().out)
    assert (told["plan"]["run_id"], told["plan"]["hooks"], told["about"]) == ("run-1", None, ["from main"])


def test_what_no_past_window_tells_is_said_before_a_window_and_never_of_one_that_is_over() -> None:
    plan = plans.downtime_plan(BASE, settings())

    assert "  expected nobody knows: " in deploy._described(plan, None, (), io.StringIO())
    assert "expected" not in "\n".join(plans.describe(plan))


class TestGoingOnWithARun:
    def test_it_is_either_resumed_or_aborted(self, project: Project) -> None:
        message = project.refused("deploy", "--resume", "--abort")

        assert (
            "--resume goes on with a run as it was planned, so it can't be combined with --abort" in message
        )

    @pytest.mark.parametrize("going_on", ["--resume", "--abort"])
    @pytest.mark.parametrize(
        "other", ["--ref=main", "--with-downtime", "--plan", "--reason=x", "--until=+5m", "--batch=1"]
    )
    def test_what_the_run_has_decided_is_not_decided_anew(
        self, project: Project, going_on: str, other: str
    ) -> None:
        message = project.refused("deploy", going_on, other)

        assert f"can't be combined with {other.partition('=')[0]}" in message
        assert f"next:  fab deploy {going_on}" in message
