"""What `fab setup` put here: that it is there, by the same toolkit and settings, and beside what else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hostlib.checks import services
from hostlib.checks.finding import ERROR, WARNING, Finding, Subject, judged
from hostlib.program import TOOLS

# Where the host programs find each other: with another value here a deploy goes nowhere.
PLACES = ("application", "root", "maintenance_dir")


def set_up(subject: Subject) -> Iterator[Finding]:
    """config.json can be used, and says what fabric.yaml says."""
    config, expected = subject.config, subject.expected
    if subject.problem:
        yield Finding("set-up", False, subject.problem, "fab setup")
        return
    yield Finding("set-up", True, f"set up for {config.application} by deploytools {config.version}")
    wanted = expected.get("version", config.version)
    yield judged(
        "version",
        config.version == wanted,
        f"deploytools is {config.version} here and on the laptop",
        "fab setup",
        bad=f"deploytools is {config.version} here, and {wanted} on the laptop",
    )
    if config.version == wanted:
        yield from _settings(subject, expected.get("config") or {})


def _settings(subject: Subject, wanted: Mapping[str, Any]) -> Iterator[Finding]:
    there = json.loads((TOOLS / "config.json").read_text())
    differing = [key for key in wanted if there.get(key) != wanted[key]]
    for key in differing:
        yield Finding(
            "settings",
            False,
            f"this host was set up with {key} {_plain(there.get(key))};"
            f" fabric.yaml says {_plain(wanted[key])}",
            "fab setup",
            ERROR if key in PLACES else WARNING,
        )
    if differing:
        return
    changed = [path for path, digest in subject.expected.get("files", {}).items() if _differs(path, digest)]
    several = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    yield judged(
        "files",
        not changed,
        "what fab setup put here is as the laptop has it",
        "fab setup, whose --plan shows the difference",
        bad=f"not as fab setup would have it: {', '.join(changed[:3])}{several}",
        level=WARNING,
    )
    digest = subject.expected.get("digest")
    if not changed and digest:
        yield judged(
            "files",
            subject.config.digest == digest,
            "set up with the settings that fabric.yaml has",
            "fab setup, whose --plan shows the difference",
            bad="fabric.yaml has changed since this host was set up",
            level=WARNING,
        )


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _differs(path: str, digest: str) -> bool:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest() != digest
    except PermissionError:  # sudoers, for one
        return False
    except OSError:
        return True


def boot(subject: Subject) -> Iterator[Finding]:
    """The application comes back after a reboot."""
    unit = f"deploytools-{subject.config.application}.service"
    told = services.show(unit, "LoadState", "UnitFileState")
    if not subject.config.privileged or not told:
        return
    yield judged(
        "boot",
        told.get("LoadState") == "loaded" and told.get("UnitFileState") == "enabled",
        "the application is started after a reboot",
        f"fab setup; then systemctl enable {unit}",
        bad=f"{unit} is {told.get('UnitFileState') or 'not there'}: a reboot leaves the application stopped",
        level=WARNING,
    )


def neighbours(subject: Subject) -> Iterator[Finding]:
    """Another application on this host has places of its own."""
    ours = subject.config
    for path in sorted(TOOLS.parent.glob("*/config.json")):
        if path.parent == TOOLS:
            continue
        try:
            other = json.loads(path.read_text())
            name = other["application"]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # nobody's
        for key, value, remedy in (
            ("root", ours.root, "root: another directory"),
            ("maintenance_dir", ours.maintenance_dir, "webserver: {maintenance_dir: a directory of its own}"),
        ):
            if other.get(key) == str(value):
                yield Finding(
                    "neighbours",
                    False,
                    f"{name} has the same {key}, {value}: each would switch or swap the other",
                    f"{remedy} in fabric.yaml of one of them; then fab setup",
                )
        if (other.get("url"), other.get("host_header")) == (ours.url, ours.host_header):
            yield Finding(
                "neighbours",
                False,
                f"{name} answers at {ours.url} for the same host name ({ours.host_header or 'any'}):"
                " only one of them is reached",
                "webserver: {host_header: the site's name} in fabric.yaml of both; then fab setup",
            )
