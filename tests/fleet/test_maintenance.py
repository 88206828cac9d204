"""Maintenance of a whole fleet: down is a fact on every host, or on none, and one is told why."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fleet import Fleet, Host, sample
from tests.fleet.setuphost import serve
from tests.support.operators import Operator
from tests.support.webhost import Reply, wait_until

pytestmark = [pytest.mark.fleet(3, suites=("bookworm", "trixie")), pytest.mark.timeout(900)]

SWITCH = "/etc/lighttpd"
READ_BYPASS = "sed -n 's/^local bypass = //p' /etc/lighttpd/maint.lua"
STATUS = "/usr/local/lib/deploytools/guestbook/status"
FORUM = "forum.example.com"
SNIPPET = "/etc/lighttpd/conf-available/50-deploytools-guestbook.conf"


@pytest.fixture(scope="module")
def deployed(fleet: Fleet) -> Fleet:
    """Hosts that serve an application."""
    sample.begin(fleet)
    fleet.operator.fab("setup", "--as-user", "root", "--yes")
    fleet.in_parallel(lambda host: serve(host, page=sample.PAGE))
    return fleet


@pytest.fixture
def site(deployed: Fleet) -> Iterator[Fleet]:
    """The fleet, up; and up again afterwards, whatever a test that failed has left."""
    yield deployed
    deployed.in_parallel(mend)


def mend(host: Host) -> None:
    """Whatever was done to a host, it serves again. AssertionError with its name where that can't be had."""
    with contextlib.suppress(OSError):
        if serves(host):
            return
    if not host.is_running:
        host.boot()
    host.link_up()
    host.free_disk()
    host.run("umount /etc/lighttpd /srv/guestbook/state 2>/dev/null || true")
    host.run(
        "systemctl kill --signal=CONT lighttpd; systemctl reset-failed lighttpd; systemctl start lighttpd"
    )
    wait_until(lambda: answered(host), what=f"lighttpd of {host.name} to answer", timeout=30)
    told = json.loads(host.run([STATUS, "--json"]).stdout)["maintenance"]
    if told["state"] != "up":
        host.run([f"{SWITCH}/up", "--force", told["run_id"] or told["by"]])
    wait_until(lambda: serves(host), what=f"{host.name} to serve", timeout=30)


def serves(host: Host) -> bool:
    return host.get("/").text.endswith(f" on {host.name}")


def is_down(host: Host) -> bool:
    reply: Reply = host.get("/")
    return reply.in_maintenance and reply.text.rstrip().endswith("</html>")


def answered(host: Host) -> bool:
    with contextlib.suppress(OSError):
        return host.get("/").status > 0
    return False


def begin(host: Host) -> None:
    """Start its lighttpd, and wait for it."""
    host.run(["systemctl", "start", "lighttpd"])
    wait_until(lambda: answered(host), what=f"lighttpd of {host.name} to answer", timeout=30)


def everywhere(fleet: Fleet, condition: Any) -> bool:
    return all(fleet.in_parallel(condition))


def fab(fleet: Fleet, *arguments: str, code: int = 0, who: str = "ann", **variables: str) -> Any:
    """Ann types it, or somebody else."""
    return fleet.operator.fab(*arguments, code=code, timeout=200, LOGNAME=who, **variables)


def status(fleet: Fleet, code: int = 0) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(fab(fleet, "status", "--json", code=code).stdout)
    return told


def by_hand(fleet: Fleet, host: Host, *command: str) -> subprocess.CompletedProcess[str]:
    """As the deploy user, from a plain ssh shell."""
    return subprocess.run(fleet.ssh(host, *command), capture_output=True, text=True, timeout=120, check=False)


def test_a_fleet_goes_down_and_up_for_every_visitor_and_says_so(site: Fleet) -> None:
    ran = fab(site, "maint-down", "--reason", "moving; $(disks) `now`", "--until", "+30m", "--drain")
    assert ran.stderr.count("in maintenance, proved by the only worker") == 3
    assert len(re.findall("nothing (?:is|was) in flight", ran.stderr)) == 3
    assert everywhere(site, is_down)
    for host in site:
        assert 1700 < int(host.get("/").headers["retry-after"]) <= 1800
        assert host.request("HEAD", "/").in_maintenance
    told = status(site)
    assert {host["maintenance"]["reason"] for host in told["hosts"].values()} == {"moving; $(disks) `now`"}
    assert {host["maintenance"]["by"] for host in told["hosts"].values()} == {"ann"}
    assert told["lock"] is None
    assert fab(site, "maint-down").stderr.count("still in maintenance") == 3

    ran = fab(site, "maint-up", who="bob", code=5)
    assert ran.stderr.count("maintenance was put on by ann since 20") >= 3
    assert ": moving; $(disks) `now`" in ran.stderr
    assert "fab maint-up --force ann" in ran.stderr
    assert everywhere(site, is_down), "somebody else's window is not lifted by accident"
    fab(site, "maint-up", "--force", "ann", who="bob")
    assert everywhere(site, serves)
    fab(site, "maint-up")
    assert everywhere(site, serves)


class TestAHostThatCanNotGoDown:
    """All others come up again, and the command says which host it was, and why."""

    def refused(self, fleet: Fleet, host: str, why: str) -> str:
        ran = fab(fleet, "maint-down", code=3)
        said = ran.stderr
        (line,) = [line for line in said.splitlines() if line.strip().startswith(f"{host}: maintenance-on:")]
        assert why in line
        assert "state: the site is up on what it ran before" in said
        assert status_of_the_lock(fleet) is None
        return str(said)

    @pytest.mark.exhaustive
    def test_mod_magnet_is_not_loaded(self, site: Fleet) -> None:
        web3 = site["web3"]
        before = web3.read(SNIPPET)
        web3.write(SNIPPET, before.replace('"mod_magnet"', '"mod_access"'))
        web3.run(["systemctl", "restart", "lighttpd"])
        try:
            said = self.refused(site, "web3", "mod_magnet does not seem to be loaded")
            assert "lighttpd-modules-lua" in said
            assert everywhere(site, serves)
        finally:
            web3.write(SNIPPET, before)
            web3.run(["systemctl", "restart", "lighttpd"])
        fab(site, "maint-down")
        assert everywhere(site, is_down)

    @pytest.mark.exhaustive
    def test_lighttpd_is_stopped(self, site: Fleet) -> None:
        web2 = site["web2"]
        web2.run(["systemctl", "stop", "lighttpd"])
        try:
            said = self.refused(site, "web2", "no process on this host listens at http://127.0.0.1/")
            assert "systemctl start lighttpd" in said
            assert all(serves(host) for host in site if host is not web2)
        finally:
            begin(web2)

    @pytest.mark.exhaustive
    def test_its_disk_can_only_be_read(self, site: Fleet) -> None:
        web2 = site["web2"]
        web2.run("mount --bind /etc/lighttpd /etc/lighttpd && mount -o remount,bind,ro /etc/lighttpd")
        try:
            self.refused(site, "web2", "Read-only file system")
            assert everywhere(site, serves)
        finally:
            web2.run(["umount", "/etc/lighttpd"])

    def test_one_that_was_down_before_stays_down(self, site: Fleet) -> None:
        assert by_hand(site, site["web1"], f"{SWITCH}/down", "--reason", "disk").returncode == 0
        site["web3"].run(["systemctl", "stop", "lighttpd"])
        try:
            said = fab(site, "maint-down", code=3).stderr
        finally:
            begin(site["web3"])
        (line,) = [line for line in said.splitlines() if line.strip().startswith("web3: maintenance-on:")]
        assert "no process on this host listens at http://127.0.0.1/" in line
        assert "systemctl start lighttpd" in said
        assert "as before, with web1 in maintenance" in said.replace("deploy@", "")
        assert [is_down(host) for host in site] == [True, False, False]
        fab(site, "maint-up")


def status_of_the_lock(fleet: Fleet) -> Any:
    ran = fleet.operator.start("status", "--json", LOGNAME="ann")
    out, _ = ran.communicate(timeout=120)
    return json.loads(out)["lock"]


class TestAHostThatCanNotBeReached:
    def test_it_stops_the_command_before_anything_is_changed_unless_it_is_excluded(self, site: Fleet) -> None:
        web3 = site["web3"]
        soon = {"FABRIC_DEPLOY_FLEET_CONNECT_TIMEOUT": "3"}
        web3.link_down()
        try:
            said = fab(site, "maint-down", code=6, **soon).stderr
            assert "web3" in said
            assert "nothing was changed" in said
            assert "--exclude" in said
            assert all(serves(host) for host in site if host is not web3)
            fab(site, "maint-down", "--exclude", "web3")
            assert all(is_down(host) for host in site if host is not web3)
            assert "web3" in fab(site, "maint-up", code=6, **soon).stderr
            assert all(is_down(host) for host in site if host is not web3)
            fab(site, "maint-up", "--exclude", "web3")
        finally:
            web3.link_up()
        assert everywhere(site, serves)

    def test_one_that_is_lost_on_the_way_is_told_as_perhaps_down_and_all_others_come_up(
        self, site: Fleet
    ) -> None:
        web2 = site["web2"]
        fabfile = site.operator.directory / "fabfile.py"
        before = fabfile.read_text()
        # It asks for so many seconds, instead of a minute.
        fabfile.write_text(f"from deploytools import engine\n\nengine.RECONNECT = 1.0\n{before}")
        trusting = site.ssh_config.read_text()  # its last block is that of every host
        site.ssh_config.write_text(f"{trusting}  ServerAliveInterval 1\n  ServerAliveCountMax 5\n")
        # A lighttpd that doesn't answer holds the proof up, until the link is gone.
        web2.run(["systemctl", "kill", "--signal=STOP", "lighttpd"])
        running = site.operator.start("maint-down", LOGNAME="ann", FABRIC_DEPLOY_FLEET_CONNECT_TIMEOUT="3")
        try:
            wait_until(lambda: is_down(site["web1"]), what="the first hosts are down", timeout=60)
            web2.link_down()
            _, said = running.communicate(timeout=500)
        finally:
            web2.link_up()
            web2.run(["systemctl", "kill", "--signal=CONT", "lighttpd"])
            fabfile.write_text(before)
            site.ssh_config.write_text(trusting)
        assert running.returncode == 4, said
        assert "may still be in maintenance: web2" in said.replace("deploy@", "")
        assert "fab maint-up" in said
        assert all(serves(host) for host in site if host is not web2)
        fab(site, "maint-up")
        assert everywhere(site, serves)


class TestByHand:
    """From a plain ssh shell, as the deploy user: same proof, same exit codes, same messages."""

    def test_down_and_up_are_proved_and_the_laptop_sees_it(self, site: Fleet) -> None:
        for host in (site["web1"], site["web2"]):  # bookworm and trixie
            ran = by_hand(site, host, f"{SWITCH}/down", "--reason", "'a broken disk'", "--until", "+1h")
            assert (ran.returncode, ran.stdout, ran.stderr) == (
                0, "in maintenance, proved by the only worker on 0.0.0.0:80, [::]:80\n", "",
            )  # fmt: skip
            assert is_down(host)
        told = fab(site, "status", code=3)
        assert "the hosts disagree" in told.stderr
        assert "a broken disk" in told.stdout
        assert by_hand(site, site["web1"], f"{SWITCH}/down").returncode == 0
        ran = by_hand(site, site["web1"], f"{SWITCH}/up")
        proved = r"up, proved by the only worker on 0\.0\.0\.0:80, \[::\]:80, after \d+ s in maintenance\n"
        assert ran.returncode == 0
        assert re.fullmatch(proved, ran.stdout)
        assert serves(site["web1"])
        fab(site, "maint-up")  # the window on web2 is that of the account which the laptop comes by, too
        assert everywhere(site, serves)

    @pytest.mark.exhaustive
    def test_a_fleets_window_is_not_lifted_on_one_host_by_accident(self, site: Fleet) -> None:
        fab(site, "maint-down", "--reason", "moving the database")
        ran = by_hand(site, site["web1"], f"{SWITCH}/up")
        assert ran.returncode == 5
        assert "maintenance was put on by ann since" in ran.stderr
        assert "next: ask ann; then up --force ann" in ran.stderr
        assert is_down(site["web1"])
        assert by_hand(site, site["web1"], f"{SWITCH}/up", "--force", "ann").returncode == 0
        assert [is_down(host) for host in site] == [False, True, True]

    @pytest.mark.exhaustive
    def test_failures_have_the_same_exit_codes(self, site: Fleet) -> None:
        web1 = site["web1"]
        assert by_hand(site, web1, f"{SWITCH}/down", "--until", "yesterday").returncode == 2
        web1.run(["systemctl", "stop", "lighttpd"])
        try:
            ran = by_hand(site, web1, f"{SWITCH}/down")
        finally:
            begin(web1)
        assert ran.returncode == 3
        assert "where: web1" in ran.stderr
        assert "next: systemctl start lighttpd" in ran.stderr
        assert by_hand(site, web1, f"{SWITCH}/down", "--run-id", "r1").returncode == 0
        assert by_hand(site, web1, f"{SWITCH}/up").returncode == 5
        assert by_hand(site, web1, f"{SWITCH}/up", "--force", "r1").returncode == 0

    @pytest.mark.exhaustive
    def test_nobody_but_root_and_lighttpd_reads_the_token(self, site: Fleet) -> None:
        fab(site, "maint-down")
        for host in site:
            assert host.run("stat -c '%a %U %G' /etc/lighttpd/maint.lua").stdout == "640 root www-data\n"
            assert host.run(["cat", f"{SWITCH}/maint.lua"], user="deploy", check=False).returncode == 1
            told = host.run(f'grep -rl "$({READ_BYPASS})" /etc /srv /var/log /run/systemd || true')
            assert told.stdout.split() == [f"{SWITCH}/maint.lua"]


class TestWhatOutlastsWhat:
    def test_a_window_outlasts_a_restart_of_lighttpd_a_reload_a_log_rotation_and_a_reboot(
        self, site: Fleet
    ) -> None:
        web1, web2 = site["web1"], site["web2"]
        fab(site, "maint-down", "--reason", "new disks")
        for host in (web1, web2):
            for verb in ("restart", "reload"):
                host.run(["systemctl", verb, "lighttpd"])
                wait_until(lambda: answered(host), what="lighttpd answers", timeout=30)  # noqa: B023
                assert is_down(host)
        web1.run(["sh", "-c", "test ! -e /usr/sbin/logrotate || logrotate -f /etc/logrotate.d/lighttpd"])
        assert is_down(web1)
        site.in_parallel(lambda host: host.reboot(), [web1, web2])
        assert everywhere(site, is_down)
        assert {host["maintenance"]["reason"] for host in status(site)["hosts"].values()} == {"new disks"}
        fab(site, "maint-up")
        wait_until(lambda: everywhere(site, serves), what="the application is back", timeout=60)

    @pytest.mark.parametrize(
        ("command", "nth"),
        [
            pytest.param("down", 1, marks=pytest.mark.exhaustive),
            ("down", 2),
            pytest.param("up", 1, marks=pytest.mark.exhaustive),
        ],
    )
    def test_power_that_fails_between_a_temporary_file_and_its_rename(
        self, site: Fleet, command: str, nth: int
    ) -> None:
        web1 = site["web1"]
        if command == "up":
            web1.run([f"{SWITCH}/down", "--by", "ann"])
        assert web1.power_off_before([f"{SWITCH}/{command}", "--by", "ann"], nth=nth)
        web1.boot()
        wait_until(lambda: is_down(web1) or serves(web1), what="it serves, or is in maintenance", timeout=60)
        told = web1.run([STATUS, "--json"]).stdout
        assert json.loads(told)["maintenance"]["state"] == ("down" if is_down(web1) else "up")
        assert is_down(web1) == (command == "up")
        web1.run([f"{SWITCH}/{command}", "--by", "ann"])
        assert is_down(web1) == (command == "down")
        assert "maint.lua." not in web1.run("ls -A /etc/lighttpd | grep '^[.]' || true").stdout


class TestWithoutRoom:
    """The site is on fire, take it down: a full disk is no reason not to."""

    @pytest.mark.parametrize("host", ["web1", pytest.param("web2", marks=pytest.mark.exhaustive)])
    def test_a_host_whose_disk_is_full_goes_down_and_up_with_the_others(self, site: Fleet, host: str) -> None:
        full = site[host]  # web1 is the lock host as well
        full.fill_disk(free=0)
        try:
            said = fab(site, "maint-down", "--reason", "fire").stderr
            assert everywhere(site, is_down)
            assert "has no room (No space left on device)" in said
            if host == "web1":
                assert "so this run has no lock" in said
            assert by_hand(site, full, f"{SWITCH}/down").returncode == 0
        finally:
            full.free_disk()
        fab(site, "maint-down", "--reason", "fire")
        assert {told["maintenance"]["by"] for told in status(site)["hosts"].values()} == {"ann"}
        full.fill_disk(free=0)
        try:
            fab(site, "maint-up")
            assert everywhere(site, serves)
        finally:
            full.free_disk()

    @pytest.mark.exhaustive
    def test_a_journal_that_finds_no_room_is_none_either(self, site: Fleet) -> None:
        site["web1"].small_disk("/srv/guestbook/state", free=4096)
        try:
            fab(site, "maint-down")
            assert everywhere(site, is_down)
            fab(site, "maint-up")
        finally:
            site["web1"].run(["umount", "/srv/guestbook/state"])


class TestASecondApplication:
    """On web1, with the defaults for a site that has a name of its own."""

    def forum(self, fleet: Fleet, directory: Path) -> Operator:
        first = fleet.operator.directory
        second = Operator(directory / "forum")
        subprocess.run(["git", "clone", "-q", str(first), str(second.directory)], check=True)
        written = (first / "fabric.yaml").read_text().replace("guestbook", "forum")
        webserver = "  webserver:\n"
        assert webserver in written
        ours = f"    host_header: {FORUM}\n    url: http://own-address/\n"
        (second.directory / "fabric.yaml").write_text(written.replace(webserver, webserver + ours, 1))
        host = fleet["web1"]
        host.run(f"echo {host.address} own-address >>/etc/hosts")
        second.fab("-H", "web1", "setup", "--as-user", "root", "--yes", timeout=300)
        serve(host, page=sample.PAGE, application="forum")
        return second

    def down(self, host: Host) -> tuple[bool, bool]:
        """Whether the first and the second application are in maintenance; otherwise each answers."""
        replies = [host.get("/"), host.get("/", headers={"Host": FORUM})]
        assert all(reply.in_maintenance or reply.text.endswith(f" on {host.name}") for reply in replies)
        return replies[0].in_maintenance, replies[1].in_maintenance

    def test_each_has_its_own_switch_and_lighttpd_has_nothing_against_the_two(
        self, site: Fleet, tmp_path: Path
    ) -> None:
        forum, web1 = self.forum(site, tmp_path), site["web1"]
        assert self.down(web1) == (False, False)
        ran = forum.fab("-H", "web1", "maint-down", "--reason", "forum only", "--drain", LOGNAME="ann")
        assert len(re.findall("nothing (?:is|was) in flight", ran.stderr)) == 1
        assert self.down(web1) == (False, True)
        assert {told["maintenance"]["state"] for told in status(site)["hosts"].values()} == {"up"}
        fab(site, "maint-down")
        assert self.down(web1) == (True, True)
        forum.fab("-H", "web1", "maint-up", LOGNAME="ann")
        assert self.down(web1) == (True, False)
        assert by_hand(site, web1, f"{SWITCH}/forum/down").returncode == 0
        assert self.down(web1) == (True, True)
        assert by_hand(site, web1, f"{SWITCH}/forum/up").returncode == 0
        fab(site, "maint-up")
        assert self.down(web1) == (False, False)

        checked = web1.run(["lighttpd", "-tt", "-f", "/etc/lighttpd/lighttpd.conf"])
        assert checked.stdout + checked.stderr == ""
        logged = web1.run(["journalctl", "-u", "lighttpd", "--no-pager", "-o", "cat"]).stdout
        logged += web1.read("/var/log/lighttpd/error.log")
        assert "more than once" not in logged
        assert "duplicate" not in logged.lower()
