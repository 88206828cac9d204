"""From two fresh Debian hosts to a site that was deployed, taken down, brought back and rebooted.

The commands are those that the README tells a new user, and they run in its order.
"""

from __future__ import annotations

import json
import re
import subprocess
from typing import Any

import pytest

from tests.fleet import Fleet, Host, sample
from tests.fleet.hosts import wait_until

# tests/fleet/test_documents.py has a new user's first steps, and other modules prove each of these.
pytestmark = [pytest.mark.fleet(2, suites=("bookworm", "trixie")), pytest.mark.exhaustive]


class Site:
    """The operator's project on a fleet, and what its visitors see."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet, self.fab = fleet, fleet.operator.fab

    def status(self, code: int = 0) -> dict[str, dict[str, Any]]:
        """`fab status --json`, by host."""
        hosts: dict[str, dict[str, Any]] = json.loads(self.fab("status", "--json", code=code).stdout)["hosts"]
        return hosts

    def seen(self) -> list[int]:
        """What a visitor gets from each host."""
        return [host.get("/").status for host in self.fleet]

    def in_maintenance(self) -> list[bool]:
        return [host.get("/").in_maintenance for host in self.fleet]


@pytest.fixture(scope="module")
def site(fleet: Fleet) -> Site:
    """A project as `init` writes it, committed, on hosts where nothing was set up yet."""
    sample.begin(fleet)
    return Site(fleet)


def tree(host: Host) -> str:
    """All that a set-up could touch on a host: names, kinds, owners, modes, contents."""
    listing = host.run(
        "find /etc /srv /usr/local -newer /etc/hostname -printf '%p %y %u:%g %m %l\\n' | sort;"
        " find /etc /srv /usr/local -type f -newer /etc/hostname -exec sha256sum {} + | sort"
    )
    return listing.stdout


def test_a_plan_shows_what_would_change_and_changes_nothing(site: Site) -> None:
    before = [tree(host) for host in site.fleet]
    said = site.fab("setup", "--as-user", "root", "--plan").stdout
    assert said.count("create: /etc/sudoers.d/deploytools-guestbook") == 2
    assert [tree(host) for host in site.fleet] == before


def test_the_set_up_needs_root_and_says_how(site: Site) -> None:
    refused = site.fab("setup", "--yes", code=3).stderr
    assert "fab setup --as-user root" in refused


def test_a_set_up_host_passes_doctor_and_a_second_set_up_changes_nothing(site: Site) -> None:
    site.fab("setup", "--as-user", "root", "--yes")
    before = [tree(host) for host in site.fleet]
    again = site.fab("setup", "--as-user", "root", "--yes").stdout
    assert again.count("nothing to change") == 2
    assert [tree(host) for host in site.fleet] == before
    site.fab("doctor")


def test_a_host_that_nobody_reaches_stops_doctor_and_status_with_what_to_look_at(site: Site) -> None:
    site.fleet["web2"].link_down()
    try:
        doctor = site.fab("doctor", code=6, FABRIC_DEPLOY_FLEET_CONNECT_TIMEOUT="3").stdout
        assert re.search(r"error: .*10\.77\..*\n  on: web2\n  remedy: .*(firewall|host is up)", doctor)
        status = site.fab("status", code=6, FABRIC_DEPLOY_FLEET_CONNECT_TIMEOUT="3").stderr
        assert re.search(r"web2: .*10\.77\..*\n.*\n  next: .*(firewall|host is up)", status)
    finally:
        site.fleet["web2"].link_up()


def test_the_deploy_user_may_become_root_for_the_toolkit_s_programs_only(site: Site) -> None:
    for host in site.fleet:
        host.run(["visudo", "--check"])
        host.run(["sudo", "-n", "/etc/lighttpd/up", "--help"], user="deploy")
        refused = host.run(["sudo", "-n", "/bin/sh", "-c", "true"], user="deploy", check=False)
        assert refused.returncode != 0


def test_the_first_deploy_serves_on_every_host(site: Site) -> None:
    site.fab("deploy", "--yes")
    releases = {host["release"] for host in site.status().values()}
    assert len(releases) == 1
    for host in site.fleet:
        assert host.get("/").text == f"release {next(iter(releases))} on {host.name}"
        processes = host.run("ps -o user= -C php-cgi").stdout.split()
        assert set(processes) == {"www-data"}


def test_down_is_seen_by_visitors_of_every_host_and_up_ends_it(site: Site) -> None:
    site.fab("maint-down", "--reason", "moving the database", "--until", "+30m")
    assert site.in_maintenance() == [True, True]
    assert {host["maintenance"]["reason"] for host in site.status().values()} == {"moving the database"}
    site.fab("maint-down")
    assert site.in_maintenance() == [True, True]
    site.fab("maint-up")
    assert site.seen() == [200, 200]
    site.fab("maint-up")


def test_the_two_scripts_do_the_same_by_hand_over_a_plain_ssh(site: Site) -> None:
    for script, expected in (("down", True), ("up", False)):
        for host in site.fleet:
            argv = site.fleet.ssh(host, f"/etc/lighttpd/{script}")
            subprocess.run(argv, check=True, capture_output=True, timeout=60)
        assert site.in_maintenance() == [expected, expected]


def test_a_later_release_is_deployed_without_downtime_and_a_swap_gives_a_new_process(site: Site) -> None:
    before = site.status()
    page = site.fleet.operator.directory / "public/index.php"
    page.write_text(page.read_text().replace("release", "later"))
    sample.commit(site.fleet, "Another page")
    site.fab("deploy", "--yes")
    assert [host.get("/").text.split()[0] for host in site.fleet] == ["later", "later"]
    between = site.status()
    assert all(between[name]["release"] != before[name]["release"] for name in before)
    site.fab("hotswap")
    after = site.status()
    assert all(after[name]["release"] == between[name]["release"] for name in after)
    assert all(after[name]["serving"]["pid"] != between[name]["serving"]["pid"] for name in after)
    assert site.seen() == [200, 200]


def test_after_a_reboot_and_after_a_power_cut_the_site_is_back_by_itself(site: Site) -> None:
    web1, web2 = site.fleet
    before = site.status()
    web1.reboot()
    web2.power_off()
    web2.boot()
    wait_until(lambda: site.seen() == [200, 200], lambda: f"the site: {site.seen()}")
    assert [host["release"] for host in site.status().values()] == [
        host["release"] for host in before.values()
    ]


def test_a_window_outlives_a_reboot_and_a_power_cut(site: Site) -> None:
    web1, web2 = site.fleet
    site.fab("maint-down")
    web1.reboot()
    web2.power_off()
    web2.boot()
    assert site.in_maintenance() == [True, True]
    for host in site.fleet:
        host.run(["systemctl", "start", "deploytools-guestbook.service"])
    site.fab("maint-up")
    assert site.seen() == [200, 200]


def test_nothing_of_systemd_failed_in_all_that(site: Site) -> None:
    for host in site.fleet:
        assert host.run(["systemctl", "list-units", "--failed", "--plain", "--no-legend"]).stdout == ""
