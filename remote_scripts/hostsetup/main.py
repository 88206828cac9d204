"""Reads the bundle, holds the lock, does what is asked, and prints one JSON object: what the laptop reads."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hostlib.locking import exclusive
from hostlib.program import BUG, BUSY, DONE, FAILED, Failure

from hostsetup import bundle as bundles
from hostsetup import install, lighttpd, remove
from hostsetup.bundle import Bundle, Refused

WAIT = 60.0  # seconds for another set-up on this host
# Where the laptop's half of a set-up, which calls us, has our programs: locked after a moment, in seconds.
OURS, YOUNG = "deploytools-setup-", 60.0


def main(raw: dict[str, Any]) -> int:
    """Return the exit code, which means what docs/reference.md says."""
    os.umask(0o022)
    code = DONE
    result: dict[str, Any]
    try:
        result = {"ok": True, **_done(raw)}
    except (Refused, Failure) as error:
        code = error.exit_code
        result = _failed(error.what, error.state, error.next)
    except OSError as error:
        code = FAILED
        result = _failed(str(error), install.STATE, f"{_remedy(error)}, then the same command again")
    except Exception as error:  # noqa: BLE001 - a traceback is nothing for the laptop to read
        code = BUG
        result = _failed(
            f"{type(error).__name__}: {error}", install.STATE, "report this as a bug of deploytools"
        )
    print(json.dumps(result))
    return code


def _done(raw: dict[str, Any]) -> dict[str, Any]:
    bundle = bundles.read(raw, systemd=Path("/run/systemd/system").is_dir())
    action = remove if raw["action"] == "remove" else install
    if bundle.plan_only:
        planned = action.plan(bundle)
        return _told(planned.changes, planned.notes)
    with _alone(bundle):
        lighttpd.sweep()
        _sweep()
        planned = action.plan(bundle)
        if not planned.changes:
            return _told([], planned.notes)
        return _told(planned.changes, action.apply(bundle, planned))


def _sweep() -> None:
    """Take away the programs of set-ups that were killed. Those of one at work are locked."""
    for place in Path(tempfile.gettempdir()).glob(f"{OURS}*"):
        with contextlib.suppress(Failure, OSError):
            about = place.lstat()  # others may make such names there, as links, too
            ours = stat.S_ISDIR(about.st_mode) and about.st_uid == os.geteuid()
            if ours and time.time() - about.st_mtime > YOUNG:
                with exclusive(place, wait=0):
                    shutil.rmtree(place)


def _told(changes: Any, notes: list[str]) -> dict[str, Any]:
    return {"changes": [asdict(change) for change in changes], "notes": notes}


def _remedy(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "make room (df -h; df -i)"
    if isinstance(error, TimeoutError):
        return "see on that host what keeps it (systemctl list-jobs; ps -ef) and mend that"
    return "mend that"


def _failed(what: str, state: str, next: str) -> dict[str, Any]:
    where = os.uname().nodename
    return {"ok": False, "error": {"what": what, "where": where, "state": state, "next": next}}


@contextlib.contextmanager
def _alone(bundle: Bundle, wait: float = WAIT) -> Iterator[None]:
    """One set-up at a time on a host, of whatever application: they all work on lighttpd's configuration.

    The file is root's in a directory of root's, so that nobody else can hold it.
    """
    path = Path("/run/deploytools.lock") if bundle.privileged else Path(os.path.dirname(bundle.lighttpd))
    descriptor = (
        os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        if bundle.privileged
        else os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    )
    try:
        deadline = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise Refused(
                        "another set-up is at work on this host",
                        next="wait for it, then run the same command again",
                        exit_code=BUSY,
                    ) from None
            time.sleep(0.1)
        yield
    finally:
        os.close(descriptor)
