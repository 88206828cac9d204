"""The operator's process dies or is interrupted at every step; somebody else goes on, at another commit."""

from __future__ import annotations

import pytest

from tests.fleet.matrix.application import PACKAGES
from tests.fleet.matrix.invariants import NEW, OLD
from tests.fleet.matrix.site import Site
from tests.fleet.matrix.trials import check

pytestmark = pytest.mark.fleet(2, packages=PACKAGES)


@pytest.mark.parametrize(
    ("trial", "end"),
    [
        ("kill send:lock web1 resume", OLD),
        pytest.param("kill intend:compare web1 abort", OLD, marks=pytest.mark.exhaustive),
        ("kill first:stage web1 abort", OLD),
        pytest.param("kill first:same-database web1 abort", OLD, marks=pytest.mark.exhaustive),
        pytest.param("kill first:arm web1 abort", OLD, marks=pytest.mark.exhaustive),
        ("kill first:maintenance-on web1 abort", OLD),
        ("kill wrote:drain web1 abort", OLD),
        ("kill first:backup web1 resume", NEW),
        ("kill send:migrate web1 resume", NEW),
        ("kill send:migrate web1 abort", OLD),
        ("kill inside web1 resume", NEW),
        ("kill record:migrate web1 abort", NEW),
        pytest.param("kill first:swap web1 resume", NEW, marks=pytest.mark.exhaustive),
        pytest.param("kill send:verify web1 resume", NEW, marks=pytest.mark.exhaustive),
        ("kill first:maintenance-off web1 resume", NEW),
        ("kill wrote:maintenance-off web1 abort", NEW),
        ("kill intend:resume-workers web1 resume", NEW),
        ("kill record:unlock web1 resume", NEW),
        ("kill-again first:swap web1 resume", NEW),
        pytest.param("kill-again send:migrate web1 abort", OLD, marks=pytest.mark.exhaustive),
        pytest.param("kill-again first:undo-maintenance-on web1 abort", OLD, marks=pytest.mark.exhaustive),
    ],
)
def test_a_killed_operator_leaves_a_run_that_somebody_else_ends(site: Site, trial: str, end: str) -> None:
    check(site, trial, end)


@pytest.mark.parametrize(
    ("trial", "end"),
    [
        ("interrupt first:maintenance-on web1 resume", NEW),
        ("interrupt inside web1 resume", NEW),
        ("interrupt-twice inside web1 resume", NEW),
        ("interrupt first:swap web1 resume", NEW),
    ],
)
def test_ctrl_c_stops_resumably_and_reaches_no_migration(site: Site, trial: str, end: str) -> None:
    check(site, trial, end)
