"""A host of a fleet whose application is swapped: set up by `fab setup`, releases put there by hand."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from tests.fleet.fleet import Fleet
from tests.fleet.hosts import Host
from tests.support.runtimes import Runtime
from tests.support.webhost import Ran

APPLICATION = "guestbook"
ROOT = f"/srv/{APPLICATION}"
TOOLS = f"/usr/local/lib/deploytools/{APPLICATION}"
FABRIC_YAML = """\
tasks: {{executor_class: deploytools.executor.OnceExecutor}}
deploy:
  application: {application}
  hosts: {hosts}
  ssh_config: {ssh_config}
  app: {{command: {command}, listen: {listen}, manager: {manager}, env: {env}}}
  health: {{path: {path}}}
  webserver: {{document_root: {document_root}}}
"""


def set_up(fleet: Fleet, runtime: Runtime, *, listen: str = "fd0", manager: str = "auto") -> None:
    """Let all hosts of the fleet, and its operator, be there for an application of this runtime."""
    settings = {
        "application": APPLICATION,
        "hosts": [f"deploy@{host.name}" for host in fleet],
        "ssh_config": str(fleet.ssh_config),
        "command": runtime.commands[listen],
        "listen": listen,
        "manager": manager,
        "env": dict(runtime.env),
        "path": runtime.script or "/",
        "document_root": runtime.document_root,
    }
    told = FABRIC_YAML.format(**{name: json.dumps(value) for name, value in settings.items()})
    (fleet.operator.directory / "fabric.yaml").write_text(told)
    fleet.operator.fab("setup", "--as-user", "root", "--yes")


class SwapHost:
    """A host that was set up for `runtime`."""

    def __init__(self, host: Host, runtime: Runtime) -> None:
        self.host, self.runtime = host, runtime

    @property
    def address(self) -> tuple[str, int]:
        return (self.host.address, 80)

    def release(self, name: str, **changes: Any) -> None:
        """A release of the runtime's application; see Runtime.release."""
        with tempfile.TemporaryDirectory() as directory:
            tree = Path(directory) / name
            self.runtime.release(tree, **changes)
            self.put(tree, f"{ROOT}/releases/{name}")
        self.host.run(["chown", "-R", "deploy:", f"{ROOT}/releases/{name}"])

    def put(self, tree: Path, path: str) -> None:
        """Copy a directory of this machine to that path of the host."""
        shutil.copytree(tree, Path(f"/proc/{self.host.leader}/root{path}"))

    def swap(self, *arguments: str) -> Ran:
        done = self.host.run([f"{TOOLS}/swap", *arguments, "--json"], check=False, timeout=120)
        return Ran(done.returncode, done.stdout, done.stderr, json.loads(done.stdout or "{}"))
