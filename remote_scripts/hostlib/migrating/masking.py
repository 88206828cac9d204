"""What a migration tool prints, without the passwords that we know of: it is shown, sent and kept elsewhere.

Known are the values of app.env, migrate.env, the files in `shared` and `.env` of a release that are called a
password, key, token or the like, and the password in any of them that is a URL. Besides, whatever looks like
a password in a URL or in the parameters of a connection (adapter_process.PASSWORD).
"""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Callable, Iterator, Mapping

from hostlib.migrating.adapter_process import masked
from hostlib.program import Config, Failure
from hostlib.releasing import manifest, releases

SECRET = re.compile(r"pass|pwd|secret|token|key|credential", re.IGNORECASE)
ASSIGNED = re.compile(r"\s*(?:export\s+)?(\w+)\s*=\s*(.*?)\s*")
SHORTEST = 4  # characters; every log has what is shorter
HIDDEN = "***"


def of_release(config: Config, release: str) -> Callable[[str], str]:
    """What takes the passwords out of a text that the code of `release` printed."""
    return without(found for variables in _variables(config, release) for found in _secrets(variables))


def without(secrets: Iterator[str]) -> Callable[[str], str]:
    """What takes `secrets` out of a text, and what looks like a password."""
    known = sorted({found for found in secrets if len(found) >= SHORTEST}, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, known))) if known else None

    def mask(text: str) -> str:
        return masked(pattern.sub(HIDDEN, text) if pattern else text)

    return mask


def _variables(config: Config, release: str) -> Iterator[Mapping[str, object]]:
    try:
        told = releases.manifest(config, release)
    except Failure:  # it is gone
        told = {}
    for section in ("app", "migrate"):
        about = told.get(section)
        env = about.get("env") if isinstance(about, dict) else None
        if isinstance(env, dict):
            yield env
    shared = [config.shared / name for name in releases.shared_names(config, release)] if told else []
    for file in (*shared, config.releases / release / ".env"):
        try:
            lines = manifest.content(file).decode(errors="replace").splitlines()
        except (OSError, ValueError):  # none, a directory, or the link to the one that is shared
            continue
        found = (ASSIGNED.fullmatch(line) for line in lines)
        yield {match[1]: _unquoted(match[2]) for match in found if match}


def _unquoted(value: str) -> str:
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    return value[1:-1] if quoted else value


def _secrets(variables: Mapping[str, object]) -> Iterator[str]:
    for name, value in variables.items():
        if not isinstance(value, str):
            continue
        if SECRET.search(name):
            yield value
        password = _password(value)
        if password:
            yield password
            yield urllib.parse.unquote(password)


def _password(text: str) -> str | None:
    try:
        return urllib.parse.urlsplit(text).password
    except ValueError:
        return None
