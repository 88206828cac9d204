"""Read-only questions to the hosts: what they say of themselves, who holds the lock, what was journaled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deploytools import commands
from deploytools.commands import Command
from deploytools.engine import run
from deploytools.errors import LockHeld, OperationFailed, UsageError
from deploytools.fleet import Fleet, Ok
from deploytools.journal import Record
from deploytools.settings import Settings

Status = Mapping[str, Any]


def ask(
    fleet: Fleet, settings: Settings, name: str, *arguments: str, hosts: Sequence[str] | None = None
) -> dict[str, Any]:
    """Run a host program that changes nothing but what it is asked to, and return its result by host.

    Raises the error of its exit code (UsageError, LockHeld, otherwise OperationFailed) with a line per
    host that has no answer.
    """
    command = Command(commands.program(settings, name, *arguments))
    results: dict[str, Any] = {}
    problems: list[str] = []
    steps: list[str] = []
    codes: set[int] = set()
    for host, outcome in fleet.map(lambda remote: run(remote, command), hosts=hosts).items():
        if not isinstance(outcome, Ok):
            problems.append(f"{host}: {outcome.error}")
            codes.add(OperationFailed.exit_code)
        elif outcome.value.error:
            problems.append(f"{host}: {outcome.value.error.get('what')}")
            steps.append(outcome.value.error.get("next", ""))
            codes.add(outcome.value.exit_code)
        else:
            results[host] = dict(outcome.value.mark.value)
    if problems:
        kinds = {UsageError.exit_code: UsageError, LockHeld.exit_code: LockHeld}
        kind = kinds.get(max(codes), OperationFailed) if len(codes) == 1 else OperationFailed
        raise kind(
            f"{name} has no answer from {len(problems)} of {len(problems) + len(results)} hosts",
            state="nothing was changed",
            next=next((step for step in steps if step), "fab doctor"),
            details=problems,
        )
    return results


def ask_one(fleet: Fleet, settings: Settings, name: str, *arguments: str) -> dict[str, Any]:
    """Ask the lock host alone. Raises as `ask` does."""
    host = str(settings.lock_host)
    result: dict[str, Any] = ask(fleet, settings, name, *arguments, hosts=(host,))[host]
    return result


def examine(fleet: Fleet, settings: Settings) -> dict[str, list[dict[str, Any]]]:
    """Run doctor everywhere and return its checks by host; a finding is no error here."""
    command = Command(commands.program(settings, "doctor"))
    checks: dict[str, list[dict[str, Any]]] = {}
    for host, outcome in fleet.map(lambda remote: run(remote, command)).items():
        if isinstance(outcome, Ok):
            found = outcome.value.mark.value.get("checks") or [_finding(outcome.value.error)]
        else:
            found = [_finding({"what": str(outcome.error)})]
        checks[host] = list(found)
    return checks


def open_lock(fleet: Fleet, settings: Settings) -> dict[str, Any]:
    """Return who holds the lock, and for which run. Raises UsageError where nobody does."""
    lock: dict[str, Any] | None = ask_one(fleet, settings, "lock", "show").get("lock")
    if not lock:
        raise UsageError("no run is open", state="nothing was changed", next="fab status")
    return lock


def read_journal(fleet: Fleet, settings: Settings, run_id: str) -> list[Record]:
    """Return the records of one run."""
    return list(ask_one(fleet, settings, "journal", "read", run_id)["records"])


def past_runs(fleet: Fleet, settings: Settings) -> list[list[Record]]:
    """Return the records of every run, the newest run first."""
    listed = ask_one(fleet, settings, "journal", "list")["runs"]
    return [read_journal(fleet, settings, entry["run_id"]) for entry in listed]


def disagreements(statuses: Mapping[str, Status]) -> list[str]:
    """Given what every host says of itself, return a line for each thing that they don't agree on."""
    lines = []
    for key, word in (("maintenance", "maintenance"), ("release", "release"), ("toolkit", "toolkit version")):
        values = {host: _plain(status.get(key)) for host, status in statuses.items()}
        if len(set(values.values())) > 1:
            lines.append(f"{word}: " + ", ".join(f"{host} {value}" for host, value in values.items()))
    return lines


def not_running(statuses: Mapping[str, Status]) -> list[str]:
    """Given what every host says of itself, return a line for each whose application has died."""
    return [
        f"{host}: the application is not running (release {status['release']}); visitors get an error"
        for host, status in statuses.items()
        if status.get("serving") and not status["serving"].get("alive")
    ]


def _finding(error: Mapping[str, str]) -> dict[str, Any]:
    return {
        "name": "doctor",
        "ok": False,
        "level": "error",
        "message": error.get("what", "no answer"),
        "remedy": error.get("next") or "fab setup",
    }


def _plain(value: Any) -> str:
    """A status value as one word: what differs in a detail (since when, say) is no disagreement."""
    return str(value.get("state") if isinstance(value, Mapping) else value)
