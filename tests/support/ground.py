"""A place that is set up as a host would be, by the commands that `fab setup` sends there, without root.

    ground = Ground(tmp_path)
    ground.install()                     # -> {"ok": True, "changes": [...], "notes": [...]}
    ground.install(plan_only=True)
    ground.remove()

lighttpd's configuration in it is a real one, which the real lighttpd judges.
"""

from __future__ import annotations

import base64
import json
import os
import pwd
import subprocess
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploytools.settings import Settings
from deploytools.setup.command import Action, setup_command
from tests.support.values import settings

ME = pwd.getpwuid(os.geteuid()).pw_name
LIGHTTPD = """\
server.modules = ( "mod_indexfile", "mod_access" )
server.document-root = "{base}"
server.bind = "127.0.0.1"
server.port = 18080
include "{base}/conf-enabled/*.conf"
server.modules += ( "mod_staticfile" )
"""

Bundle = dict[str, Any]


@dataclass
class Ground:
    """`overrides` replace keys of `deploy`; change them to set it up otherwise."""

    base: Path
    overrides: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("conf-available", "conf-enabled"):
            (self.etc / name).mkdir(parents=True, exist_ok=True)
        self.configuration.write_text(LIGHTTPD.format(base=self.etc))

    @property
    def etc(self) -> Path:
        """What would be /etc/lighttpd."""
        return self.base / "etc/lighttpd"

    @property
    def configuration(self) -> Path:
        return self.etc / "lighttpd.conf"

    @property
    def snippet(self) -> Path:
        return self.etc / "conf-available/50-deploytools-guestbook.conf"

    @property
    def enabled(self) -> Path:
        return self.etc / "conf-enabled/50-deploytools-guestbook.conf"

    @property
    def tools(self) -> Path:
        return self.base / "lib/deploytools/guestbook"

    @property
    def root(self) -> Path:
        return self.base / "srv/guestbook"

    @property
    def settings(self) -> Settings:
        webserver = {"config": str(self.configuration), "maintenance_dir": str(self.etc)}
        given: dict[str, Any] = {
            "privileged": False,
            "root": str(self.root),
            "tools_dir": str(self.tools),
            "shared": [".env", "var"],
            **self.overrides,
        }
        given["app"] = {"command": "/usr/bin/php-cgi", "user": ME, **given.get("app", {})}
        given["webserver"] = {**webserver, **given.get("webserver", {})}
        return settings(**given)

    def install(self, *, plan_only: bool = False, edit: Callable[[Bundle], None] | None = None) -> Any:
        """Run the command, and return what it printed. `edit` changes what travels to the host."""
        return self._run("install", edit, plan_only=plan_only)

    def remove(self, *, plan_only: bool = False, purge: bool = False) -> Any:
        return self._run("remove", None, plan_only=plan_only, purge=purge)

    def bundle(self, action: Action = "install", **options: Any) -> Bundle:
        """What travels to the host."""
        command = setup_command(self.settings, ME, action, **{"plan_only": False, **options})
        assert command.stdin
        found: Bundle = json.loads(zlib.decompress(command.stdin))
        return found

    def _run(self, action: Action, edit: Callable[[Bundle], None] | None, **options: Any) -> Any:
        command = setup_command(self.settings, ME, action, **options)
        stdin = command.stdin
        if edit is not None:
            bundle = self.bundle(action, **options)
            edit(bundle)
            stdin = zlib.compress(json.dumps(bundle).encode())
        ran = subprocess.run(command.argv, input=stdin, capture_output=True, check=False)
        assert ran.stdout, ran.stderr.decode()
        answer = json.loads(ran.stdout)
        assert answer["ok"] == (ran.returncode == 0)
        return {**answer, "code": ran.returncode}


def paths(answer: Any) -> list[str]:
    """The paths that an answer says would change, or have changed."""
    return [change["path"] for change in answer["changes"]]


def of_an_older_toolkit(bundle: Bundle) -> None:
    """As if the bundle came from another version, which had a module more and no `drain`."""
    bundle["programs"] = [file for file in bundle["programs"] if file["path"] != "drain"]
    gone = {"path": "hostlib/gone.py", "owner": ME, "mode": 0o644}
    gone["content"] = base64.b64encode(b'"""What nobody needs now."""\n').decode()
    bundle["programs"].append(gone)
    bundle["version"] = "0.0.9-0123456789ab"
    for file in bundle["programs"]:
        if file["path"] == "config.json":
            config = {**json.loads(base64.b64decode(file["content"])), "version": "0.0.9", "digest": "old"}
            file["content"] = base64.b64encode(json.dumps(config).encode()).decode()
