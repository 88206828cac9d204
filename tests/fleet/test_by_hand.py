"""`make fleet`, and what a machine is told that can't have one."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fleet import Fleet, keeper
from tests.support.operators import FAB

TESTS = "tests/fleet/test_hosts.py"


@pytest.mark.usefixtures("fleet_possible")
def test_make_fleet_tells_what_to_type_and_ctrl_c_ends_it() -> None:
    process = subprocess.Popen(
        ["make", "-s", "fleet", "HOSTS=2", "SUITE=trixie"],
        cwd=keeper.REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    said = ""
    while "Ctrl-C" not in said:
        line = process.stdout.readline()
        assert line, said
        said += line
    try:
        assert re.findall(r"(web\d) +(10\.77\.\d+\.\d+) +trixie", said)
        (project,) = re.findall(r"cd (/\S+)", said)
        argv = [str(FAB), "setup", "--as-user", "root", "--plan"]
        done = subprocess.run(argv, cwd=project, capture_output=True, text=True, timeout=60, check=True)
        assert done.stdout.startswith("all 2 hosts:\n"), done.stdout
        assert done.stdout.count("create: /etc/sudoers.d/deploytools-guestbook") == 1
        (ssh,) = re.findall(r"ssh -F \S+ deploy@web1", said)
        assert subprocess.check_output([*ssh.split(), "hostname"], text=True) == "web1\n"
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=60)
    assert not Path(project).exists()


@pytest.mark.exhaustive
@pytest.mark.usefixtures("fleet_possible")
def test_two_fleets_are_apart() -> None:
    with Fleet(1) as one, Fleet(1) as two:
        ours, theirs = one["web1"], two["web1"]
        assert ours.address != theirs.address
        script = "import socket, sys; socket.create_connection((sys.argv[1], 80), 2)"
        assert (
            "Network is unreachable"
            in ours.run(["python3", "-c", script, theirs.address], check=False).stderr
        )
        two.__exit__(None, None, None)
        assert ours.get("/").status == 200


def test_without_root_it_says_that_root_is_missing() -> None:
    script = "import os; from tests.fleet.fleet import missing; os.geteuid() or os.seteuid(65534)"
    argv = [sys.executable, "-c", f"{script}; print(missing())"]
    assert "root" in subprocess.check_output(argv, cwd=keeper.REPOSITORY, text=True)


@pytest.mark.parametrize(("ci", "outcome", "code"), [("", "skipped", 0), ("true", "errors", 1)])
def test_a_machine_that_can_not_have_a_fleet_skips_and_says_why_but_fails_in_ci(
    ci: str, outcome: str, code: int
) -> None:
    argv = [sys.executable, "-m", "pytest", "-rsE", "-p", "no:cacheprovider", "-k", "debian_that", TESTS]
    environ = {"PATH": "/nowhere", "HOME": "/nowhere", **({"CI": ci} if ci else {})}
    done = subprocess.run(
        argv, cwd=keeper.REPOSITORY, env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == code, done.stdout
    assert re.search(rf"1 {outcome[:-1]}", done.stdout)
    assert re.search(r"no test fleet, .*missing: (the program systemd-nspawn|root)", done.stdout)
