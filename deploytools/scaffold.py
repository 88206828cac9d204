"""`fab init`: a commented fabric.yaml and a two-line fabfile.py for a project."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from deploytools.errors import UsageError
from deploytools.settings import load

TEMPLATE = Path(__file__).parent / "templates" / "fabric.yaml"
FABFILE = "from deploytools.tasks import ns  # noqa: F401\n"


def write_project(directory: Path, application: str, hosts: Sequence[str]) -> list[Path]:
    """Write fabric.yaml and fabfile.py into `directory` and return them.

    Raises UsageError where one of them is there already, and SettingsError where a name or a host
    is not usable; nothing is written then.
    """
    named = list(hosts) or ["deploy@web1.example.com"]
    wanted = {"application": application, "hosts": named, "app": {"command": "/usr/bin/php-cgi"}}
    load(wanted, environment=None, only_hosts=None, environ={}, root=directory)
    # A JSON string is a YAML string too, whatever is in it.
    lines = "\n".join(f"    - {json.dumps(host)}" for host in named)
    text = TEMPLATE.read_text().replace("@application@", application).replace("@hosts@", lines)
    files = {directory / "fabric.yaml": text, directory / "fabfile.py": FABFILE}
    present = [path.name for path in files if path.exists()]
    if present:
        raise UsageError(
            f"{' and '.join(present)} already there",
            where=str(directory),
            state="nothing was written",
            next="move it away, or copy what you need of one that fab init writes into an empty directory",
        )
    for path, content in files.items():
        path.write_text(content)
    return list(files)
