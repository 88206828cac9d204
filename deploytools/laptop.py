"""What `fab doctor` looks at on the operator's own computer."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from deploytools import squawk
from deploytools.errors import DeployError, UsageError
from deploytools.examination import ERROR, WARNING, Finding
from deploytools.releasing import exported
from deploytools.settings import Settings
from deploytools.ssh import options

EXECUTOR = "tasks: {executor_class: deploytools.executor.OnceExecutor}"


def findings(settings: Settings, *, once: bool, state: Path) -> Iterator[Finding]:
    """Examine this computer.

    Args:
        once: whether `fab` runs by our executor.
        state: the directory for the laptop's copies of journals.
    """
    bad = "fabric.yaml doesn't name our executor, so -H is refused"
    yield _judged("executor", once, "fab runs by our executor", bad, f"{EXECUTOR} in fabric.yaml", WARNING)
    yield from source(settings)
    yield from linter(settings)
    yield from dependencies(metadata.requires("deploytools") or (), _installed)
    yield journals(state)


def deploy_users(settings: Settings) -> tuple[dict[str, str], dict[str, Finding]]:
    """The deploy user by host as ssh_config has it; and by host why ssh can't say."""
    users, bad = {}, {}
    for host in settings.hosts:
        try:
            found = options.resolve(host.host, host.user, host.port, config=settings.ssh_config)
            users[str(host)] = found.user
        except UsageError as error:
            bad[str(host)] = Finding("ssh", False, error.what, error.next or "", details=error.details)
    return users, bad


def source(settings: Settings) -> Iterator[Finding]:
    """What a deploy would ship can be packed."""
    missing = [name for name in ("git", "tar") if shutil.which(name) is None]
    for name in missing:
        remedy = f"install {name} (Debian: apt install {name})"
        yield Finding(name, False, f"{name} is not installed on this computer", remedy)
    if missing:
        return
    try:
        with exported(settings, None, datetime.now(timezone.utc)) as found:
            source = found.source
    except DeployError as error:
        remedy = error.next or f"mend {error.where} in fabric.yaml"
        yield Finding("source", False, f"{error.what} ({error.where})", remedy, details=error.details)
        return
    yield Finding("source", True, f"{source.ref or source.path} can be shipped")


def linter(settings: Settings) -> Iterator[Finding]:
    """squawk is there, where fabric.yaml insists on it: otherwise a deploy without downtime is refused."""
    if settings.migrate is None or not settings.migrate.squawk:
        return
    try:
        yield Finding("squawk", True, f"squawk is {squawk.program(settings)}")
    except UsageError as error:
        yield Finding("squawk", False, error.what, "pip install squawk-cli; or migrate.squawk: false")


def dependencies(requires: Iterable[str], installed: Callable[[str], str | None]) -> Iterator[Finding]:
    """Given what we require, as packaging metadata has it, say which libraries are missing or don't fit."""
    for requirement in map(Requirement, requires):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = installed(requirement.name)
        wanted = f"{requirement.name}{requirement.specifier}"
        yield _judged(
            "libraries",
            version is not None and requirement.specifier.contains(version, prereleases=True),
            f"{requirement.name} is {version}",
            f"{requirement.name} is {version or 'not installed'}, and {wanted} is needed",
            f"pip install '{wanted}'",
        )


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def journals(state: Path) -> Finding:
    """The laptop's copies of journals can be written: a run that can't keep one ends before it begins."""
    place = next(place for place in (state, *state.parents) if place.exists())
    writable = place.is_dir() and os.access(place, os.W_OK | os.X_OK)
    bad = f"{state} can't be written, because of {place}"
    return _judged("journals", writable, f"{state} can be written", bad, f"chown -R $(id -un) {place}")


def _judged(name: str, ok: bool, good: str, bad: str, remedy: str, level: str = ERROR) -> Finding:
    return Finding(name, ok, good if ok else bad, "" if ok else remedy, level)
