"""The build command: where it runs, what it is told, what becomes of its output."""

from __future__ import annotations

import os
import stat
from datetime import datetime, timezone
from pathlib import Path

import pytest

from deploytools.errors import OperationFailed
from deploytools.releasing import build
from deploytools.releasing.source import Source

SOURCE = Source(Path("/src"), "r2", "main", "c0ffee", "Ann", "2026-05-01T22:30:15+02:00")


def run(tmp_path: Path, command: str, source: Source = SOURCE) -> list[str]:
    """Run a build in tmp_path/tree; return what was said meanwhile."""
    tree = tmp_path / "tree"
    tree.mkdir(exist_ok=True)
    said: list[str] = []
    build.run(command, source, tree, build.log_of(tmp_path / "builds", source), said.append)
    return said


def test_it_runs_in_the_tree_and_all_that_it_prints_is_shown_and_kept(tmp_path: Path) -> None:
    said = run(tmp_path, "pwd; echo trouble >&2; printf '10%%\\r50%%\\rdone'; cat; touch made")

    assert said == [str(tmp_path / "tree"), "trouble", "done"]
    log = tmp_path / "builds" / "r2.log"
    assert log.read_bytes() == f"{tmp_path}/tree\ntrouble\n10%\r50%\rdone".encode()
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert (tmp_path / "tree" / "made").exists()


def test_lines_are_shown_while_it_runs(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    # The build goes on only when its first line was shown.
    command = "echo first; until [ -e seen ]; do sleep 0.02; done; echo second"
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        (tree / "seen").touch()

    build.run(command, SOURCE, tree, tmp_path / "builds" / "r2.log", say)

    assert said == ["first", "second"]


def test_it_does_not_wait_for_what_the_build_left_running(tmp_path: Path) -> None:
    said = run(tmp_path, "sleep 600 & echo $!")

    os.kill(int(said[0]), 9)


def test_a_failure_shows_the_end_of_the_output_and_where_all_of_it_is(tmp_path: Path) -> None:
    with pytest.raises(OperationFailed, match="ended with exit code 9") as caught:
        run(tmp_path, "seq 100; echo no compiler >&2; exit 9")

    assert caught.value.details[-1] == "no compiler"
    assert len(caught.value.details) == build.LAST_LINES
    assert caught.value.state == "no host was touched"
    assert str(tmp_path / "builds" / "r2.log") in (caught.value.next or "")


def test_a_build_that_is_killed_is_told_as_that(tmp_path: Path) -> None:
    with pytest.raises(OperationFailed, match="ended with signal 9"):
        run(tmp_path, "kill -9 $$")


def test_the_same_commit_is_built_with_the_same_time_and_umask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_DIR", "/elsewhere")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    before = os.umask(0o077)
    try:
        said = run(tmp_path, 'echo "$SOURCE_DATE_EPOCH $DEPLOYTOOLS_COMMIT ${GIT_DIR-none} $LC_ALL"; umask')
    finally:
        os.umask(before)

    assert said == [
        f"{int(datetime(2026, 5, 1, 20, 30, 15, tzinfo=timezone.utc).timestamp())} c0ffee none C.UTF-8",
        "0022",
    ]


def test_outputs_of_old_builds_are_forgotten(tmp_path: Path) -> None:
    builds = tmp_path / "builds"
    builds.mkdir()
    for number in range(build.KEPT + 5):
        (builds / f"r1.{number:03}.log").touch()

    run(tmp_path, "true")

    kept = sorted(path.name for path in builds.iterdir())
    assert len(kept) == build.KEPT
    assert (kept[0], kept[-1]) == ("r1.006.log", "r2.log")
