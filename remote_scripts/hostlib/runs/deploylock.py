"""Who may change this application's hosts: one run at a time, ROOT/state/lock/details.json says which.

The directory is built under another name and renamed, so a lock without details is never seen.
rename(2) refuses to replace a directory that isn't empty, which is what makes it a lock; flock on
ROOT/state only keeps "look who holds it, then take it away" in one piece.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from hostlib.files import read_json, sync_directory, write_json
from hostlib.locking import exclusive
from hostlib.names import timestamp
from hostlib.program import BUSY, TOOLS, Config, Failure, Result

WAIT = 30  # seconds


def holder(config: Config) -> dict[str, Any] | None:
    """The details of the lock; None where nobody holds it."""
    return read_json(_path(config) / "details.json")


def acquire(config: Config, details: dict[str, Any], *, or_go_on: bool = False) -> Result:
    """Take the lock for the run `details["run_id"]`; Failure (exit code 5) where another run has it.

    With `or_go_on` a disk without room is no failure, where nobody holds the lock.
    """
    with exclusive(config.state, wait=WAIT):
        held = holder(config)
        if held is not None and held["run_id"] == details["run_id"]:
            return {"changed": False, "lock": held, "message": "this run holds the lock already"}
        if held is not None:
            raise _busy(held)
        details = {**details, "since": timestamp()}
        try:
            _put(config, details)
        except OSError as error:
            if not or_go_on or error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                raise
            why = f"{config.state} can't be written ({error.strerror}), so this run has no lock"
            return {"changed": False, "without": True, "message": why}
    return {"changed": True, "lock": details, "message": f"locked by run {details['run_id']}"}


def release(config: Config, run_id: str) -> Result:
    """Let the lock of `run_id` go; harmless where there is none; Failure (exit code 5) if it's another's."""
    with exclusive(config.state, wait=WAIT):
        held = holder(config)
        if held is None:
            return {"changed": False, "message": "nobody holds the lock"}
        if held["run_id"] != run_id:
            raise _busy(held)
        _take_away(config)
    return {"changed": True, "message": f"run {run_id} let the lock go"}


def break_(config: Config, run_id: str) -> Result:
    """What `fab unlock --force` does: like `release`, but never while the run's migration is at work."""
    at_work = _migration_at_work(config, run_id)
    if at_work:
        raise Failure(
            f"the migration of run {run_id} is still running{at_work}",
            state="the lock stays; nothing was changed",
            next=f"`migrate outcome {run_id} --timeout 600` waits for it; then `fab deploy --resume`",
            exit_code=BUSY,
            lock=holder(config),
        )
    return release(config, run_id)


def _migration_at_work(config: Config, run_id: str) -> str:
    """Where the run's migration is at work, in words; nothing where it isn't."""
    from hostlib.migrating import migration_runs

    if migration_runs.is_running(config, run_id):
        return " on this host"
    place = config.migrations / run_id
    if not place.exists() or (place / "outcome.json").exists():
        return ""
    # By that program, because it goes on as root and then as the application's user.
    argv = [str(TOOLS / "migrate"), "outcome", run_id, "--json"]
    ran = subprocess.run(argv, capture_output=True, text=True, check=False)
    session = (json.loads(ran.stdout) if ran.stdout else {}).get("session")
    return f" in the database, by its session {session['id']}" if session else ""


def describe(held: dict[str, Any]) -> str:
    """Who, from where, since when, what, and why."""
    text = f"{held['by']} on {held['laptop']} since {held['since']}: {held['operation']}"
    if held.get("release"):
        text += f" of {held['release']}"
    if held.get("reason"):
        text += f" ({held['reason']})"
    return f"{text}, run {held['run_id']}"


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


def _busy(held: dict[str, Any]) -> Failure:
    return Failure(
        f"the lock is held by {describe(held)}",
        state="nothing was changed",
        next="wait for that run, or if you are sure that it is dead: fab deploy --resume or --abort"
        f" (fab unlock --force {held['run_id']} frees the lock and leaves everything else as it is)",
        exit_code=BUSY,
        lock=held,
        unchanged=True,  # of the run, not only of this call: it doesn't have the lock
    )
