"""`fab init`: a commented fabric.yaml and a two-line fabfile.py for a project."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from deploytools.detection import Found
from deploytools.errors import UsageError
from deploytools.settings import load
from deploytools.settings.schema import split_address

TEMPLATE = Path(__file__).parent / "templates" / "fabric.yaml"
FABFILE = "from deploytools.tasks import ns  # noqa: F401\n"
EXAMPLE_HOST = "deploy@web1.example.com"

_MIGRATE = """\
  migrate:                          # run once, on one host, between maintenance on and off
{keys}
    # python: "{{release}}/venv/bin/python"    # the interpreter that has the tool, if not Debian's"""
_NO_MIGRATE = """\
  # migrate:                        # run once, on one host, between maintenance on and off
  #   adapter: alembic              # or django, or command for any other tool
  #   engine: postgresql
  #   python: "{release}/venv/bin/python"
  #   env: {}"""


def write_project(directory: Path, found: Found, hosts: Sequence[str]) -> list[Path]:
    """Write fabric.yaml and fabfile.py for the project `found` into `directory` and return them.

    Raises UsageError where one of them is there already or can't be written, and SettingsError where a name,
    a host or a command is not usable; nothing is written then.
    """
    named = list(hosts) or [EXAMPLE_HOST]
    load(section(found, named), environment=None, only_hosts=None, environ={}, root=directory)
    files = {directory / "fabric.yaml": rendered(found, named), directory / "fabfile.py": FABFILE}
    refuse_over_another(directory)
    written: list[Path] = []
    for path, content in files.items():
        try:
            with path.open("x") as file:
                written.append(path)
                file.write(content)
        except OSError as error:
            for ours in written:
                ours.unlink()
            raise UsageError(
                f"{path.name} can't be written: {error.strerror}",
                where=str(directory),
                state="nothing was written",
            ) from error
    return written


def refuse_over_another(directory: Path) -> None:
    """Raise UsageError where there is a file already that would be written."""
    present = [name for name in ("fabric.yaml", "fabfile.py") if (directory / name).exists()]
    if present:
        them = "it" if len(present) == 1 else "them"
        raise UsageError(
            f"there {'is' if len(present) == 1 else 'are'} {' and '.join(present)} already",
            where=str(directory),
            state="nothing was written",
            next=f"move {them} away, or copy what you need from what fab init writes into an empty directory",
        )


def section(found: Found, hosts: Sequence[str]) -> dict[str, object]:
    """What `deploy` of that file comes to."""
    return {
        "application": found.application,
        "hosts": list(hosts),
        "shared": list(found.shared),
        "app": {"command": found.command, "env": found.env},
        "webserver": {"document_root": found.document_root, "public_url": public_url(hosts[0])},
        "migrate": found.migrate or None,
    }


def public_url(host: str) -> str | None:
    """Where visitors reach a site for all that is known: at its first host. None for what is no host."""
    address = split_address(host)
    if not isinstance(address, dict):
        return None
    name = str(address["host"])
    return f"http://[{name}]/" if ":" in name else f"http://{name}/"


def rendered(found: Found, hosts: Sequence[str]) -> str:
    """The text of fabric.yaml."""
    values = {
        "application": found.application,
        "hosts": "\n".join(f"    - {json.dumps(host)}" for host in hosts),
        "shared": json.dumps(list(found.shared)),
        "command": json.dumps(found.command),
        "env": json.dumps(found.env),
        "document_root": json.dumps(found.document_root),
        "public_url": json.dumps(public_url(hosts[0])),
        "migrate": _migrate(found.migrate),
    }
    return re.sub(r"@(\w+)@", lambda place: values[place[1]], TEMPLATE.read_text())


def _migrate(keys: Mapping[str, object]) -> str:
    """Text in JSON is text in YAML too, whatever is in it."""
    if not keys:
        return _NO_MIGRATE
    return _MIGRATE.format(keys="\n".join(f"    {key}: {json.dumps(value)}" for key, value in keys.items()))
