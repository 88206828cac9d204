"""The frame of the host programs: what becomes of an answer that nobody can be given."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from tests.support.webhost import WebHost


@pytest.fixture
def host() -> Iterator[WebHost]:
    host = WebHost()
    yield host
    host.__exit__()


@pytest.mark.parametrize("arguments", [["status"], ["status", "--json"]])
@pytest.mark.parametrize("gone", ["reader", "room"])
def test_an_answer_that_cannot_be_written_is_told_on_standard_error(
    host: WebHost, arguments: list[str], gone: str
) -> None:
    program, *options = arguments
    if gone == "room":
        out = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, out = os.pipe()
        os.close(reader)
    try:
        ran = subprocess.run(
            [str(host.tools / program), *options], stdout=out, stderr=subprocess.PIPE, text=True, check=False
        )
    finally:
        os.close(out)

    why = "No space left on device" if gone == "room" else "Broken pipe"
    first, *others = ran.stderr.splitlines()
    assert ran.returncode == 1
    assert first == f"status: this can't be written to standard output: {why}"
    assert any(line.startswith("  state: application ") for line in others)
    assert "Traceback" not in ran.stderr
    assert "Exception" not in ran.stderr


def test_where_nothing_can_be_written_at_all_the_exit_code_is_left(host: WebHost) -> None:
    with open("/dev/full", "w") as full:
        argv = [str(host.tools / "swap"), "--release", "missing"]
        assert subprocess.run(argv, stdout=full, stderr=full, check=False).returncode == 2
