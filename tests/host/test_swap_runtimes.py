"""`swap` under load with the runtimes that people run, none of which knows anything of it."""

from __future__ import annotations

import os
import pwd
import re
from pathlib import Path

import pytest

from tests.support.runtimes import HERE, RUNTIMES
from tests.support.swapsite import Site, Visitors
from tests.support.webhost import wait_until

pytestmark = pytest.mark.timeout(600)  # a busy machine is no failure

REPOSITORY = Path(__file__).parents[2]
# The worker processes of lighttpd; 0 is one process without a supervisor.
WORKERS = {"php-cgi": 2, "php-fpm": 4, "perl": 0, "c": 4, "flup": 2, "uwsgi": 0}


@pytest.mark.parametrize("name", RUNTIMES)
def test_swaps_between_both_kinds_of_listener_lose_no_request(name: str) -> None:
    with Site(runtime=RUNTIMES[name], max_workers=WORKERS[name], unprivileged=True) as site:
        site.release("inherits", listen="fd0")
        site.release("binds", listen="path")
        ran = site.swap("--release", "binds")
        assert ran.code == 0, (ran, site.log())

        with Visitors(site) as visitors:
            for number in range(4):
                release = ("inherits", "binds")[number % 2]
                ran = site.swap("--release", release)
                assert ran.code == 0, (ran, site.log())
                assert site.get().text == f"hello from {release}"
                served = str(ran.json["generation"])
                wait_until(lambda: visitors.generations[served], timeout=60)  # noqa: B023

        assert visitors.lost == []
        assert visitors.requests == visitors.answered > 100
        site.assert_only(site.serving())
        if os.geteuid() == 0:
            assert {os.stat(f"/proc/{pid}").st_uid for pid in site.processes()} == {account()}


@pytest.mark.parametrize("name", RUNTIMES)
def test_one_that_crashed_as_a_whole_is_started_again_and_replaced_by_a_swap_later(name: str) -> None:
    with Site(runtime=RUNTIMES[name], unprivileged=True) as site:
        old = site.first()
        assert site.get("/crash").status >= 500

        # Whoever comes now waits for it, once lighttpd tries again.
        wait_until(lambda: site.get().status == 200, what="it answers again")
        assert site.generation() == old.generation
        assert site.host.run("status").json["serving"]["restarts"] == 1

        assert site.swap().code == 0
        assert site.generation() == old.generation + 1
        site.assert_only(site.serving())


def account() -> int:
    return pwd.getpwnam("www-data").pw_uid


@pytest.mark.parametrize("name", RUNTIMES)
def test_the_commands_are_those_that_the_documents_recommend(name: str) -> None:
    told = " ".join((REPOSITORY / "docs" / "runtimes.md").read_text().split())
    for command in RUNTIMES[name].commands.values():
        assert re.sub(r"php-fpm\d[\d.]*", "php-fpm8.2", command) + " " in told
    for variable, value in RUNTIMES[name].env.items():
        assert f'{variable}: "{value}"' in told


def test_the_configuration_of_php_fpm_is_the_one_that_the_documents_recommend() -> None:
    told = (REPOSITORY / "docs" / "runtimes.md").read_text()
    assert f"```ini\n{(HERE / 'php-fpm.conf').read_text()}```" in told
