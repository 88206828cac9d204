"""What a check says, and what it may look at."""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from hostlib.program import Config, Failure
from hostlib.releasing import manifest, releases
from hostlib.swapping import generations
from hostlib.swapping.generations import Record
from hostlib.webserver import lighttpd
from hostlib.webserver.lighttpd import Configuration

ERROR, WARNING = "error", "warning"


@dataclass(frozen=True)
class Finding:
    """One thing that is as it should be, or isn't: then `level` says whether it would stop a deploy."""

    name: str
    ok: bool
    message: str
    remedy: str = ""
    level: str = ERROR

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def judged(
    name: str, ok: bool, good: str, remedy: str, *, bad: str | None = None, level: str = ERROR
) -> Finding:
    """A finding that says `good` where it is ok; otherwise `bad`, if it reads differently, and the remedy."""
    return Finding(name, ok, good if ok or bad is None else bad, "" if ok else remedy, level)


@dataclass(frozen=True)
class Subject:
    """A host under examination; what several checks need is asked for once.

    Args:
        config: how the host was set up; where it wasn't, how it is going to be.
        expected: what the laptop would deploy, see `doctor --help`; empty by hand.
        problem: why config.json can't be used, or "".
    """

    config: Config
    expected: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""

    @cached_property
    def lighttpd(self) -> str | None:
        return lighttpd.program()

    @cached_property
    def refusal(self) -> str | None:
        """Why lighttpd refuses its configuration; None where it takes it."""
        return lighttpd.refusal(self.lighttpd, self.config.lighttpd_config) if self.lighttpd else None

    @cached_property
    def configuration(self) -> Configuration | None:
        """lighttpd's; None where it refuses it, which is a finding of its own."""
        if self.lighttpd is None or self.refusal is not None:
            return None
        return lighttpd.read(self.lighttpd, self.config.lighttpd_config)

    @cached_property
    def serving(self) -> Record | None:
        """The serving generation; None where there is none, or its record is broken: a finding of its own."""
        try:
            return generations.serving(self.config)
        except (Failure, OSError):
            return None

    @cached_property
    def release(self) -> str | None:
        """The current release."""
        try:
            return releases.current(self.config)
        except (Failure, OSError):
            return None

    @cached_property
    def app(self) -> Mapping[str, Any]:
        """Section `app` of fabric.yaml: as the laptop has it, or else as the current release has it.

        Empty where neither is known: only the deploy user and root can read a release's manifest.
        """
        if "app" in self.expected:
            return dict(self.expected["app"])
        try:
            described = releases.manifest(self.config, self.release) if self.release else {}
        except (Failure, OSError):
            return {}
        found = described.get("app")
        return found if isinstance(found, dict) else {}

    @cached_property
    def health(self) -> manifest.Health | None:
        """What the current release's answer has to be; None where that isn't known."""
        try:
            return manifest.read(self.config, self.release)[1] if self.release else None
        except (Failure, OSError):
            return None


def me() -> str:
    """The account that we run as."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def account(name: str) -> pwd.struct_passwd | None:
    """The account of that name; None where there is none."""
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None


def allowed(who: pwd.struct_passwd, path: Path, bit: int) -> bool:
    """Whether the mode of `path` lets `who` do what `bit` (4 read, 2 write, 1 execute or enter) stands for.

    Access control lists are not looked at. Raises OSError where there is no such path.
    """
    found = path.stat()
    if who.pw_uid == 0:
        return bit != 1 or path.is_dir() or found.st_mode & 0o111 != 0
    if found.st_uid == who.pw_uid:
        return bool(found.st_mode >> 6 & bit)
    if found.st_gid in os.getgrouplist(who.pw_name, who.pw_gid):
        return bool(found.st_mode >> 3 & bit)
    return bool(found.st_mode & bit)


def closed_to(who: pwd.struct_passwd, path: Path) -> Path | None:
    """The first directory on the way to `path` that `who` can't enter; None where all are open."""
    return next((place for place in reversed(path.parents) if not allowed(who, place, 1)), None)
