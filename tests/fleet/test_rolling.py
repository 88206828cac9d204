"""Releases that roll over a fleet: what goes wrong on one host, and where all of them end.

Every test leaves the hosts alike, or brings them to that by the next deploy.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import repeat
from pathlib import Path

import pytest

from tests.fleet import Fleet, Host, sample
from tests.fleet.hosts import wait_until
from tests.fleet.swaphost import ROOT, TOOLS
from tests.support.load import Ask, Clients
from tests.support.webhost import Reply

pytestmark = pytest.mark.fleet(3, suites=("bookworm", "trixie"))

# What a page is like decides who gets a good answer: each is the second line of the page.
GOOD = ""
SICK_ON_WEB2 = "if (gethostname() === 'web2') { http_response_code(500); }\n"
# Its health check asks for another page.
SICK_FOR_BUYERS = (
    "if (gethostname() === 'web2' && $_SERVER['QUERY_STRING'] === 'buy') { http_response_code(500); }\n"
)
SLOW = "/run/slow"  # gone after a boot
SLOW_ON_WEB2 = f"if (gethostname() === 'web2' && file_exists('{SLOW}')) {{ sleep(600); }}\n"

# What the operator's computer takes for now: each second of a real year is one of 2001.
YEARS_AGO = """
import datetime

class Then(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return super().now(tz).replace(year=2001)

datetime.datetime = Then
"""


class Site:
    """The operator's project, and what visitors of the three hosts see."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet, self.fab, self.hosts = fleet, fleet.operator.fab, fleet.hosts
        self.changes = 0

    def commit(self, change: str = GOOD) -> None:
        self.changes += 1
        page = sample.PAGE.replace("<?php ", f"<?php // {self.changes}\n{change}")
        (self.fleet.operator.directory / "public/index.php").write_text(page)
        sample.commit(self.fleet, f"Change {self.changes}")

    def deploy(self, *options: str, code: int = 0, change: str = GOOD, **variables: str) -> str:
        """Deploy a change; what it said."""
        self.commit(change)
        patience = {"FABRIC_DEPLOY_APP_START_TIMEOUT": "5"} if code else {}
        done = self.fab("deploy", "--yes", *options, code=code, **patience, **variables)
        return done.stdout + done.stderr

    def releases(self, code: int = 0) -> list[str | None]:
        """What each host serves, as `fab status` tells it."""
        told = json.loads(self.fab("status", "--json", code=code).stdout)["hosts"]
        return [told[host.name]["release"] for host in self.hosts]

    def seen(self) -> list[str]:
        """What each host answers a visitor."""
        answers = [host.get("/") for host in self.hosts]
        return [each.text if each.status == 200 else str(each.status) for each in answers]

    def on_hosts(self) -> dict[str, set[str]]:
        """The releases that are on each host."""
        listed = json.loads(self.fab("releases", "--json").stdout)
        return {host: {item["id"] for item in items} for host, items in listed.items()}


@contextlib.contextmanager
def visited(*hosts: Host) -> Iterator[None]:
    """Visitors on these hosts, none of whom may lose anything."""

    def kind(reply: Reply) -> str:
        return "app" if reply.status == 200 and reply.text.startswith("release ") else str(reply.status)

    def asks(_: int) -> Iterator[Ask]:
        while True:
            yield Ask(kind)

    with ExitStack() as stack:
        crowd = [
            stack.enter_context(Clients((host.address, 80), asks, count=2, interval=0.05)) for host in hosts
        ]
        yield
    assert [each.details for each in crowd] == [[]] * len(hosts)


@pytest.mark.exhaustive
def test_of_five_hosts_the_second_fails_and_all_are_on_what_they_ran_before(fleet_possible: None) -> None:
    with Fleet(5) as five:
        sample.begin(five)
        five.operator.fab("setup", "--as-user", "root", "--yes", timeout=300)
        site = Site(five)
        site.deploy()
        before, releases = site.seen(), site.releases()

        with visited(*site.hosts):
            said = site.deploy(code=3, change=SICK_ON_WEB2)

        assert "web2" in said
        assert "the site is up on what it ran before" in said
        assert site.seen() == before
        assert site.releases() == releases
        assert set(map(len, site.on_hosts().values())) == {1}, "the failed release is nowhere"


@pytest.fixture(scope="module")
def site(fleet: Fleet) -> Site:
    """Deployed on web1 and web2; web3 is new, and nothing is on it but what set-up puts there."""
    sample.begin(fleet)
    fleet.operator.fab("setup", "--as-user", "root", "--yes")
    made = Site(fleet)
    made.deploy("--exclude", "web3")
    return made


@pytest.fixture
def whole(site: Site) -> Site:
    """All three hosts on one release, whichever tests ran before."""
    if site.seen()[2] == "404":
        site.deploy()
    return site


def test_where_the_second_host_fails_all_are_on_what_they_ran_before_and_a_new_one_on_nothing(
    site: Site,
) -> None:
    web1, web2, _ = site.hosts
    before, (release, _, nothing) = site.seen(), site.releases(code=3)

    with visited(web1, web2):
        said = site.deploy("--batch", "2", code=3, change=SICK_ON_WEB2)

    assert "web2" in said
    assert "the site is up on what it ran before" in said
    assert site.seen() == before
    assert site.releases(code=3) == [release, release, nothing]
    assert nothing is None
    assert before[2] == "404", "web3 serves nothing, as before"
    kept = site.on_hosts()
    assert kept["web3"] == set()
    assert kept["web1"] == kept["web2"], "the failed release is nowhere"


@pytest.mark.exhaustive
def test_told_not_to_go_back_it_waits_and_an_abort_swaps_back(site: Site) -> None:
    web1, web2, _ = site.hosts
    before, releases = site.seen(), site.releases(code=3)

    with visited(web1, web2):
        said = site.deploy("--no-rollback", code=4, change=SICK_ON_WEB2)
        held = site.seen()
        site.fab("deploy", "--abort")

    assert ": web1; " in said
    assert held[0] != before[0]
    assert held[1:] == before[1:]
    assert site.seen() == before
    assert site.releases(code=3) == releases


def test_a_deploy_to_a_new_host_alone_brings_it_to_the_very_release_of_the_others(site: Site) -> None:
    told = site.fab("status", code=3)
    assert "release: " in told.stderr
    assert "fab deploy" in told.stderr
    before = site.seen()[:2]
    release = site.releases(code=3)[0]

    site.fab("-H", "web3", "deploy", "--yes", "--ref", str(release).rpartition("-")[2])

    assert site.releases() == [release] * 3, "the hosts agree"
    assert site.seen()[:2] == before
    items = json.loads(site.fab("releases", "--json").stdout)
    assert {item["state"] for each in items.values() for item in each} == {"deployed"}


def test_of_two_deploys_at_once_one_is_told_of_the_other_and_all_hosts_run_what_one_of_them_ships(
    whole: Site,
) -> None:
    whole.commit()
    with visited(*whole.hosts):
        both = [whole.fleet.operator.start("deploy", "--yes", "--batch", "50%") for _ in range(2)]
        told = ["".join(each.communicate(timeout=110)) for each in both]

    assert sorted(each.returncode for each in both) == [0, 5], told
    assert len(set(whole.releases())) == 1
    assert [text.rpartition(" ")[2] for text in whole.seen()] == ["web1", "web2", "web3"]


def test_what_a_hand_has_removed_is_told_with_the_command_that_mends_it_and_the_site_stays(
    whole: Site,
) -> None:
    web1, web2, _ = whole.hosts
    current = str(whole.releases()[0])
    before = whole.seen()
    web1.run(["rm", f"{ROOT}/current"])
    web2.run(["mv", f"{ROOT}/releases/{current}", "/root/gone"])

    told = whole.fab("status").stdout
    assert "current is missing, and generation" in told
    assert f"{current} is gone, and generation" in told
    refused = whole.fab("hotswap", code=3).stderr
    assert f"there is no release {current}" in refused
    assert web1.run(["readlink", f"{ROOT}/current"]).stdout.strip() == f"releases/{current}"
    assert web1.get("/").text == before[0]

    whole.deploy()
    web2.run(["mv", "/root/gone", f"{ROOT}/releases/{current}"])

    assert len(set(whole.releases())) == 1
    assert [text.split()[1] for text in whole.seen()] == [str(whole.releases()[0])] * 3
    assert web1.run([f"{TOOLS}/status"]).stdout.count("problem") == 0


@pytest.mark.exhaustive
def test_a_host_that_dies_in_its_swap_and_comes_back_is_on_what_the_others_are_on(whole: Site) -> None:
    """It is brought along; or all went back, where it could still say that it fails before it died."""
    web2 = whole.hosts[1]
    before = whole.releases()[0]
    web2.write(SLOW, "")  # its new process answers nobody
    whole.commit(SLOW_ON_WEB2)
    run = whole.fleet.operator.start("deploy", "--yes")
    wait_until(lambda: "starting" in web2.run(f"cat {ROOT}/run/app.*.json").stdout, lambda: "its swap")
    web2.power_off()
    web2.boot()
    told = "".join(run.communicate(timeout=150))

    assert run.returncode in (0, 3, 6), told  # 6: it was still away when all were asked once more
    wait_until(lambda: all(text.startswith("release ") for text in whole.seen()), lambda: f"the site: {told}")
    (release,) = set(whole.releases())
    assert (release == before) is (run.returncode != 0), told


def test_a_host_that_dies_between_activation_and_swap_serves_what_it_served_and_says_so(whole: Site) -> None:
    """`current` leads to the other release already, and the socket doesn't yet."""
    web2 = whole.hosts[1]
    current = str(whole.releases()[0])
    before = whole.seen()[1]
    other = next(iter(whole.on_hosts()["web2"] - {current}))
    swap = [f"{TOOLS}/swap", "--release"]
    web2.run(["strace", "-f", "-qq", "-o", "/run/renames", "-e", "trace=rename", *swap, other])
    web2.run([*swap, current])
    renames = [line for line in web2.read("/run/renames").splitlines() if " rename(" in line]
    flip = next(line for line in renames if line.endswith('/app.sock") = 0'))
    ours = [line for line in renames if line.split()[0] == flip.split()[0]]  # strace counts by process
    serves = web2.run(["readlink", f"{ROOT}/run/app.sock"]).stdout.strip()

    assert web2.power_off_before([*swap, other], "rename", nth=1 + ours.index(flip))
    disk = web2.root / ROOT[1:]
    assert os.readlink(disk / "current") == f"releases/{other}", "activated"
    assert os.readlink(disk / "run/app.sock") == serves, "and not swapped"
    web2.boot()

    wait_until(lambda: web2.get("/").status == 200, lambda: web2.run([f"{TOOLS}/status"]).stdout)
    assert whole.seen()[1] == before, "no visitor has met the other release"
    assert web2.run(["readlink", f"{ROOT}/current"]).stdout.strip() == f"releases/{current}"
    assert whole.releases() == [current] * 3


def test_a_disk_that_is_full_when_a_release_is_activated_brings_every_host_back(whole: Site) -> None:
    """In a rollback, which ships nothing: so there was room for the release itself."""
    before = whole.seen()
    web2 = whole.hosts[1]
    web2.fill_disk()
    try:
        with visited(*whole.hosts):
            said = whole.fab("rollback", "--yes", code=3).stderr
    finally:
        web2.free_disk()

    assert "No space left on device" in said
    assert "the site is up on what it ran before" in said
    assert whole.seen() == before


@pytest.mark.exhaustive
def test_errors_that_only_visitors_meet_on_the_second_host_bring_all_hosts_back(whole: Site) -> None:
    """They begin while it is watched, and no health check sees them."""
    for host in whole.hosts:
        host.run("lighttpd-enable-mod accesslog; systemctl restart lighttpd")
        host.wait_until_reachable()
    before = whole.seen()
    asks = Ask(lambda reply: str(reply.status), path="/?buy")
    with ExitStack() as stack:
        buyers = [
            stack.enter_context(Clients((host.address, 80), lambda _: repeat(asks), count=2, interval=0.05))
            for host in whole.hosts
        ]
        said = whole.deploy("--batch", "2", code=3, change=SICK_FOR_BUYERS, FABRIC_DEPLOY_ROLLING_BAKE="8")

    assert "was taken back: since it serves" in said
    assert "were 5xx" in said
    assert "the site is up on what it ran before" in said
    assert whole.seen() == before
    statuses = [set(each.seen) for each in buyers]
    assert (statuses[0], "500" in statuses[1], statuses[2]) == ({"200"}, True, {"200"})


@pytest.mark.exhaustive
def test_a_rollback_is_on_every_host_and_one_to_what_is_gone_says_what_there_is(whole: Site) -> None:
    current = whole.releases()[0]
    with visited(*whole.hosts):
        whole.fab("rollback", "--yes")
        (back,) = set(whole.releases())
        assert back != current
        whole.fab("rollback", "--to", str(current), "--yes")
        whole.hosts[1].run(["rm", "-r", f"{ROOT}/releases/{back}"])
        refused = whole.fab("rollback", "--to", str(back), "--yes", code=2).stderr

    assert f"{back} is not on every host" in refused
    assert "not on web2" in refused
    assert "fab deploy --ref " in refused
    assert set(whole.releases()) == {current}


@pytest.mark.exhaustive
def test_a_clock_that_jumped_back_changes_neither_what_is_kept_nor_where_a_rollback_goes(
    whole: Site, tmp_path: Path
) -> None:
    """The operator's, whose releases are named by it: by their names the newest are the oldest."""
    current = str(whole.releases()[0])
    (tmp_path / "sitecustomize.py").write_text(YEARS_AGO)
    away = {"PYTHONPATH": str(tmp_path), "FABRIC_DEPLOY_KEEP_RELEASES": "2"}
    for _ in range(3):
        whole.deploy(**away)
    shipped = str(whole.releases()[0])

    assert shipped.startswith("2001")
    kept = whole.on_hosts()["web1"]
    assert len(kept) == 2, kept
    assert current not in kept
    whole.fab("rollback", "--yes", **away)
    (back,) = kept - {shipped}
    assert whole.releases() == [back] * 3

    gone = whole.fab("rollback", "--to", current, "--yes", code=2).stderr
    assert f"{current} is not on the hosts: pruned, or never there" in gone
    assert whole.releases() == [back] * 3
