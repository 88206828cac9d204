"""The rules of this test suite itself."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from docs.raised import messages
from tests import provoked
from tests.support import prepared
from tests.support.prepared import FAB

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


def test_a_fab_that_is_forked_is_as_one_that_is_started(tmp_path: Path) -> None:
    (tmp_path / "fabfile.py").write_text(
        "import json, os, sys, time\n"
        "from invoke import task\n\n"
        "@task\n"
        "def tell(c, code=7, wait=0):\n"
        "    told = [os.getcwd(), dict(os.environ), sys.argv, sys.path, os.getsid(0) == os.getpid(),\n"
        "            [os.isatty(file) for file in (0, 1, 2)], sorted(os.listdir('/proc/self/fd'))[:4]]\n"
        "    print(json.dumps(told), flush=True)\n"
        "    print('on stderr', file=sys.stderr)\n"
        "    time.sleep(wait)\n"
        "    sys.exit(code)\n"
    )
    files = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    common = {"cwd": tmp_path, "env": {**os.environ, "COLOUR": "green"}, "start_new_session": True, **files}
    one = subprocess.Popen([FAB, "tell"], text=True, **common)
    other = prepared.Popen([FAB, "tell"], text=True, **common)

    assert one.communicate() == other.communicate()
    assert (one.returncode, other.returncode) == (7, 7)

    waiting = prepared.Popen([FAB, "tell", "--wait", "60"], **common)
    assert waiting.stdout is not None
    assert waiting.stdout.readline()
    assert waiting.poll() is None
    os.killpg(waiting.pid, signal.SIGINT)
    waiting.communicate()
    assert waiting.wait() == 1, "as invoke ends on Ctrl-C"


PRINTED = """web1  | a line
error: no answer from web2
  where: web2
    a detail
  state: nothing was changed
  next:  as said above; or deploy without it: --exclude HOST
down: this host is not in maintenance: there is no bypass to ask through
  where: web1
  state: nothing was changed
  next: /etc/lighttpd/down
{"error": {"what": "it was not told to begin", "state": "nothing was changed", "next": "/x/status"}}
{"ok": false, "error": "cut off
"""


def test_an_error_that_a_program_prints_is_known_by_all_that_it_says() -> None:
    known = messages()

    told = [provoked.meant(said, known) for said in provoked.errors(PRINTED)]

    assert [each and (each.file, each.function) for each in told] == [
        ("deploytools/tasks/look.py", "doctor"),
        ("remote_scripts/verify", "verified"),
        ("remote_scripts/hostlib/program.py", "wait_until_told"),
    ]
    other = (
        "no answer from web2",
        "something was changed",
        "as said above; or deploy without it: --exclude HOST",
    )
    assert provoked.meant(other, known) is None


def test_what_can_not_be_told_apart_is_in_the_catalogue_and_has_a_test_of_its_own() -> None:
    silent = {(each.file, each.function) for each in messages() if provoked.says_nothing(each)}

    assert provoked.UNPROVOKED.keys() <= silent
    for test in provoked.UNPROVOKED.values():
        file, _, name = test.partition("::")
        assert f"def {name}(" in (provoked.REPOSITORY / file).read_text()


WHOLE = ["", "-m 'exhaustive or not exhaustive'", "-n 3 --messages"]
PARTS = [
    "-m exhaustive",
    "tests/unit",
    "-k swap",
    "--deselect tests/unit",
    "--ignore tests/fleet",
    "--lf",
    "--sw",
]


def test_only_a_run_of_all_tests_can_tell_that_an_error_is_never_provoked() -> None:
    script = (
        "import shlex, sys; from _pytest.config import _prepareconfig; from tests.provoked import Recorder\n"
        "for line in sys.argv[1:]: print(Recorder(_prepareconfig(shlex.split(line)))._is_whole())"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, *WHOLE, *PARTS],
        cwd=provoked.REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )

    assert ran.stdout.split() == ["True"] * len(WHOLE) + ["False"] * len(PARTS), ran.stderr
