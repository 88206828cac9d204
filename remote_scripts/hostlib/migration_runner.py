"""The detached process that runs one migration: python3 -m hostlib.migration_runner RUN_ID TO FROM

It was started by migration_runs, is followed by migration_following, and takes over the conversation
with the adapter by its two descriptors. Whatever goes wrong in here leaves no outcome.json, which is to
say: unknown.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from hostlib import migrations
from hostlib.adapters import PATIENCE, Conversation
from hostlib.files import read_json, write_json
from hostlib.migrations import Check
from hostlib.names import timestamp
from hostlib.program import Config, load_config


def supervise(config: Config, run_id: str, talk: Conversation) -> None:
    """Let the adapter run the migration and look at the database again; publish the outcome."""
    place = config.migrations / run_id
    started = read_json(place / "started.json") or {}
    began = time.monotonic()
    answer = talk.ask("upgrade")
    seconds = round(time.monotonic() - began, 3)
    after = _look(config, run_id, started["release"], talk)
    ended = {"answer": answer, "seconds": seconds, "ended_at": timestamp()}
    write_json(place / "outcome.json", {**judge(started, answer, after), **ended})


def _look(config: Config, run_id: str, release: str, talk: Conversation) -> Check:
    try:
        answer = talk.ask("check", PATIENCE)
    except TimeoutError as error:
        return Check("unknown", message=str(error))
    if answer is None:  # the adapter was killed, so by one of its own
        return migrations.check(config, release, run_id)
    return migrations.understood(config, release, answer)


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
    if answer is not None and "error" not in answer:
        if after.state == "current":
            return {**known, "outcome": "applied", "applied": answer["applied"]}
        if not after.known:
            return {**known, "outcome": "unknown", "reason": after.message}
        reason = "the migration ended well, but the database is not where it should be: did env.py commit?"
    elif answer is not None:
        reason = answer["error"]
    else:
        reason = "the migration was killed"
    unchanged = (
        after.known
        and sorted(after.current) == sorted(started["before"])
        and started["transactional"] is True
        # Killed, or cut off from the database: a server may still be at work on what it was sent.
        and answer is not None
        and answer["transactional"] is not False
        and not answer.get("connection_lost")
        and after.ours is None
    )
    return {**known, "outcome": "failed", "unchanged": unchanged, "reason": reason}


if __name__ == "__main__":
    # The lock, inherited as one more descriptor, is ours for as long as we live.
    supervise(load_config(), sys.argv[1], Conversation(int(sys.argv[2]), int(sys.argv[3])))
