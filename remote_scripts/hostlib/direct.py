"""Generations as plain processes: for hosts that systemd doesn't run (containers, the sandbox).

A generation is a session of its own, which all of its processes belong to unless they leave it on
purpose; so they are found and ended together, and the shell that ran the swap can go.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from hostlib import generations, unixsockets
from hostlib.generations import Process, Record
from hostlib.manifest import FD0, App
from hostlib.program import USAGE, Config, Failure, drop_to

NAME = "direct"
BACKLOG = 4096  # listen(2) clamps it to net.core.somaxconn
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TERM_GRACE = 10.0  # seconds between SIGTERM and SIGKILL
KILL_GRACE = 5.0  # seconds that SIGKILL may take, for a process in an uninterruptible read for instance
POLL = 0.01


class Direct:
    """The direct `Manager`; the time between SIGTERM and SIGKILL is an argument for tests' sake."""

    def __init__(self, config: Config, term_grace: float = TERM_GRACE) -> None:
        self._config = config
        self._term_grace = term_grace
        # Those we are the parent of: only their parent learns how they ended.
        self._children: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, generation: int, release: str, app: App) -> Record:
        config, account = self._config, _account(self._config)
        record = Record(
            generation=generation,
            release=release,
            manager=NAME,
            socket=str(_socket_path(config, generation, app.listen)),
            started_at=round(time.time(), 3),
        )
        if len(record.socket.encode()) > unixsockets.LONGEST_PATH:
            raise Failure(
                f"the path of the socket is longer than {unixsockets.LONGEST_PATH} bytes: {record.socket}",
                state="nothing was changed",
                next="choose a shorter deploy.root",
                exit_code=USAGE,
            )
        record.saved(config)
        drop = drop_to(config.user)

        def become_the_application() -> None:
            # In the child, before exec. It still shares the lock of `swap`, so that nobody else can
            # look at the record before it names this process, even if `swap` is killed right now.
            pid = os.getpid()
            own = generations.find_process(pid)
            started = own.start_time if own else None
            record.saved(config, pid=pid, start_time=started, boot_id=generations.boot_id())
            drop()

        try:
            with _standard_input(record, app, account) as stdin, _log(config, account) as log:
                self._children[generation] = subprocess.Popen(
                    app.argv,
                    cwd=config.releases / release,
                    env=_environment(record, app, account),
                    stdin=stdin,
                    stdout=log,
                    stderr=log,
                    close_fds=True,  # a listener that leaks into other processes never resets: requests hang
                    start_new_session=True,
                    umask=0o022,
                    preexec_fn=become_the_application,  # noqa: PLW1509 - no thread runs yet
                )
        except (OSError, subprocess.SubprocessError) as error:
            self.stop(record)
            raise Failure(
                f"the application can't be started: {error}",
                state="what served before serves on",
                next="see app.command and app.user in fabric.yaml",
            ) from error
        return next(kept for kept in generations.records(config) if kept.generation == generation)

    def ended(self, record: Record) -> str | None:
        child = self._children.get(record.generation)
        if child is None:
            return None if generations.alive(record) else "its process is gone"
        code = child.poll()
        if code is None:
            return None
        if code < 0:
            return f"it was ended by signal {-code} ({signal.strsignal(-code)})"
        hint = " (it must stay in the foreground)" if code == 0 else ""
        return f"it ended with exit status {code}{hint}"

    def stop(self, record: Record) -> None:
        for process in _members(record):
            _signal(process, signal.SIGTERM)
        deadline = time.monotonic() + self._term_grace
        while members := _members(record):
            if time.monotonic() >= deadline + KILL_GRACE:
                pids = ", ".join(str(process.pid) for process in members)
                raise Failure(
                    f"{record} does not end on SIGKILL: pid {pids}", next="ps -o pid,stat,wchan,args"
                )
            if time.monotonic() >= deadline:
                for process in members:
                    _signal(process, signal.SIGKILL)
            time.sleep(POLL)
        run = self._config.run
        (run / generations.socket_name(record.generation)).unlink(missing_ok=True)
        shutil.rmtree(run / f"app.{record.generation}.d", ignore_errors=True)
        # Last, because it is what leads to the rest.
        generations.record_path(self._config, record.generation).unlink(missing_ok=True)

    def list(self) -> set[int]:
        named = (re.match(r"app\.(\d+)\.(sock|json|d)$", path.name) for path in self._config.run.iterdir())
        return {int(name[1]) for name in named if name}


def _socket_path(config: Config, generation: int, listen: str) -> Path:
    """Where the listener is bound. run/ is root's, so an application that binds itself gets a directory."""
    name = generations.socket_name(generation)
    return config.run / name if listen == FD0 else config.run / f"app.{generation}.d" / "app.sock"


def _account(config: Config) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(config.user)
    except KeyError as error:
        raise Failure(
            f"there is no account {config.user} to run the application as",
            state="nothing was changed",
            next=f"adduser --system {config.user}, or set app.user and run fab setup",
            exit_code=USAGE,
        ) from error


@contextlib.contextmanager
def _standard_input(record: Record, app: App, account: pwd.struct_passwd) -> Iterator[int]:
    """The application's fd 0: its listening socket, or nothing where it binds a path itself.

    Our own copy of the listener is closed at the end: connections then fail when the application dies.
    """
    path = Path(record.socket)
    if app.listen == FD0:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(record.socket)
            _own(path, account)
            path.chmod(0o660)
            listener.listen(BACKLOG)
            yield listener.fileno()
    else:
        path.parent.mkdir()
        _own(path.parent, account)
        stable = path.parent.parent / generations.socket_name(record.generation)
        stable.symlink_to(path.relative_to(stable.parent))
        with open(os.devnull, "rb") as nothing:
            yield nothing.fileno()


@contextlib.contextmanager
def _log(config: Config, account: pwd.struct_passwd) -> Iterator[int]:
    """log/app.log, owned by the application, which may want to open /dev/stderr anew.

    It is for the group of log/ to read: that is the deploy user's.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
    descriptor = os.open(config.log / "app.log", flags, 0o640)
    try:
        if os.geteuid() == 0:
            os.chown(descriptor, account.pw_uid, config.log.stat().st_gid)
        yield descriptor
    finally:
        os.close(descriptor)


def _own(path: Path | int, account: pwd.struct_passwd) -> None:
    if os.geteuid() == 0:
        os.chown(path, account.pw_uid, account.pw_gid)


def _environment(record: Record, app: App, account: pwd.struct_passwd) -> dict[str, str]:
    """A clean one: nothing of the operator's shell reaches the application."""
    environment = {
        "PATH": SEARCH_PATH,
        "HOME": account.pw_dir,
        "LANG": "C.UTF-8",
        "PHP_FCGI_MAX_REQUESTS": "0",  # php-cgi ends after 500 otherwise, and nobody starts it again
        **app.env,
        "DEPLOYTOOLS_RELEASE": record.release,
        "DEPLOYTOOLS_GENERATION": str(record.generation),
    }
    if app.listen != FD0:
        environment["APP_SOCKET"] = record.socket
    return environment


def _members(record: Record) -> list[Process]:
    """The living processes of a generation: those in the session that its first process leads.

    The kernel gives that pid to nobody else while the session has a member.
    """
    if record.pid is None or record.boot_id != generations.boot_id():
        return []
    leader = generations.find_process(record.pid)
    if leader is not None and leader.start_time != record.start_time:
        return []
    everybody = (generations.find_process(int(name)) for name in os.listdir("/proc") if name.isdigit())
    return [one for one in everybody if one and one.session == record.pid and not one.dead]


def _signal(process: Process, number: signal.Signals) -> None:
    """Signal that very process, which may have ended since it was listed."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, number)
