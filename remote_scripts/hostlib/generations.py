"""Generations: each is one run of the application, with a number of its own, a socket and a record.

    run/app.sock -> app.N.sock    what the web server connects to; this link alone says who serves
    run/app.N.sock                generation N's socket
    run/app.N.json                its record, written before its socket or any process of it exists
    run/generation                the highest number given out so far

What only reads (`serving`, `records`, `alive`) changes nothing and takes no lock.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hostlib import files
from hostlib.manifest import App
from hostlib.program import BUSY, USAGE, Config, Failure

STARTING = "starting"  # the public never reached it
SERVING = "serving"  # the web server was led to it, and was not yet seen to be led elsewhere
DRAINING = "draining"  # no new request can reach it; old ones may still be in it
WARM = "warm"  # idle, and kept until `until` for `swap --back`


@dataclass(frozen=True)
class Record:
    """What is known of a generation; times are seconds since the epoch.

    Args:
        socket: the path its listener is bound to, as /proc/net/unix shows it.
        pid: its first process, which leads a session of its own; None before it was started.
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

    def __str__(self) -> str:
        return f"generation {self.generation} (release {self.release})"


class Manager(Protocol):
    """Who runs the processes of generations, and owns their sockets."""

    def start(self, generation: int, release: str, app: App) -> Record:
        """Make its record and its listening socket, and start it in the directory of `release`.

        Raises Failure, and leaves nothing behind, where it can't be started.
        """

    def ended(self, record: Record) -> str | None:
        """None while its first process runs, otherwise what is known of its end."""

    def stop(self, record: Record) -> None:
        """End all of its processes, whether they like it or not; then remove its socket and record."""

    def list(self) -> set[int]:
        """The numbers of all its generations of which anything is there."""


@contextlib.contextmanager
def one_swap_at_a_time(config: Config) -> Iterator[None]:
    """Hold the lock of `swap`; the kernel lets go of it however we end. Failure where another holds it."""
    try:
        descriptor = os.open(config.run / "swap.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except FileNotFoundError as error:
        raise Failure(
            f"there is no directory {config.run}",
            state="nothing was changed",
            next="fab setup",
            exit_code=USAGE,
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Failure(
                "another swap is at work on this host",
                state="this one changed nothing",
                next="wait for it, then run the same command again",
                exit_code=BUSY,
            ) from error
        yield
    finally:
        os.close(descriptor)


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


def warm(config: Config) -> Record:
    """The generation that is kept warm; Failure (exit code 2) where none is."""
    number = serving_number(config)
    for record in reversed(records(config)):
        if record.state == WARM and record.generation != number and alive(record):
            return record
    raise Failure(
        "there is no warm generation to go back to",
        state="nothing was changed",
        next="fab rollback",
        exit_code=USAGE,
    )


def alive(record: Record) -> bool:
    """True while the generation's first process runs."""
    process = find_process(record.pid) if record.pid else None
    return (
        process is not None
        and process.start_time == record.start_time
        and record.boot_id == boot_id()
        and not process.dead
    )


def next_number(config: Config, known: Iterable[int]) -> int:
    """A number that no generation ever had, and none of the `known` ones has; from now on it is taken."""
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
    number = max(given, serving_number(config) or 0, *known) + 1
    files.write_atomic(path, f"{number}\n")
    return number


@dataclass(frozen=True)
class Process:
    """A row of /proc: see proc_pid_stat(5)."""

    pid: int
    state: str
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
    return Process(pid, fields[0], int(fields[3]), int(fields[17]), int(fields[19]))


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
