"""The maintenance switch loses power, or the disk's last byte, at each of its writes in turn.

strace kills the program on entering its first, second, third ... system call that changes a file, or has
one of them fail as on a full disk. After each, maint.lua is whole, the state that is told is what visitors
see, and the same command again finishes.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hostlib.program import BUG, DONE, FAILED, IN_MAINTENANCE
from hostlib.switch import maintenance

from tests.support.switching import files, is_app, is_page, lua, luac, switch_down, switch_up
from tests.support.webhost import Ran, WebHost

MOST = 20  # system calls of a kind; a program that makes more of them needs a look
FULL = {"mkdir": "mkdir", "open": "openat", "write": "write", "sync": "fsync", "rename": "rename"}

pytestmark = pytest.mark.timeout(600)


def begin_up(host: WebHost) -> None:
    host.reset_maintenance()


def begin_down(host: WebHost) -> None:
    host.reset_maintenance()
    switch_down(host, reason="as before")


def traced(host: WebHost, command: str, call: str, what: str) -> Ran:
    """Run `down` or `up`, and have strace do `what` to it on entering a system call."""
    under = [
        "strace",
        "-f",
        "--seccomp-bpf",
        "-o",
        "/dev/null",
        "-e",
        f"trace={call}",
        "-e",
        f"inject={call}:{what}",
    ]
    return host.run(command, under=under)


def check(host: WebHost, what: str) -> str:
    """What is on the disk is whole, and the state that is told is what a visitor sees; returns it."""
    luac(lua(host))
    reply = host.get()
    assert is_app(reply) or is_page(reply), what
    told = maintenance.read_state(host.hostlib_config)
    assert told.state == ("down" if reply.in_maintenance else "up"), what
    return told.state


def finish(host: WebHost, command: str) -> None:
    """The same command again."""
    told = switch_down(host, reason="again") if command == "down" else switch_up(host)
    assert told["state"] == command
    assert check(host, "the same command again") == command
    left_over = [name for name in files(host) if re.match(r"\.maint\.(lua|json)", name)]
    assert not left_over, "a token may be in it"


@pytest.mark.parametrize("call", ["mkdir", "write", "fchmod", "fchown", "fsync", "rename", "unlink"])
@pytest.mark.parametrize(
    ("begin", "command"),
    [
        pytest.param(begin_up, "down", id="down"),
        pytest.param(begin_down, "down", id="down again", marks=pytest.mark.exhaustive),
        pytest.param(begin_down, "up", id="up"),
        pytest.param(begin_up, "up", id="up again", marks=pytest.mark.exhaustive),
    ],
)
def test_killed_on_entering_any_system_call_that_changes_a_file(
    shared_host: WebHost, begin: Callable[[WebHost], None], command: str, call: str
) -> None:
    for number in range(1, MOST):
        begin(shared_host)
        ran = traced(shared_host, command, call, f"signal=SIGKILL:when={number}")
        state = check(shared_host, f"killed at {call} {number}")
        if ran.code == DONE:
            assert state == command
            return
        assert ran.code in (-9, 137), ran.err
        finish(shared_host, command)
    pytest.fail(f"more than {MOST} calls of {call}")


@pytest.mark.parametrize("call", FULL.values(), ids=FULL)
@pytest.mark.parametrize(
    ("begin", "command"),
    [
        pytest.param(begin_up, "down", id="down"),
        pytest.param(begin_down, "down", id="down again", marks=pytest.mark.exhaustive),
        pytest.param(begin_down, "up", id="up"),
    ],
)
def test_a_disk_that_is_full_for_one_write_ends_in_a_state_that_is_told(
    shared_host: WebHost, begin: Callable[[WebHost], None], command: str, call: str
) -> None:
    for number in calls(shared_host, begin, command, call):
        begin(shared_host)
        before = maintenance.read_state(shared_host.hostlib_config).state
        ran = traced(shared_host, command, call, f"error=ENOSPC:when={number}")
        now = check(shared_host, f"no space at {call} {number}")
        assert "Traceback" not in ran.err
        if ran.code == DONE:
            assert now == command
        elif ran.code == BUG and call == "openat":
            continue  # an open for reading, which no full disk makes fail
        else:
            assert ran.code == (IN_MAINTENANCE if before == "down" else FAILED), ran.out
            assert now == before
            assert "No space left on device" in ran.error["what"]
            assert ran.error["state"]
            assert ran.error["next"]
        finish(shared_host, command)


def calls(host: WebHost, begin: Callable[[WebHost], None], command: str, call: str) -> list[int]:
    """Which of a program's calls of one kind change something in the maintenance directory, from 1 on."""
    begin(host)
    trace = host.base / "trace"
    under = ["strace", "-f", "-y", "--seccomp-bpf", "-o", str(trace), "-e", f"trace={call}"]
    assert host.run(command, under=under).code == DONE
    lines = [line for line in trace.read_text().splitlines() if f" {call}(" in line]
    return [
        number
        for number, line in enumerate(lines, 1)
        if str(host.maintenance_dir) in line and (call != "openat" or "O_CREAT" in line)
    ]


class TestAFullDisk:
    """A file system of its own under the maintenance directory, without a byte left."""

    @pytest.fixture
    def full(self, web_host: WebHost) -> Iterator[Callable[[], None]]:
        """Makes it full."""
        web_host.serve()
        place = web_host.maintenance_dir
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=755", "none", str(place)], check=True)
        web_host.reset_maintenance()

        def fill() -> None:
            with (place / "ballast").open("wb", buffering=0) as ballast:
                try:
                    while ballast.write(b"x" * 512):
                        pass
                except OSError:
                    pass

        try:
            yield fill
        finally:
            web_host.stop_lighttpd()  # it has the script open
            subprocess.run(["umount", str(place)], check=True)

    def empty(self, host: WebHost) -> None:
        (host.maintenance_dir / "ballast").unlink()

    def test_a_site_on_fire_goes_down_and_up_again_all_the_same(
        self, web_host: WebHost, full: Callable[[], None]
    ) -> None:
        switch_up(web_host)  # set-up, or any `up` or `down` before, has laid maint.lua.down ready
        full()
        ran = web_host.run("down", "--reason", "fire")
        assert (ran.code, ran.json["state"], ran.json["workers"]) == (DONE, "down", 1)
        assert "has no room (No space left on device): make some, then run down again" in ran.json["message"]
        assert is_page(web_host.get())
        assert maintenance.read_state(web_host.hostlib_config).as_result()["by"] == "unknown"
        assert web_host.run("down").code == DONE
        ran = web_host.run("up")
        assert (ran.code, ran.json["state"]) == (DONE, "up")
        assert is_app(web_host.get())
        assert web_host.run("down").code == DONE, "and once more"
        self.empty(web_host)
        ran = web_host.run("down", "--reason", "fire")
        assert (ran.json["reason"], ran.json["changed"]) == ("fire", False)
        assert "X-Maintenance-Bypass" in maintenance.bypass_headers(web_host.hostlib_config)
        assert web_host.run("up").code == DONE

    def test_a_window_that_is_open_stays_and_can_be_ended(
        self, web_host: WebHost, full: Callable[[], None]
    ) -> None:
        switch_down(web_host, reason="before")
        bypass = maintenance.bypass_headers(web_host.hostlib_config)
        full()
        ran = web_host.run("down", "--reason", "after")
        assert ran.code == DONE
        assert "visitors see the page of before" in ran.json["message"]
        assert web_host.get(headers=bypass).text == "app /"
        assert web_host.run("up").code == DONE
        assert not maintenance.bypass_headers(web_host.hostlib_config)

    def test_a_runs_own_window_needs_its_record_and_its_bypass_so_it_fails(
        self, web_host: WebHost, full: Callable[[], None]
    ) -> None:
        switch_up(web_host)
        full()
        ran = web_host.run("down", "--run-id", "r1")
        assert ran.code == FAILED
        assert ran.error["state"] == "the site is up as before"
        assert is_app(web_host.get())

    def test_without_a_script_that_lies_ready_it_fails_and_says_so(
        self, web_host: WebHost, full: Callable[[], None]
    ) -> None:
        full()
        ran = web_host.run("down")
        assert ran.code == FAILED
        assert "No space left on device" in ran.error["what"]
        assert is_app(web_host.get())


def test_the_scripts_that_lie_ready_keep_no_token_and_are_what_a_hand_would_copy(
    shared_host: WebHost,
) -> None:
    begin_down(shared_host)
    scripts = [lua(shared_host, suffix) for suffix in (".up", ".down")]
    assert not [script for script in scripts if re.search(r'^local bypass = "."', script.read_text(), re.M)]
    for script in scripts:
        luac(script)
        assert not Path(script).stat().st_mode & 0o022
