"""Generations as plain processes: for hosts that systemd doesn't run (containers, the sandbox).

A generation is a small supervisor (`generation_runner`) that holds the listening socket and starts the
application anew when it ends. Whatever the application starts stays a descendant of it, so all of them
are found and ended together; and the shell that ran the swap can go.

    run/app.N.life   what the supervisor tells: {"pid", "restarts", "ended"}
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hostlib import detached
from hostlib.program import Config, Failure
from hostlib.swapping import applog, generations, launch, processes
from hostlib.swapping.generation_runner import LIFE_SIZE
from hostlib.swapping.generations import Life, Record
from hostlib.swapping.processes import Process

NAME = "direct"
BACKLOG = 65535  # listen(2) clamps it to net.core.somaxconn
TERM_GRACE = 10.0  # seconds between SIGTERM and SIGKILL
KILL_GRACE = 5.0  # seconds that SIGKILL may take, for a process in an uninterruptible read for instance
POLL = 0.01


class Direct:
    """The direct `Manager`; the time between SIGTERM and SIGKILL is an argument for tests' sake."""

    def __init__(self, config: Config, term_grace: float = TERM_GRACE) -> None:
        self._config = config
        self._term_grace = term_grace

    def start(self, record: Record) -> Record:
        config = self._config
        self.stop(record)  # what is left of it where somebody killed its supervisor

        def put_on_record() -> None:
            # In the child, before exec. It still shares the lock of `swap`, so that nobody else can
            # look at the record before it names this process, even if `swap` is killed right now.
            pid = os.getpid()
            own = processes.find(pid)
            started = own.start_time if own else None
            record.saved(config, pid=pid, start_time=started, boot_id=processes.boot_id())

        with contextlib.ExitStack() as ours:
            stdin = ours.enter_context(_standard_input(config, record))
            log, life = applog.opened(config, launch.account(config)), _new_life(config, record)
            ours.callback(os.close, log)
            ours.callback(os.close, life)
            try:
                subprocess.Popen(
                    [*detached.scope(), *launch.RUNNER, "--supervise", str(life)],
                    cwd="/",
                    env=launch.environment(config, record),
                    stdin=stdin,
                    stdout=log,
                    stderr=log,
                    pass_fds=[life],  # a listener that leaks into other processes never resets: requests hang
                    start_new_session=True,
                    preexec_fn=put_on_record,  # noqa: PLW1509 - no thread runs yet
                )
            except subprocess.SubprocessError as error:
                record.saved(config)  # says why it could not be put on record: by a full disk, as a rule
                raise OSError(str(error)) from error
        return next(kept for kept in generations.records(config) if kept.generation == record.generation)

    def look(self, record: Record) -> Life:
        supervisor, told = processes.first_process(record), self._told(record)
        if supervisor is None:
            return Life(None, told.get("restarts", 0), told.get("ended") or "its process is gone", over=True)
        if not told:  # a generation of before there were supervisors: its first process is the application
            return Life(supervisor.pid)
        child = processes.find(told["pid"]) if told["pid"] else None
        lives = child is not None and child.parent == supervisor.pid and not child.dead
        return Life(told["pid"] if lives else None, told["restarts"], told["ended"])

    def stop(self, record: Record) -> None:
        for process in self._members(record):
            _signal(process, signal.SIGTERM)
            _signal(process, signal.SIGCONT)  # one that is stopped would not hear of it
        deadline = time.monotonic() + self._term_grace
        while members := self._members(record):
            if time.monotonic() >= deadline + KILL_GRACE:
                pids = ", ".join(str(process.pid) for process in members)
                raise Failure(
                    f"{record} does not end on SIGKILL: pid {pids}", next="ps -o pid,stat,wchan,args"
                )
            if time.monotonic() >= deadline:
                for process in members:
                    # The supervisor ends with the last of the others; until then it keeps them together.
                    if process.pid != record.pid or len(members) == 1:
                        _signal(process, signal.SIGKILL)
            time.sleep(POLL)

    def _members(self, record: Record) -> list[Process]:
        """The living processes of a generation: the supervisor and what descends from it.

        Where somebody killed the supervisor, those in its session and the application's: the kernel gives
        the pid of a session's leader to nobody else while the session has a member.
        """
        if record.pid is None or not processes.is_of_this_life(record):
            return []
        there = {one.pid: one for one in processes.every()}
        told = self._told(record)
        leaders = {record.pid: record.start_time, told.get("pid"): told.get("start_time")}
        sessions = {
            pid for pid, started in leaders.items() if pid not in there or there[pid].start_time == started
        }

        def belongs(process: Process | None) -> bool:
            while process is not None and process.session not in sessions:
                process = there.get(process.parent)
            return process is not None

        return [one for one in there.values() if belongs(one) and not one.dead]

    def _told(self, record: Record) -> dict[str, Any]:
        """What the supervisor wrote last: empty where there never was one."""
        unknown = {"pid": None, "start_time": None, "restarts": 0, "ended": None}
        try:
            return {**unknown, **json.loads(_life_file(self._config, record).read_bytes())}
        except FileNotFoundError:
            return {}
        except ValueError:  # it told nothing yet, or a power cut left zeros of it
            return unknown


@contextlib.contextmanager
def _standard_input(config: Config, record: Record) -> Iterator[int]:
    """The generation's fd 0: its listening socket, or nothing where the application binds one itself.

    Our own copy of the listener is closed at the end.
    """
    if record.binds_itself:
        with open(os.devnull, "rb") as nothing:
            yield nothing.fileno()
        return
    path = Path(record.socket)
    path.unlink(missing_ok=True)  # of before a reboot
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(record.socket)
        if os.geteuid() == 0:
            webserver = launch.webserver_account(config)
            os.chown(path, webserver.pw_uid, webserver.pw_gid)
        path.chmod(0o660)
        listener.listen(BACKLOG)
        yield listener.fileno()


def _life_file(config: Config, record: Record) -> Path:
    return config.run / f"app.{record.generation}.life"


def _new_life(config: Config, record: Record) -> int:
    """A descriptor for the supervisor to write to, which is not root; what it takes on the disk is taken."""
    descriptor = os.open(_life_file(config, record), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.write(descriptor, b" " * LIFE_SIZE)
    return descriptor


def _signal(process: Process, number: signal.Signals) -> None:
    """Signal that very process, which may have ended since it was listed."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, number)
