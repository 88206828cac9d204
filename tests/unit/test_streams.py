"""Standard streams that are closed, full, or that nobody reads: with the real `fab`, and a reporter."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploytools import operation
from deploytools import plan as plans
from deploytools.report.plain import PlainReporter
from deploytools.report.reporting import Reporting
from tests.support.prepared import FAB
from tests.support.values import BASE, settings

FABFILE = """
from deploytools.errors import InMaintenance
from deploytools.tasks import ns
from deploytools.tasks.task import operation

@operation()
def good(c):
    print("x" * 100_000)

@operation()
def held(c):
    try:
        raise InMaintenance("it holds", next="fab deploy --resume")
    finally:
        print("x" * 100_000)

ns.add_task(good)
ns.add_task(held)
"""
HELD = "error: it holds\n  next:  fab deploy --resume\n"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("project")
    (directory / "fabfile.py").write_text(FABFILE)
    return directory


@pytest.fixture
def unread() -> Iterator[int]:
    """The end of a pipe that nobody reads."""
    read, write = os.pipe()
    os.close(read)
    yield write
    os.close(write)


def fab(project: Path, task: str, out: int) -> tuple[int, str]:
    done = subprocess.run(
        [FAB, task], cwd=project, stdout=out, stderr=subprocess.PIPE, text=True, check=False
    )
    return done.returncode, done.stderr


def test_a_run_whose_summary_nobody_reads_still_ends_with_its_own_error(project: Path, unread: int) -> None:
    assert fab(project, "held", unread) == (4, HELD)


def test_so_it_does_where_the_summary_finds_no_room(project: Path) -> None:
    with Path("/dev/full").open("w") as full:
        assert fab(project, "held", full.fileno()) == (4, HELD)


def test_that_all_went_well_but_can_not_be_written_is_told(project: Path) -> None:
    with Path("/dev/full").open("w") as full:
        code, told = fab(project, "good", full.fileno())

    assert code == 1
    assert told.startswith("error: this can't be written to standard output: No space left on device\n")
    assert "only what it tells is lost" in told


def test_streams_that_are_closed_are_no_trouble(project: Path) -> None:
    done = subprocess.run(["sh", "-c", f"{FAB} good <&- >&- 2>&-"], cwd=project, check=False)

    assert done.returncode == 0


def test_a_reporter_whose_stream_has_gone_lets_the_run_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gone(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(operation, "journals", lambda: tmp_path)
    monkeypatch.setattr(sys, "stderr", Gone())
    reporter = Reporting()
    plan = plans.downtime_plan(BASE, settings())

    reporter.begin(plan, [])
    reporter.step(plan, plans.MIGRATE, ["web1"], undo=False)
    reporter.line("web1", "Running upgrade")
    reporter.note("stopping")

    assert not any(isinstance(each, PlainReporter) for each in reporter._all)
    kept = (tmp_path / "run-1.events").read_text()
    assert "Running upgrade" in kept, "what is kept for the report goes on"
    assert "stopping" in kept
