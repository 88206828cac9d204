"""The releases of this host: which are here, what became of them, never removed while anything runs on them.

A release has its name only when it is complete: it grows in .incoming/ID, and shrinks as .discarded-ID.
Whoever gives or takes such a name holds the lock of the releases directory; whoever works in .incoming, where
an upload may take long, holds that one's. What is found there under its lock was left by one that died.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from hostlib.files import read_json, write_json
from hostlib.locking import POLL, exclusive
from hostlib.program import USAGE, Config, Failure, Result
from hostlib.releasing.listing import STAGED
from hostlib.releasing.manifest import content
from hostlib.swapping import generations

MANIFEST = ".deploytools.json"
# What became of a release: STAGED_ONLY while its deploy is under way, or was given up.
STAGED_ONLY, DEPLOYED, FAILED_STATE = "staged", "deployed", "failed"
# How many names of damaged files are told.
TOLD = 10
# What is told instead of one whose manifest can't be read: nothing can be started on it.
DAMAGED = "damaged"
# What is told of a release out of its manifest.
ABOUT = ("ref", "commit", "digest", "operator", "created_at")
# How long a command waits for another one that is at work here, in seconds.
WAIT = 300
STANDS_DOWN = 5.0  # seconds for a generation that stands by to be stopped
INCOMING, CONTENT = ".incoming", "content"
# What a killed program leaves; versions of before .incoming was one directory wrote the last two.
LITTER = (".discarded-", ".incoming-", ".upload-")


def manifest(config: Config, release: str) -> dict[str, Any]:
    """What the laptop wrote into the release; Failure (exit code 2) where there is no such release."""
    found = described(config.releases / release)
    if found is None:
        raise _unusable(f"there is no release {release} in {config.releases}")
    return found


def current(config: Config) -> str | None:
    """The release that `current` points at, or that serves where somebody has removed that link.

    None before the first deploy.
    """
    if config.release is not None:
        return config.release
    serving = generations.serving(config)
    return serving.release if serving else None


def previous(config: Config) -> str | None:
    """The release that served when the current one came; where that is gone or failed, the one before."""
    serving, met = current(config), set()
    while serving is not None and serving not in met:
        met.add(serving)
        serving = staged(config.releases / serving).get("served")
        if serving and (config.releases / serving).is_dir() and state(config, serving) != FAILED_STATE:
            return serving
    return None


def shared_names(config: Config, release: str | None) -> list[str]:
    """The paths of a release that are links to ROOT/shared; none where there is no release."""
    return list(staged(config.releases / release).get("shared", ())) if release else []


def state(config: Config, release: str) -> str:
    """What became of a release. One that was staged before this was noted counts as deployed."""
    return str(staged(config.releases / release).get("state", DEPLOYED))


def discard(config: Config, release: str, *, failed: bool = False) -> Result:
    """Remove `release`; Failure where anything runs or may run on it. What was uploaded stays for a day.

    One that `failed` is marked instead: no rollback goes there by itself, and the next `prune` removes it.
    It stays as it is where an earlier deploy of it has succeeded.
    """
    _wait_until_nobody_stands_by(config, release)
    with exclusive(config.releases, wait=WAIT):
        _take_from_incoming(config, release)
        if not (config.releases / release).exists():
            return {"changed": False, "release": release, "message": f"there is no release {release}"}
        if failed and staged(config.releases / release).get("state") == DEPLOYED:
            message = f"release {release} was deployed before, so it stays"
            return {"changed": False, "release": release, "message": message}
        used = release == current(config) or release in _in_use(config)
        if used and failed:
            _note(config, release, FAILED_STATE)
            message = f"release {release} is in use, so it stays, marked as failed"
            return {"changed": True, "release": release, "message": message}
        if used:
            raise Failure(
                f"release {release} is in use",
                state="nothing was changed",
                next="`release list` shows by what; swap to another release first",
            )
        _remove(config, release)
    return {"changed": True, "release": release, "message": f"release {release} is removed"}


def listing(config: Config) -> Result:
    """Every complete release, newest first, and which one serves."""
    serving, used, before = current(config), _in_use(config), previous(config)
    releases = []
    for release in names(config):
        about = _readable(config.releases / release)
        releases.append(
            {
                **{key: (about or {}).get(key) for key in ABOUT},
                "id": release,
                "state": DAMAGED if about is None else state(config, release),
                "current": release == serving,
                "previous": release == before,
                "in_use": release in used,
                **{key: staged(config.releases / release).get(key) for key in ("staged_at", "served")},
            }
        )
    lines = [
        f"{'*' if row['current'] else ' '} {row['id']}  {row['ref'] or ''}"
        + ("" if row["state"] == DEPLOYED else f"  ({row['state']})")
        for row in releases
    ]
    return {
        "releases": releases,
        "current": serving,
        "previous": before,
        "message": "\n".join(lines) or "no release yet",
    }


def prune(config: Config, keep: int, *, deployed: str | None = None) -> Result:
    """Remove all but the newest `keep` releases, and what dead programs left behind.

    The current release, the previous one and any that a generation record names always stay. What failed,
    or was staged before the current one and never deployed, doesn't count and goes. `deployed` is the
    release whose deploy has succeeded: a part of its files is read, and what is damaged is told.
    """
    with exclusive(config.releases, wait=WAIT):
        if deployed is not None and (config.releases / deployed).is_dir():
            _note(config, deployed, DEPLOYED)
        for litter in config.releases.iterdir():
            if litter.name.startswith(LITTER):
                _delete(litter)
        _clear_incoming(config.releases / INCOMING)
        every, serving = names(config), current(config)
        good = [release for release in every if state(config, release) == DEPLOYED]
        # What is staged after the current one may be a run's that is at work.
        after = every[: every.index(serving)] if serving in every else every
        coming = {release for release in after if state(config, release) == STAGED_ONLY}
        protected = {serving, previous(config), *_in_use(config), *good[:keep], *coming}
        removed = [release for release in every if release not in protected]
        for release in removed:
            _remove(config, release)
        kept = names(config)
    details = _read_in_turn(config, deployed) if deployed in kept else []
    return {
        "changed": bool(removed),
        "removed": removed,
        "kept": kept,
        "message": f"{len(removed)} removed, {len(kept)} kept",
        **({"details": details} if details else {}),
    }


def _read_in_turn(config: Config, release: str) -> list[str]:
    """Read the part of a release's files whose turn it is; the paths of those that are damaged, as told."""
    from hostlib.releasing import proof

    place = config.releases / release
    try:
        _, damaged = proof.damaged(place, shared_names(config, release), number(config, release))
    except OSError:  # without a listing it was put there by hand
        return []
    if damaged:
        proof.forget(config.releases / name for name in names(config))
    told = [
        f"{place / name} is not what it was when it was staged: the next fab deploy sends it anew"
        for name in damaged[:TOLD]
    ]
    return [*told, f"and {len(damaged) - TOLD} more"] if len(damaged) > TOLD else told


def _clear_incoming(incoming: Path) -> None:
    """Remove what was begun and given up, unless somebody is at work there."""
    from hostlib.releasing.store import Store  # costly to import, and most programs have no use for it

    if not incoming.is_dir():
        return
    with contextlib.suppress(Failure), exclusive(incoming, wait=0):
        for entry in incoming.iterdir():
            if entry.name != CONTENT:
                _delete(entry)
        Store(incoming / CONTENT).clear_stale()


def described(place: Path) -> dict[str, Any] | None:
    """The manifest of the release in `place`; None where there is none."""
    try:
        found = json.loads(content(place / MANIFEST))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise _unusable(f"{MANIFEST} of {place.name} can't be read: {error}") from error
    if not isinstance(found, dict):
        raise _unusable(f"{MANIFEST} of {place.name} is no JSON object")
    return found


def _readable(place: Path) -> dict[str, Any] | None:
    """The same, and None where it can't be read either: that must not hide the other releases."""
    with contextlib.suppress(Failure):
        return described(place)
    return None


def _unusable(what: str) -> Failure:
    return Failure(
        what,
        state="nothing was changed",
        next="`release list` shows what is there; deploy again to have it anew",
        exit_code=USAGE,
        unchanged=True,
    )


def staged(place: Path) -> dict[str, Any]:
    """What the host itself knows of the release in `place`; nothing where that can't be read.

    Its listing's digest, the shared names, when it came and as which number (a clock may jump back), which
    release served then, and what became of it.
    """
    try:
        found = read_json(place / STAGED)
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    # One that was damaged must not keep any program from its work.
    return {key: value for key, value in found.items() if _sound(key, value)}


def _sound(key: str, value: object) -> bool:
    if key == "number":
        return type(value) is int
    if key == "shared":
        return isinstance(value, list) and all(isinstance(name, str) for name in value)
    return value is None or isinstance(value, str)


def names(config: Config) -> list[str]:
    """Every complete release, newest first, in the order in which they were staged."""

    def came(release: str) -> tuple[int, int, str]:
        try:
            changed = (config.releases / release / STAGED).stat().st_mtime_ns
        except FileNotFoundError:
            changed = 0
        return number(config, release), changed, release

    found = [entry.name for entry in os.scandir(config.releases) if entry.is_dir() and entry.name[0] != "."]
    return sorted(found, key=came, reverse=True)


def number(config: Config, release: str) -> int:
    """As which one it was staged."""
    found: int = staged(config.releases / release).get("number", 0)
    return found


def next_number(config: Config) -> int:
    """As which one the next is staged: they are counted, because a clock may jump back."""
    return 1 + max((number(config, release) for release in names(config)), default=0)


def verify(config: Config, release: str | None) -> Result:
    """Read every file of a release (the current one where None); Failure where one isn't what it should be.

    The next `stage` reads all that it links then.
    """
    from hostlib.releasing import proof  # as little as possible is imported where it isn't needed

    release = release or current(config)
    if release is None:
        return {"changed": False, "release": None, "message": "no release yet"}
    manifest(config, release)
    try:
        files, damaged = proof.damaged(config.releases / release, shared_names(config, release))
    except OSError as error:
        raise _unusable(f"what {release} should have in it can't be read: {error}") from error
    if damaged:
        proof.forget(config.releases / name for name in names(config))
        raise Failure(
            f"{len(damaged)} of {files} files of release {release} are not what they were when it was staged",
            state="it is left as it is",
            next="fab deploy, which sends them anew",
            release=release,
            damaged=damaged,
            details=[f"{config.releases / release / name}" for name in damaged[:TOLD]],
        )
    message = f"release {release}: all {files} files are what they were when it was staged"
    return {"changed": False, "release": release, "files": files, "damaged": [], "message": message}


def _note(config: Config, release: str, state: str) -> None:
    place = config.releases / release
    write_json(place / STAGED, {**staged(place), "state": state})


def _wait_until_nobody_stands_by(config: Config, release: str) -> None:
    """For a swap of this run that was just told to end; not for long, as one may have been killed."""
    deadline = time.monotonic() + STANDS_DOWN
    while time.monotonic() < deadline:
        records = [record for record in generations.records(config) if record.release == release]
        if not any(generations.word_path(config, record.generation).exists() for record in records):
            return
        time.sleep(POLL)


def _in_use(config: Config) -> set[str]:
    return {record.release for record in generations.records(config)}


def _take_from_incoming(config: Config, release: str) -> None:
    """At once, by its name: somebody who still works in it must not go on with what is left of it."""
    incoming = config.releases / INCOMING
    discarded = incoming / f".discarded-{release}"
    shutil.rmtree(discarded, ignore_errors=True)
    with contextlib.suppress(OSError):  # there is none; or the release itself is refused as well
        (incoming / release).rename(discarded)
    shutil.rmtree(discarded, ignore_errors=True)


def _delete(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink()


def _remove(config: Config, release: str) -> None:
    discarded = config.releases / f".discarded-{release}"
    shutil.rmtree(discarded, ignore_errors=True)
    (config.releases / release).rename(discarded)
    shutil.rmtree(discarded)
