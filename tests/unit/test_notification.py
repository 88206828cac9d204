"""hooks.notify: what it gets, and what becomes of it. The examples of the documents: tests/docs."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from deploytools import journal, notification
from deploytools.errors import InMaintenance
from deploytools.saga import Verdict
from tests.support.values import BASE

RECORDS = [
    {"at": 1000.0, **journal.begin(BASE)},
    {"at": 1007.5, **journal.end(Verdict.HELD)},
]
ABOUT = notification.message(
    RECORDS, None, InMaintenance("it holds", state="web1 is in maintenance", next="fab deploy --resume")
)


def test_it_gets_the_run_the_summary_and_how_it_ended() -> None:
    about = json.loads(json.dumps(ABOUT))

    assert (about["verdict"], about["exit_code"], about["seconds"]) == ("held", 4, 7.5)
    assert about["error"]["what"] == "it holds"
    assert about["text"].splitlines()[0] == "deploy of guestbook: holds, and needs the operator, r1 -> r2"
    assert about["text"].endswith("fab deploy --resume")
    assert notification.message(RECORDS, None, None)["error"] is None


def test_it_comes_on_standard_input(tmp_path: Path) -> None:
    assert notification.tell(f"cat > {tmp_path}/told", ABOUT) == ""
    assert json.loads((tmp_path / "told").read_text())["run_id"] == "run-1"


def test_it_starts_in_the_directory_of_the_project(tmp_path: Path) -> None:
    assert notification.tell("cat > told", ABOUT, place=tmp_path) == ""
    assert (tmp_path / "told").exists()


def test_a_command_that_reads_nothing_is_no_trouble() -> None:
    assert notification.tell("true", {"text": "x" * 1_000_000}) == ""


def test_a_command_that_fails_is_told_with_what_it_said() -> None:
    assert (
        notification.tell("echo no route >&2; exit 5", {}) == "hooks.notify ended with exit code 5: no route"
    )


def test_one_that_takes_too_long_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    command = f"echo $$ > {tmp_path}/group; sleep 600 | sleep 600"

    assert notification.tell(command, {}, patience=0.5) == "hooks.notify took longer than 0.5 s and was ended"

    group = (tmp_path / "group").read_text().strip()
    left = subprocess.run(["ps", "-o", "stat=", "-g", group], capture_output=True, text=True, check=False)
    assert [line for line in left.stdout.split() if not line.startswith("Z")] == []
