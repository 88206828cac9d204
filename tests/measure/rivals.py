"""A downtime window done three ways: ours, an Ansible playbook, and the scripts of 2008 by hand.

    python -m tests.measure.rivals --hosts 3 --rounds 3

The same hosts, the same php-cgi application, the same release and the same migration, which takes a second
and is not applied twice. The others have a lighttpd of their own at port 81, systemd to restart the
application, root on every host, all files there beforehand, and connections that stay open; Ansible has
pipelining too. Ours ships its release within its own time, as the deploy user.

Told are, over the rounds: for how long visitors saw the window beyond the migration, what they saw that was
neither the application nor the marked page, and requests that met code and schema that don't fit. Then the
operator's processes are killed in the middle of a migration of eight seconds, all of them at once; twenty
seconds later it is told what was left. Then the operator types the next command, at once after another such
kill, and it is told how often the migration was begun.

Prints a table, and one line of JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from deploytools.sandbox.traffic import LOST, Record, downtime
from tests.fleet import Host, sample
from tests.fleet.fleet import Fleet
from tests.fleet.hosts import wait_until
from tests.measure.contestants import OTHERS, RECIPE, RECIPE_FILES, install
from tests.measure.windows import MIGRATE, visited
from tests.support.operators import FAB
from tests.support.webhost import Reply, read_reply

VISITORS = 2
LONG = 8.0  # seconds that a migration takes in whose middle the operator is killed

# Both sites keep what is applied, and each start of the migration, on their first host; every page tells what
# its code was written for and what it met.
INDEX = """\
<?php
$release = basename(realpath('..'));
header('X-Release: ' . $release);
header('X-Schema: ' . (int) trim(@file_get_contents('{state}/applied')));
header('X-Schema-Expected: ' . (int) trim(file_get_contents('../number')));
"""
APPLY = """\
#!/bin/sh
if [ "$(cat {state}/applied 2>/dev/null)" = "$(cat number)" ]; then exit 0; fi
echo begun >>{state}/begun
sleep "$(cat seconds)"
cat number >{state}/applied
"""
STATUS = """\
#!/bin/sh
[ "$(hostname)" = web1 ] || exit 1
[ "$(cat {state}/applied 2>/dev/null || echo 0)" -ge "$(cat number)" ] && mark=X || mark=" "
echo "[$mark] change-$(cat number)"
"""

OURS = "/srv/guestbook/shared"
THEIRS = "/srv/rival/state"
APP_UNIT = """\
[Service]
User=www-data
WorkingDirectory=/srv/rival/current
RuntimeDirectory=rival
Environment=PHP_FCGI_CHILDREN=4
ExecStart=/usr/bin/php-cgi -b /run/rival/app.sock
"""
SITE = """
server.modules += ( "mod_indexfile", "mod_fastcgi" )
index-file.names = ( "index.php" )
fastcgi.server = ( ".php" => (( "socket" => "/run/rival/app.sock" )) )
"""
PLAYBOOK = f"""\
- hosts: all
  gather_facts: false
  tasks:
    - name: Maintenance on
      ansible.builtin.copy:
        src: {RECIPE}/maint.lua.down
        dest: {RECIPE}/maint.lua
        remote_src: true
    - name: Migrate
      ansible.builtin.command:
        cmd: ./apply
        chdir: /srv/rival/releases/{{{{ release }}}}
      run_once: true
    - name: Activate the release
      ansible.builtin.file:
        src: releases/{{{{ release }}}}
        dest: /srv/rival/current
        state: link
        follow: false
    - name: Restart the application
      ansible.builtin.systemd_service:
        name: rival
        state: restarted
    - name: Maintenance off
      ansible.builtin.copy:
        src: {RECIPE}/maint.lua.up
        dest: {RECIPE}/maint.lua
        remote_src: true
"""


@dataclass(frozen=True)
class Rival:
    """One way.

    Args:
        argv: given the number of a release, what the operator types for its window.
        again: what the operator types next, after a window that was killed.
    """

    name: str
    port: int
    state: str
    argv: Callable[[int], list[str]]
    again: Callable[[int], list[str]]


class Contest:
    """Windows on one fleet, each of a release of its own."""

    def __init__(self, fleet: Fleet, versions: dict[str, str]) -> None:
        self.fleet, self.first, self.number = fleet, fleet.hosts[0], 0
        self.place, self.project = fleet.directory / "rivals", fleet.operator.directory
        self.place.mkdir()
        self.environment = {
            **os.environ,
            "XDG_STATE_HOME": str(self.project / "state"),
            "ANSIBLE_CONFIG": str(self.place / "ansible.cfg"),
        }
        self._ours()
        self._theirs()
        window = [str(FAB), "deploy", "--with-downtime", "--yes"]
        name = f"ansible-core {versions['ansible-core']}"
        self.rivals = [
            Rival("ours", 80, OURS, lambda _: window, lambda _: [str(FAB), "deploy", "--resume"]),
            Rival(name, 81, THEIRS, self._playbook, self._playbook),
            Rival("scripts of 2008", 81, THEIRS, self._by_hand, self._by_hand),
        ]

    def window(self, rival: Rival, *, seconds: float = 1.0) -> tuple[int, list[str]]:
        """Make the next release, everywhere; return its number and what begins its window."""
        self.number += 1
        for path, text in (("number", self.number), ("seconds", seconds)):
            (self.project / path).write_text(f"{text}\n")
        sample.commit(self.fleet, f"Change {self.number}")
        if rival.port == 81:
            self.fleet.in_parallel(lambda host: self._release(host, seconds))
        return self.number, rival.argv(self.number)

    def start(self, argv: Sequence[str]) -> subprocess.Popen[str]:
        """The operator's processes, in a session of their own."""
        return subprocess.Popen(
            argv,
            cwd=self.project,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def begun(self, rival: Rival) -> int:
        """How often a migration was begun."""
        path = f"{rival.state}/begun"
        return len(self.first.read(path).splitlines()) if self.first.exists(path) else 0

    def applied(self, rival: Rival) -> int:
        path = f"{rival.state}/applied"
        return int(self.first.read(path) or 0) if self.first.exists(path) else 0

    def _ours(self) -> None:
        sample.begin(self.fleet)
        project = self.project
        for path, text in _application(OURS).items():
            (project / path).write_text(text)
            (project / path).chmod(0o755 if path in ("apply", "status") else 0o644)
        with (project / "fabric.yaml").open("a") as file:
            file.write(MIGRATE)
        self.window(Rival("", 80, OURS, lambda _: [], lambda _: []))
        self.fleet.operator.fab("setup", "--as-user", "root", "--yes", timeout=600)
        self.fleet.operator.fab("deploy", "--with-downtime", "--yes", timeout=600)

    def _theirs(self) -> None:
        site = RECIPE_FILES["lighttpd.conf"].replace("/var/www/html", "/srv/rival/current/public") + SITE

        def put(host: Host) -> None:
            host.run(["mkdir", "-p", "/srv/rival/releases", THEIRS])
            for name, text in RECIPE_FILES.items():
                host.write(f"{RECIPE}/{name}", text, mode=0o755 if name in ("up", "down") else 0o644)
            host.write(f"{RECIPE}/lighttpd.conf", site)
            host.write("/etc/systemd/system/rival.service", APP_UNIT)
            host.write(f"{THEIRS}/applied", f"{self.number}\n")
            self._release(host, 1.0)
            host.run(["ln", "-sfn", f"releases/{self.number}", "/srv/rival/current"])
            host.run(["systemctl", "daemon-reload"])
            host.run(["systemctl", "start", "rival"])
            host.run(["systemd-run", "--quiet", "lighttpd", "-D", "-f", f"{RECIPE}/lighttpd.conf"])
            wait_until(lambda: _serves(host, 81), lambda: f"{host}'s other site to answer")

        self.fleet.in_parallel(put)
        (self.place / "inventory").write_text("".join(f"{host.name}\n" for host in self.fleet))
        (self.place / "playbook.yml").write_text(PLAYBOOK)
        (self.place / "ansible.cfg").write_text(
            "[defaults]\n"
            f"inventory = {self.place}/inventory\nremote_user = root\nforks = {len(self.fleet.hosts)}\n"
            "interpreter_python = /usr/bin/python3\n"
            f"[ssh_connection]\nssh_common_args = -F {self.fleet.ssh_config}\npipelining = True\n"
        )

    def _release(self, host: Host, seconds: float) -> None:
        release = f"/srv/rival/releases/{self.number}"
        for path, text in _application(THEIRS).items():
            host.write(f"{release}/{path}", text, mode=0o755 if path == "apply" else 0o644)
        host.write(f"{release}/number", f"{self.number}\n")
        host.write(f"{release}/seconds", f"{seconds}\n")

    def _playbook(self, number: int) -> list[str]:
        playbook = [str(OTHERS / "bin" / "ansible-playbook"), str(self.place / "playbook.yml")]
        return [*playbook, "-e", f"release={number}"]

    def _by_hand(self, number: int) -> list[str]:
        """Five commands, each typed when the one before is back."""
        release = f"/srv/rival/releases/{number}"
        activate = f"ln -sfn releases/{number} /srv/rival/current && systemctl restart rival"
        options = f"-F {self.fleet.ssh_config} -o ControlMaster=auto -o ControlPersist=60s"
        options += f" -o ControlPath={self.place}/%C"
        names = " ".join(host.name for host in self.fleet)

        def everywhere(command: str) -> str:
            ssh = f"ssh {options} root@HOST {shlex.quote(command)}"
            return f"printf '%s\\n' {names} | xargs -P {len(self.fleet.hosts)} -I HOST {ssh}"

        migrate = f"ssh {options} root@{self.first.name} 'cd {release} && ./apply'"
        down, up = everywhere(f"{RECIPE}/down"), everywhere(f"{RECIPE}/up")
        return ["sh", "-ec", "\n".join([down, migrate, everywhere(activate), up])]


def _application(state: str) -> dict[str, str]:
    return {
        "public/index.php": INDEX.replace("{state}", state),
        "apply": APPLY.replace("{state}", state),
        "status": STATUS.replace("{state}", state),
    }


def windows(contest: Contest, rival: Rival, rounds: int) -> dict[str, object]:
    """What visitors saw of so many windows."""
    beyond, lost, unfit, requests = [], 0, 0, 0
    for number in range(1, rounds + 1):
        _, argv = contest.window(rival)
        with visited(contest.fleet, VISITORS, port=rival.port) as seen:
            operator = contest.start(argv)
            output, _ = operator.communicate(timeout=300)
        assert operator.returncode == 0, f"{rival.name}: {output}"
        every = [record for records in seen.values() for record in records]
        whole = downtime(every)
        assert whole is not None, "visitors saw no window at all"
        assert whole["over"], "the site doesn't come back"
        beyond.append(whole["seconds"] - 1.0)
        lost += sum(record.kind in LOST for record in every)
        unfit += _unfit(seen[contest.first.name])
        requests += len(every)
        print(f"{rival.name}, round {number} of {rounds}: {beyond[-1]:.2f} s", file=sys.stderr)
    median = round(statistics.median(beyond), 2)
    return {"beyond": median, "lost": lost, "unfit": unfit, "requests": requests}


def _unfit(records: Sequence[Record]) -> int:
    """Answers of the host that has the database, in which code met a schema that it wasn't written for."""
    return sum(record.mismatch for record in records)


def killed(contest: Contest, rival: Rival) -> dict[str, object]:
    """What is left twenty seconds after the operator's processes were killed in the middle of a migration."""
    number, argv = contest.window(rival, seconds=LONG)
    _kill_in_the_middle(contest, rival, argv)
    time.sleep(20)
    left = {
        "applied": contest.applied(rival) == number,
        "in maintenance": sum(_in_maintenance(host, rival.port) for host in contest.fleet),
    }
    if rival.port == 80:
        output, _ = contest.start([str(FAB), "status"]).communicate(timeout=60)
        print(f"fab status then:\n{output}", file=sys.stderr)
    _finish(contest, rival, number)
    return left


def killed_and_again(contest: Contest, rival: Rival) -> dict[str, object]:
    """What comes of the next command, typed at once; and whether it ends with every host on the release."""
    number, argv = contest.window(rival, seconds=LONG)
    before = contest.begun(rival)
    _kill_in_the_middle(contest, rival, argv)
    ended = _finish(contest, rival, number)
    time.sleep(LONG)  # what was begun may still be at work
    return {"begun": contest.begun(rival) - before, "exit code": ended}


def _kill_in_the_middle(contest: Contest, rival: Rival, argv: Sequence[str]) -> None:
    before = contest.begun(rival)
    operator = contest.start(argv)
    wait_until(lambda: contest.begun(rival) > before, lambda: "the migration has begun", 120)
    os.killpg(operator.pid, signal.SIGKILL)
    operator.communicate()
    # Connections that were to stay are the operator's too; each is in a session of its own.
    for master in contest.place.rglob("*"):
        if master.is_socket():
            subprocess.run(["ssh", "-o", f"ControlPath={master}", "-O", "exit", "any"], check=False)


def _finish(contest: Contest, rival: Rival, number: int) -> int:
    operator = contest.start(rival.again(number))
    output, _ = operator.communicate(timeout=300)
    print(f"{rival.name}, the next command:\n{output}", file=sys.stderr)
    return operator.returncode


def _in_maintenance(host: Host, port: int) -> bool:
    return _reply(host, port).in_maintenance


def _serves(host: Host, port: int) -> bool:
    with contextlib.suppress(OSError):
        return _reply(host, port).status == 200
    return False


def _reply(host: Host, port: int) -> Reply:
    with contextlib.closing(http.client.HTTPConnection(host.address, port, timeout=20)) as connection:
        connection.request("GET", "/")
        return read_reply(connection)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hosts", type=int, default=3, help="how many (3)")
    parser.add_argument("--rounds", type=int, default=3, help="how many windows of each way (3)")
    given = parser.parse_args()
    versions = install()
    told: dict[str, dict[str, object]] = {}
    with Fleet(given.hosts) as fleet:
        contest = Contest(fleet, versions)
        for rival in contest.rivals:
            told[rival.name] = windows(contest, rival, given.rounds)
        for rival in contest.rivals:
            told[rival.name]["killed"] = killed(contest, rival)
            told[rival.name]["again"] = killed_and_again(contest, rival)
    for name, found in told.items():
        print(f"{name:>24}  {found}")
    print(
        json.dumps({"hosts": given.hosts, "rounds": given.rounds, "load": os.getloadavg()[0], "told": told})
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
