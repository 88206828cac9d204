"""What the hosts of a fleet are, and that what is done to them really happens."""

from __future__ import annotations

import subprocess

import pytest

from tests.fleet import Fleet, Host
from tests.fleet.hosts import wait_until

pytestmark = pytest.mark.fleet(2, suites=("bookworm", "trixie"))


@pytest.fixture(params=["web1", "web2"])
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


def test_systemd_is_its_first_process_and_nothing_failed(host: Host) -> None:
    assert host.read("/proc/1/comm") == "systemd\n"
    assert host.run(["systemctl", "is-system-running", "--wait"], check=False).stdout == "running\n"


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


def test_a_reboot_ends_everything_and_keeps_the_disk(fleet: Fleet, host: Host) -> None:
    host.write("/srv/kept", "kept")
    host.write("/run/not-kept", "")
    before = host.boot_id
    host.reboot()
    assert host.boot_id != before
    assert host.read("/srv/kept") == "kept"
    assert not host.exists("/run/not-kept")
    assert ssh(fleet, host, "true").returncode == 0


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
    host.run(["umount", "/srv/app"])
    assert not host.exists("/srv/app/fits"), "it was on the small disk"
