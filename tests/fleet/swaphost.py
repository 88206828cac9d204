"""Hosts of a fleet whose application is swapped: set up by `fab setup`, releases put there by hand."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.fleet.fleet import Fleet
from tests.fleet.hosts import Host
from tests.support import load
from tests.support.runtimes import Runtime
from tests.support.webhost import Ran

APPLICATION = "guestbook"
ROOT = f"/srv/{APPLICATION}"
TOOLS = f"/usr/local/lib/deploytools/{APPLICATION}"
# What the runtimes of tests/support/runtimes take on a host that has php-cgi.
PACKAGES = ["php-fpm", "libfcgi-perl", "libfcgi-bin", "uwsgi-core", "uwsgi-plugin-python3", "python3-django"]


def set_up(fleet: Fleet, runtime: Runtime, **app: Any) -> None:
    """Set up all hosts of the fleet for an application of this runtime, with these keys in `app`."""
    deploy = {
        "application": APPLICATION,
        "hosts": [f"deploy@{host.name}" for host in fleet],
        "ssh_config": str(fleet.ssh_config),
        "source": {"path": "app"},
        "app": {"command": runtime.commands[app.get("listen", "fd0")], "env": dict(runtime.env), **app},
        "health": {"path": runtime.script or "/"},
        "webserver": {"document_root": runtime.document_root},
    }
    # JSON is YAML.
    content = {"tasks": {"executor_class": "deploytools.executor.OnceExecutor"}, "deploy": deploy}
    (fleet.operator.directory / "fabric.yaml").write_text(json.dumps(content))
    fleet.operator.fab("setup", "--as-user", "root", "--yes")


class SwapHost:
    """A host that was set up for `runtime`."""

    def __init__(self, host: Host, runtime: Runtime) -> None:
        self.host, self.runtime = host, runtime
        programs = host.run("ls /usr/sbin | grep ^php-fpm || true").stdout.split()
        self._php_fpm = programs[0] if programs else "php-fpm"

    @property
    def address(self) -> tuple[str, int]:
        return (self.host.address, 80)

    def release(self, name: str, *, listen: str = "fd0", **changes: Any) -> None:
        """A release of the runtime's application; see Runtime.release."""
        command = re.sub(r"php-fpm\d[\d.]*", self._php_fpm, self.runtime.commands[listen])
        with tempfile.TemporaryDirectory() as directory:
            tree = Path(directory) / name
            self.runtime.release(tree, listen=listen, **{"command": command, **changes})
            place = f"{ROOT}/releases/{name}"
            self.host.run(["rm", "-rf", place])
            shutil.copytree(tree, Path(f"/proc/{self.host.leader}/root{place}"))
        self.host.run(["chown", "-R", "deploy:", place])

    def swap(self, *arguments: str, under: Sequence[str] = ()) -> Ran:
        """Run `swap`, or a program `under` which it runs, such as strace.

        Its exit code is a shell's: 128 and the signal where it was killed.
        """
        done = self.host.run([*under, f"{TOOLS}/swap", *arguments, "--json"], check=False, timeout=200)
        return Ran(done.returncode, done.stdout, done.stderr, json.loads(done.stdout or "{}"))

    def generation(self) -> int:
        """The one that answers a visitor."""
        return int(self.host.get(f"{self.runtime.script}/").headers["x-generation"])

    def units(self) -> set[str]:
        """The units of all generations that systemd has in memory."""
        argv = ["systemctl", "list-units", "--all", "--plain", "--no-legend", f"deploytools-{APPLICATION}@*"]
        return {line.split()[0] for line in self.host.run(argv).stdout.splitlines()}

    def visitors(self, count: int = 4, **options: Any) -> load.Visitors:
        return load.Visitors(self.address, script=self.runtime.script, count=count, **options)
