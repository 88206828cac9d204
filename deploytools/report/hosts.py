"""What a person sees of many hosts at once: hosts that are alike are told together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from deploytools.examination import ERROR, Examined, Finding
from deploytools.hostnames import folded, names
from deploytools.report.text import local, shown, table
from deploytools.survey import Status

# Up to so many hosts have a line each.
LINES = 12
THIS_COMPUTER = "this computer"
# What commands.read says of a host whose programs are not there.
NOT_SET_UP = "the host is not set up"


# -- doctor ----------------------------------------------------------------------------------------


def doctor_text(here: Sequence[Finding], examined: Mapping[str, Examined]) -> str:
    """What was found, errors first, each once with the hosts that it was found on; then how many are fine."""
    found = [(THIS_COMPUTER, finding) for finding in here]
    found += [(host, finding) for host, each in examined.items() for finding in each.findings]
    groups: dict[tuple[str, ...], list[tuple[str, Finding]]] = {}
    for place, finding in found:
        if not finding.ok:
            groups.setdefault(_likeness(finding), []).append((place, finding))
    lines: list[str] = []
    for group in sorted(groups.values(), key=lambda group: group[0][1].level != ERROR):
        places, first = [place for place, _ in group], group[0][1]
        where = THIS_COMPUTER if places == [THIS_COMPUTER] else names(places, list(examined))
        if len({finding.message for _, finding in group}) > 1:
            where += f"; the figures are those of {places[0]}"
        lines.append(f"{first.level}: {first.message}")
        lines += [f"  {line}" for line in first.details]
        lines += [f"  on: {where}", f"  remedy: {first.remedy}"]
    return shown("\n".join([*lines, _tally(here, examined)]))


def _likeness(finding: Finding) -> tuple[str, ...]:
    """Equal for findings that differ only in their figures."""
    texts = (re.sub(r"\d+", "0", text) for text in (finding.message, finding.remedy))
    return (finding.level, finding.name, *texts, *finding.details)


def _tally(here: Sequence[Finding], examined: Mapping[str, Examined]) -> str:
    counts = {"fine": 0, "with warnings": 0, "with errors": 0, "without an answer": 0}
    for each in examined.values():
        levels = {finding.level for finding in each.findings if not finding.ok}
        word = "fine" if not levels else "with errors" if ERROR in levels else "with warnings"
        counts[word if each.reached else "without an answer"] += 1
    parts = [f"{count} {word}" for word, count in counts.items() if count]
    checks = sum(len(each.findings) for each in examined.values()) + len(here)
    hosts = "1 host" if len(examined) == 1 else f"{len(examined)} hosts"
    return f"{hosts}: {', '.join(parts)} ({checks} checks)"


# -- status ----------------------------------------------------------------------------------------


def status_text(
    application: str,
    statuses: Mapping[str, Status],
    lock: Mapping[str, Any] | None,
    silent: Mapping[str, str] | None = None,
    outdated: Mapping[str, str] | None = None,
    width: int | None = None,
) -> str:
    """Where every host stands, which don't answer, who holds the lock, and what is out of the ordinary.

    `silent` says by host why it doesn't answer, `outdated` how its set-up differs from the laptop's; in so
    many characters a line as a terminal has, if that is known.
    """
    silent, outdated = silent or {}, outdated or {}
    bare = [host for host, why in silent.items() if NOT_SET_UP in why]
    mute = {host: why for host, why in silent.items() if host not in bare}
    every = [*statuses, *silent]
    problems = [(host, problem) for host, each in statuses.items() for problem in each.get("problems") or ()]
    lines = [application, _table(statuses, silent, width), *_windows(statuses, every)]
    lines += [f"problem on {hosts}: {problem}" for problem, hosts in _alike(problems, every)]
    lines += [f"not set up: {names(bare, every)}; next: fab setup --as-user root"] if bare else []
    lines += [f"no answer from {hosts}: {why}" for why, hosts in _alike(mute.items(), every)]
    lines += outdated_lines(outdated, every)
    lines += [f"schema, as {host} has it: {told}" for host, told in _schemas(statuses)]
    lines += _runs(statuses, lock)
    return shown("\n".join(lines))


def outdated_lines(outdated: Mapping[str, str], every: Sequence[str]) -> list[str]:
    """Given by host how its set-up differs from what it would be now, say so, with what to type."""
    return [f"{hosts}: {what}; next: fab setup" for what, hosts in _alike(outdated.items(), every)]


def _table(statuses: Mapping[str, Status], silent: Mapping[str, str], width: int | None) -> str:
    rows: list[dict[str, Any]] = []
    for host, status in statuses.items():
        serving = status.get("serving") or {}
        alive = bool(serving.get("alive"))
        rows.append(
            {
                "host": host,
                "site": site(status),
                "release": status.get("release"),
                "generation": serving.get("generation"),
                "pid": serving.get("pid") if alive else None,
                "age": _age(serving.get("age")) if alive else None,
                "toolkit": status.get("toolkit"),
            }
        )
    rows += [
        {"host": host, "site": "not set up" if NOT_SET_UP in why else "no answer"}
        for host, why in silent.items()
    ]
    if len(rows) <= LINES:
        return table(rows, ["host", "site", "release", "generation", "pid", "age", "toolkit"], width)
    columns = ("site", "release", "toolkit")
    groups: dict[tuple[Any, ...], list[str]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(column) for column in columns), []).append(row["host"])
    alike = [
        {**dict(zip(columns, key, strict=True)), "number": len(hosts), "hosts": folded(hosts)}
        for key, hosts in sorted(groups.items(), key=lambda item: -len(item[1]))
    ]
    return table(alike, [*columns, "number", "hosts"], width)


def site(status: Mapping[str, Any]) -> str:
    """What visitors of a host get: the maintenance page, the application, or an error."""
    if (status.get("maintenance") or {}).get("state") == "down":
        return "maintenance"
    if not status.get("release"):
        return "nothing deployed"
    return "up" if (status.get("serving") or {}).get("alive") else "not running"


def _windows(statuses: Mapping[str, Status], every: Sequence[str]) -> list[str]:
    """A line per window, with the hosts that are in it; it began when it began on the first of them."""
    groups: dict[tuple[Any, ...], dict[str, Status]] = {}
    for host, status in statuses.items():
        window = status.get("maintenance") or {}
        if window.get("state") == "down":
            key = tuple(window.get(name) for name in ("by", "until", "run_id", "reason"))
            groups.setdefault(key, {})[host] = window
    lines = []
    for (by, until, run_id, reason), windows in groups.items():
        told = [f"since {local(min(str(window.get('since')) for window in windows.values()))}"]
        told += [f"by {by}"] if by else []
        told += [f"until {local(until)}"] if until else []
        late = max(window.get("overrun") or 0 for window in windows.values())
        told += [f"which was {_age(late)} ago"] if late else []
        told += [f"run {run_id}"] if run_id else []
        told += [f"why: {reason}"] if reason else []
        lines.append(f"in maintenance: {names(list(windows), every)}, {', '.join(told)}")
    return lines


def _alike(texts: Iterable[tuple[str, str]], every: Sequence[str]) -> list[tuple[str, str]]:
    """Given pairs of host and text, each text once, with its hosts in few words."""
    hosts: dict[str, list[str]] = {}
    for host, text in texts:
        hosts.setdefault(text, []).append(host)
    return [(text, names(some, every)) for text, some in hosts.items()]


def _schemas(statuses: Mapping[str, Status]) -> list[tuple[str, str]]:
    return [(host, status["schema"]["message"]) for host, status in statuses.items() if status.get("schema")]


def _runs(statuses: Mapping[str, Status], lock: Mapping[str, Any] | None) -> list[str]:
    """The run that holds the lock, a migration that is running, and a window whose run has lost its lock."""
    lines = []
    if lock:
        lines += [
            f"locked by {lock['by']} on {lock['laptop']} since {local(lock['since'])}:"
            f" {lock['operation']}, run {lock['run_id']}",
            f"  {_life(lock)}",
            "  if that run is not at work any more: fab deploy --resume, or fab deploy --abort",
        ]
    for host, status in statuses.items():
        if running := status.get("migration"):
            lines.append(f"a migration of run {running.get('run_id')} is running on {host}")
    windows = [(status.get("maintenance") or {}).get("run_id") for status in statuses.values()]
    for run_id in sorted({str(one) for one in windows if one} - {str((lock or {}).get("run_id"))}):
        lines += [
            f"run {run_id} has left its window open, and holds the lock no more",
            f"  fab deploy --with-downtime takes it over; fab maint-up --force {run_id} lifts it,"
            " where what serves fits the schema (fab migrate --status)",
        ]
    return lines


def _life(lock: Mapping[str, Any]) -> str:
    """What is heard of the process of whoever holds the lock."""
    if lock.get("heard") is None:
        return "nothing is heard of its operator's process"
    phase = f" in the step {lock['phase']}" if lock.get("phase") else ""
    return f"last heard of {_age(lock['heard'])} ago{phase}"


def _age(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
