"""Every runtime under both managers on Debian hosts: swapped under load, from one to the other as well."""

from __future__ import annotations

import itertools

import pytest

from tests.fleet import Fleet, Host
from tests.fleet.hosts import wait_until
from tests.fleet.swaphost import PACKAGES, SwapHost, set_up
from tests.support.runtimes import RUNTIMES

pytestmark = pytest.mark.fleet(2, suites=("bookworm", "trixie"), packages=PACKAGES)

WAYS = list(itertools.product(("systemd", "direct"), ("fd0", "path")))


# Each of them is swapped by tests/host/test_swap_runtimes.py, too.
EVERYDAY = ("php-cgi",)


@pytest.mark.parametrize(
    "name",
    [name if name in EVERYDAY else pytest.param(name, marks=pytest.mark.exhaustive) for name in RUNTIMES],
)
def test_swaps_under_load_lose_no_request_under_either_manager(fleet: Fleet, name: str) -> None:
    runtime = RUNTIMES[name]
    set_up(fleet, runtime)

    def swapped(host: Host) -> None:
        there = SwapHost(host, runtime)
        releases = [f"{name}-{manager}-{listen}" for manager, listen in WAYS]
        for release, (manager, listen) in zip(releases, WAYS, strict=True):
            there.release(release, listen=listen, manager=manager)
        assert there.swap("--release", releases[-1]).code == 0
        with there.visitors() as visitors:
            for release in releases:
                ran = there.swap("--release", release)
                assert ran.code == 0, (host, ran)
                served = str(ran.json["generation"])
                wait_until(lambda: visitors.generations[served], lambda: f"a visitor of {release}")  # noqa: B023
        assert visitors.lost == []

    fleet.in_parallel(swapped)
