"""`lock`: one run at a time, and everybody is told whose it is."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hostlib.program import Failure
from hostlib.runs import deploylock

from tests.support.barehost import bare_host
from tests.support.webhost import Ran, WebHost


@pytest.fixture
def host() -> Iterator[WebHost]:
    with bare_host() as host:
        yield host


def asking(run_id: str, **more: str) -> list[str]:
    details = {"run-id": run_id, "by": "ann", "laptop": "tp", "operation": "deploy", "release": "r1", **more}
    return ["acquire", *(f"--{key}={value}" for key, value in details.items())]


def acquire(host: WebHost, run_id: str, **more: str) -> Ran:
    return host.run("lock", *asking(run_id, **more))


def holder(host: WebHost) -> str | None:
    lock = host.run("lock", "show").json["lock"]
    return lock and str(lock["run_id"])


def test_acquiring_a_free_lock_says_whose_it_is_now(host: WebHost) -> None:
    ran = acquire(host, "run1", reason="new schema")
    assert (ran.code, ran.json["changed"]) == (0, True)
    shown = host.run("lock", "show").json["lock"]
    wanted = {"run_id": "run1", "by": "ann", "laptop": "tp", "operation": "deploy", "release": "r1"}
    assert wanted.items() <= shown.items()
    assert shown["reason"] == "new schema"
    assert shown["since"].endswith("Z")


def test_what_is_told_of_it_can_not_garble_a_colleagues_terminal(host: WebHost) -> None:
    acquire(host, "run1", by="a\x1b[2Jnn", reason="one\ntwo")
    shown = host.run("lock", "show").json
    assert (shown["lock"]["by"], shown["lock"]["reason"]) == ("a [2Jnn", "one two")
    assert "\n" not in shown["message"]


def test_the_same_run_may_ask_again(host: WebHost) -> None:
    first = acquire(host, "run1").json["lock"]
    again = acquire(host, "run1", laptop="another")
    assert (again.code, again.json["changed"]) == (0, False)
    assert again.json["lock"] == first


def test_another_run_is_told_who_holds_it_and_what_to_do(host: WebHost) -> None:
    acquire(host, "run1", reason="new schema")
    ran = acquire(host, "run2", by="bob")
    assert (ran.code, holder(host)) == (5, "run1")
    for told in ("ann", "tp", "deploy of r1", "new schema", "run1", "since 20"):
        assert told in ran.error["what"]
    assert "fab unlock --force run1" in ran.error["next"]


def test_only_the_run_that_holds_it_can_let_it_go(host: WebHost) -> None:
    acquire(host, "run1")
    refused = host.run("lock", "release", "--run-id", "run2")
    assert (refused.code, refused.json["lock"]["run_id"], holder(host)) == (5, "run1", "run1")
    released = host.run("lock", "release", "--run-id", "run1")
    assert (released.code, released.json["changed"], holder(host)) == (0, True, None)


def test_letting_go_twice_is_harmless(host: WebHost) -> None:
    ran = host.run("lock", "release", "--run-id", "run1")
    assert (ran.code, ran.json["changed"]) == (0, False)


def test_breaking_takes_the_exact_run_id(host: WebHost) -> None:
    acquire(host, "run1")
    assert host.run("lock", "break", "--run-id", "run").code == 5
    assert holder(host) == "run1"
    assert host.run("lock", "break", "--run-id", "run1").code == 0
    assert holder(host) is None


def test_breaking_is_refused_while_the_migration_of_that_run_holds_its_own_lock(host: WebHost) -> None:
    acquire(host, "run1")
    migration = host.root / "migrations" / "run1"
    migration.mkdir()
    with (migration / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ran = host.run("lock", "break", "--run-id", "run1")
    assert ran.code == 5
    assert "still running" in ran.error["what"]
    assert holder(host) == "run1"
    assert host.run("lock", "break", "--run-id", "run1").code == 0


def test_a_database_that_gives_no_answer_is_no_sign_that_a_migration_has_ended(
    host: WebHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acquire(host, "r1")
    (host.root / "migrations/r1").mkdir()
    monkeypatch.setattr(deploylock, "TOOLS", tmp_path)
    monkeypatch.setattr(deploylock, "ASKING", 1.0)

    for does, why in [
        ("exec sleep 600", "the database gave no answer"),
        ("echo sudo: a password is required >&2; exit 1", r"can't tell \(sudo: a password is required\)"),
    ]:
        (tmp_path / "migrate").write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / "migrate").chmod(0o755)
        with pytest.raises(Failure, match=f"for all that is known: .*{why}"):
            deploylock.break_(host.hostlib_config, "r1")

    assert deploylock.holder(host.hostlib_config)


@pytest.mark.parametrize("damaged", ["", "{}", "[]", '{"run_id": 1}'])
def test_a_lock_whose_details_are_damaged_is_explained(host: WebHost, damaged: str) -> None:
    acquire(host, "run1")
    path = host.root / "state" / "lock" / "details.json"
    path.write_text(damaged)

    for told in (acquire(host, "run2"), host.run("lock", "show"), host.run("lock", "break", "--run-id=run1")):
        assert told.code == 5
        assert "says not who holds it" in told.error["what"]
        assert f"rm -r {path.parent}" in told.error["next"]


def test_of_many_at_once_exactly_one_gets_it(host: WebHost) -> None:
    processes = [host.start("lock", *asking(f"run{number}")) for number in range(8)]
    answers = [json.loads(process.communicate(timeout=30)[0]) for process in processes]
    winners = [number for number, answer in enumerate(answers) if answer["ok"]]
    assert len(winners) == 1
    assert {answer["lock"]["run_id"] for answer in answers} == {f"run{winners[0]}"} == {holder(host)}


def test_a_lock_is_never_seen_without_its_details(host: WebHost) -> None:
    lock = host.root / "state" / "lock"

    def is_the_lock(directory: int) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(directory), lock.stat())
        return False

    for number in range(3):
        processes = [
            host.start("lock", *asking(f"run{number}")),
            host.start("lock", "release", "--run-id", f"run{number}"),
        ]
        while any(process.poll() is None for process in processes):
            try:
                seen = os.open(lock, os.O_DIRECTORY)
            except FileNotFoundError:
                continue
            # The directory that we opened may be on its way out; then it has another name by now.
            complete = "details.json" in os.listdir(seen)
            assert complete or not is_the_lock(seen)
            os.close(seen)
        for process in processes:
            process.communicate()
        host.run("lock", "release", "--run-id", f"run{number}")


def test_nothing_is_left_in_the_state_directory(host: WebHost) -> None:
    acquire(host, "run1")
    acquire(host, "run2")
    host.run("lock", "release", "--run-id", "run1")
    assert os.listdir(host.root / "state") == []


def test_by_hand_root_goes_on_as_the_deploy_user(host: WebHost) -> None:
    state = host.root / "state"
    if os.geteuid() == 0:  # otherwise we are the deploy user
        shutil.chown(state, "nobody")
    assert acquire(host, "run1").code == 0
    assert (state / "lock" / "details.json").stat().st_uid == state.stat().st_uid


@pytest.mark.parametrize("run_id", ["", "../x", "x" * 90])
def test_an_id_that_could_leave_its_directory_is_refused(host: WebHost, run_id: str) -> None:
    assert acquire(host, run_id).code == 2


def test_by_hand_it_answers_in_sentences(host: WebHost) -> None:
    assert "nobody holds the lock" in host.run("lock", "show", as_json=False).out
    acquire(host, "run1")
    assert "ann on tp since" in host.run("lock", "show", as_json=False).out
    refused = host.run("lock", "release", "--run-id", "run2", as_json=False)
    assert refused.out == ""
    assert "held by ann on tp" in refused.err


FIRST = '{"kind": "begin", "n": 1}\n{"kind": "intent", "n": 2}\n'


def acquire_with_journal(host: WebHost, run_id: str, text: str = FIRST) -> subprocess.CompletedProcess[str]:
    argv = [host.tools / "lock", *asking(run_id), "--journal", "--json"]
    return subprocess.run(argv, input=text, capture_output=True, text=True, check=False)


def journal(host: WebHost, run_id: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = host.run("journal", "read", run_id).json["records"]
    return found


def test_the_first_records_of_a_run_are_there_before_its_lock_is(host: WebHost) -> None:
    state = host.root / "state"
    assert acquire_with_journal(host, "run1").returncode == 0
    assert [record["n"] for record in journal(host, "run1")] == [1, 2]
    assert (state / "journal").stat().st_ctime_ns <= (state / "lock").stat().st_ctime_ns
    assert acquire_with_journal(host, "run1").returncode == 0, "asked again, it adds nothing"
    assert len(journal(host, "run1")) == 2


def test_a_run_that_does_not_get_the_lock_leaves_no_journal(host: WebHost) -> None:
    acquire(host, "run1")
    assert acquire_with_journal(host, "run2").returncode == 5
    assert host.run("journal", "read", "run2").code == 2


def test_without_its_first_records_on_the_disk_a_run_gets_no_lock(host: WebHost) -> None:
    assert acquire_with_journal(host, "run1", "nonsense\n").returncode != 0
    assert holder(host) is None


def test_who_holds_the_lock_is_told_with_where_they_are_as_long_as_they_live(host: WebHost) -> None:
    acquire_with_journal(host, "run1")
    argv = [str(host.tools / "journal"), "follow", "run1", "--json"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as follow:
        assert follow.stdin is not None
        assert follow.stdout is not None
        follow.stdin.write('{"expect": 2, "lines": [], "phase": "migrate"}\n')
        follow.stdin.flush()
        assert json.loads(follow.stdout.readline())["ok"]
        alive = acquire(host, "run2").error
        shown = host.run("lock", "show").json["lock"]
        follow.communicate(timeout=30)  # the operator's process ends, and its connection with it

    assert (shown["phase"], shown["heard"] < 20) == ("migrate", True)
    assert "in the step migrate" in alive["what"]
    assert "--lock-wait" in alive["next"]
    assert "ask ann" in alive["next"]
    dead = acquire(host, "run2").error
    assert "nothing is heard of its operator's process" in dead["what"]
    assert dead["next"].startswith("fab deploy --resume goes on with that run, fab deploy --abort backs out")


def test_a_run_whose_lock_was_freed_meanwhile_writes_no_more(host: WebHost) -> None:
    acquire_with_journal(host, "run1")
    argv = [str(host.tools / "journal"), "follow", "run1", "--json"]
    line = '{"expect": 2, "lines": ["{}"], "phase": "swap", "locked": true}\n'

    def say() -> Any:
        ran = subprocess.run(argv, input=line, capture_output=True, text=True, check=True)
        return json.loads(ran.stdout.splitlines()[0])

    assert say()["ok"]
    assert host.run("lock", "break", "--run-id", "run1").code == 0
    refused = say()
    assert (refused["ok"], refused["freed"]) == (False, True)
    assert refused["error"]["what"] == "the lock of run run1 was freed; nobody has it now"
    acquire(host, "run2")
    assert "run run2 by ann has it now" in say()["error"]["what"]


@pytest.mark.parametrize(("ago", "heard"), [(60.0, 60.0), (-60.0, None)], ids=["a minute", "before a reboot"])
def test_a_clock_that_is_set_back_does_not_make_a_dead_run_live(
    host: WebHost, ago: float, heard: float | None
) -> None:
    acquire(host, "run1")
    beat = host.root / "state" / "lock" / "heartbeat.json"
    beat.write_text(json.dumps({**json.loads(beat.read_text()), "at": uptime() - ago}))
    os.utime(beat, (time.time() + 3600, time.time() + 3600))

    assert host.run("lock", "show").json["lock"]["heard"] == pytest.approx(heard, abs=30)


def uptime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def test_another_runs_sign_of_life_is_none_of_this_ones(host: WebHost) -> None:
    acquire(host, "run1")
    (host.root / "state" / "lock" / "heartbeat.json").unlink()
    argv = [str(host.tools / "journal"), "follow", "run2", "--json"]
    line = '{"expect": 0, "lines": [], "phase": "swap"}\n'
    subprocess.run(argv, input=line, capture_output=True, text=True, check=True)

    assert host.run("lock", "show").json["lock"]["heard"] is None
