"""Generations: each is one run of the application, with a number of its own, a socket and a record.

    run/app.sock -> app.N.sock    what the web server connects to; this link alone says who serves
    run/app.N.sock                generation N's socket
    run/app.N.json                its record, written before its socket or any process of it exists
    run/app.N.env, .life, .d/     how it is started and how it fares: see `launch` and `direct`
    run/app.N.word                while it waits for its turn: see `standby`
    run/generation                the highest number given out so far

What only reads (`serving`, `records`) changes nothing and takes no lock.
"""

from __future__ import annotations

import dataclasses
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hostlib import files
from hostlib.program import USAGE, Config, Failure

STARTING = "starting"  # the public never reached it
SERVING = "serving"  # the web server was led to it, and was not yet seen to be led elsewhere
DRAINING = "draining"  # no new request can reach it; old ones may still be in it
WARM = "warm"  # idle, and kept until `until` for `swap --back`


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


def record_path(config: Config, generation: int) -> Path:
    return config.run / f"app.{generation}.json"


def word_path(config: Config, generation: int) -> Path:
    """There while it stands by: see `standby`."""
    return config.run / f"app.{generation}.word"


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
