"""`fab doctor` on real hosts: what was spoiled there is found, and a remedy followed word for word helps.

Faults come in groups that don't get into each other's way; each is made on a Debian 12 and a Debian 13.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from tests.fleet import Fleet, Host
from tests.fleet.setuphost import serve

pytestmark = pytest.mark.fleet(2, suites=("bookworm", "trixie"), packages=["libpam-systemd"])

CONF = "/etc/lighttpd/conf-enabled"
SNIPPET = "/etc/lighttpd/conf-available/50-deploytools-guestbook.conf"
TOOLS = "/usr/local/lib/deploytools/guestbook"
SETUP = ["setup", "--as-user", "root", "--yes"]
Finding = dict[str, Any]
Examine = Callable[[], Mapping[str, list[Finding]]]  # what is wrong, by host


@dataclass(frozen=True)
class Fault:
    """What somebody does to a host (a line for sh), and what doctor says of it under `name`."""

    name: str
    spoil: str
    told: str
    level: str = "error"


@pytest.fixture(scope="module")
def operator(fleet: Fleet) -> Examine:
    """Hosts that were set up and serve; call it for what doctor finds there, by host."""
    with (fleet.operator.directory / "fabric.yaml").open("a") as file:
        file.write("  webserver: {document_root: public}\n")
    fleet.operator.fab(*SETUP)
    fleet.in_parallel(serve)

    def examine() -> Mapping[str, list[Finding]]:
        process = fleet.operator.start("doctor", "--json")
        out, err = process.communicate(timeout=300)
        assert "Traceback" not in err
        told = json.loads(out)
        found = {
            name: [one for one in host["findings"] if not one["ok"]] for name, host in told["hosts"].items()
        }
        stops = any(one["level"] == "error" for host in found.values() for one in host)
        assert process.returncode == (3 if stops else 0)
        return found

    return examine


@pytest.fixture
def healthy(operator: Examine) -> Iterator[Examine]:
    """After the test there is nothing to find."""
    yield operator
    assert operator() == {"web1": [], "web2": []}


def follow(fleet: Fleet, remedies: Mapping[str, Sequence[Host]]) -> None:
    """Do what remedies say of these hosts, step by step, and leave out what they say else could be done.

    Nobody types the same `fab` twice in a row.
    """
    last: list[str] = []
    for remedy, hosts in remedies.items():
        for step in remedy.partition("; or")[0].split("; then "):
            words = shlex.split(re.split(r",", step)[0])[1:] if step.startswith("fab ") else []
            if not words:
                for host in hosts:
                    follow_there(host, step)
            elif words != last:
                fleet.operator.fab(*(SETUP if words[0] == "setup" else words))
            last = words


def follow_there(host: Host, step: str) -> None:
    """Do on a host what one step of a remedy says."""
    if taken := re.match(r"take (\S+) out of (\S+):(\d+)", step):
        host.run(f"sed -i '{taken[3]}d' {taken[2]}")
    elif placed := re.fullmatch(r"(.*) in (/\S+?)(?::(\d+))?", step):
        line, file, number = placed.groups()
        lines = host.read(file).splitlines()
        lines[int(number) - 1 : int(number)] = [line]
        host.write(file, "\n".join([*lines, ""]))
    else:
        host.run(step.partition(", which")[0])


WEB_SERVER = (
    Fault(
        "stat cache",
        f"echo 'server.stat-cache-engine := \"inotify\"' > {CONF}/90-late.conf",
        "server.stat-cache-engine inotify",
    ),
    Fault(
        "switch",
        f"""cat > {CONF}/91-shop.conf <<'END'
$HTTP["host"] == "shop.example.com" {{
  magnet.attract-raw-url-to = ( "/srv/shop.lua" )
}}
END
echo '-- nothing' > /srv/shop.lua""",
        'where $HTTP["host"] == "shop.example.com", magnet.attract-raw-url-to is set anew',
    ),
    Fault(
        "statistics",
        f"""cat > {CONF}/92-counters.conf <<'END'
$HTTP["remote-ip"] == "127.0.0.1" {{
  status.statistics-url := "/counters"
}}
END""",
        "the counters are at /counters",
    ),
    Fault(
        "error pages",
        f"echo 'server.error-intercept = \"enable\"' > {CONF}/93-errors.conf",
        "replaces the maintenance page",
    ),
    Fault(
        "reload",
        "sed -i '/graceful-shutdown-timeout/d' /etc/lighttpd/lighttpd.conf; echo 'server.feature-flags += ("
        '"server.graceful-shutdown-timeout" => 2)\' >> /etc/lighttpd/lighttpd.conf',
        "cuts requests that take longer than 2 s",
        "warning",
    ),
    Fault("maintenance script", ": > /etc/lighttpd/maint.lua", "maint.lua is empty"),
    Fault("maintenance page", "rm /etc/lighttpd/maint.html", "maint.html is missing", "warning"),
    Fault("unit", "systemctl disable lighttpd", "after a reboot there is no web server", "warning"),
)
OUR_PART = (
    Fault(
        "backend",
        f"""sed -i 's|"socket" |"bin-path" => "/usr/bin/php-cgi", "socket" |; /check-local/d' {SNIPPET}""",
        "bin-path is set: lighttpd starts /usr/bin/php-cgi itself",
    ),
    Fault("files", "true", "not as fab setup would have it: /etc/lighttpd/conf-available", "warning"),
)
ANOTHER_VERSION = (
    Fault(
        "version",
        f'sed -i --follow-symlinks \'s/"version": "/&9./\' {TOOLS}/config.json',
        "deploytools is 9.",
    ),
)
TAKEN_OUT = (
    Fault("switch", f"rm {CONF}/50-*; systemctl reload lighttpd", "maint.lua is not asked"),
    Fault("mod_magnet", "true", "mod_magnet is not loaded"),
    Fault("backend", "true", "doesn't lead to /srv/guestbook/run/app.sock, but to no FastCGI backend"),
    Fault(
        "boot",
        "systemctl disable deploytools-guestbook",
        "a reboot leaves the application stopped",
        "warning",
    ),
)
SANDBOXED = (
    Fault(
        "unit",
        "mkdir -p /etc/systemd/system/lighttpd.service.d && printf"
        " '[Service]\\nInaccessiblePaths=/srv/guestbook/run\\nRestrictAddressFamilies=AF_INET AF_INET6\\n'"
        " > /etc/systemd/system/lighttpd.service.d/hard.conf && systemctl daemon-reload",
        "InaccessiblePaths=/srv/guestbook/run of lighttpd.service hides /srv/guestbook/run from lighttpd",
    ),
)
STOPPED = (Fault("site", "systemctl stop lighttpd", "gives no answer"),)
RIGHTS = (
    Fault("directories", "chown root /srv/guestbook/releases", "deploy can't write /srv/guestbook/releases"),
    Fault("trust", f"chmod o+w {TOOLS}/current/hostlib", "others than root can change"),
    Fault("sudo", "rm /etc/sudoers.d/deploytools-guestbook", "a password is required"),
    Fault(
        "owners",
        "mkdir -p /srv/guestbook/state/journal && chown root /srv/guestbook/state/journal",
        "journal is not deploy's",
    ),
)
TERMINAL = (
    Fault("sudo", "echo 'Defaults requiretty' > /etc/sudoers.d/tty", "you must have a tty to run sudo"),
)
PASSWORD = (
    # `sudo -l` shows the programs as allowed.
    Fault("sudo", "echo 'deploy ALL=(ALL) PASSWD: ALL' > /etc/sudoers.d/zz-all", "a password is required"),
)
APPLICATION = (
    Fault("command", "chmod o-x $(readlink -f /usr/bin/php-cgi)", "www-data can't run /usr/bin/php-cgi"),
)
# What serves can't be told then.
RECORD = (
    Fault(
        "generations", "echo broken > /srv/guestbook/run/app.77.json", "app.77.json is no generation's record"
    ),
)
DEAD = (
    Fault(
        "application",
        "systemctl stop 'deploytools-guestbook@*'",
        "the application is not running",
        "warning",
    ),
)
# It concerns those who are started over ssh and not by systemd: here nobody is.
KILL_USER_PROCESSES = (
    "mkdir -p /etc/systemd/logind.conf.d && printf '[Login]\\nKillUserProcesses=yes\\n'"
    " > /etc/systemd/logind.conf.d/a.conf && systemctl restart systemd-logind"
)


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param(WEB_SERVER + SANDBOXED, id="lighttpd"),
        pytest.param(OUR_PART, id="what set-up wrote is changed", marks=pytest.mark.exhaustive),
        pytest.param(ANOTHER_VERSION, id="another version", marks=pytest.mark.exhaustive),
        pytest.param(TAKEN_OUT + RIGHTS + APPLICATION, id="what set-up wrote is taken out, and rights"),
        pytest.param(RECORD, id="a record", marks=pytest.mark.exhaustive),
        pytest.param(STOPPED, id="no lighttpd", marks=pytest.mark.exhaustive),
        pytest.param(TERMINAL, id="sudo wants a terminal", marks=pytest.mark.exhaustive),
        pytest.param(PASSWORD, id="sudo wants a password", marks=pytest.mark.exhaustive),
        pytest.param(DEAD, id="a dead application", marks=pytest.mark.exhaustive),
    ],
)
def test_a_remedy_that_is_followed_word_for_word_helps(
    fleet: Fleet, healthy: Examine, faults: tuple[Fault, ...]
) -> None:
    for host in fleet:
        for fault in faults:
            host.run(fault.spoil)
    found = healthy()
    for host in fleet:
        for fault in faults:
            matching = [one for one in found[host.name] if one["name"] == fault.name]
            assert [one for one in matching if fault.told in one["message"]], (fault, found[host.name])
            assert {one["level"] for one in matching if fault.told in one["message"]} == {fault.level}
    remedies: dict[str, list[Host]] = {}
    for host in fleet:
        for remedy in dict.fromkeys(one["remedy"] for one in found[host.name]):
            remedies.setdefault(remedy, []).append(host)
    follow(fleet, remedies)


@pytest.mark.exhaustive
def test_a_configuration_that_lighttpd_refuses_is_told_in_its_words(fleet: Fleet, healthy: Examine) -> None:
    web1 = fleet["web1"]
    web1.write(f"{CONF}/94-nonsense.conf", 'server.modules += ( "mod_nonsense" )\n')
    (found,) = (one for one in healthy()["web1"] if one["name"] == "configuration")
    assert "mod_nonsense" in found["message"]
    command = found["remedy"].partition(": ")[2]
    assert "mod_nonsense" in web1.run(command, check=False).stderr
    web1.run(f"rm {CONF}/94-nonsense.conf")
    web1.run(command)


@pytest.mark.exhaustive
@pytest.mark.parametrize("place", ["/srv/guestbook/releases", "/srv/guestbook/log"])
def test_a_full_disk_is_an_error_that_names_the_directory(fleet: Fleet, healthy: Examine, place: str) -> None:
    for host in fleet:
        host.small_disk(place, free=1 << 20)
    found = healthy()
    for host in fleet:
        (disk,) = (one for one in found[host.name] if "MiB free" in one["message"])
        assert (disk["name"], disk["level"]) == ("disk", "error")
        assert disk["message"].startswith(f"{place} has 1 MiB free")
        shown = host.run(disk["remedy"].removeprefix("make room: ")).stdout
        assert place in shown
        host.small_disk(place, free=1 << 30)


@pytest.mark.exhaustive
def test_a_logind_that_kills_what_a_login_leaves_is_harmless(fleet: Fleet, healthy: Examine) -> None:
    for host in fleet:
        host.run(KILL_USER_PROCESSES)
    fleet.operator.fab("hotswap")
    assert healthy() == {"web1": [], "web2": []}
    fleet.operator.fab("status")


def test_a_host_with_a_part_of_python_or_none_is_told_as_that(fleet: Fleet, operator: Examine) -> None:
    web1, web2 = fleet
    library = web1.run("python3 -c 'import json; print(json.__path__[0])'").stdout.strip()
    web1.run(f"mv {library} {library}.away")
    web2.run("mv /usr/bin/python3 /usr/bin/python3.away")
    try:
        found = operator()
    finally:
        web1.run(f"mv {library}.away {library}")
        web2.run("mv /usr/bin/python3.away /usr/bin/python3")
    ((partial,), (none,)) = found["web1"], found["web2"]
    assert "the module json" in partial["message"]
    assert none["message"] == "python3 is missing: every host program needs it"
    assert partial["remedy"] == none["remedy"] == "apt install python3"


@pytest.mark.exhaustive
def test_whatever_host_it_is_doctor_says_something_that_helps() -> None:
    """Fresh hosts, in six states that nothing of ours could run in."""
    with Fleet(6, suites=("bookworm", "trixie")) as fleet:
        fresh, no_python, minimal, no_login, away, stranger = fleet
        python = no_python.run("readlink -f /usr/bin/python3").stdout.strip()
        no_python.run(f"mv {python} {python}.away; rm -f /usr/bin/python3")
        library = minimal.run("python3 -c 'import json; print(json.__path__[0])'").stdout.strip()
        minimal.run(f"mv {library} {library}.away")
        no_login.run("usermod --shell /usr/sbin/nologin deploy")
        away.link_down()
        known = [line for line in fleet.known_hosts.read_text().splitlines() if stranger.name not in line]
        fleet.known_hosts.write_text("\n".join([*known, ""]))
        modules = fresh.run("dpkg -S /usr/lib/lighttpd/mod_magnet.so").stdout.partition(":")[0]
        fresh.run(["dpkg", "--remove", "--force-depends", modules])
        fresh.run("rm /usr/bin/php-cgi")

        done = fleet.operator.fab("doctor", "--json", code=6, FABRIC_DEPLOY_FLEET_CONNECT_TIMEOUT="3")
        found = {
            name: {one["name"]: one for one in host["findings"] if not one["ok"]}
            for name, host in json.loads(done.stdout)["hosts"].items()
        }
        text = fleet.operator.fab("doctor", code=6, FABRIC_DEPLOY_FLEET_CONNECT_TIMEOUT="3").stdout

    assert set(found["web1"]) == {"set-up", "sudo", "modules", "command"}
    assert found["web1"]["modules"]["remedy"].split()[-1] == modules
    assert found["web1"]["command"]["remedy"].startswith("apt install php-cgi")
    assert found["web2"]["python"]["message"] == "python3 is missing: every host program needs it"
    assert "the module json" in found["web3"]["python"]["message"]
    assert {found[name]["python"]["remedy"] for name in ("web2", "web3")} == {"apt install python3"}
    assert "not available" in found["web4"]["doctor"]["message"]
    assert "no answer from" in found["web5"]["connection"]["message"]
    assert "is not in known_hosts" in found["web6"]["connection"]["message"]
    assert "StrictHostKeyChecking=ask" in found["web6"]["connection"]["remedy"]
    assert "SHA256:" in text
    assert "6 hosts: 4 with errors, 2 without an answer" in text
