"""How a release is to be run: the "app" and "health" parts of its .deploytools.json, checked.

The file was written by the deploy user and is read by root, so nothing in it is taken on trust. It
decides about nothing that needs privilege: the application runs as config.user whatever it says.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hostlib.program import USAGE, Config, Failure

NAME = ".deploytools.json"
LARGEST = 1 << 20  # bytes
DAY = 86400.0
FD0, PATH = "fd0", "path"


@dataclass(frozen=True)
class App:
    """How to start and stop the application; times are in seconds."""

    argv: tuple[str, ...]
    listen: str
    env: Mapping[str, str]
    start_timeout: float
    drain_timeout: float
    soak_time: float
    manager: str


@dataclass(frozen=True)
class Health:
    """Which request tells that the application works, and by what answer.

    Args:
        smoke: further pages that are asked for before the public is let in; they answer below 400.
    """

    path: str
    status: int
    contains: str | None
    smoke: tuple[str, ...] = ()

    def met(self, status: int, body: bytes) -> bool:
        return status == self.status and (self.contains is None or self.contains.encode() in body)

    def __str__(self) -> str:
        wanted = f"{self.status} from {self.path}"
        return wanted if self.contains is None else f"{wanted} with {self.contains!r} in it"


def read(config: Config, release: str) -> tuple[App, Health]:
    """Raises Failure (exit code 2), which names all problems at once but no values: some are secret."""
    path = config.releases / release / NAME
    try:
        raw = json.loads(content(path))
    except FileNotFoundError as error:
        if path.parent.is_dir():
            raise _refused(release, f"{path} is missing") from error
        raise Failure(
            f"there is no release {release} in {config.releases}",
            state="nothing was changed",
            next="fab deploy; or fab rollback --to one that fab releases shows",
            exit_code=USAGE,
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise _refused(release, f"{path} can't be read: {error}") from error
    app, problems = _checked("app", APP, raw)
    health, more = _checked("health", HEALTH, raw)
    if problems + more:
        raise _refused(release, f"{path} is not usable: {'; '.join(problems + more)}")
    del app["protocol"]
    argv = tuple(shlex.split(app.pop("command")))
    return App(argv=argv, **app), Health(**{**health, "smoke": tuple(health["smoke"])})


def _refused(release: str, what: str) -> Failure:
    return Failure(
        what,
        state="nothing was changed",
        next=f"mend fabric.yaml and deploy again; release {release} can't be started",
        exit_code=USAGE,
    )


def content(path: Path) -> bytes:
    """What the deploy user wrote, read by root: only a plain file of a sensible size.

    A link could lead to what its author may not read, a pipe would block us. Raises OSError, ValueError.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("it is not a file")
        read = file.read(LARGEST + 1)
    if len(read) > LARGEST:
        raise ValueError(f"it is larger than {LARGEST} bytes")
    return read


def _text(value: object) -> bool:
    """A string that can be passed to a program."""
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        return False
    return True


def _command(value: object) -> bool:
    try:
        return _text(value) and bool(shlex.split(str(value)))
    except ValueError:
        return False


def _environment(value: object) -> bool:
    return isinstance(value, dict) and all(
        re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) and _text(content) for name, content in value.items()
    )


def _seconds(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= DAY


def _url_path(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"/[\x21-\x7e]*", value) is not None


def _url_paths(value: object) -> bool:
    return isinstance(value, list) and all(_url_path(path) for path in value)


def _status(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 100 <= value <= 599


def _one_of(*values: str) -> Callable[[object], bool]:
    return lambda value: value in values


# key: (what a good value is, in words; the test; the default)
Rules = Mapping[str, "tuple[str, Callable[[object], bool], object]"]
APP: Rules = {
    "command": ("a command line", _command, None),
    "protocol": ("fastcgi", _one_of("fastcgi"), "fastcgi"),
    "listen": ("fd0 or path", _one_of(FD0, PATH), FD0),
    "env": ("a mapping of variable names to strings", _environment, {}),
    "start_timeout": ("seconds, at most a day", _seconds, 30),
    "drain_timeout": ("seconds, at most a day", _seconds, 30),
    "soak_time": ("seconds, at most a day", _seconds, 0),
    "manager": ("auto, direct or systemd", _one_of("auto", "direct", "systemd"), "auto"),
}
HEALTH: Rules = {
    "path": ("a path that begins with / and has no blanks", _url_path, "/"),
    "status": ("an HTTP status", _status, 200),
    "contains": ("a string or null", lambda value: value is None or _text(value), None),
    "smoke": ("a list of paths that begin with / and have no blanks", _url_paths, []),
}


def _checked(section: str, rules: Rules, raw: Any) -> tuple[dict[str, Any], list[str]]:
    given = raw.get(section) if isinstance(raw, dict) else None
    if not isinstance(given, dict):
        return {}, [f"{section} should be a mapping"]
    values = {key: given.get(key, default) for key, (_, _, default) in rules.items()}
    wrong = (
        f"{section}.{key} should be {words}"
        for key, (words, good, _) in rules.items()
        if not good(values[key])
    )
    return values, list(wrong)
