"""A migration runs once per run id, detached from whoever started it.

    migrations/RUN_ID/started.json   what was to be done, and where the database was before
    migrations/RUN_ID/lock           flock-ed by the runner and by the migration itself while they live
    migrations/RUN_ID/log            what the migration printed
    migrations/RUN_ID/outcome.json   how it ended; published by rename, see migration_runner

The directory is built under another name, with the lock already held, and renamed: its name is the
at-most-once start, and nobody ever sees it without started.json or with the lock not yet taken.
So: outcome there: finished. Lock held: running. Neither: unknown, never "failed".
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from hostlib import adapters, migrations
from hostlib.adapters import PATIENCE, Conversation
from hostlib.files import read_json, sync_directory, write_json
from hostlib.locking import exclusive, held
from hostlib.migration_runner import judge
from hostlib.migrations import Check
from hostlib.names import timestamp
from hostlib.program import TOOLS, Config, Failure

# Longer than a check may take: the one who starts holds the lock of the directory during it.
WAIT = PATIENCE + 30


def is_running(config: Config, run_id: str) -> bool:
    """True while the migration of `run_id` or its runner lives. Works without root."""
    run = config.migrations / run_id
    return not (run / "outcome.json").exists() and held(run / "lock")


def running(config: Config) -> list[dict[str, Any]]:
    """What started.json says of each migration that runs now."""
    paths = config.migrations.glob("[!.]*/started.json")
    return [read_json(path) or {} for path in paths if is_running(config, path.parent.name)]


@dataclass(frozen=True)
class Order:
    """What is asked for: as run `run_id`, bring the database to `target`, the heads of `release`."""

    run_id: str
    release: str
    target: tuple[str, ...]


def start(config: Config, order: Order) -> None:
    """Start the migration, unless it has none, or that run was started before.

    Raises Failure where nothing was started.
    """
    place = config.migrations / order.run_id
    adapter = adapters.of_release(config, order.release, order.run_id)
    with exclusive(config.migrations, wait=WAIT):
        if place.exists() or adapter is None:
            return
        try:
            with (
                _new_directory(config, order) as (new, lock, log),
                adapters.conversation(adapter, log, pass_fds=(lock,)) as talk,
            ):
                now = _startable(config, order, talk)
                _describe(new, order, now)
                _publish(new, place)  # from here on it counts as started
                if now.state == "pending":
                    _hand_over(order.run_id, talk, lock, log)
        except (OSError, subprocess.SubprocessError) as error:
            if place.exists():
                raise
            raise _not_started(f"the migration can't be started: {error}") from error


@contextlib.contextmanager
def _new_directory(config: Config, order: Order) -> Iterator[tuple[Path, int, BinaryIO]]:
    """A directory that isn't published yet, the descriptor of its lock, which is held, and its log."""
    new = config.migrations / f".new-{order.run_id}"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(mode=0o755)
    lock = os.open(new / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    log = os.open(new / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with os.fdopen(log, "wb") as file:
            yield new, lock, file
    finally:
        os.close(lock)
        shutil.rmtree(new, ignore_errors=True)


def _startable(config: Config, order: Order, talk: Conversation) -> Check:
    answer = talk.ask("check", PATIENCE) or {"error": "the adapter died"}
    now = migrations.understood(config, order.release, answer)
    if not now.known:
        raise _not_started(f"the migration can't be started: {now.message}")
    if sorted(now.target) != sorted(order.target):
        heads, asked = migrations.revisions(now.target), migrations.revisions(order.target)
        raise _not_started(f"release {order.release} needs revision {heads}, not {asked}")
    return now


def _describe(new: Path, order: Order, now: Check) -> None:
    started = {
        **asdict(order),
        "before": list(now.current),
        "transactional": now.transactional,
        "started_at": timestamp(),
    }
    write_json(new / "started.json", started)
    if now.state == "current":
        nothing = {"applied": [], "transactional": now.transactional}
        write_json(new / "outcome.json", {**judge(started, nothing, now), "seconds": 0.0})


def _publish(new: Path, place: Path) -> None:
    """rename(2) refuses where a run of that name is there already."""
    sync_directory(new)
    os.rename(new, place)
    sync_directory(place.parent)


def _hand_over(run_id: str, talk: Conversation, lock: int, log: BinaryIO) -> None:
    """Start the runner, which goes on with the conversation; neither a hang-up nor Ctrl-C reaches it."""
    subprocess.Popen(
        [sys.executable, "-m", "hostlib.migration_runner", run_id, str(talk.to), str(talk.come)],
        cwd=TOOLS,
        env={"PATH": adapters.PATH},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        pass_fds=(lock, talk.to, talk.come),
        start_new_session=True,
    )


def _not_started(what: str) -> Failure:
    return Failure(
        what,
        state="nothing was started; the database is as it was",
        next="fab migrate --status",
        outcome="failed",
        unchanged=True,
    )
