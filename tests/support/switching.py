"""What the tests of the maintenance switch have in common."""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from hostlib.switch import maintenance

from tests.support.webhost import Reply, WebHost

ME = getpass.getuser()
TOKEN = re.compile(r'^local bypass = "([\w-]{32})"$', re.MULTILINE)


def lua(host: WebHost, suffix: str = "") -> Path:
    return host.maintenance_dir / f"maint.lua{suffix}"


def token(host: WebHost) -> str:
    found = TOKEN.search(lua(host).read_text())
    assert found
    return found[1]


def files(host: WebHost) -> dict[str, bytes]:
    """What is in the maintenance directory."""
    return {file.name: file.read_bytes() for file in host.maintenance_dir.iterdir() if file.is_file()}


def is_app(reply: Reply) -> bool:
    return reply.status == 200 and reply.body == b"app /"


def is_page(reply: Reply) -> bool:
    return reply.in_maintenance and reply.body.rstrip().endswith(b"</html>")


def switch_down(host: WebHost, **changes: object) -> dict[str, object]:
    """`down` without the cost of a new process."""
    given = {"by": ME, "reason": None, "until": None, "run_id": None, "timeout": 10.0, **changes}
    return maintenance.down(host.hostlib_config, **given)  # type: ignore[arg-type]


def switch_up(host: WebHost, **changes: object) -> dict[str, object]:
    given = {"names": {ME}, "run_id": None, "force": None, "timeout": 10.0, **changes}
    return maintenance.up(host.hostlib_config, **given)  # type: ignore[arg-type]


def luac(script: Path) -> None:
    """The Lua compiler has nothing against it."""
    compiler = shutil.which("luac5.4") or shutil.which("luac")
    assert compiler, "install lua5.4"
    subprocess.run([compiler, "-p", str(script)], check=True)


@contextlib.contextmanager
def holding(directory: Path) -> Iterator[None]:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
