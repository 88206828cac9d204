"""Where a database stands, seen from a release: at which revision, and what is pending."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from hostlib.files import read_json
from hostlib.migrating import adapters, masking
from hostlib.migrating.adapter_engines import describe
from hostlib.migrating.adapters import PATIENCE
from hostlib.program import Config


@dataclass(frozen=True)
class Check:
    """Where a database stands, seen from a release.

    Args:
        state: current, pending, ahead (a later release's migration was applied by a run of ours),
            unsettled (pending, and may be half applied: see `unsettled`) or unknown.
        current, target: the database's revisions, and those the release needs.
        pending: what is to be applied, in order; each is told with "online", true where its author has
            labelled it safe to run while the release before serves, otherwise with the reason, "why".
        transactional: a failed migration is rolled back whole; None if that can't be told.
        atomic: so is one that was killed, once its session in the database has ended.
        message: a sentence; with state unknown, the reason.
        sessions: who else is connected to the database, see adapter_engines; None if that can't be told.
        unsettled: the run whose migration has left nobody knows what, see migration_following; None
            where there is none, or nobody has looked.
        database: which database it is, the same on every host; None where that can't be told.
    """

    state: str
    current: tuple[str, ...] = ()
    target: tuple[str, ...] = ()
    pending: tuple[dict[str, Any], ...] = ()
    transactional: bool | None = None
    atomic: bool = False
    message: str = ""
    sessions: tuple[dict[str, Any], ...] | None = None
    unsettled: dict[str, Any] | None = None
    database: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def known(self) -> bool:
        return self.state in ("current", "pending")

    @property
    def offline(self) -> list[str]:
        """Why what is pending can't be applied while the site is up, one reason each; empty where it can."""
        reasons = ((step["revision"], step.get("why", "")) for step in self.pending if not step.get("online"))
        return [f"{revision or 'what is pending'}: {why}" for revision, why in reasons]

    @property
    def ours(self) -> dict[str, Any] | None:
        """The session of the migration that was asked about, while it lives."""
        return next((session for session in self.sessions or () if session["ours"]), None)


def check(config: Config, release: str, run_id: str = "check") -> Check:
    """Ask the database of `release` where it stands; a database that doesn't answer is state unknown.

    With a `run_id` the session of that run's migration is told apart.
    """
    adapter = adapters.of_release(config, release, run_id)
    if adapter is None:
        return no_migrations(release)
    with tempfile.TemporaryFile() as log:
        try:
            with adapters.conversation(adapter, log) as talk:
                answer = talk.ask("check", PATIENCE)
        except (OSError, subprocess.SubprocessError) as error:
            return Check("unknown", message=f"{adapter.argv[0]} in {adapter.cwd}: {error}")
        log.seek(0)
        said = log.read().decode(errors="replace").strip().rsplit("\n", 1)[-1]
    return understood(config, release, answer or {"error": f"the adapter died: {said}"})


def no_migrations(release: str) -> Check:
    return Check("current", message=f"release {release} has no migrations")


def understood(config: Config, release: str, answer: dict[str, Any]) -> Check:
    """Given what the adapter answered to `check`, return where the database stands."""
    if "error" in answer:
        what = masking.of_release(config, release)(answer["error"])
        return Check("unknown", message=what, transactional=answer.get("transactional"))
    found = Check(
        state="pending" if answer["pending"] else "current",
        current=tuple(answer["current"]),
        target=tuple(answer["target"]),
        pending=tuple(answer["pending"]),
        transactional=answer["transactional"],
        atomic=answer.get("atomic") is True,
        sessions=None if answer.get("sessions") is None else tuple(answer["sessions"]),
        database=answer.get("database"),
    )
    later = _of_later_releases(config, release, answer.get("orphans", ()))
    if answer["strangers"] or later:
        return _beyond(config, release, found, [*answer["strangers"], *later])
    return replace(found, message=_sentence(found))


def revisions(names: Sequence[str]) -> str:
    return ", ".join(names) or "no revision"


def _beyond(config: Config, release: str, found: Check, strangers: Sequence[str]) -> Check:
    """The database has revisions that the release doesn't know: who brought them there?"""
    what = f"the database is at {revisions(found.current)}, and release {release} doesn't know that"
    runs = _applied_here(config)
    if not all(revision in runs for revision in strangers):
        return replace(found, state="unknown", message=f"{what}: {', '.join(strangers)}")
    by = ", ".join(sorted({runs[revision]["run_id"] for revision in strangers}))
    return replace(found, state="ahead", message=f"{what}: it was brought there by run {by}")


def _of_later_releases(config: Config, release: str, orphans: Sequence[str]) -> list[str]:
    """Those of `orphans` that a run of ours brought for a release after this one; ids sort by age."""
    if not orphans:
        return []
    runs = _applied_here(config)
    return [revision for revision in orphans if revision in runs and runs[revision]["release"] > release]


def _applied_here(config: Config) -> dict[str, dict[str, Any]]:
    """Every revision that a run on this host brought into the database -> started.json of that run."""
    found = {}
    for path in config.migrations.glob("[!.]*/outcome.json"):
        started = read_json(path.with_name("started.json")) or {}
        for revision in (read_json(path) or {}).get("applied", ()):
            found[revision] = started
    return found


def _sentence(found: Check) -> str:
    where = f"the database is at {revisions(found.current)}; "
    pending = (f"{migration['revision']} {migration['message']}".strip() for migration in found.pending)
    where += f"pending: {', '.join(pending)}" if found.pending else "nothing is pending"
    blockers = [describe(session) for session in found.sessions or () if session["locks"]]
    return "; ".join([where, *blockers])
