"""A fleet of Debian hosts, and the operator in front of it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import TracebackType

from tests.fleet import images, keeper, network
from tests.fleet.hosts import Host
from tests.support.operators import Operator
from tests.support.sshd import make_key, public

DEPLOY_USER = "deploy"
PROGRAMS = [
    "systemd-nspawn",
    "mmdebstrap",
    "ip",
    "nsenter",
    "unshare",
    "setpriv",
    "mount",
    "ssh-keygen",
    "apt-get",
    "dpkg",
]
# What Debian's lighttpd runs for its table of file types at each start, reload and look at its configuration.
MIME_TYPES = "usr/share/lighttpd/create-mime.conf.pl"
FABRIC_YAML = """\
tasks: {{executor_class: deploytools.executor.OnceExecutor}}
deploy:
  application: guestbook
  hosts: {hosts}
  ssh_config: {ssh_config}
  app: {{command: /usr/bin/php-cgi}}
"""


@cache
def _mime_types(base: Path) -> str:
    """What it prints: always the same, and Perl takes longer for it than lighttpd for all the rest."""
    argv = ["chroot", str(base), f"/{MIME_TYPES}"]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def missing() -> list[str]:
    """What this machine lacks for a fleet; nothing if it can have one."""
    if os.geteuid() != 0:
        return ["root: hosts are made of namespaces, mounts and cgroups"]
    found = [f"the program {name}" for name in PROGRAMS if shutil.which(name) is None]
    if not any((hierarchy / "cgroup.controllers").exists() for hierarchy in keeper.hierarchies()):
        found.append("a mounted cgroup v2 hierarchy")
    overlay = "mount -t tmpfs none /run; cd /run; mkdir lower upper work root;"
    overlay += "mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work none root"
    namespaces = ["unshare", "--pid", "--mount", "--net", "--fork", "--propagation", "private", "sh", "-euc"]
    if not found and subprocess.run([*namespaces, overlay], capture_output=True, check=False).returncode:
        found.append("the right to make namespaces and overlay mounts")
    return found


class Fleet:
    """Hosts, running between `__enter__` and `__exit__`. Nothing of them is left afterwards, whatever dies.

    Args:
        count: how many, from 1 to 250; their names are web1, web2, ...
        suites: what they run, by turns: ("bookworm", "trixie") is a mixed fleet.
        packages: Debian packages that they have on top of `images.PACKAGES`.

    Attributes:
        hosts: all hosts; `fleet["web1"]` is one of them.
        operator: runs `fab` in a project directory with a fabric.yaml for these hosts.
    """

    def __init__(
        self, count: int = 1, *, suites: Sequence[str] = ("bookworm",), packages: Sequence[str] = ()
    ) -> None:
        self.hosts: tuple[Host, ...] = ()
        self._count, self._suites, self._packages = count, suites, packages
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Fleet:
        with contextlib.ExitStack() as stack:
            self._make(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def __iter__(self) -> Iterator[Host]:
        return iter(self.hosts)

    def __getitem__(self, name: str) -> Host:
        return next(host for host in self.hosts if host.name == name)

    @property
    def directory(self) -> Path:
        """Keys, ssh_config and consoles; gone with the fleet."""
        return self.place.directory

    @property
    def ssh_config(self) -> Path:
        """Knows every host by its name, and as NAME-root for the way in as root."""
        return self.directory / "ssh_config"

    @property
    def known_hosts(self) -> Path:
        return self.directory / "known_hosts"

    def ssh(self, host: Host, *command: str, user: str = DEPLOY_USER) -> list[str]:
        """The argv that runs a command on a host over ssh, as the operator would."""
        return ["ssh", "-F", str(self.ssh_config), f"{user}@{host.name}", *command]

    def in_parallel(self, act, hosts: Sequence[Host] | None = None) -> list:  # type: ignore[no-untyped-def, type-arg]
        """`act(host)` for every host at the same time; the results in their order, or the first error."""
        hosts = self.hosts if hosts is None else hosts
        with ThreadPoolExecutor(max(len(hosts), 1)) as pool:
            return list(pool.map(act, hosts))

    def _make(self, stack: contextlib.ExitStack) -> None:
        keeper.sweep()
        layers = {suite: images.ready(suite, self._packages) for suite in self._suites}
        descriptors = {image.descriptor for of_suite in layers.values() for image in of_suite}
        for descriptor in descriptors:
            stack.callback(os.close, descriptor)
        self.place = keeper.claim()
        self.keeper = keeper.Keeper(self.place, list(descriptors))
        stack.callback(self.keeper.end)
        network.begin(self.place, self.keeper.holder)
        for number in range(1, self._count + 1):
            suite = self._suites[(number - 1) % len(self._suites)]
            address = self.place.address(number + 1)
            host = Host(self.place, self.keeper.holder, f"web{number}", address, suite, layers[suite])
            self.hosts += (host,)
        self._make_keys()
        self.in_parallel(self._prepare)
        self.in_parallel(lambda host: host.boot(wait=False))
        self.in_parallel(lambda host: host.wait_until_reachable())
        self.operator = self._make_operator()

    def _make_keys(self) -> None:
        make_key(self.directory / "operator_key")
        for host in self.hosts:
            key = make_key(self.directory / f"{host.name}_host_key")
            host.host_key = " ".join(public(key).read_text().split()[:2])
        names = "".join(f"{host.name},{host.address} {host.host_key}\n" for host in self.hosts)
        self.known_hosts.write_text(names)
        blocks = "".join(f"Host {host.name}\n  HostName {host.address}\n" for host in self.hosts)
        self.ssh_config.write_text(
            f"{blocks}Host *\n"
            f"  IdentityFile {self.directory}/operator_key\n"
            "  IdentitiesOnly yes\n"
            f"  UserKnownHostsFile {self.known_hosts}\n"
            "  GlobalKnownHostsFile none\n"
        )

    def _prepare(self, host: Host) -> None:
        """Give a host its disk, its network, its identity, and its operator's key."""
        host.unpack()
        (host.root / MIME_TYPES).write_text(f"#!/bin/sh\ncat <<'END'\n{_mime_types(host.base)}END\n")
        etc = host.root / "etc"
        (etc / "hostname").write_text(f"{host.name}\n")
        (etc / "machine-id").write_text(f"{uuid.uuid4().hex}\n")
        everyone = "".join(f"{other.address} {other.name}\n" for other in self.hosts)
        (etc / "hosts").write_text(f"127.0.0.1 localhost\n::1 localhost\n{everyone}")
        key = etc / "ssh/ssh_host_ed25519_key"
        shutil.copy(self.directory / f"{host.name}_host_key", key)  # keeps the mode
        shutil.copy(public(self.directory / f"{host.name}_host_key"), public(key))
        authorized = public(self.directory / "operator_key").read_text()
        for home in ("root", f"home/{DEPLOY_USER}"):
            ssh = host.root / home / ".ssh"
            (ssh / "authorized_keys").write_text(authorized)
            os.chown(ssh / "authorized_keys", ssh.stat().st_uid, ssh.stat().st_gid)

    def _make_operator(self) -> Operator:
        """A project directory in which `fab` knows the hosts."""
        project = self.directory / "project"
        project.mkdir()
        (project / "fabfile.py").write_text("from deploytools.tasks import ns  # noqa: F401\n")
        hosts = json.dumps([f"{DEPLOY_USER}@{host.name}" for host in self.hosts])
        (project / "fabric.yaml").write_text(
            FABRIC_YAML.format(hosts=hosts, ssh_config=json.dumps(str(self.ssh_config)))
        )
        return Operator(project)
