"""What the hosts of a fleet are, and that what is done to them really happens."""

from __future__ import annotations

import hashlib
import socket
import subprocess
import time

import pytest

from tests.fleet import Fleet, Host
from tests.fleet.hosts import wait_until

pytestmark = pytest.mark.fleet(2, suites=("bookworm", "trixie"))


# What the two versions of systemd may differ in; for all else Debian 12 is enough, but in `make test-all`.
BOTH = pytest.mark.parametrize("host", ["web1", "web2"], indirect=True)


@pytest.fixture(params=["web1", pytest.param("web2", marks=pytest.mark.exhaustive)])
def host(fleet: Fleet, request: pytest.FixtureRequest) -> Host:
    """One after the other, a host of each suite."""
    return fleet[request.param]


def ssh(fleet: Fleet, host: Host, *command: str, user: str = "deploy") -> subprocess.CompletedProcess[str]:
    argv = fleet.ssh(host, *command, user=user)
    argv[1:1] = ["-o", "BatchMode=yes", "-o", "ConnectTimeout=2"]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


def test_a_host_is_the_debian_that_was_asked_for(fleet: Fleet) -> None:
    assert [host.suite for host in fleet] == ["bookworm", "trixie"]
    for host in fleet:
        assert f"VERSION_CODENAME={host.suite}" in host.read("/etc/os-release")


@BOTH
def test_systemd_is_its_first_process_and_nothing_failed(host: Host) -> None:
    assert host.read("/proc/1/comm") == "systemd\n"
    assert host.run(["systemctl", "is-system-running", "--wait"], check=False).stdout == "running\n"


@BOTH
def test_systemd_sees_the_processes_of_its_own_services_only(host: Host) -> None:
    in_service = host.run(["systemctl", "show", "--property=MainPID", "--value", "lighttpd"]).stdout
    cgroup = host.read(f"/proc/{in_service.strip()}/cgroup").splitlines()[-1]
    assert cgroup == "0::/system.slice/lighttpd.service"
    assert len(host.pids("lighttpd")) == 1


def test_the_operator_gets_in_as_a_user_without_rights_and_as_root(fleet: Fleet, host: Host) -> None:
    assert ssh(fleet, host, "id -un; hostname").stdout == f"deploy\n{host.name}\n"
    assert ssh(fleet, host, "sudo -n true").returncode != 0
    assert ssh(fleet, host, "id -un", user="root").stdout == "root\n"


def test_every_host_has_a_host_key_of_its_own_and_no_other_is_accepted(fleet: Fleet, host: Host) -> None:
    assert len({each.host_key for each in fleet}) == 2
    other = next(each for each in fleet if each is not host)
    trusted = fleet.known_hosts.read_text()
    try:
        fleet.known_hosts.write_text(f"{host.name},{host.address} {other.host_key}\n")
        assert "Host key verification failed" in ssh(fleet, host, "true").stderr
    finally:
        fleet.known_hosts.write_text(trusted)


def test_lighttpd_answers_this_machine(host: Host) -> None:
    assert host.get("/").status == 200


def test_hosts_reach_each_other_and_nothing_beyond(fleet: Fleet, host: Host) -> None:
    other = next(each for each in fleet if each is not host)
    script = "import socket, sys; socket.create_connection((sys.argv[1], 80), 5)"
    host.run(["python3", "-c", script, other.name])
    assert host.run(["ip", "route"]).stdout.splitlines() == [
        f"{host.address.rpartition('.')[0]}.0/24 dev eth0 proto kernel scope link src {host.address} "
    ]


@BOTH
def test_a_reboot_ends_everything_and_keeps_the_disk(fleet: Fleet, host: Host) -> None:
    host.write("/srv/kept", "kept")
    host.write("/run/not-kept", "")
    before = host.boot_id
    host.reboot()
    assert host.boot_id != before
    assert host.read("/srv/kept") == "kept"
    assert not host.exists("/run/not-kept")
    assert ssh(fleet, host, "true").returncode == 0


def test_a_command_that_goes_on_in_a_host_does_not_hold_up_its_reboot(host: Host) -> None:
    sleeping = host.start(["sleep", "600"])
    wait_until(lambda: host.run(["pidof", "sleep"], check=False).stdout, lambda: "the command")
    host.reboot()
    assert sleeping.wait(10) != 0


def test_a_power_cut_asks_nobody(host: Host) -> None:
    host.write("/srv/kept", "kept")
    sleeping = host.start("trap 'touch /srv/was-asked' TERM; while :; do sleep 1; done")
    host.power_off()
    sleeping.wait(10)
    assert not host.is_running
    assert host.pids() == []
    host.boot()
    assert host.read("/srv/kept") == "kept"
    assert not host.exists("/srv/was-asked")


def test_a_host_is_shut_down_and_switched_on_again(host: Host) -> None:
    host.stop()
    assert not host.is_running
    with pytest.raises(OSError, match=r"timed out|No route"):
        host.request("GET", "/", timeout=1)
    host.boot()
    assert host.get("/").status == 200


def test_a_pulled_cable_cuts_the_host_off_until_it_is_back(host: Host) -> None:
    host.link_down()
    try:
        with pytest.raises(OSError, match=r"timed out|No route"):
            host.request("GET", "/", timeout=1)
        assert host.run(["true"]).returncode == 0, "the test still reaches it from behind"
    finally:
        host.link_up()
    wait_until(lambda: host.get("/").status == 200, lambda: "an answer")


@pytest.mark.parametrize("service", ["ssh", "lighttpd"])
def test_a_killed_server_comes_back_as_debian_has_it(host: Host, service: str) -> None:
    program = {"ssh": "sshd", "lighttpd": "lighttpd"}[service]
    before = host.pids(program)
    host.kill(program)
    wait_until(lambda: host.pids(program), lambda: f"{service} to be started again")
    assert not set(before) & set(host.pids(program))
    host.wait_until_reachable()
    assert host.run(["systemctl", "show", "--property=NRestarts", "--value", service]).stdout != "0\n"


def test_a_small_disk_has_what_was_there_and_is_full_where_it_says(host: Host) -> None:
    host.write("/srv/app/file", "kept", mode=0o640, owner="deploy")
    host.run(["chown", "www-data:deploy", "/srv/app"])
    host.small_disk("/srv/app", free=8192)
    assert host.read("/srv/app/file") == "kept"
    assert host.run("stat -c '%a %U:%G' /srv/app /srv/app/file").stdout == (
        "755 www-data:deploy\n640 deploy:deploy\n"
    )
    host.write("/srv/app/fits", "x" * 8192)
    full = host.run("cp /etc/passwd /srv/app/too-much", check=False)
    assert "No space left on device" in full.stderr
    host.small_disk("/srv/app", free=4096)
    host.write("/srv/app/too-much", "more")
    assert host.exists("/srv/app/fits"), "it is the same disk with more space"
    host.small_disk("/srv/app", free=1 << 20, inodes=1)
    assert "No space left" in host.run("touch /srv/app/one /srv/app/two", check=False).stderr
    assert host.exists("/srv/app/one")
    host.run(["umount", "/srv/app"])
    assert not host.exists("/srv/app/fits"), "it was on the small disk"


def test_a_full_disk_is_full_everywhere_and_stays_so_over_a_boot(host: Host) -> None:
    host.run("dd if=/dev/zero of=/var/big bs=1M count=3 2>/dev/null")
    host.fill_disk(free=8192)
    try:
        host.write("/srv/fits", "x" * 8192)
        for path in ("/etc", "/home/deploy", "/srv"):
            done = host.run(["cp", "/etc/passwd", f"{path}/too-much"], check=False)
            assert "No space left on device" in done.stderr
        host.power_off()
        host.boot()
        assert "No space left" in host.run(["cp", "/etc/passwd", "/srv/too-much"], check=False).stderr
        host.run(["rm", "/var/big"])
        host.run(["cp", "/etc/passwd", "/srv/fits-now"])
        host.fill_disk(free=1 << 20, inodes=0)
        assert "No space left" in host.run(["touch", "/srv/no-inode"], check=False).stderr
    finally:
        host.free_disk()
    host.run(["cp", "/etc/passwd", "/srv/too-much"])
    host.run("rm -f /srv/* /etc/too-much /home/deploy/too-much; touch /srv/one-inode")


def test_a_slow_cable_makes_every_round_trip_longer_and_loses_nothing(host: Host) -> None:
    host.run("dd if=/dev/urandom of=/var/www/html/big bs=1M count=2 2>/dev/null")
    expected = host.run(["sha256sum", "/var/www/html/big"]).stdout.split()[0]

    def connecting() -> float:
        started = time.monotonic()
        socket.create_connection((host.address, 80), 20).close()
        return time.monotonic() - started

    host.delay(120)
    try:
        assert min(connecting() for _ in range(3)) >= 0.12
        assert hashlib.sha256(host.get("/big").body).hexdigest() == expected
    finally:
        host.delay(0)
    wait_until(lambda: connecting() < 0.12, lambda: "the quick cable")


def test_the_plug_is_pulled_right_before_a_rename_and_not_without_one(host: Host) -> None:
    script = "import os; open('/srv/new', 'w').write('new'); os.rename('/srv/new', '/srv/file')"
    host.write("/srv/file", "old")
    assert host.power_off_before(["python3", "-c", script])
    assert not host.is_running
    host.boot()
    assert (host.read("/srv/new"), host.read("/srv/file")) == ("new", "old")
    assert not host.power_off_before(["python3", "-c", script], nth=2)
    assert host.read("/srv/file") == "new"
