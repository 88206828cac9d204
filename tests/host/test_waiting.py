"""`--when-told`: a program that is started before its turn changes nothing until a line tells it to begin."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.barehost import bare_host
from tests.support.webhost import WebHost

ACQUIRE = ("acquire", "--run-id=run1", "--by=ann", "--laptop=desk", "--operation=maint-down")


@contextmanager
def waiting(host: WebHost, program: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    argv = [str(host.tools / program), *arguments, "--when-told", "--json"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(argv, text=True, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def said(process: subprocess.Popen[str]) -> dict[str, object]:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate()[1]
    told: dict[str, object] = json.loads(line)
    return told


@pytest.fixture
def site(web_host: WebHost) -> WebHost:
    web_host.serve()
    return web_host


def test_down_waits_says_where_the_host_stands_and_goes_down_when_told(site: WebHost) -> None:
    with waiting(site, "down", "--by=ann") as down:
        greeting = said(down)
        assert not site.get().in_maintenance

        result, _ = down.communicate("go\n", timeout=30)

    assert greeting["waiting"] is True
    assert greeting["maintenance"]["state"] == "up"  # type: ignore[index]
    assert greeting["release"] is None
    assert (down.returncode, json.loads(result)["state"]) == (0, "down")
    assert site.get().in_maintenance


def test_once_told_they_load_nothing_more(site: WebHost, tmp_path: Path) -> None:
    """Visitors wait then, and what is loaded late takes longer than the work."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    assert site.run("down").code == 0  # else it writes what it lays ready
    assert site.run("up").code == 0
    for program in (["down", "--run-id=r1", "--count"], ["drain"], ["up", "--run-id=r1"]):
        log = tmp_path / program[0]
        argv = [sys.executable, "-X", "importtime", str(site.tools / program[0]), *program[1:], "--json"]
        with (
            log.open("wb") as errors,
            subprocess.Popen([*argv, "--when-told"], stderr=errors, **pipes) as process,
        ):
            said(process)
            before = log.read_text()
            result, _ = process.communicate("go\n", timeout=30)
        assert json.loads(result)["ok"]
        assert "hostlib" in before
        assert not log.read_text().removeprefix(before), program


def test_up_waits_too(site: WebHost) -> None:
    assert site.run("down").code == 0
    with waiting(site, "up") as up:
        greeting = said(up)
        assert site.get().in_maintenance

        up.communicate("go\n", timeout=30)

    assert greeting["maintenance"]["state"] == "down"  # type: ignore[index]
    assert up.returncode == 0
    assert not site.get().in_maintenance


def test_it_lingers_after_its_answer_until_it_is_let_go_and_says_how_it_will_end(site: WebHost) -> None:
    """The end of a process, sudo's and sshd's with it, would keep others waiting for their answers."""
    with waiting(site, "up") as up:
        said(up)
        assert up.stdin is not None
        up.stdin.write("go\n")
        up.stdin.flush()

        assert said(up)["exit_code"] == 0
        assert up.poll() is None
        up.stdin.close()
        assert up.wait(timeout=30) == 0


def test_a_window_that_opens_meanwhile_counts(site: WebHost) -> None:
    with waiting(site, "up") as up:
        said(up)
        assert site.run("down", "--run-id=run2", "--by=bob").code == 0

        result, _ = up.communicate("go\n", timeout=30)

    assert up.returncode == 5
    assert "run2" in json.loads(result)["error"]["what"]
    assert site.get().in_maintenance


@pytest.mark.parametrize("program", ["down", "up"])
def test_a_switch_whose_operator_goes_away_changes_nothing(site: WebHost, program: str) -> None:
    site.run("up" if program == "down" else "down")
    before = site.get().in_maintenance
    with waiting(site, program) as process:
        said(process)
        result, _ = process.communicate(timeout=30)  # the end of its standard input

    assert (process.returncode, json.loads(result)["error"]["state"]) == (2, "nothing was changed")
    assert site.get().in_maintenance is before


WINDOW = {
    "drain": (),
    "swap": ("--release=r1",),
    "verify": ("--release=r1",),
    "migrate": ("run", "run1", "--release=r1", "--target=first"),
}


@pytest.mark.parametrize("program", WINDOW)
def test_what_a_window_consists_of_does_nothing_before_it_is_told(program: str) -> None:
    with bare_host() as host, waiting(host, program, *WINDOW[program]) as process:
        before = sorted(host.root.rglob("*"))
        assert said(process) == {"waiting": True}
        result, _ = process.communicate(timeout=30)  # the end of its standard input

        assert (process.returncode, json.loads(result)["error"]["state"]) == (2, "nothing was changed")
        assert sorted({*host.root.rglob("*")} - {host.run_dir / "swap.lock"}) == before


def test_a_swap_that_was_told_is_a_swap(site: WebHost) -> None:
    with waiting(site, "swap", "--release=no-such") as swap:
        said(swap)
        result, _ = swap.communicate("go\n", timeout=30)

    assert "no-such" in json.loads(result)["error"]["what"]


def test_the_lock_is_taken_and_let_go_when_told() -> None:
    with bare_host() as host, waiting(host, "lock", *ACQUIRE) as acquire:
        with waiting(host, "lock", "release", "--run-id=run1") as release:
            said(acquire)
            said(release)
            assert host.run("lock", "show").json["lock"] is None

            acquire.communicate("go\n", timeout=30)
            assert host.run("lock", "show").json["lock"]["run_id"] == "run1"

            release.communicate("go\n", timeout=30)
            assert host.run("lock", "show").json["lock"] is None
        assert (acquire.returncode, release.returncode) == (0, 0)


def test_the_switch_needs_no_release_that_can_be_read(site: WebHost) -> None:
    (site.root / "current").mkdir()  # by hand, where a link belongs
    assert site.run("down").code == 0
