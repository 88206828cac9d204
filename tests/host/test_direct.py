"""Processes of generations: ended without mercy, and never mistaken for somebody else's."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from hostlib import generations
from hostlib.direct import Direct
from hostlib.generations import Record
from hostlib.manifest import App
from hostlib.program import Failure

from tests.support.swapsite import Site
from tests.support.webhost import end, wait_until

SHELL = "trap '' TERM; (trap '' TERM; while :; do sleep 0.1; done) & while :; do sleep 0.1; done"


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    try:
        (site.root / "releases" / "r1").mkdir()
        yield site
    finally:
        site.__exit__()


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    yield process
    end(process)


def app(*argv: str, **changes: Any) -> App:
    values: dict[str, Any] = {
        "argv": argv, "listen": "fd0", "env": {}, "start_timeout": 5, "drain_timeout": 5, "soak_time": 0,
        "manager": "direct", **changes,
    }  # fmt: skip
    return App(**values)


def test_a_process_and_its_child_that_ignore_sigterm_are_killed_after_the_grace(site: Site) -> None:
    manager = Direct(site.host.hostlib_config, term_grace=0.2)
    record = manager.start(1, "r1", app("sh", "-c", SHELL))
    wait_until(lambda: len(site.processes()) >= 3)
    assert manager.ended(record) is None
    assert generations.alive(record)

    manager.stop(record)

    assert site.processes() == []
    assert site.files() == set()
    assert manager.ended(record) == "it was ended by signal 9 (Killed)"


@pytest.mark.parametrize(("given", "there"), [({}, "0"), ({"PHP_FCGI_MAX_REQUESTS": "9"}, "9")])
def test_php_cgi_is_told_not_to_end_after_500_requests(site: Site, given: dict[str, str], there: str) -> None:
    manager = Direct(site.host.hostlib_config)

    record = manager.start(1, "r1", app("sh", "-c", "echo $PHP_FCGI_MAX_REQUESTS; sleep 60", env=given))

    wait_until(lambda: site.log().strip())
    assert site.log().strip() == there
    manager.stop(record)


def test_children_are_found_when_their_parent_is_gone(site: Site) -> None:
    manager = Direct(site.host.hostlib_config)
    record = manager.start(1, "r1", app("sh", "-c", "sleep 60 & sleep 60 & exit 3"))
    wait_until(lambda: manager.ended(record))
    assert manager.ended(record) == "it ended with exit status 3"
    assert not generations.alive(record)
    assert len(site.processes()) == 2

    manager.stop(record)
    assert site.processes() == []


@pytest.mark.parametrize("change", [{"start_time": 1}, {"boot_id": "another"}])
def test_a_process_that_was_given_the_same_pid_later_is_left_alone(
    site: Site, stranger: subprocess.Popen[bytes], change: dict[str, Any]
) -> None:
    config = site.host.hostlib_config
    process = generations.find_process(stranger.pid)
    assert process is not None
    true = {"start_time": process.start_time, "boot_id": generations.boot_id()}
    record = Record(1, "r1", "direct", "/nowhere", 0.0, pid=stranger.pid, **{**true, **change})  # type: ignore[arg-type]
    record.saved(config)

    assert not generations.alive(record)
    Direct(config).stop(record)

    assert stranger.poll() is None
    assert site.records() == []


def test_a_record_from_before_its_process_is_cleaned_up(site: Site) -> None:
    config = site.host.hostlib_config
    record = Record(1, "r1", "direct", str(config.run / "app.1.sock"), 0.0).saved(config)
    Direct(config).stop(record)
    assert site.files() == set()


def test_what_cannot_be_started_leaves_nothing(site: Site) -> None:
    with pytest.raises(Failure, match="no-such-program"):
        Direct(site.host.hostlib_config).start(1, "r1", app("no-such-program"))
    assert site.files() == set()


def test_the_log_is_not_written_through_a_link(site: Site) -> None:
    target = site.root / "precious"
    target.write_text("kept")
    (site.root / "log" / "app.log").symlink_to(target)
    with pytest.raises(Failure, match="symbolic link"):
        Direct(site.host.hostlib_config).start(1, "r1", app("sh", "-c", "echo overwritten"))
    assert target.read_text() == "kept"
    assert site.files() == set()


def test_its_list_has_whatever_is_there(site: Site) -> None:
    for name in (
        "app.1.sock",
        "app.22.json",
        "app.3.d",
        "app.sock",
        "app.x.sock",
        "generation",
        ".app.4.json.a",
    ):
        (site.host.run_dir / name).touch()
    assert Direct(site.host.hostlib_config).list() == {1, 22, 3}
