"""The journals of the runs: ROOT/state/journal/RUN_ID.jsonl, a JSON object per line, only ever added to.

A line counts when its newline is on the disk. What a power loss leaves behind the last newline is
passed over by readers and cut off by the next append.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hostlib.files import sync_directory
from hostlib.locking import exclusive
from hostlib.program import USAGE, Config, Failure, Result

WAIT = 30  # seconds
KEEP = 200  # journals of runs that are over

Record = dict[str, Any]


def append(config: Config, run_id: str, text: str, expect: int | None) -> Result:
    """Add the JSON lines in `text`, all or none of them, in one write, flushed to the disk.

    With `expect`, the number of lines that the caller believes are there, a repeated append adds
    nothing twice. Failure (exit code 3) where other lines are there: somebody else goes on with the run.
    """
    try:
        records = _parse(text)
    except ValueError as error:
        raise Failure(
            f"standard input is no journal: {error}", state="nothing was changed", exit_code=USAGE
        ) from error
    if not records:
        raise Failure("there is no record on standard input", state="nothing was changed", exit_code=USAGE)
    path = _path(config, run_id)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    with exclusive(path.parent, wait=WAIT):
        there = _read(path)
        if expect is not None:
            records = _not_yet_there(records, there, expect, run_id)
        if records:
            _write(path, records)
    count = len(there) + len(records)
    message = f"{len(records)} added, {count} in all" if records else "they were there already"
    return {"changed": bool(records), "appended": len(records), "count": count, "message": message}


def read(config: Config, run_id: str) -> Result:
    """The records of `run_id`; Failure (exit code 2) where there is no such journal."""
    path = _path(config, run_id)
    if not path.exists():
        raise Failure(
            f"there is no journal of run {run_id}", next="`journal list` shows the runs", exit_code=USAGE
        )
    records = _read(path)
    return {"records": records, "message": "\n".join(json.dumps(record) for record in records)}


def listing(config: Config, *, whole: bool = False, last: int | None = None) -> Result:
    """Every run with its first and last record, or with all of them, the one last written to first.

    With `last` only so many.

    A journal that can't be read is named in "damaged", and hides no other.
    """
    runs: list[Result] = []
    damaged = []
    for path in _newest_first(config)[:last]:
        try:
            records = _read(path)
        except (Failure, OSError) as error:
            damaged.append({"run_id": path.stem, "error": str(error)})
            continue
        if records:
            ends = {"first": records[0], "last": records[-1], "count": len(records)}
            runs.append({"run_id": path.stem, **ends, **({"records": records} if whole else {})})
    lines = [str(run["run_id"]) for run in runs] + [f"damaged: {each['error']}" for each in damaged]
    return {"runs": runs, "damaged": damaged, "message": "\n".join(lines) or "no run yet"}


def prune(config: Config, keep: int = KEEP, *, spare: str | None = None) -> list[str]:
    """Remove the journals of runs that are over, but for the newest `keep` and that of `spare`.

    Returns their runs. What was begun and not ended, or is held, stays, and so does what can't be read.
    """
    directory = config.state / "journal"
    if not directory.is_dir():
        return []
    removed = []
    with exclusive(directory, wait=WAIT):
        for path in _newest_first(config)[keep:]:
            try:
                over = _is_over(_read(path))
            except (Failure, OSError):
                continue
            if over and path.stem != spare:
                path.unlink()
                removed.append(path.stem)
    return removed


def _is_over(records: Sequence[Record]) -> bool:
    """Whether a run needs nobody any more: as deploytools.journal has it."""
    last = records[-1] if records else {}
    return last.get("kind") == "end" and last.get("verdict") in ("done", "reverted")


def _newest_first(config: Config) -> list[Path]:
    """The journals, the one last written to first."""
    paths = (config.state / "journal").glob("*.jsonl")
    return sorted(paths, key=lambda path: path.stat().st_mtime_ns, reverse=True)


def _path(config: Config, run_id: str) -> Path:
    return config.state / "journal" / f"{run_id}.jsonl"


def _not_yet_there(
    records: Sequence[Record], there: Sequence[Record], expect: int, run_id: str
) -> list[Record]:
    """Given what is sent and what is there, return what is to be added."""
    beyond = there[expect:]
    if len(there) < expect or list(records[: len(beyond)]) != list(beyond):
        raise Failure(
            f"the journal of run {run_id} has {len(there)} records, not {expect}: "
            "another laptop goes on with this run, or the journal was lost",
            state="nothing was changed",
            next="fab status, and let one laptop finish the run",
            count=len(there),
        )
    return list(records[len(beyond) :])


def _read(path: Path) -> list[Record]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    whole = content[: content.rfind(b"\n") + 1]
    try:
        return _parse(whole.decode(errors="replace"))
    except ValueError as error:
        raise Failure(
            f"{path} is damaged: {error}",
            state="nothing was changed",
            next="mend or move the file away; the laptop that started the run has a copy",
        ) from error


def _parse(text: str) -> list[Record]:
    """Raises ValueError with the number of the first line that is no JSON object."""
    records = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
        if not isinstance(record, dict):
            raise ValueError(f"line {number} is no JSON object")
        records.append(record)
    return records


def _write(path: Path, records: Sequence[Record]) -> None:
    """One write behind the last whole line; on any failure the file is cut back to where it ended."""
    data = "".join(json.dumps(record, sort_keys=True, separators=(",", ":")) + "\n" for record in records)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)  # it quotes logs
    try:
        with os.fdopen(os.dup(descriptor), "rb") as file:
            end = file.read().rfind(b"\n") + 1
        os.ftruncate(descriptor, end)
        try:
            if os.write(descriptor, data.encode()) != len(data.encode()):
                raise OSError(errno.ENOSPC, "only a part of the records could be written")
            os.fsync(descriptor)
        except OSError as error:
            os.ftruncate(descriptor, end)
            raise Failure(
                f"{path} can't be written: {error}",
                state="nothing was added to the journal",
                next="df -h: make room, then run the same command again",
            ) from error
    finally:
        os.close(descriptor)
    sync_directory(path.parent)
