"""What stands where in a sandbox, and the settings of the environment that it is."""

from __future__ import annotations

import json
import os
import pwd
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploytools.errors import UsageError

HOST = "sandbox"
APPLICATION = "guestbook"
HTTP_PORT, SSH_PORT = 8080, 2222


@dataclass(frozen=True)
class Layout:
    """The directories and ports of one sandbox.

    Args:
        base: PROJECT/.sandbox, absolute and free of symbolic links.
        http_port: of the site, on 127.0.0.1.
        ssh_port: of sshd, on 127.0.0.1.
    """

    base: Path
    http_port: int = HTTP_PORT
    ssh_port: int = SSH_PORT

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}/"

    @property
    def host(self) -> Path:
        """What would be / on a real web host."""
        return self.base / "host"

    @property
    def lighttpd(self) -> Path:
        """What would be /etc/lighttpd."""
        return self.host / "etc/lighttpd"

    @property
    def logs(self) -> Path:
        return self.host / "var/log"

    @property
    def home(self) -> Path:
        return self.host / "home"

    @property
    def application(self) -> Path:
        """ROOT of docs/design.md: releases, shared, run."""
        return self.host / "srv" / APPLICATION

    @property
    def tools(self) -> Path:
        return self.host / "usr/local/lib/deploytools" / APPLICATION

    @property
    def ssh(self) -> Path:
        """The keys and the configuration of both ends."""
        return self.base / "ssh"

    @property
    def repository(self) -> Path:
        """The sample application's git repository."""
        return self.base / APPLICATION

    @property
    def run(self) -> Path:
        """A record of each server that was started."""
        return self.base / "run"

    @property
    def ports_file(self) -> Path:
        return self.base / "sandbox.json"


def account() -> pwd.struct_passwd:
    """Who runs the sandbox: whoever runs fab. Raises UsageError for a user id without an account."""
    try:
        return pwd.getpwuid(os.geteuid())
    except KeyError:
        raise UsageError(
            f"user id {os.geteuid()} has no account, so sshd can't let it in",
            next="run fab as a user that has an account",
        ) from None


def base_of(root: Path) -> Path:
    """Where the sandbox of the project in `root` stands, or would stand."""
    return root.resolve() / ".sandbox"


def load(root: Path) -> Layout | None:
    """The sandbox that was made in `root`, or None; raises UsageError where its record can't be read."""
    base = base_of(root)
    try:
        ports = json.loads((base / "sandbox.json").read_text())
        return Layout(base, int(ports["http_port"]), int(ports["ssh_port"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"the sandbox's ports can't be read: {error}",
            where=str(base / "sandbox.json"),
            next="fab sandbox.reset",
        ) from error


def save(layout: Layout) -> None:
    """Remember the ports; what `load` reads, whole or not at all."""
    ports = {"http_port": layout.http_port, "ssh_port": layout.ssh_port}
    temporary = layout.ports_file.with_suffix(".new")
    temporary.write_text(json.dumps(ports) + "\n")
    os.replace(temporary, layout.ports_file)


def environment(layout: Layout) -> dict[str, Any]:
    """The `deploy` mapping that fabric.yaml would hold for this host."""
    return {
        "application": APPLICATION,
        "hosts": [HOST],
        "ssh_config": str(layout.ssh / "config"),
        "root": str(layout.application),
        "tools_dir": str(layout.tools),
        "privileged": False,
        "source": {"path": str(layout.repository), "ref": "HEAD"},
        "shared": ["var"],
        "app": {
            "command": shlex.join([sys.executable, "guestbook.py"]),
            "protocol": "fastcgi",
            "listen": "fd0",
            "user": account().pw_name,
            "manager": "direct",
        },
        "health": {"path": "/health", "status": 200},
        "webserver": {
            "kind": "lighttpd",
            "config": str(layout.lighttpd / "lighttpd.conf"),
            "maintenance_dir": str(layout.lighttpd),
            "url": layout.url,
            "public_url": layout.url,
        },
        "migrate": {
            "adapter": "alembic",
            "host": HOST,
            "python": sys.executable,
            "cwd": "{release}",
            "engine": "sqlite",
        },
    }
