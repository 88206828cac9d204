"""A web host of your own on this machine: real lighttpd, real sshd, a sample application.

Everything it is made of stands in `.sandbox/` of the project directory; its servers listen on
127.0.0.1 only and run as whoever started them. `environment()` is what makes `fab on sandbox ...` work.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deploytools.errors import OperationFailed, UsageError
from deploytools.sandbox import checks, layout, processes, repository, servers
from deploytools.sandbox.layout import Layout

__all__ = ["Layout", "down", "environment", "is_up", "reset", "up"]


def environment(root: Path) -> dict[str, Any]:
    """The `deploy` mapping of the built-in environment `sandbox`, for the project in `root`.

    Raises UsageError where no sandbox was made there.
    """
    made = layout.load(root)
    if made is None:
        raise UsageError(
            "there is no sandbox here yet", where=str(layout.base_of(root)), next="fab sandbox.up"
        )
    return layout.environment(made)


def is_up(root: Path) -> bool:
    """Whether both servers of the sandbox in `root` run."""
    made = layout.load(root)
    return made is not None and all(server.runs for server in servers.both(made))


def up(
    root: Path,
    *,
    http_port: int | None = None,
    ssh_port: int | None = None,
    install: Callable[[], None] | None = None,
) -> str:
    """Make the sandbox where there is none, and start what of it doesn't run. Harmless when it is up.

    Args:
        root: the project directory.
        http_port: of the site; by default the one it had before, or 8080.
        ssh_port: of sshd; by default the one it had before, or 2222.
        install: puts the host side in place; run when sshd answers and before lighttpd starts.

    Return what came of it, for people.
    Raises UsageError, with nothing started, where a package is missing, a port is taken or `root` is
    no place for a sandbox. Raises OperationFailed where a server doesn't come up, and whatever
    `install` raises; nothing of the sandbox is left running then.
    """
    base = checks.place(root)
    checks.packages()
    checks.login()
    with checks.alone(base):
        made = layout.load(root) or Layout(base)
        wanted = Layout(
            base,
            made.http_port if http_port is None else http_port,
            made.ssh_port if ssh_port is None else ssh_port,
        )
        missing = [server for server in servers.both(wanted) if not server.runs]
        if len(missing) < 2 and wanted != made:
            raise UsageError(
                f"the sandbox is up on other ports: {made.http_port} and {made.ssh_port} (ssh)",
                where=str(base),
                next="fab sandbox.down, then fab sandbox.up with the new ones",
            )
        if missing:
            _start(wanted, missing, install)
    return (
        f"The sandbox is up{'' if missing else ' already'}: {wanted.url}\n"
        f"A shell on it: ssh -F {wanted.ssh / 'config'} {layout.HOST}"
    )


def _start(wanted: Layout, missing: list[servers.Server], install: Callable[[], None] | None) -> None:
    if wanted.http_port == wanted.ssh_port:
        raise UsageError(f"both ports are {wanted.http_port}", next="choose different ones")
    for server in missing:
        checks.port_is_free(server.port, server.option)
    try:
        servers.configure(wanted)
        servers.whole(wanted.repository, repository.make)
        layout.save(wanted)
        sshd, lighttpd = servers.both(wanted)
        if sshd in missing:
            servers.start(sshd)
        if install is not None:
            install()
        if lighttpd in missing:
            servers.check(wanted)
            servers.start(lighttpd)
    except BaseException as error:
        processes.stop(wanted)
        if isinstance(error, OSError | subprocess.SubprocessError):
            raise OperationFailed(
                f"the sandbox can't be made: {error}",
                where=str(wanted.base),
                state="nothing of the sandbox is left running",
                next="mend that, then fab sandbox.up",
            ) from error
        raise


def down(root: Path) -> str:
    """End every process of the sandbox in `root`; what it has on disk stays. Harmless when it is down.

    Return what came of it, for people. Raises OperationFailed where a process can't be ended.
    """
    base = checks.place(root)
    if not base.is_dir():
        return "There is no sandbox here."
    with checks.alone(base):
        ended = processes.stop(Layout(base))
    return f"The sandbox is down; {ended} processes were ended." if ended else "The sandbox was down already."


def reset(
    root: Path,
    *,
    http_port: int | None = None,
    ssh_port: int | None = None,
    install: Callable[[], None] | None = None,
) -> str:
    """End the sandbox, delete everything it has on disk, and make a new one on the same ports.

    Arguments, answer and errors are those of `up`.
    """
    base = checks.place(root)
    if base.is_dir():
        with contextlib.suppress(UsageError):  # What can't be read any more is deleted all the same.
            made = layout.load(root) or Layout(base)
            http_port, ssh_port = http_port or made.http_port, ssh_port or made.ssh_port
        down(root)
        shutil.rmtree(base)
    return up(root, http_port=http_port, ssh_port=ssh_port, install=install)
