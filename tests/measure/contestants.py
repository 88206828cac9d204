"""What `fab maint-down` is measured beside: other tools that merely touch a file, and the recipe of 2008.

Every one reaches the same hosts as the same deploy user with the same key, and verifies the same host keys;
all work on all hosts at once. ansible-core and pyinfra are the newest on PyPI, in a virtual environment of
their own. Set beyond what they need to get there:

    ansible-core, as it comes       forks: as many as there are hosts
    ansible-core, pipelining        that, pipelining, and Python's path, so that it isn't looked for
    ... still connected             over the connections that ControlPersist, 60 s as it comes, has kept
    pyinfra                         parallel: as many as there are hosts

`fab` and pyinfra have no such thing as a connection that stays: each run connects anew.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.fleet import Host
from tests.fleet.fleet import DEPLOY_USER, Fleet
from tests.support.operators import FAB
from tests.support.webhost import read_reply

OTHERS = Path(__file__).parents[2] / ".venv" / "others"
RECIPE = "/etc/lighttpd/recipe-2008"

# The recipe of 2008 by its idea, for a lighttpd of its own: two scripts that copy a Lua file over the one
# which that runs for every request, and wait for as long as its author saw caches last.
RECIPE_FILES = {
    "maint.lua.up": "-- deliberately without content\n",
    "maint.lua.down": f"""\
lighty.header["X-Maintenance-Mode"] = "1"
lighty.content = {{ {{ filename = "{RECIPE}/maint.html" }} }}
return 503
""",
    "maint.lua": "-- deliberately without content\n",
    "maint.html": "<h1>Back soon</h1>\n",
    "down": f"#!/bin/sh\ncp {RECIPE}/maint.lua.down {RECIPE}/maint.lua\nsleep 8\n",
    "up": f"#!/bin/sh\ncp {RECIPE}/maint.lua.up {RECIPE}/maint.lua\nsleep 8\n",
    "lighttpd.conf": f"""\
server.modules = ( "mod_magnet" )
server.document-root = "/var/www/html"
server.port = 81
server.username = "www-data"
server.groupname = "www-data"
magnet.attract-raw-url-to = ( "{RECIPE}/maint.lua" )
""",
}


@dataclass(frozen=True)
class Way:
    """One way of doing it.

    Args:
        name: a line of the table.
        argv: given the path of a file to touch, what the operator types.
        fresh: it opens its connections anew; otherwise it uses those that the way before left open.
        check: raises AssertionError where it did not do its work; takes the path.
    """

    name: str
    argv: Callable[[str], list[str]]
    check: Callable[[str], None]
    fresh: bool = True


def install() -> dict[str, str]:
    """Make the virtual environment of ansible-core and pyinfra where it is missing; return their versions."""
    if not (OTHERS / "bin" / "pyinfra").exists():
        print("installing ansible-core and pyinfra", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", OTHERS], check=True)
        pip = [OTHERS / "bin" / "pip", "install", "-qq", "--disable-pip-version-check"]
        subprocess.run([*pip, "ansible-core", "pyinfra"], check=True)
    listed = subprocess.run(
        [OTHERS / "bin" / "pip", "list", "--format=json", "--disable-pip-version-check"],
        check=True,
        capture_output=True,
        text=True,
    )
    versions = {package["name"]: package["version"] for package in json.loads(listed.stdout)}
    return {name: versions[name] for name in ("ansible-core", "pyinfra")}


def all_ways(fleet: Fleet, versions: dict[str, str]) -> list[Way]:
    """Everything to measure, ours first. The hosts are set up, and the fleet has the recipe."""
    place = fleet.directory / "others"
    place.mkdir(exist_ok=True)
    count = len(fleet.hosts)

    def shown(*, page: bool, port: int = 80) -> Callable[[str], None]:
        return lambda path: _see(fleet, port, page=page)

    def touched(path: str) -> None:
        fleet.in_parallel(lambda host: host.run(["test", "-e", path]))

    def ssh(command: str) -> list[str]:
        """One ssh for each host, all at the same time."""
        each = ["ssh", "-F", str(fleet.ssh_config), "-o", "BatchMode=yes", f"{DEPLOY_USER}@HOST", command]
        names = " ".join(host.name for host in fleet)
        return ["sh", "-c", f"printf '%s\\n' {names} | xargs -P {count} -I HOST {shlex.join(each)}"]

    ansible, pyinfra = f"ansible-core {versions['ansible-core']}", f"pyinfra {versions['pyinfra']}"
    plain = _ansible(fleet, place / "plain", pipelining=False)
    fast = _ansible(fleet, place / "fast", pipelining=True)
    inventory = _pyinfra(fleet, place)
    return [
        Way("fab maint-down, proved", lambda path: [str(FAB), "maint-down"], shown(page=True)),
        Way("fab maint-up, proved", lambda path: [str(FAB), "maint-up"], shown(page=False)),
        Way(f"{ansible}: file, as it comes", lambda path: [*plain, *_module(path)], touched),
        Way(f"{ansible}: file, pipelining", lambda path: [*fast, *_module(path)], touched),
        Way(
            f"{ansible}: file, pipelining, still connected",
            lambda path: [*fast, *_module(path)],
            touched,
            False,
        ),
        Way(
            f"{ansible}: raw touch, still connected",
            lambda path: [*fast, "-m", "ansible.builtin.raw", "-a", f"touch {path}"],
            touched,
            False,
        ),
        Way(f"{pyinfra}: files.file", lambda path: [*inventory, "files.file", path, "touch=True"], touched),
        Way(f"{pyinfra}: touch", lambda path: [*inventory, "exec", "--", "touch", path], touched),
        Way("parallel ssh: touch", lambda path: ssh(f"touch {path}"), touched),
        Way("recipe of 2008, unproved: down", lambda path: ssh(f"{RECIPE}/down"), shown(page=True, port=81)),
        Way("recipe of 2008, unproved: up", lambda path: ssh(f"{RECIPE}/up"), shown(page=False, port=81)),
    ]


def put_recipe(fleet: Fleet) -> None:
    """Give every host the recipe's files, the deploy user's own, and its lighttpd at port 81."""

    def put(host: Host) -> None:
        for name, text in RECIPE_FILES.items():
            mode = 0o755 if name in ("up", "down") else 0o644
            host.write(f"{RECIPE}/{name}", text, mode=mode, owner=DEPLOY_USER)
        host.run(["systemd-run", "--quiet", "lighttpd", "-D", "-f", f"{RECIPE}/lighttpd.conf"])

    fleet.in_parallel(put)


def _see(fleet: Fleet, port: int, *, page: bool) -> None:
    """Raise AssertionError where a host, asked from outside, answers otherwise than wanted."""

    def look(host: Host) -> None:
        connection = http.client.HTTPConnection(host.address, port, timeout=20)
        with contextlib.closing(connection):
            connection.request("GET", "/")
            reply = read_reply(connection)
        assert reply.in_maintenance is page, f"{host} answers {reply.status} at port {port}"

    fleet.in_parallel(look)


def _ansible(fleet: Fleet, home: Path, *, pipelining: bool) -> list[str]:
    """The argv of `ansible` for all hosts at once. ControlPersist is 60 s, as Ansible has it by default."""
    home.mkdir()
    (home / "inventory").write_text("".join(f"{host.name}\n" for host in fleet))
    settings = ["[defaults]", f"inventory = {home}/inventory", f"remote_user = {DEPLOY_USER}"]
    settings += [f"forks = {len(fleet.hosts)}"]
    if pipelining:
        settings += ["interpreter_python = /usr/bin/python3"]
    settings += ["[ssh_connection]", f"ssh_common_args = -F {fleet.ssh_config}", f"pipelining = {pipelining}"]
    (home / "ansible.cfg").write_text("\n".join(settings) + "\n")
    variables = [f"ANSIBLE_CONFIG={home}/ansible.cfg", f"ANSIBLE_HOME={home}"]
    return ["env", *variables, str(OTHERS / "bin" / "ansible"), "all"]


def _module(path: str) -> list[str]:
    return ["-m", "ansible.builtin.file", "-a", f"path={path} state=touch"]


def _pyinfra(fleet: Fleet, place: Path) -> list[str]:
    """The argv of `pyinfra` for all hosts at once."""
    data = {
        "ssh_user": DEPLOY_USER,
        "ssh_config_file": str(fleet.ssh_config),
        "ssh_known_hosts_file": str(fleet.known_hosts),
        "ssh_strict_host_key_checking": "yes",
    }
    inventory = place / "inventory.py"
    inventory.write_text(f"hosts = {[(host.name, data) for host in fleet]!r}\n")
    return [str(OTHERS / "bin" / "pyinfra"), "--yes", "--parallel", str(len(fleet.hosts)), str(inventory)]
