"""The releases of this host: taken in whole or not at all, never removed while anything runs on them.

A release has its name only when it is complete: it grows as .incoming-ID, and shrinks as .discarded-ID.
Whoever changes something here holds the lock of the releases directory, so whatever carries such a
name while we hold it was left behind by a program that died.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hostlib.files import read_json, sync_directory, write_json
from hostlib.locking import exclusive
from hostlib.names import timestamp
from hostlib.program import USAGE, Config, Failure, Result
from hostlib.releasing import shared
from hostlib.releasing.manifest import content
from hostlib.swapping import generations

MANIFEST = ".deploytools.json"
# What `stage` itself knows of a release: the archive's digest, the shared names, when it came and as
# which number (a clock may jump back), which release served then, and what became of it.
STAGED = ".deploytools.staged.json"
# What became of a release: STAGED_ONLY while its deploy is under way, or was given up.
STAGED_ONLY, DEPLOYED, FAILED_STATE = "staged", "deployed", "failed"
# How long a command waits for another one that is at work here, in seconds.
WAIT = 300
# An upload that hasn't grown for this long (seconds) was broken off.
ABANDONED = 3600


def manifest(config: Config, release: str) -> dict[str, Any]:
    """What the laptop wrote into the release; Failure (exit code 2) where there is no such release."""
    found = _described(config.releases / release)
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
        serving = _staged(config.releases / serving).get("served")
        if serving and (config.releases / serving).is_dir() and state(config, serving) != FAILED_STATE:
            return serving
    return None


def shared_names(config: Config, release: str | None) -> list[str]:
    """The paths of a release that are links to ROOT/shared; none where there is no release."""
    return list(_staged(config.releases / release).get("shared", ())) if release else []


def state(config: Config, release: str) -> str:
    """What became of a release. One that was staged before this was noted counts as deployed."""
    return str(_staged(config.releases / release).get("state", DEPLOYED))


@dataclass(frozen=True)
class Parcel:
    """A release on its way in: its archive, that one's digest, and the paths to be linked to ROOT/shared."""

    release: str
    path: Path
    sha256: str
    shared: tuple[str, ...]


def stage(config: Config, parcel: Parcel) -> Result:
    """Take in a release, and delete its archive.

    Harmless where the release is here already with the same content. Raises Failure, with nothing
    in place, where the archive is damaged, hostile or too large.
    """
    release = parcel.release
    shared.check_names(parcel.shared)
    with exclusive(config.releases, wait=WAIT) as lock:
        place = config.releases / release
        if place.exists():
            _check_same(place, parcel)
            parcel.path.unlink(missing_ok=True)
            return {"changed": False, "release": release, "message": f"release {release} was here already"}
        incoming = config.releases / f".incoming-{release}"
        try:
            missing = _take_in(config, parcel, incoming, lock)
            incoming.rename(place)
        except BaseException:
            shutil.rmtree(incoming, ignore_errors=True)
            raise
        sync_directory(config.releases)
        parcel.path.unlink()
    message = f"release {release} is staged"
    if missing:
        message += f"; still missing in {config.shared}: {', '.join(missing)}"
    return {"changed": True, "release": release, "missing": missing, "message": message}


def discard(config: Config, release: str, *, failed: bool = False) -> Result:
    """Remove `release` and what was uploaded for it; Failure where anything runs or may run on it.

    One that `failed` is marked instead: no rollback goes there by itself, and the next `prune` removes it.
    """
    with exclusive(config.releases, wait=WAIT):
        for upload in config.releases.glob(f".upload-{release}.*"):
            upload.unlink()
        if not (config.releases / release).exists():
            return {"changed": False, "release": release, "message": f"there is no release {release}"}
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
        described = _described(config.releases / release) or {}
        releases.append(
            {
                **{key: described.get(key) for key in ("ref", "commit", "digest", "operator", "created_at")},
                "id": release,
                "current": release == serving,
                "previous": release == before,
                "in_use": release in used,
                "state": state(config, release),
                **{key: _staged(config.releases / release).get(key) for key in ("staged_at", "served")},
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
    release whose deploy has succeeded.
    """
    with exclusive(config.releases, wait=WAIT):
        if deployed is not None and (config.releases / deployed).is_dir():
            _note(config, deployed, DEPLOYED)
        for litter in config.releases.iterdir():
            if litter.name.startswith((".incoming-", ".discarded-")):
                shutil.rmtree(litter)
            elif litter.name.startswith(".upload-") and time.time() - litter.stat().st_mtime > ABANDONED:
                litter.unlink()
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
    return {
        "changed": bool(removed),
        "removed": removed,
        "kept": kept,
        "message": f"{len(removed)} removed, {len(kept)} kept",
    }


def _take_in(config: Config, parcel: Parcel, incoming: Path, lock: int) -> list[str]:
    """Build the complete release in `incoming`; return the shared files that are missing."""
    from hostlib.releasing import archive  # costly to import, and most programs never take anything in

    try:
        file = parcel.path.open("rb", buffering=0)
    except FileNotFoundError as error:
        raise Failure(
            f"there is no archive {parcel.path}", state="nothing was changed", next="upload it"
        ) from error
    with file:
        archive.verify(file, parcel.sha256)
        _check_space(config.releases, archive.inspect(file))
        shutil.rmtree(incoming, ignore_errors=True)
        incoming.mkdir()
        archive.unpack(file, incoming, lock)
    archive.settle(incoming)
    if (_described(incoming) or {}).get("id") != parcel.release:
        raise Failure(f"the archive has no {MANIFEST} of this release", state="nothing was changed")
    (incoming / MANIFEST).chmod(0o600)  # it has app.env and migrate.env: ours and root's alone
    missing = shared.link(incoming, config.shared, parcel.shared)
    staged = {"sha256": parcel.sha256.lower(), "shared": list(parcel.shared), "state": STAGED_ONLY}
    number = 1 + max((_number(config, release) for release in names(config)), default=0)
    came = {"staged_at": timestamp(), "number": number, "served": current(config)}
    write_json(incoming / STAGED, {**staged, **came})
    # One flush of the file system instead of one for each of thousands of files.
    flushed = subprocess.run(["sync", "--file-system", str(incoming)], check=False, stderr=subprocess.PIPE)
    if flushed.returncode != 0:
        said = flushed.stderr.decode(errors="replace").strip()
        raise Failure(f"the release can't be written to the disk: {said}", state="nothing was changed")
    return missing


def _described(place: Path) -> dict[str, Any] | None:
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


def _unusable(what: str) -> Failure:
    return Failure(
        what,
        state="nothing was changed",
        next="`release list` shows what is there; deploy again to have it anew",
        exit_code=USAGE,
        unchanged=True,
    )


def _check_space(directory: Path, needed: int) -> None:
    disk = os.statvfs(directory)
    free = disk.f_bavail * disk.f_frsize
    if needed > free:
        raise Failure(
            f"the release needs {needed >> 20} MiB, {directory} has {free >> 20} MiB free",
            state="nothing was changed",
            next="`release prune --keep N`, or make room, and deploy again",
        )


def _check_same(place: Path, parcel: Parcel) -> None:
    staged = _staged(place)
    if (staged.get("sha256"), staged.get("shared")) != (parcel.sha256.lower(), list(parcel.shared)):
        raise Failure(
            f"there is another release {place.name} already: its archive or its shared paths differ",
            state="nothing was changed",
            next=f"deploy again, which makes a new release id, or `release discard {place.name}`",
        )


def _staged(place: Path) -> dict[str, Any]:
    try:
        found = read_json(place / STAGED)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def names(config: Config) -> list[str]:
    """Every complete release, newest first, in the order in which they were staged."""

    def came(release: str) -> tuple[int, int, str]:
        try:
            changed = (config.releases / release / STAGED).stat().st_mtime_ns
        except FileNotFoundError:
            changed = 0
        return _number(config, release), changed, release

    found = [entry.name for entry in os.scandir(config.releases) if entry.is_dir() and entry.name[0] != "."]
    return sorted(found, key=came, reverse=True)


def _number(config: Config, release: str) -> int:
    return int(_staged(config.releases / release).get("number", 0))


def _note(config: Config, release: str, state: str) -> None:
    place = config.releases / release
    write_json(place / STAGED, {**_staged(place), "state": state})


def _in_use(config: Config) -> set[str]:
    return {record.release for record in generations.records(config)}


def _remove(config: Config, release: str) -> None:
    discarded = config.releases / f".discarded-{release}"
    shutil.rmtree(discarded, ignore_errors=True)
    (config.releases / release).rename(discarded)
    shutil.rmtree(discarded)
