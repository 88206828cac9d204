"""A migration runs once per run id, detached from whoever started it.

    migrations/RUN_ID/started.json   what was to be done, and where the database was before
    migrations/RUN_ID/lock           flock-ed by the runner and by the migration itself while they live
    migrations/RUN_ID/log            what the migration printed
    migrations/RUN_ID/outcome.json   how it ended; published by rename, see migration_runner

The directory appears complete, with the lock already held, by one rename: its name is the at-most-once
start. So: outcome there: finished. Lock held: running. Neither: unknown, never "failed". Where nothing is
in it but `renounced`: not started, and never to be.

Before, the runner may have been armed: started, ready, waiting for the word in migrations/.armed-RUN_ID.X.
If it is gone by then, or too old, another one is started.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from hostlib import detached
from hostlib.files import read_json
from hostlib.locking import exclusive, held
from hostlib.migrating import adapters
from hostlib.migrating.adapters import PATIENCE
from hostlib.migrating.migration_runner import Order
from hostlib.program import HERE, Config, Failure

# How long a runner that was told to go may take to begin, in seconds: it writes some files.
BEGINNING = 30
# How long one may take until it waits for the word, in seconds: it checks the database.
READY = PATIENCE + 20
# Longer than the one who starts holds the lock of the directory.
WAIT = READY + BEGINNING + 20


def back_id(run_id: str) -> str:
    """The run that takes back what `run_id` has applied."""
    return f"{run_id}-back"


def is_running(config: Config, run_id: str) -> bool:
    """True while the migration of `run_id` or its runner lives. Works for root and the deploy user."""
    run = config.migrations / run_id
    return not (run / "outcome.json").exists() and held(run / "lock")


def running(config: Config) -> list[dict[str, Any]]:
    """What started.json says of each migration that runs now."""
    paths = config.migrations.glob("[!.]*/started.json")
    return [read_json(path) or {} for path in paths if is_running(config, path.parent.name)]


def newest_first(config: Config) -> list[dict[str, Any]]:
    """What started.json says of every migration that was ever begun here."""
    found = [read_json(path) or {} for path in config.migrations.glob("[!.]*/started.json")]
    return sorted(found, key=lambda started: (started["started_at"], started["run_id"]), reverse=True)


def is_settled(ended: dict[str, Any] | None) -> bool:
    """Whether it is known, or was said, what a migration that is over has left: all of it or nothing."""
    return ended is not None and (ended["outcome"] == "applied" or ended.get("unchanged") is True)


def start(config: Config, order: Order) -> None:
    """Start the migration, unless it has none, or that run was started before.

    Raises Failure where nothing was started.
    """
    place = config.migrations / order.run_id
    with exclusive(config.migrations, wait=WAIT):
        if place.exists() or adapters.of_release(config, order.release) is None:
            return
        for armed in _armed(config, order.run_id):
            if _tell(armed, "go", order) or not _take_away(armed, place):
                return
        new = _launch(config, order)
        if not _tell(new, "go", order) and _take_away(new, place):
            raise _not_started("the runner died before it began")


def arm(config: Config, order: Order) -> bool:
    """Have a runner for `order` wait for the word; False where there is nothing to run or it was run.

    Raises Failure where the migration could not be started. Runners that wait for other runs are ended:
    whoever has the deploy lock is the only one who may start one.
    """
    place = config.migrations / order.run_id
    with exclusive(config.migrations, wait=WAIT):
        if place.exists() or adapters.of_release(config, order.release) is None:
            return False
        waiting = False
        for armed in _armed(config, ""):
            if not waiting and _tell(armed, "ask", order):
                waiting = True
            else:
                _take_away(armed, place)
        if not waiting:
            _launch(config, order)
    return True


def disarm(config: Config, run_id: str) -> int:
    """End the runners that wait for the word of `run_id`; returns how many there were."""
    with exclusive(config.migrations, wait=WAIT):
        found = _armed(config, run_id)
        return sum(_take_away(armed, config.migrations / run_id) for armed in found)


def renounce(config: Config, run_id: str) -> None:
    """See to it that the migration of `run_id`, if it was not started by now, never will be."""
    place = config.migrations / run_id
    with exclusive(config.migrations, wait=WAIT):
        for armed in _armed(config, run_id):
            _take_away(armed, place)
        if place.exists():
            return
        made = Path(tempfile.mkdtemp(prefix=f".renounced-{run_id}.", dir=config.migrations))
        (made / "renounced").touch()
        made.chmod(0o755)  # as of any run: the deploy user looks into it before it frees a lock
        made.rename(place)


def _armed(config: Config, run_id: str) -> list[Path]:
    """The directories of runners that wait; of all runs where `run_id` is empty."""
    found = list(config.migrations.glob(f".armed-{run_id}.*" if run_id else ".armed-*"))
    for dead in [path for path in found if not held(path / "lock")]:
        shutil.rmtree(dead, ignore_errors=True)
    return [path for path in found if path.exists()]


def _tell(armed: Path, word: str, order: Order) -> bool:
    """Say a word to a runner that waits. False where it can't be reached, or was armed for something else."""
    with contextlib.suppress(OSError, ValueError), _connected(armed) as runner:
        runner.settimeout(BEGINNING)
        runner.sendall(json.dumps({"word": word, "order": asdict(order)}).encode() + b"\n")
        return bool(json.loads(runner.makefile("rb").readline())["ok"])
    return False


def _take_away(armed: Path, place: Path) -> bool:
    """Stop a runner from ever beginning: without its directory it can't. False where it has begun already."""
    gone = armed.with_name(f".gone{armed.name}")
    try:
        os.rename(armed, gone)
    except FileNotFoundError:
        return not place.exists()
    with contextlib.suppress(OSError), _connected(gone) as runner:
        runner.settimeout(BEGINNING)
        runner.sendall(b'{"word": "stop"}\n')
    shutil.rmtree(gone, ignore_errors=True)
    return True


@contextlib.contextmanager
def _connected(armed: Path) -> Iterator[socket.socket]:
    directory = os.open(armed, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with socket.socket(socket.AF_UNIX) as runner:
            runner.connect(f"/proc/self/fd/{directory}/go")
            yield runner
    finally:
        os.close(directory)


def _launch(config: Config, order: Order) -> Path:
    """Start a runner and return its directory once it waits for the word. Failure where it can't."""
    argv = [sys.executable, "-m", "hostlib.migrating.migration_runner", json.dumps(asdict(order))]
    scope = detached.scope(f"deploytools-{config.application}-migration-{order.run_id}-{os.getpid()}")
    with tempfile.TemporaryFile() as errors:
        told = _told([*scope, *argv], errors) if scope else None
        told = told or _told(argv, errors)
        errors.seek(0)
        said = errors.read().decode(errors="replace").strip().rsplit("\n", 1)[-1]
    if told is None or not told["ok"]:
        reason = told["what"] if told else said or "the runner gave no answer"
        raise _not_started(f"the migration can't be started: {reason}")
    return Path(told["place"])


def _told(argv: Sequence[str], errors: BinaryIO) -> dict[str, Any] | None:
    """What a runner says of itself once it is ready, or isn't; None where it never came to that."""
    runner = detached.start(
        argv,
        cwd=HERE,
        env={"PATH": adapters.PATH},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=errors,
    )
    assert runner.stdout is not None
    with runner.stdout as said:
        if not select.select([said], [], [], READY)[0]:
            return {"ok": False, "what": f"the runner was not ready in {READY} s"}
        return json.loads(said.readline() or b"null")  # type: ignore[no-any-return]


def _not_started(what: str) -> Failure:
    return Failure(
        what,
        state="nothing was started; the database is as it was",
        next="fab migrate --status",
        outcome="failed",
        unchanged=True,
    )
