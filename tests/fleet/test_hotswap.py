"""`fab hotswap` over a whole fleet, with visitors on every host."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.fleet import Fleet
from tests.fleet.hosts import wait_until
from tests.fleet.swaphost import ROOT, SwapHost, set_up
from tests.support.load import Visitors
from tests.support.runtimes import RUNTIMES

FLUP = RUNTIMES["flup"]

pytestmark = pytest.mark.fleet(3, suites=("bookworm", "trixie"))


@pytest.fixture(scope="module")
def hosts(fleet: Fleet) -> list[SwapHost]:
    """Serving, and with an old generation that stays warm for a while after a swap."""
    set_up(fleet, FLUP)
    hosts = [SwapHost(host, FLUP) for host in fleet]

    def begin(host: SwapHost) -> None:
        host.release("r1", soak_time=600)
        assert host.swap("--release", "r1").code == 0

    fleet.in_parallel(begin, hosts)
    return hosts


@contextlib.contextmanager
def visited(hosts: list[SwapHost]) -> Iterator[list[Visitors]]:
    """Visitors on every host; nobody may have lost anything at the end."""
    with ExitStack() as stack:
        yield (visitors := [stack.enter_context(host.visitors(3, interval=0.04)) for host in hosts])
    assert [each.lost for each in visitors] == [[]] * len(hosts)


def generations(hosts: list[SwapHost]) -> list[int]:
    return [host.generation() for host in hosts]


def test_a_swap_of_one_host_after_the_other_loses_nobody_and_back_is_a_rename(
    fleet: Fleet, hosts: list[SwapHost]
) -> None:
    before = generations(hosts)
    with visited(hosts) as visitors:
        fleet.operator.fab("hotswap", "--batch", "1")
        for each, old in zip(visitors, before, strict=True):
            wait_until(lambda: each.generations[str(old + 1)], lambda: "a visitor of the new one")  # noqa: B023
        assert generations(hosts) == [old + 1 for old in before]
        fleet.operator.fab("hotswap", "--back")
    assert generations(hosts) == before


def test_the_first_bad_host_stops_the_roll_and_serves_on_what_it_served(
    fleet: Fleet, hosts: list[SwapHost]
) -> None:
    before = generations(hosts)
    hosts[1].host.run(["mv", f"{ROOT}/current/app.py", f"{ROOT}/current/app.py.gone"])
    with visited(hosts):
        ran = fleet.operator.fab("hotswap", "--batch", "1", code=3)
    assert "web2: swap: generation" in ran.stderr
    assert "can't open file" in ran.stderr
    assert "swapped already: web1; every other host is up on what it ran before" in ran.stderr
    assert generations(hosts)[0] > before[0]
    assert generations(hosts)[1:] == before[1:]
    hosts[1].host.run(["mv", f"{ROOT}/current/app.py.gone", f"{ROOT}/current/app.py"])


def test_a_reboot_under_load_brings_the_generation_back_that_served(
    fleet: Fleet, hosts: list[SwapHost]
) -> None:
    """Visitors meet a host that is off, but never a web server without its application."""
    host = hosts[0]
    served = host.generation()
    with host.visitors() as visitors:
        wait_until(lambda: visitors.answered > 50, lambda: "visitors")
        host.host.reboot()
        answered = visitors.answered
        wait_until(lambda: visitors.answered > answered + 50, lambda: "visitors after the reboot")
    assert set(visitors.generations) == {str(served)}
    assert visitors.seen["unmarked_5xx"] == 0, visitors.lost
