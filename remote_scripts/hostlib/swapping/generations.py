"""Generations: each is one run of the application, with a number of its own, a socket and a record.

    run/app.sock -> app.N.sock    what the web server connects to; this link alone says who serves
    run/app.N.sock                generation N's socket
    run/app.N.json                its record, written before its socket or any process of it exists
    run/app.N.env, .life, .d/     how it is started and how it fares: see `launch` and `direct`
    run/generation                the highest number given out so far

What only reads (`serving`, `records`) changes nothing and takes no lock.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import re
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hostlib import files
from hostlib.program import BUSY, USAGE, Config, Failure

STARTING = "starting"  # the public never reached it
SERVING = "serving"  # the web server was led to it, and was not yet seen to be led elsewhere
DRAINING = "draining"  # no new request can reach it; old ones may still be in it
WARM = "warm"  # idle, and kept until `until` for `swap --back`

REAPING = 1  # the size of swap.lock while `swap --reap` holds it
REAPING_TAKES = 60.0  # seconds at most, with applications that don't end when they are asked to
POLL = 0.05  # seconds


@dataclass(frozen=True)
class Record:
    """What is known of a generation; times are seconds since the epoch.

    Args:
        socket: the path its listener is bound to, as /proc/net/unix shows it.
        pid: the process that its manager started it with; None before.
        start_time, boot_id: of that process (clock ticks after boot, and which boot), so that
            another process that was given the same pid later is never taken for it.
        run_id: of the run that led the web server to it last; with `back` for a `swap --back`.
        previous: the generation that served before it.
    """

    generation: int
    release: str
    manager: str
    socket: str
    started_at: float
    run_id: str | None = None
    back: bool = False
    previous: int | None = None
    state: str = STARTING
    until: float | None = None
    pid: int | None = None
    start_time: int | None = None
    boot_id: str | None = None

    def saved(self, config: Config, **changes: object) -> Record:
        """This record with `changes`, written to its file."""
        changed = dataclasses.replace(self, **changes)  # type: ignore[arg-type]
        files.write_json(record_path(config, self.generation), dataclasses.asdict(changed))
        return changed

    def noted(self, config: Config, **changes: object) -> Record:
        """Like `saved`, for what only explains: on a full disk it isn't written, and nothing fails."""
        try:
            return self.saved(config, **changes)
        except OSError:
            return dataclasses.replace(self, **changes)  # type: ignore[arg-type]

    @property
    def binds_itself(self) -> bool:
        """True where the application makes its socket itself (listen: path)."""
        return not self.socket.endswith(f"/{socket_name(self.generation)}")

    def __str__(self) -> str:
        return f"generation {self.generation} (release {self.release})"


@dataclass(frozen=True)
class Life:
    """What a manager sees of a generation.

    Args:
        pid: the application's first process; None while there is none.
        restarts: how often the application was started again after it had ended by itself.
        ended: how it ended last, in words; None where it never did.
        over: nobody starts it again, either.
    """

    pid: int | None
    restarts: int = 0
    ended: str | None = None
    over: bool = False


class Manager(Protocol):
    """Who runs the processes of generations, owns their sockets, and starts anew what crashed."""

    def start(self, record: Record) -> Record:
        """Open its listening socket and start it, as `launch` has prepared it. Failure where that fails."""

    def look(self, record: Record) -> Life:
        """How it is; changes nothing and needs no root."""

    def stop(self, record: Record) -> None:
        """End all of its processes, whether they like it or not, and close its socket.

        Raises Failure where one doesn't end.
        """


@contextlib.contextmanager
def one_swap_at_a_time(config: Config, *, reaping: bool = False) -> Iterator[None]:
    """Hold the lock of `swap`; the kernel lets go of it however we end.

    `swap --reap` comes by itself when a soak time is over: it waits its turn, and nobody is sent away because
    of it. Raises Failure where another swap holds the lock, or anyone for too long, and where run/ is not
    as `fab setup` makes it.
    """
    _check_directory(config.run)
    descriptor = os.open(config.run / "swap.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        deadline = time.monotonic() + REAPING_TAKES
        while not _locked(descriptor):
            waits = reaping or os.fstat(descriptor).st_size == REAPING
            if not waits or time.monotonic() >= deadline:
                raise Failure(
                    "another swap is at work on this host",
                    state="this one changed nothing",
                    next="wait for it, then run the same command again",
                    exit_code=BUSY,
                )
            time.sleep(POLL)
        with contextlib.suppress(OSError):  # the size tells who holds it; then somebody waits in vain
            os.ftruncate(descriptor, REAPING if reaping else 0)
        yield
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _check_directory(run: Path) -> None:
    """What lies in run/ tells whom to end, and where visitors are led: so nobody else may write there.

    And the web server has to get in.
    """
    try:
        found = run.stat()
    except FileNotFoundError:
        what = f"there is no directory {run}"
    else:
        mode, wanted = stat.S_IMODE(found.st_mode), 0o711 if os.geteuid() == 0 else 0o700
        if found.st_uid == os.geteuid() and mode & 0o022 == 0 and mode & wanted == wanted:
            return
        what = f"{run} belongs to uid {found.st_uid} and has mode {mode:o}, not uid {os.geteuid()} and 755"
    raise Failure(what, state="nothing was changed", next="fab setup", exit_code=USAGE)


def record_path(config: Config, generation: int) -> Path:
    return config.run / f"app.{generation}.json"


def socket_name(generation: int) -> str:
    """What run/app.sock links to when `generation` serves."""
    return f"app.{generation}.sock"


def records(config: Config) -> list[Record]:
    """All generations on record, oldest first; Failure where a record can't be read."""
    found = []
    for path in config.run.glob("app.*.json"):
        try:
            raw = files.read_json(path)
            if raw is not None:
                found.append(Record(**raw))
        except (ValueError, TypeError) as error:
            raise Failure(
                f"{path} is not a generation's record: {error}",
                state="nothing was changed",
                next=f"make sure that none of its processes is left, then remove {path}",
            ) from error
    return sorted(found, key=lambda record: record.generation)


def serving_number(config: Config) -> int | None:
    """The generation that run/app.sock leads to, or None where there is no such link."""
    try:
        target = os.readlink(config.run / "app.sock")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Failure(
            f"{config.run / 'app.sock'} is no symbolic link",
            state="nothing was changed",
            next="stop what listens there and remove it; `swap` then starts the application",
            exit_code=USAGE,
        ) from error
    named = re.fullmatch(r"app\.(\d+)\.sock", target)
    return int(named[1]) if named else None


def serving(config: Config) -> Record | None:
    """The record of the generation that run/app.sock leads to. Its process may have died: see `alive`."""
    number = serving_number(config)
    return next((record for record in records(config) if record.generation == number), None)


def cut_short(config: Config, new: Record) -> Record | None:
    """What served before `new`, if the swap between them did not come to its barrier."""
    before = (record for record in records(config) if record.generation == new.previous)
    return next((record for record in before if record.state == SERVING), None)


def first_process(record: Record) -> Process | None:
    """The process that `start` began with; None where it has ended."""
    process = find_process(record.pid) if record.pid else None
    if process is None or process.dead or process.start_time != record.start_time:
        return None
    return process if record.boot_id == boot_id() else None


def numbers(config: Config) -> set[int]:
    """The generations of which anything is there."""
    named = (re.match(r"app\.(\d+)\.", path.name) for path in config.run.iterdir())
    return {int(name[1]) for name in named if name}


def next_number(config: Config) -> int:
    """A number that no generation ever had; from now on it is taken."""
    path = config.run / "generation"
    try:
        given = int(path.read_text())
    except FileNotFoundError:
        given = 0
    except ValueError as error:
        raise Failure(
            f"{path} should hold the number of the newest generation",
            state="nothing was changed",
            next=f"write a number into {path} that is higher than any generation in log/app.log",
        ) from error
    number = max(given, serving_number(config) or 0, *numbers(config)) + 1
    files.write_atomic(path, f"{number}\n")
    return number


@dataclass(frozen=True)
class Process:
    """A row of /proc: see proc_pid_stat(5)."""

    pid: int
    state: str
    parent: int
    session: int
    threads: int
    start_time: int

    @property
    def dead(self) -> bool:
        """It only waits for its parent to take notice. While other threads of it end, it is not yet dead."""
        return self.state in "ZX" and self.threads < 2


def find_process(pid: int) -> Process | None:
    try:
        # The second field is the program's name in parentheses, which may itself contain anything.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, parent, session, threads, start_time = (fields[at] for at in (0, 1, 3, 17, 19))
    return Process(pid, state, int(parent), int(session), int(threads), int(start_time))


def all_processes() -> Iterator[Process]:
    for name in os.listdir("/proc"):
        if name.isdigit() and (process := find_process(int(name))):
            yield process


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
