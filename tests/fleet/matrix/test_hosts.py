"""A host reboots, loses its power, its link, a server or its last free byte while a window is under way."""

from __future__ import annotations

import time

import pytest

from tests.fleet.hosts import wait_until
from tests.fleet.matrix import application
from tests.fleet.matrix.application import PACKAGES
from tests.fleet.matrix.invariants import NEW, OLD, public
from tests.fleet.matrix.site import Site
from tests.fleet.matrix.trials import check

pytestmark = pytest.mark.fleet(2, packages=PACKAGES)


def test_the_public_notices_a_mixture_and_a_host_that_refuses_it(site: Site) -> None:
    site.restore()
    began = time.time()
    site.web1.run(["systemctl", "stop", "lighttpd"])
    application.ask(site.web1, "insert into migrations values ('0002')")

    def noticed() -> bool:
        found = public(site.observer.since(began), ())
        return any("another schema" in line for line in found) and any("refused" in line for line in found)

    wait_until(noticed, lambda: f"the public to notice: {site.observer.since(began)[-4:]}")
    site.web1.run(["systemctl", "start", "lighttpd"])


@pytest.mark.parametrize(
    ("trial", "end"),
    [
        pytest.param("reboot send:lock web1 resume", NEW, marks=pytest.mark.exhaustive),
        pytest.param("reboot wrote:lock web1 resume", NEW, marks=pytest.mark.exhaustive),
        ("reboot send:stage web2 resume", NEW),
        pytest.param("reboot send:maintenance-on web1 resume", NEW, marks=pytest.mark.exhaustive),
        ("power first:maintenance-on web2 resume", NEW),
        pytest.param("reboot send:drain web2 resume", NEW, marks=pytest.mark.exhaustive),
        pytest.param("reboot send:migrate web1 resume", NEW, marks=pytest.mark.exhaustive),
        ("power inside web1 resume", OLD),
        ("reboot send:swap web1 resume", NEW),
        pytest.param("reboot send:verify web2 resume", NEW, marks=pytest.mark.exhaustive),
        ("power send:maintenance-off web1 resume", NEW),
        pytest.param("reboot send:unlock web1 resume", NEW, marks=pytest.mark.exhaustive),
        pytest.param("reboot send:undo-maintenance-on web2 resume", OLD, marks=pytest.mark.exhaustive),
    ],
)
def test_a_host_that_boots_in_the_window_is_brought_to_the_same_end(site: Site, trial: str, end: str) -> None:
    check(site, trial, end)


@pytest.mark.parametrize(
    ("trial", "end"),
    [
        ("link send:maintenance-on web1 resume", NEW),
        ("link inside web1 resume", NEW),
        pytest.param("link send:swap web2 resume", NEW, marks=pytest.mark.exhaustive),
        ("sshd inside web1 resume", NEW),
        ("lighttpd send:maintenance-on web1 resume", NEW),
        pytest.param("lighttpd send:maintenance-off web2 resume", NEW, marks=pytest.mark.exhaustive),
    ],
)
def test_a_lost_link_or_server_is_asked_again(site: Site, trial: str, end: str) -> None:
    check(site, trial, end)


@pytest.mark.parametrize(
    ("trial", "ends"),
    [
        # Whether the record of the way back finds room is chance: the journal's last page may have some.
        ("disk send:migrate web1 resume", (OLD, NEW)),
        ("disk send:swap web2 resume", (NEW,)),
    ],
)
def test_a_full_disk_is_undone_or_waited_for(site: Site, trial: str, ends: tuple[str, ...]) -> None:
    check(site, trial, *ends)
