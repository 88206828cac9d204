"""What stands in the way of a set-up on real hosts, or cuts it short."""

from __future__ import annotations

import base64
import json
import shlex
import subprocess
from pathlib import Path

import pytest

from deploytools.settings import load
from deploytools.setup.command import setup_command
from tests.fleet import Fleet, Host
from tests.fleet.setuphost import AS_ROOT, REMOVE, ROOT, TOOLS, listing, purge, serve, settings

pytestmark = pytest.mark.fleet(2, suites=("bookworm", "trixie"))

SNIPPET = "/etc/lighttpd/conf-enabled/50-deploytools-guestbook.conf"
# A package is made of what dpkg knows of it, as dpkg-repack does, and offered by a repository of files.
REPACK = """
mkdir -p /repo/tree/DEBIAN
dpkg-query --status "$1" | grep -Ev '^(Status|Conffiles| /)' > /repo/tree/DEBIAN/control
dpkg-query --listfiles "$1" | while read -r file; do
  [ -d "$file" ] || { mkdir -p "/repo/tree$(dirname "$file")"; cp -a "$file" "/repo/tree$file"; }
done
dpkg-deb --build /repo/tree "/repo/$1.deb" >/dev/null
{
  cat /repo/tree/DEBIAN/control
  echo "Filename: ./$1.deb"
  echo "Size: $(stat -c %s "/repo/$1.deb")"
  echo "SHA256: $(sha256sum "/repo/$1.deb" | cut -d' ' -f1)"
} > /repo/Packages
rm -rf /repo/tree /etc/apt/sources.list.d
echo 'deb [trusted=yes] file:/repo ./' > /etc/apt/sources.list
"""


@pytest.fixture(autouse=True)
def fresh(fleet: Fleet) -> None:
    """Hosts without anything of the application, whichever tests ran before."""
    settings(fleet)
    purge(fleet)


def test_missing_packages_are_named_in_one_line_and_installed_if_that_is_asked_for(fleet: Fleet) -> None:
    fab = fleet.operator.fab
    fleet["web1"].run(["sh", "-euc", REPACK, "sh", "lighttpd-modules-lua"])
    fleet["web1"].run(["dpkg", "--purge", "--force-depends", "lighttpd-modules-lua"])
    before = [listing(host) for host in fleet]

    refused = fab(*AS_ROOT, code=3).stderr
    assert "web1: lighttpd-modules-lua" in refused
    assert "apt-get install lighttpd-modules-lua (as root, there)" in refused
    planned = fab("setup", "--as-user", "root", "--plan", "--install-packages").stdout
    assert "web1:\n  install: lighttpd-modules-lua\n" in planned
    assert [listing(host) for host in fleet] == before, "web2 has all that it takes, and waits"

    fab(*AS_ROOT, "--install-packages")
    assert fab(*AS_ROOT).stdout.count("nothing to change") == 2


def test_a_host_without_python_is_told_as_that(fleet: Fleet) -> None:
    python = "/usr/bin/python3"
    fleet["web2"].run(["mv", python, f"{python}.away"])
    try:
        refused = fleet.operator.fab(*AS_ROOT, code=3).stderr
    finally:
        fleet["web2"].run(["mv", f"{python}.away", python])
    assert "web2: python3" in refused


@pytest.mark.exhaustive
def test_a_lighttpd_that_was_stopped_stays_stopped_and_that_is_said(fleet: Fleet) -> None:
    for host in fleet:
        host.run(["systemctl", "stop", "lighttpd"])
    said = fleet.operator.fab(*AS_ROOT).stdout
    assert said.count("lighttpd doesn't run") == 2
    for host in fleet:
        assert host.run(["systemctl", "is-active", "lighttpd"], check=False).stdout == "inactive\n"
        host.run(["systemctl", "start", "lighttpd"])
    fleet.operator.fab("maint-down")
    fleet.operator.fab("maint-up")


def test_where_a_reload_would_end_lighttpd_it_is_restarted_and_the_plan_says_why(
    fleet: Fleet, tmp_path: Path
) -> None:
    pem = tmp_path / "server.pem"
    new_key = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    argv = ["openssl", *new_key, "-subj", "/CN=site", "-keyout", pem, "-out", tmp_path / "cert"]
    subprocess.run(argv, check=True, capture_output=True)
    ssl = '$SERVER["socket"] == ":443" { ssl.engine = "enable" ssl.pemfile = "/etc/lighttpd/server.pem" }\n'
    host = fleet["web2"]
    key = pem.read_text() + (tmp_path / "cert").read_text()
    host.write("/etc/lighttpd/server.pem", key, mode=0o600)
    host.write("/etc/lighttpd/conf-enabled/10-tls.conf", f'server.modules += ("mod_openssl")\n{ssl}')
    host.run(["systemctl", "restart", "lighttpd"])
    try:
        said = fleet.operator.fab(*AS_ROOT, "-H", "web2").stdout
        assert said.count("restart: lighttpd") == 1
        assert said.count("www-data can't read it") == 1
        assert said.count("server.pem") == 1
        serve(host)
        asked = "import ssl, urllib.request as u; c = ssl._create_unverified_context()\n"
        asked += "print(u.urlopen('https://127.0.0.1/index.php', context=c).read())"
        assert "the page" in host.run(["python3", "-c", asked]).stdout
    finally:
        fleet.operator.fab(*REMOVE, "--purge", "-H", "web2")
        host.run(["rm", "/etc/lighttpd/server.pem", "/etc/lighttpd/conf-enabled/10-tls.conf"])
        host.run(["systemctl", "restart", "lighttpd"])


@pytest.mark.exhaustive
def test_a_configuration_that_is_broken_on_one_host_changes_none(fleet: Fleet) -> None:
    broken = "/etc/lighttpd/conf-enabled/10-broken.conf"
    fleet["web2"].write(broken, "nonsense\n")
    before = [listing(host) for host in fleet]
    refused = fleet.operator.fab(*AS_ROOT, code=3).stderr
    assert "web2: lighttpd refuses its configuration as it is, before any change of set-up's" in refused
    assert [listing(host) for host in fleet] == before
    fleet["web2"].run(["rm", broken])


def test_a_host_that_can_not_be_reached_stops_the_set_up_of_all(fleet: Fleet) -> None:
    fleet["web2"].link_down()
    try:
        fleet.operator.fab(*AS_ROOT, code=6, FABRIC_DEPLOY_FLEET_CONNECT_TIMEOUT="3")
    finally:
        fleet["web2"].link_up()
    assert not fleet["web1"].exists(TOOLS)
    fleet.operator.fab(*AS_ROOT, "-H", "web1")


def test_a_full_disk_leaves_no_half_and_the_same_command_goes_on(fleet: Fleet) -> None:
    host = fleet["web1"]
    host.run(["install", "-d", TOOLS])
    host.small_disk(TOOLS, free=65536)
    refused = fleet.operator.fab(*AS_ROOT, "-H", "web1", code=3).stderr
    assert "No space left on device" in refused
    assert "make room (df -h; df -i), then the same command again" in refused
    assert not host.exists(SNIPPET)
    assert not host.exists(f"{TOOLS}/current")
    host.small_disk(TOOLS, free=8 << 20)
    fleet.operator.fab(*AS_ROOT, "-H", "web1")
    fleet.operator.fab(*REMOVE, "--purge")
    host.run(f"umount {TOOLS}; rmdir {TOOLS}")


@pytest.mark.exhaustive
def test_two_operators_at_once_take_turns(fleet: Fleet) -> None:
    both = [fleet.operator.start(*AS_ROOT) for _ in range(2)]
    said = [operator.communicate(timeout=120) for operator in both]
    assert [operator.returncode for operator in both] == [0, 0], said
    assert fleet.operator.fab(*AS_ROOT).stdout.count("nothing to change") == 2


def installer(fleet: Fleet, host: Host) -> list[str]:
    """What `fab setup` runs on a host, as a command there that a power cut can be put into."""
    raw = json.loads((fleet.operator.directory / "fabric.yaml").read_text())["deploy"]
    wanted = load(raw, environment=None, only_hosts=None, environ={}, root=Path("/"))
    command = setup_command(wanted, "deploy", "install", plan_only=False)
    assert command.stdin
    host.write("/root/bundle", base64.b64encode(command.stdin).decode())
    return ["sh", "-c", f"base64 -d /root/bundle | {shlex.join(command.argv)}"]


@pytest.mark.exhaustive
@pytest.mark.parametrize("nth", [3, 40, 74, 80, 85])
def test_a_power_cut_leaves_old_or_new_and_the_same_command_finishes_it(fleet: Fleet, nth: int) -> None:
    for host in fleet:
        reached = host.power_off_before(installer(fleet, host), nth=nth)
        if reached:
            host.boot()
        assert host.run(["systemctl", "is-active", "lighttpd"]).stdout == "active\n"
        assert host.get("/").status != 500
        if host.exists(f"{TOOLS}/status"):
            host.run([f"{TOOLS}/status"], user="deploy")
        assert host.run(["sudo", "-n", "true"]).returncode == 0
        host.run(["rm", "/root/bundle"])
    fleet.operator.fab(*AS_ROOT)
    assert fleet.operator.fab(*AS_ROOT).stdout.count("nothing to change") == 2
    for host in fleet:
        litter = host.run(f"find {TOOLS} {ROOT} /etc/lighttpd /etc/sudoers.d -name '.*'").stdout.split()
        assert litter == [f"{ROOT}/.deploytools"]
