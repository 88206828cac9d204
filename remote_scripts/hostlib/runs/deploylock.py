"""Who may change this application's hosts: one run at a time, ROOT/state/lock/details.json says which.

The directory is built under another name and renamed, so a lock without details is never seen.
rename(2) refuses to replace a directory that isn't empty, which is what makes it a lock; flock on
ROOT/state only keeps "look who holds it, then take it away" in one piece.

The run's first records are in its journal before the lock is there: whoever finds it can go on from them.
heartbeat.json beside the details is the sign of life of the operator's process: it says in which phase the
run is, is written every few seconds, and is taken away as soon as that process has gone.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from hostlib.files import read_json, sync_directory, write_json
from hostlib.locking import exclusive
from hostlib.names import local, timestamp
from hostlib.program import BUSY, TOOLS, Config, Failure, Result
from hostlib.runs import journals

WAIT = 30  # seconds
# Without a sign of life for so many seconds the operator's process counts as gone: three beats and a retry.
ALIVE = 20.0
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
TOLD = ("run_id", "by", "laptop", "since", "operation")  # what a lock says of its holder
ASKING = 45.0  # seconds for the database, whose silence is no sign that a migration has ended


def holder(config: Config) -> dict[str, Any] | None:
    """The details of the lock; None where nobody holds it.

    With "phase", where the run says in which step it is, and "heard", how many seconds ago it said so;
    both None where its operator's process has gone.
    """
    held = _details(config)
    if held is None:
        return None
    phase, heard = None, None
    with contextlib.suppress(OSError, ValueError, KeyError):
        said = json.loads((_path(config) / "heartbeat.json").read_text())
        ago = round(_uptime() - said["at"], 1)
        if ago >= 0:  # otherwise it is of before a reboot, which nobody's connection survives
            phase, heard = said["phase"], ago
    return {**held, "phase": phase, "heard": heard}


def _uptime() -> float:
    """Seconds since the host came up. Of a sign of life: a clock that is set back would make it look new."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def beat(config: Config, run_id: str, phase: str) -> None:
    """Say that the run `run_id` is alive, if it holds the lock. Harmless where that can't be written."""
    held = _details(config)
    if held is None or held["run_id"] != run_id:
        return
    # Not write_json: nobody needs it after a power loss, so it need not wait for the disk.
    new = _path(config) / f".heartbeat.{os.getpid()}"
    with contextlib.suppress(OSError):
        new.write_text(json.dumps({"phase": phase, "pid": os.getpid(), "at": _uptime()}))
        os.rename(new, _path(config) / "heartbeat.json")


def gone(config: Config) -> None:
    """Say that the operator's process, whose signs of life we wrote, has gone."""
    path = _path(config) / "heartbeat.json"
    with contextlib.suppress(OSError, ValueError):
        if json.loads(path.read_text())["pid"] == os.getpid():
            path.unlink()


def acquire(config: Config, details: dict[str, Any], *, journal: str = "", or_go_on: bool = False) -> Result:
    """Take the lock for the run `details["run_id"]`; Failure (exit code 5) where another run has it.

    `journal` is the first lines of the run's journal, written before. With `or_go_on` a disk without room
    is no failure, where nobody holds the lock.
    """
    with exclusive(config.state, wait=WAIT):
        held = _details(config)
        if held is not None and held["run_id"] == details["run_id"]:
            return {"changed": False, "lock": held, "message": "this run holds the lock already"}
        if held is not None:
            raise _busy(config)
        details = {**details, "since": timestamp()}
        try:
            if journal:
                journals.append(config, details["run_id"], journal, 0)
            _put(config, details)
        except (OSError, Failure) as error:
            cause = error.__cause__ if isinstance(error, Failure) else error
            if not or_go_on or not isinstance(cause, OSError) or cause.errno not in NO_ROOM:
                raise
            why = f"{config.state} can't be written ({cause.strerror}), so this run has no lock"
            return {"changed": False, "without": True, "message": why}
    beat(config, details["run_id"], "lock")
    return {"changed": True, "lock": details, "message": f"locked by run {details['run_id']}"}


def release(config: Config, run_id: str) -> Result:
    """Let the lock of `run_id` go; harmless where there is none; Failure (exit code 5) if it's another's."""
    with exclusive(config.state, wait=WAIT):
        held = _details(config)
        if held is None:
            return {"changed": False, "message": "nobody holds the lock"}
        if held["run_id"] != run_id:
            raise _busy(config)
        _take_away(config)
    return {"changed": True, "message": f"run {run_id} let the lock go"}


def insist(config: Config, run_id: str) -> None:
    """Failure (exit code 5) unless `run_id` holds the lock: somebody thought it dead, and freed it."""
    held = _details(config)
    if held is None or held["run_id"] != run_id:
        now = f"run {held['run_id']} by {held['by']} has it now" if held else "nobody has it now"
        raise Failure(
            f"the lock of run {run_id} was freed; {now}",
            state="nothing was changed",
            next="fab status",
            exit_code=BUSY,
            freed=True,
        )


def break_(config: Config, run_id: str) -> Result:
    """What `fab unlock --force` does: like `release`, but never while the run's migration is at work.

    The message says so where that leaves a migration of which nobody knows what it has left.
    """
    from hostlib.migrating.migration_runs import back_id

    at_work = _migration_at_work(config, run_id) or _migration_at_work(config, back_id(run_id))
    if at_work:
        raise Failure(
            f"the migration of run {run_id} is still running{at_work}",
            state="the lock stays; nothing was changed",
            next=f"`migrate outcome {run_id} --timeout 600` waits for it; then `fab deploy --resume`",
            exit_code=BUSY,
            lock=holder(config),
        )
    freed = release(config, run_id)
    if freed["changed"] and (_is_unsettled(config, run_id) or _is_unsettled(config, back_id(run_id))):
        freed["message"] += (
            "; its migration failed half-way, or ended nobody knows how, so no deploy migrates until you have"
            f" looked at the schema and said: fab migrate.resolve --run-id {run_id} --as applied|not-applied"
            " --reason TEXT"
        )
    return freed


def _is_unsettled(config: Config, run_id: str) -> bool:
    from hostlib.migrating.migration_runs import is_settled

    place = config.migrations / run_id
    return (place / "started.json").exists() and not is_settled(read_json(place / "outcome.json"))


def _migration_at_work(config: Config, run_id: str) -> str:
    """Where the run's migration is at work, in words; nothing where it isn't."""
    from hostlib.migrating import migration_runs

    if migration_runs.is_running(config, run_id):
        return " on this host"
    place = config.migrations / run_id
    outcome = read_json(place / "outcome.json")
    if not place.exists() or (outcome is not None and outcome["outcome"] != "unknown"):
        return ""
    # By that program, because it goes on as root and then as the application's user.
    argv = [str(TOOLS / "migrate"), "outcome", run_id, "--json"]
    try:
        ran = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=ASKING)
    except subprocess.TimeoutExpired:
        return f", for all that is known: the database gave no answer within {ASKING:.0f} s"
    try:
        session = json.loads(ran.stdout).get("session")
    except ValueError:
        said = ran.stderr.strip().rsplit("\n", 1)[-1] or f"exit code {ran.returncode}"
        return f", for all that is known: {argv[0]} can't tell ({said})"
    return f" in the database, by its session {session['id']}" if session else ""


def describe(held: dict[str, Any]) -> str:
    """Who, from where, since when, what and why; in which phase, and when that was last heard."""
    text = f"{held['by']} on {held['laptop']} since {local(held['since'])}: {held['operation']}"
    if held.get("release"):
        text += f" of {held['release']}"
    if held.get("reason"):
        text += f" ({held['reason']})"
    text += f", run {held['run_id']}"
    if held.get("heard") is None:
        return f"{text}; nothing is heard of its operator's process"
    phase = f" in the step {held['phase']}" if held.get("phase") else ""
    return f"{text}; last heard of {held['heard']:.0f} s ago{phase}"


def is_alive(held: dict[str, Any]) -> bool:
    """Whether there was a sign of life lately."""
    return held.get("heard") is not None and held["heard"] < ALIVE


def _path(config: Config) -> Path:
    return config.state / "lock"


def _put(config: Config, details: dict[str, Any]) -> None:
    built = Path(tempfile.mkdtemp(prefix=".lock.new-", dir=config.state))
    try:
        built.chmod(0o755)
        write_json(built / "details.json", details)
        os.rename(built, _path(config))
    except BaseException:
        shutil.rmtree(built, ignore_errors=True)
        raise
    sync_directory(config.state)


def _take_away(config: Config) -> None:
    removed = Path(tempfile.mkdtemp(prefix=".lock.old-", dir=config.state))
    os.rename(_path(config), removed)
    sync_directory(config.state)
    shutil.rmtree(removed)


def _details(config: Config) -> dict[str, Any] | None:
    """Raises Failure where somebody holds the lock, but nobody can tell who: something has damaged it."""
    path = _path(config) / "details.json"
    try:
        held = read_json(path)
    except ValueError:
        held = {}
    if held is None:
        return None
    if not isinstance(held, dict) or not all(isinstance(held.get(key), str) for key in TOLD):
        raise Failure(
            f"the lock in {path.parent} says not who holds it: its details are damaged",
            state="nothing was changed",
            next=f"cat {path}; once nobody is at work: rm -r {path.parent}",
            exit_code=BUSY,
            unchanged=True,
        )
    return held


def _busy(config: Config) -> Failure:
    held = holder(config)
    assert held is not None, "we hold the lock of its directory"
    dead = (
        "fab deploy --resume goes on with that run, fab deploy --abort backs out of it"
        f" (fab unlock --force {held['run_id']} frees the lock and leaves everything else as it is)"
    )
    wait = f"wait for that run (fab deploy --lock-wait 30m does), or ask {held['by']}; once it is dead: "
    return Failure(
        f"the lock is held by {describe(held)}",
        state="nothing was changed",
        next=f"{wait if is_alive(held) else ''}{dead}",
        exit_code=BUSY,
        lock=held,
        unchanged=True,  # of the run, not only of this call: it doesn't have the lock
    )
