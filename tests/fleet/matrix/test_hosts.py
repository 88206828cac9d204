"""A host reboots, loses its power, its link, a server or its last free byte while a window is under way."""

from __future__ import annotations

import pytest

from tests.fleet.matrix.application import PACKAGES
from tests.fleet.matrix.invariants import NEW, OLD
from tests.fleet.matrix.site import Site
from tests.fleet.matrix.trials import check

pytestmark = pytest.mark.fleet(2, packages=PACKAGES)


@pytest.mark.parametrize(
    ("trial", "end"),
    [
        ("reboot send:stage web2 resume", NEW),
        ("power first:maintenance-on web2 resume", NEW),
        ("power inside web1 resume", OLD),
        ("reboot send:swap web1 resume", NEW),
        ("power send:maintenance-off web1 resume", NEW),
    ],
)
def test_a_host_that_boots_in_the_window_is_brought_to_the_same_end(site: Site, trial: str, end: str) -> None:
    check(site, trial, end)


@pytest.mark.parametrize(
    ("trial", "end"),
    [
        ("link send:maintenance-on web1 resume", NEW),
        ("link inside web1 resume", NEW),
        ("link send:swap web2 resume", NEW),
        ("sshd inside web1 resume", NEW),
        ("lighttpd send:maintenance-on web1 resume", NEW),
        ("lighttpd send:maintenance-off web2 resume", NEW),
    ],
)
def test_a_lost_link_or_server_is_asked_again(site: Site, trial: str, end: str) -> None:
    check(site, trial, end)


@pytest.mark.parametrize(
    ("trial", "end"),
    [
        ("disk send:migrate web1 resume", OLD),
        ("disk send:swap web2 resume", NEW),
    ],
)
def test_a_full_disk_is_undone_or_waited_for(site: Site, trial: str, end: str) -> None:
    check(site, trial, end)
