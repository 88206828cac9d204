"""What must be right before a sandbox is started, each with what to do about it."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploytools.errors import UsageError
from deploytools.sandbox import processes
from deploytools.sandbox.layout import Layout, account, base_of

# Servers stand in sbin, which an ordinary user's PATH leaves out on Debian.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PACKAGES = {
    "lighttpd": "lighttpd",
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "git": "git",
    "setsid": "util-linux",
}
MODULES = ("alembic", "flup", "sqlalchemy")

# Quoting rules differ between ssh, lighttpd, SQLite's URLs and alembic.ini; these mean nothing to any.
PLAIN_PATH = re.compile(r"[A-Za-z0-9/._+@-]+")
SOCKET_PATH_LIMIT = 107  # bytes, of sun_path's 108: the last is the terminating zero
LONGEST_SOCKET = "app.9999999.sock"
LOCK = "lock"


def program(name: str) -> str | None:
    """The absolute path of a program, or None."""
    return shutil.which(name, path=PATH) or shutil.which(name)


def place(root: Path) -> Path:
    """Given a project directory, return where its sandbox goes; raises UsageError where it can't."""
    base = base_of(root)
    if not base.parent.is_dir():
        raise UsageError("there is no such directory", where=str(base.parent), next="cd to the project")
    if not PLAIN_PATH.fullmatch(str(base)):
        raise UsageError(
            "the sandbox's programs don't agree on how to quote this path",
            where=str(base.parent),
            next="use a directory whose path has only letters, digits and / . _ + @ -",
        )
    too_long = len(str(Layout(base).application / "run" / LONGEST_SOCKET)) - SOCKET_PATH_LIMIT
    if too_long > 0:
        raise UsageError(
            "the path is too long: a unix socket's may have 107 bytes",
            where=str(base.parent),
            next=f"use a directory whose path is {too_long} characters shorter",
        )
    if base.is_symlink() or (base.exists() and base.stat().st_uid != os.geteuid()):
        raise UsageError(
            "the sandbox belongs to another user, or is a symbolic link",
            where=str(base),
            next="run fab as its owner, or remove it",
        )
    if base.exists() and not (base / LOCK).exists() and any(base.iterdir()):
        raise UsageError(
            "there is something here already that isn't a sandbox", where=str(base), next="move it away"
        )
    return base


def login() -> None:
    """Raise UsageError where sshd would let us in, but our shell would run no command."""
    shell = account().pw_shell
    if Path(shell).name in ("nologin", "false"):
        raise UsageError(
            f"{account().pw_name} can't run commands over ssh: its shell is {shell}",
            next="run fab as a user with an ordinary shell",
        )


def packages() -> None:
    """Raise UsageError with everything that isn't installed, and how to install it."""
    missing = {package for name, package in PACKAGES.items() if program(name) is None}
    if not Path("/usr/bin/python3").exists():
        missing.add("python3")
    if "lighttpd" not in missing and not _has_magnet():
        missing.add("lighttpd-modules-lua")
    modules = [name for name in MODULES if importlib.util.find_spec(name) is None]
    remedies = []
    if missing:
        prefix = "" if os.geteuid() == 0 else "sudo "
        remedies.append(f"{prefix}apt-get install {' '.join(sorted(missing))}")
    if modules:
        remedies.append("pip install 'deploytools[sandbox]'")
    if remedies:
        raise UsageError(
            f"the sandbox needs what isn't installed: {', '.join([*sorted(missing), *modules])}",
            state="nothing was started",
            next=" && ".join(remedies),
        )


def _has_magnet() -> bool:
    """Whether lighttpd can load mod_magnet, which Debian packs separately."""
    configuration = 'server.modules = ("mod_magnet")\nserver.document-root = "/"\n'
    lighttpd = program("lighttpd") or "lighttpd"
    test = subprocess.run(
        [lighttpd, "-tt", "-f", "-"],
        input=configuration,
        text=True,
        capture_output=True,
        check=False,
        timeout=30,
    )
    return test.returncode == 0


def port_is_free(port: int, option: str) -> None:
    """Raise UsageError where 127.0.0.1:`port` can't be listened on; `option` chooses another."""
    trouble = _trouble_with(port)
    if trouble:
        above = min(max(port, 1024), 65000)
        others = (other for other in range(above + 1, above + 100) if _trouble_with(other) is None)
        raise UsageError(
            f"port {port} can't be used: {trouble}",
            state="nothing was started",
            next=f"choose another one: fab sandbox.up {option} {next(others, 'PORT')}",
        )


def _trouble_with(port: int) -> str | None:
    if not 0 < port < 65536:
        return "ports go from 1 to 65535"
    with socket.socket() as probe:
        # As the servers do it: connections of an earlier run that are still closing don't matter.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen(1)
        except OSError as error:
            return processes.listener_on(port) or error.strerror
    return None


@contextmanager
def alone(base: Path) -> Iterator[None]:
    """Keep a second `up` or `down` of the same sandbox out; makes `base`. Raises UsageError."""
    try:
        base.mkdir(exist_ok=True)
        base.chmod(0o700)
        lock = os.open(base / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UsageError(f"the sandbox can't be made: {error.strerror}", where=str(base)) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise UsageError(
            "another sandbox command is at work here", where=str(base), next="wait for it, then try again"
        ) from error
    try:
        (base / ".gitignore").write_text("*\n")
        yield
    finally:
        os.close(lock)
