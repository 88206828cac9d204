"""The detached process of one migration: python3 -m hostlib.migrating.migration_runner ORDER, which is JSON

It gets everything ready in a directory of its own, migrations/.armed-RUN_ID.X, says on standard output
that it is, and waits there for the word: the release's code is imported, the database was looked at, and
no connection to it is open. At the word "go" it publishes that directory as migrations/RUN_ID. This
rename(2) is the at-most-once start; whoever takes the directory away before has stopped it for good.
Then it lets the adapter run the migration, and publishes the outcome. Whatever goes wrong after the start
leaves no outcome.json, which is to say: unknown.

The word comes through the socket `go` in that directory, which only root (or who runs everything) can reach.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from hostlib.files import read_json, sync_directory, write_json
from hostlib.migrating import adapters, migrations
from hostlib.migrating.adapters import PATIENCE, Conversation
from hostlib.migrating.migrations import Check
from hostlib.names import timestamp
from hostlib.program import Config, Failure, load_config

# How long it waits for the word, in seconds. What it saw of the database gets old.
ARMED_FOR = 900
# How long the session of a migration that was killed may take to end, and between two looks, in seconds.
SESSION_ENDS, SESSION_POLL = 2.0, 0.2
# How long whoever gives the word may take to say it, in seconds.
HEARING = 5


@dataclass(frozen=True)
class Order:
    """What is asked for: as run `run_id`, bring the database to `target`, the heads of `release`.

    With `online` the application goes on serving: whatever isn't labelled safe for that is refused. With
    `back` it takes back what the run of that id has applied; `target` is where the database was before that.
    """

    run_id: str
    release: str
    target: tuple[str, ...]
    online: bool = False
    back: str | None = None

    @classmethod
    def of(cls, told: dict[str, Any]) -> Order:
        """An order from its JSON."""
        return cls(told["run_id"], told["release"], tuple(told["target"]), told["online"], told["back"])


class Refused(Exception):
    """The migration can't be started as ordered; the database is as it was."""


def main(config: Config, order: Order) -> None:
    """Get ready, tell so, wait, run. What is told is a line of JSON, {"ok": bool, "what": str}."""
    with contextlib.ExitStack() as stack:
        try:
            place, lock, log = stack.enter_context(_directory(config, order))
            adapter = adapters.of_release(
                config,
                order.release,
                order.run_id,
                online=order.online,
                back_to=order.target if order.back else (),
            )
            if adapter is None:
                raise Refused(f"release {order.release} has no migrations")
            talk = stack.enter_context(adapters.conversation(adapter, log, pass_fds=(lock,)))
            now = _startable(config, order, talk)
            door = stack.enter_context(_door(place))
        except (Refused, Failure, OSError, subprocess.SubprocessError) as error:
            _report({"ok": False, "what": str(error)}, log=None)
            return
        _report({"ok": True, "place": str(place)}, log)
        started = _description(order, now)
        if not _wait_for_the_word(door, order, talk, lambda: _publish(config, order, place, started, now)):
            return
        if not is_there(started, now):
            supervise(config, started, talk)


def supervise(config: Config, started: dict[str, Any], talk: Conversation) -> None:
    """Let the adapter run the migration and look at the database again; publish the outcome."""
    began = time.monotonic()
    answer = talk.ask("rollback" if started["back"] else "upgrade")
    seconds = round(time.monotonic() - began, 3)
    after = until_its_session_ends(lambda: _look(config, started, talk))
    ended = {"answer": answer, "seconds": seconds, "ended_at": timestamp()}
    write_json(
        config.migrations / started["run_id"] / "outcome.json", {**judge(started, answer, after), **ended}
    )


def judge(started: dict[str, Any], answer: dict[str, Any] | None, after: Check) -> dict[str, Any]:
    """Given what was to be done, what the adapter said (None: it was killed) and where the database is now,
    return the outcome.

    Success is what the database says, not the exit code: env.py may have forgotten to commit.
    """
    known = {
        "before": started["before"],
        "after": list(after.current) if after.known else None,
        "transactional": started["transactional"],
    }
    if after.ours is not None:
        reason = f"its session {after.ours['id']} is still at work in the database"
        return {**known, "after": None, "outcome": "unknown", "reason": reason}
    if answer is not None and "error" not in answer:
        if is_there(started, after):
            return {**known, "outcome": "applied", "applied": answer["applied"]}
        if not after.known:
            return {**known, "outcome": "unknown", "reason": after.message}
        reason = "the migration ended well, but the database is not where it should be: did env.py commit?"
    elif answer is not None:
        reason = answer["error"]
    else:
        reason = "the migration was killed"
    cut_off = answer is None or answer.get("connection_lost") is True
    if cut_off and is_there(started, after):  # the revision is what a migration writes last
        applied = [] if started.get("back") else started.get("pending") or list(after.current)
        return {**known, "outcome": "applied", "applied": applied}
    rolled_back = (
        started.get("atomic") is True if answer is None or cut_off else answer["transactional"] is not False
    )
    unchanged = (
        after.known
        and sorted(after.current) == sorted(started["before"])
        and started["transactional"] is True
        and rolled_back
    )
    return {**known, "outcome": "failed", "unchanged": unchanged, "reason": reason}


def is_there(started: dict[str, Any], now: Check) -> bool:
    """Whether the database is where the run is to bring it."""
    if started.get("back"):
        return now.known and sorted(now.current) == sorted(started["target"])
    return now.state == "current"


def until_its_session_ends(look: Callable[[], Check]) -> Check:
    """Look at the database until the migration's session is gone, for a while: PostgreSQL ends an orphan."""
    deadline = time.monotonic() + SESSION_ENDS
    while True:
        found = look()
        if found.ours is None or time.monotonic() >= deadline:
            return found
        time.sleep(SESSION_POLL)


@contextlib.contextmanager
def _directory(config: Config, order: Order) -> Iterator[tuple[Path, int, BinaryIO]]:
    """A directory that isn't published yet, the descriptor of its lock, which is held, and its log."""
    place = Path(tempfile.mkdtemp(prefix=f".armed-{order.run_id}.", dir=config.migrations))
    # `status` of the deploy user looks whether the lock is held; who can open it could hold it himself.
    lock = os.open(place / "lock", os.O_RDWR | os.O_CREAT, 0o640)
    log = os.open(place / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.fchmod(lock, 0o640)
        if os.geteuid() == 0:
            os.fchown(lock, -1, config.state.stat().st_gid)
        fcntl.flock(lock, fcntl.LOCK_EX)
        with os.fdopen(log, "wb") as file:
            yield place, lock, file
    finally:
        os.close(lock)
        shutil.rmtree(place, ignore_errors=True)  # which it isn't any more where it was published


def _startable(config: Config, order: Order, talk: Conversation) -> Check:
    answer = talk.ask("check", PATIENCE) or {"error": "the adapter died"}
    now = migrations.understood(config, order.release, answer)
    if not now.known:
        raise Refused(now.message)
    if order.back:
        return _ours_to_take_back(config, order, now)
    if sorted(now.target) != sorted(order.target):
        heads, asked = migrations.revisions(now.target), migrations.revisions(order.target)
        raise Refused(f"release {order.release} needs revision {heads}, not {asked}")
    if order.online and now.offline:
        raise Refused(f"not while the site is up: {'; '.join(now.offline)}")
    return now


def _ours_to_take_back(config: Config, order: Order, now: Check) -> Check:
    """`now`, where the database is still at what that run has applied, or before it. Otherwise Refused."""
    done = read_json(config.migrations / str(order.back) / "outcome.json") or {}
    if done.get("outcome") != "applied":
        raise Refused(f"nobody knows that run {order.back} has applied something")
    if sorted(now.current) not in (sorted(done["after"]), sorted(order.target)):
        raise Refused(f"{now.message}: that is not what run {order.back} has left")
    return now


def _description(order: Order, now: Check) -> dict[str, Any]:
    pending = [step["revision"] for step in now.pending if step["revision"]]
    known = {"transactional": now.transactional, "atomic": now.atomic}
    return {**asdict(order), "before": list(now.current), "pending": pending, **known}


def _report(told: dict[str, Any], log: BinaryIO | None) -> None:
    """Tell whoever started us, if he is still there; from then on all that is printed goes to `log`."""
    with contextlib.suppress(BrokenPipeError):
        os.write(1, json.dumps(told).encode() + b"\n")
    if log is not None:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)


@contextlib.contextmanager
def _door(place: Path) -> Iterator[socket.socket]:
    """The socket through which the word comes. Addressed by descriptor: a path may be too long for it."""
    directory = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with socket.socket(socket.AF_UNIX) as door:
            door.bind(f"/proc/self/fd/{directory}/go")
            door.listen()
            yield door
    finally:
        os.close(directory)


def _wait_for_the_word(
    door: socket.socket, order: Order, talk: Conversation, begin: Callable[[], bool]
) -> bool:
    """True once the word was "go" and `begin` has succeeded; False where it never came or was "stop"."""
    deadline = time.monotonic() + ARMED_FOR
    while True:
        ready, _, _ = select.select([door, talk.come], [], [], max(0.0, deadline - time.monotonic()))
        if talk.come in ready or not ready:  # the adapter, which nobody asked, has ended; or we are too old
            return False
        caller, _ = door.accept()
        with caller, contextlib.suppress(OSError, ValueError):
            caller.settimeout(HEARING)
            said = json.loads(caller.makefile("rb").readline())
            if said["word"] == "stop":
                return False
            ours = said["order"] == json.loads(json.dumps(asdict(order)))
            if ours and said["word"] == "go" and not begin():
                return False
            with contextlib.suppress(OSError):  # who gave the word may have died meanwhile
                caller.sendall(json.dumps({"ok": ours}).encode() + b"\n")
            if ours and said["word"] == "go":
                return True


def _publish(config: Config, order: Order, place: Path, started: dict[str, Any], now: Check) -> bool:
    """From here on it counts as started. False where it isn't: no room, or the directory was taken away.

    rename(2) refuses where a run of that name is there already.
    """
    try:
        _write(config, order, place, started, now)
    except OSError as error:
        print(f"the migration was not started: {error}", file=sys.stderr)
        return False
    return True


def _write(config: Config, order: Order, place: Path, started: dict[str, Any], now: Check) -> None:
    write_json(place / "started.json", {**started, "started_at": timestamp()})
    if is_there(started, now):
        nothing = {"applied": [], "transactional": now.transactional}
        write_json(place / "outcome.json", {**judge(started, nothing, now), "seconds": 0.0})
    os.unlink(place / "go")
    place.chmod(0o755)
    sync_directory(place)
    os.rename(place, config.migrations / order.run_id)
    sync_directory(config.migrations)


def _look(config: Config, started: dict[str, Any], talk: Conversation) -> Check:
    try:
        answer = talk.ask("check", PATIENCE)
    except TimeoutError as error:
        return Check("unknown", message=str(error))
    if answer is None:  # the adapter was killed, so by one of its own
        return migrations.check(config, started["release"], started["run_id"])
    return migrations.understood(config, started["release"], answer)


if __name__ == "__main__":
    main(load_config(), Order.of(json.loads(sys.argv[1])))
