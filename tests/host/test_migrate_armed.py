"""A migration that is armed: everything is ready before the window, and `run` only says go."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.barehost import AlembicProject, bare_host, put_release, runner_of, runners_of
from tests.support.webhost import Ran, WebHost, wait_until

# An adapter in a few lines of sh, which notes each start of its own and each upgrade by its session's name.
NOTING = """#!/bin/sh
read -r settings
note={base}/$(echo "$settings" | sed 's/.*"session": "\\([^"]*\\)".*/\\1/')
echo prepared >>"$note"
while read -r command; do
    if [ "$command" = upgrade ]; then
        echo upgraded >>"$note"
        echo '{{"applied": ["b"], "transactional": true}}'
    else
        current='["a"]'
        pending='[{{"revision": "b", "message": ""}}]'
        if grep -qs upgraded "$note"; then current='["b"]' pending='[]'; fi
        printf '{{"current": %s, "pending": %s, ' "$current" "$pending"
        echo '"target": ["b"], "strangers": [], "transactional": true}}'
    fi
done
"""


@pytest.fixture
def host() -> Iterator[WebHost]:
    with bare_host() as host:
        yield host
        for run_id in ("run1", "run2"):
            host.run("migrate", "disarm", run_id)
        wait_until(lambda: not runners_of(host), timeout=60, what="no runner is left")


@pytest.fixture
def noting(host: WebHost) -> WebHost:
    """A host with a release r1 whose migration b is pending; its adapter notes what it is told."""
    python = host.base / "python"
    python.write_text(NOTING.format(base=host.base))
    python.chmod(0o755)
    AlembicProject(host, python=str(python))
    return host


def notes(host: WebHost, run_id: str = "run1") -> list[str]:
    return (host.base / f"deploytools-{run_id}").read_text().split()


def asking(what: str, run_id: str = "run1", target: str = "b", release: str = "r1") -> list[str]:
    return ["migrate", what, run_id, "--release", release, f"--target={target}"]


def arm(host: WebHost, run_id: str = "run1", target: str = "b") -> Ran:
    return host.run(*asking("arm", run_id, target))


def run(host: WebHost, run_id: str = "run1", target: str = "b") -> Ran:
    return host.run(*asking("run", run_id, target))


def left(host: WebHost) -> list[str]:
    return sorted(path.name for path in (host.root / "migrations").iterdir())


def test_the_one_that_waits_is_the_one_that_runs(noting: WebHost) -> None:
    assert arm(noting).json["armed"] is True
    assert notes(noting) == ["prepared"]
    ran = run(noting)
    assert (ran.code, ran.json["before"], ran.json["after"], ran.json["applied"]) == (0, ["a"], ["b"], ["b"])
    assert notes(noting) == ["prepared", "upgraded"]
    assert left(noting) == ["run1"]


def test_without_arming_run_does_the_same(noting: WebHost) -> None:
    ran = run(noting)
    assert (ran.code, ran.json["applied"]) == (0, ["b"])
    assert (notes(noting), left(noting)) == (["prepared", "upgraded"], ["run1"])


def test_while_it_waits_nothing_is_started_and_run_and_outcome_say_so(noting: WebHost) -> None:
    arm(noting)
    assert noting.run("migrate", "outcome", "run1").json["outcome"] == "not-started"
    assert noting.run("status").json["migration"] is None
    assert notes(noting) == ["prepared"]


def test_arming_twice_is_arming_once(noting: WebHost) -> None:
    assert [arm(noting).code, arm(noting).code] == [0, 0]
    assert len(runners_of(noting)) == 1
    assert run(noting).code == 0
    assert notes(noting) == ["prepared", "upgraded"]


def test_disarming_ends_it_and_may_be_repeated(noting: WebHost) -> None:
    arm(noting)
    assert noting.run("migrate", "disarm", "run1").json["stopped"] == 1
    assert noting.run("migrate", "disarm", "run1").json["stopped"] == 0
    wait_until(lambda: not runners_of(noting), timeout=60, what="the runner has ended")
    assert (notes(noting), left(noting)) == (["prepared"], [])


def test_disarming_has_no_effect_on_a_migration_that_was_started(noting: WebHost) -> None:
    assert run(noting).code == 0
    assert noting.run("migrate", "disarm", "run1").json["stopped"] == 0
    assert arm(noting).json["armed"] is False
    assert noting.run("migrate", "outcome", "run1").json["outcome"] == "applied"


def test_what_is_renounced_before_it_was_started_never_is(noting: WebHost) -> None:
    arm(noting)
    for _ in range(2):
        ran = noting.run("migrate", "outcome", "run1", "--renounce")
        assert (ran.code, ran.json["outcome"], ran.json["unchanged"]) == (3, "not-started", True)
    assert arm(noting).json["armed"] is False
    ran = run(noting)
    assert (ran.code, ran.json["outcome"], ran.json["unchanged"]) == (3, "not-started", True)
    wait_until(lambda: not runners_of(noting), timeout=60, what="the runner has ended")
    assert (notes(noting), left(noting)) == (["prepared"], ["run1"])
    mode = stat.S_IMODE((noting.root / "migrations" / "run1").stat().st_mode)
    assert mode == 0o755, "the deploy user has to see that nothing runs there, or it could not free the lock"
    assert run(noting, "run2").code == 0, "that was said of one run"


def test_what_was_started_can_not_be_renounced(noting: WebHost) -> None:
    assert run(noting).code == 0
    assert noting.run("migrate", "outcome", "run1", "--renounce").json["outcome"] == "applied"


def test_arming_another_run_ends_what_a_dead_run_left_waiting(noting: WebHost) -> None:
    arm(noting, "run1")
    assert arm(noting, "run2").code == 0
    wait_until(lambda: len(runners_of(noting)) == 1, timeout=60, what="only one waits")
    assert [name.rpartition(".")[0] for name in left(noting)] == [".armed-run2"]


def test_without_migrations_there_is_nothing_to_arm(host: WebHost) -> None:
    put_release(host, "r1")
    assert (arm(host, target="").json["armed"], runners_of(host)) == (False, [])


def test_what_could_not_be_migrated_can_not_be_armed(noting: WebHost) -> None:
    """So that it fails before the window, and not in it."""
    ran = arm(noting, target="other")
    assert (ran.code, ran.json["unchanged"]) == (3, True)
    assert "needs revision b, not other" in ran.error["what"]
    wait_until(lambda: (runners_of(noting), left(noting)) == ([], []), what="nothing is left")


def test_one_that_was_armed_for_another_target_is_not_used(noting: WebHost) -> None:
    arm(noting)
    ran = run(noting, target="other")
    assert (ran.code, "needs revision b, not other" in ran.error["what"]) == (3, True)
    assert notes(noting) == ["prepared", "prepared"]
    assert left(noting) == []


@pytest.mark.parametrize("whom", ["runner", "adapter"])
def test_if_it_was_killed_meanwhile_another_one_is_started(noting: WebHost, whom: str) -> None:
    arm(noting)
    runner = runner_of(noting)
    children = Path(f"/proc/{runner}/task/{runner}/children").read_text().split()
    os.kill(runner if whom == "runner" else int(children[0]), signal.SIGKILL)
    wait_until(lambda: not runners_of(noting), timeout=60, what="the runner has ended")
    ran = run(noting)
    assert (ran.code, ran.json["applied"]) == (0, ["b"])
    assert notes(noting) == ["prepared", "prepared", "upgraded"]
    assert left(noting) == ["run1"]


def test_one_that_hangs_is_stopped_for_good_before_another_one_is_started(noting: WebHost) -> None:
    constants = noting.tools / "hostlib" / "migrating" / "migration_runs.py"
    text = constants.read_text()
    assert "\nBEGINNING = 30\n" in text
    constants.write_text(text.replace("\nBEGINNING = 30\n", "\nBEGINNING = 1\n"))
    arm(noting)
    hanging = runner_of(noting)
    os.kill(hanging, signal.SIGSTOP)
    try:
        assert run(noting).json["applied"] == ["b"]
    finally:
        os.kill(hanging, signal.SIGCONT)  # it finds the word in its socket now
    wait_until(lambda: not runners_of(noting), timeout=60, what="both have ended")
    assert notes(noting) == ["prepared", "prepared", "upgraded"]
    assert left(noting) == ["run1"]


def test_what_a_reboot_leaves_of_it_is_removed(noting: WebHost) -> None:
    arm(noting)
    place = next((noting.root / "migrations").iterdir())
    copy = noting.base / "copy"
    shutil.copytree(place, copy, ignore=lambda *_: ["go"])
    noting.run("migrate", "disarm", "run1")
    copy.rename(place)
    assert run(noting).code == 0
    assert left(noting) == ["run1"]


def test_one_that_is_too_old_ends_by_itself(noting: WebHost) -> None:
    constants = noting.tools / "hostlib" / "migrating" / "migration_runner.py"
    text = constants.read_text()
    assert "\nARMED_FOR = 900\n" in text
    constants.write_text(text.replace("\nARMED_FOR = 900\n", "\nARMED_FOR = 0.2\n"))
    arm(noting)
    wait_until(lambda: not runners_of(noting), timeout=60, what="the runner has ended")
    assert left(noting) == []
    assert run(noting).code == 0


def test_only_its_owner_can_say_go_or_hold_its_lock(noting: WebHost) -> None:
    arm(noting)
    (place,) = (noting.root / "migrations").iterdir()
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert run(noting).code == 0
    modes = {
        path.name: stat.S_IMODE(path.stat().st_mode) for path in (noting.root / "migrations/run1").iterdir()
    }
    assert modes == {"started.json": 0o644, "outcome.json": 0o644, "lock": 0o640, "log": 0o600}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_another_account_can_not_hold_its_lock(noting: WebHost) -> None:
    assert run(noting).code == 0
    reach = f"import os; os.open({str(noting.root / 'migrations/run1/lock')!r}, os.O_RDONLY)"
    denied = subprocess.run(
        ["/usr/bin/python3", "-c", reach], user="nobody", group="nogroup", extra_groups=[],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "PermissionError" in denied.stderr


def test_it_holds_no_connection_and_no_lock_while_it_waits(host: WebHost) -> None:
    project = AlembicProject(host)
    project.add("b")
    arm(host)
    runner = runner_of(host)
    (adapter,) = Path(f"/proc/{runner}/task/{runner}/children").read_text().split()
    opened = [os.readlink(link) for link in Path(f"/proc/{adapter}/fd").iterdir()]
    assert str(project.database) not in opened
    project.query("create table written_meanwhile (id integer)")
    assert run(host).json["applied"] == ["b"]


def test_what_the_release_needs_was_imported_before_the_word(host: WebHost) -> None:
    """The import of Alembic is what takes the time; in the window nothing has to be found any more."""
    project = AlembicProject(host)
    project.add("b")
    arm(host)
    runner = runner_of(host)
    (adapter,) = Path(f"/proc/{runner}/task/{runner}/children").read_text().split()
    assert re.search(r"sqlalchemy.*\.so", Path(f"/proc/{adapter}/maps").read_text())
    assert run(host).code == 0


def test_whoever_says_go_may_be_killed_at_any_moment(noting: WebHost) -> None:
    for number in range(8):
        run_id = f"kill{number}"
        assert arm(noting, run_id).code == 0
        first = noting.start(*asking("run", run_id))
        time.sleep(0.02 * number)  # this is the point: it is killed somewhere on its way
        first.kill()
        first.communicate()
        ran = run(noting, run_id)
        assert (ran.code, ran.json["outcome"]) == (0, "applied"), ran
        assert notes(noting, run_id).count("upgraded") == 1


def test_racing_pairs_make_one_start_each(noting: WebHost) -> None:
    for number in range(5):
        run_id = f"race{number}"
        if number % 2:
            assert arm(noting, run_id).code == 0
        racing = [noting.start(*asking(what, run_id)) for what in ("run", "arm", "run")]
        outcomes = [json.loads(process.communicate(timeout=120)[0]) for process in racing]
        assert outcomes[0] == outcomes[2]
        assert (outcomes[0]["outcome"], outcomes[0]["applied"]) == ("applied", ["b"])
        assert notes(noting, run_id).count("upgraded") == 1
        assert noting.run("migrate", "disarm", run_id).code == 0
