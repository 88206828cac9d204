"""The rules of this test suite itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parents[1] / "conftest.py"


@pytest.mark.parametrize(("variables", "code"), [({}, 0), ({"CI": "true"}, 1)], ids=["here", "in CI"])
def test_what_can_not_be_tested_is_skipped_and_said_but_fails_in_ci(
    tmp_path: Path, variables: dict[str, str], code: int
) -> None:
    shutil.copy(CONFTEST, tmp_path)
    (tmp_path / "test_it.py").write_text("import pytest\n\ndef test_it(): pytest.skip('no lighttpd here')\n")
    environ = {key: value for key, value in os.environ.items() if key != "CI"} | variables
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-rs", "-c", "/dev/null", "--rootdir", tmp_path, tmp_path],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, "no lighttpd here" in ran.stdout) == (code, True), ran.stdout
