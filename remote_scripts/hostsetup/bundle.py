"""What the laptop wants a host to have: deploytools/setup wrote it."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hostlib.program import Config
from hostlib.switch.maintscript import UP


class Refused(Exception):
    """It can't be done; `state` says what the host was left in, `next` what to do about it."""

    def __init__(
        self, what: str, *, next: str = "", state: str = "nothing was changed", exit_code: int = 3
    ) -> None:
        super().__init__(what)
        self.what, self.next, self.state, self.exit_code = what, next, state, exit_code


@dataclass(frozen=True)
class Directory:
    """A directory that is to be there.

    Args:
        owner, group_of: accounts; the group is the primary one of `group_of`, or else of `owner`.
        within: somebody else's directory that this one lies in; no link below that is followed.
        keep: made if absent, otherwise left as it is.
    """

    path: Path
    owner: str
    mode: int
    group_of: str | None = None
    within: Path | None = None
    keep: bool = False


@dataclass(frozen=True)
class File:
    """A file that is to be there.

    Args:
        keep: made if absent, the operator's own from then on.
        kind: lighttpd, sudoers, unit, switch (of maintenance), page, root; "" for our own programs.
    """

    path: Path
    owner: str
    mode: int
    content: bytes
    keep: bool = False
    kind: str = ""
    group_of: str | None = None


@dataclass(frozen=True)
class Link:
    """A symbolic link that is to be there; `kind`: lighttpd, unit, switch, program."""

    path: Path
    target: str
    kind: str = ""


@dataclass(frozen=True)
class Bundle:
    """All that a host is to have of one application.

    Args:
        user: the deploy user; app_user: who the application runs as.
        tools: where the programs are called; `version` names the directory below it that they are in.
        programs: the files of that directory, by their path in it.
        lighttpd: its main configuration file.
        drain: seconds that a generation may take to finish its requests, in a removal.
    """

    application: str
    version: str
    privileged: bool
    user: str
    app_user: str
    tools: Path
    lighttpd: Path
    programs: Sequence[File]
    directories: Sequence[Directory]
    files: Sequence[File]
    links: Sequence[Link]
    config: Config
    drain: float
    plan_only: bool
    purge: bool

    @property
    def place(self) -> Path:
        """The directory of this version."""
        return self.tools / "versions" / self.version

    def of_kind(self, kind: str) -> list[File]:
        return [file for file in self.files if file.kind == kind]


def read(raw: dict[str, Any], *, systemd: bool) -> Bundle:
    """Given what came from the laptop, return it with the parts for hosts that systemd runs, or without."""
    more = raw["where_systemd_runs"] if systemd else {}
    parts = {kind: raw[kind] + more.get(kind, []) for kind in ("directories", "files", "links")}
    return Bundle(
        **{name: raw[name] for name in ("application", "version", "privileged", "user", "app_user")},
        **{name: raw[name] for name in ("drain", "plan_only", "purge")},
        tools=Path(raw["tools"]),
        lighttpd=Path(raw["lighttpd"]),
        programs=[_file(entry) for entry in raw["programs"]],
        directories=[Directory(**_paths(entry)) for entry in parts["directories"]],
        files=[_file(entry) for entry in parts["files"]],
        links=[Link(**_paths(entry)) for entry in parts["links"]],
        config=config(raw["config"]),
    )


def config(raw: dict[str, Any]) -> Config:
    """config.json of any version of the toolkit. Raises KeyError or TypeError where it is no such thing."""
    known = {field.name for field in dataclasses.fields(Config)}
    return Config.of({name: value for name, value in raw.items() if name in known})


def _file(entry: dict[str, Any]) -> File:
    content = UP.encode() if entry.get("kind") == "switch" else base64.b64decode(entry["content"])
    return File(**{**_paths(entry), "content": content})


def _paths(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: Path(value) if name in ("path", "within") else value for name, value in entry.items()}
