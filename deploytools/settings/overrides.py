"""FABRIC_DEPLOY_APP_START_TIMEOUT=60 stands for `deploy.app.start_timeout: 60`, as Fabric has it.

Fabric itself would only know the keys that fabric.yaml has, take "false" for true, and end in a traceback
for what it can't convert. So we read these variables, by the types of the schema.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from deploytools.settings.keys import Key, KeyPath, did_you_mean, dotted, keys

PREFIX = "FABRIC_DEPLOY_"
_FLAGS = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}


def variable(path: KeyPath) -> str:
    """("app", "start_timeout") -> FABRIC_DEPLOY_APP_START_TIMEOUT."""
    return PREFIX + "_".join(map(str, path)).upper()


def apply(deploy: dict[str, Any], environ: Mapping[str, str]) -> tuple[dict[KeyPath, str], list[str]]:
    """Put the overrides of `environ` into `deploy`, which is changed.

    Returns the path of each override with the name of its variable, and a line for each variable that
    can't be one. Whether a value fits is left to the schema.
    """
    scalars = {variable(path): key for path, key in keys().items() if key.is_scalar}
    applied: dict[KeyPath, str] = {}
    problems: list[str] = []
    for name in sorted(name for name in environ if name.startswith(PREFIX)):
        key = scalars.get(name)
        if key is None:
            problems.append(f"{name}: {_why_not(name, list(scalars))}")
        elif _put(deploy, key.path, _value(key, environ[name])):
            applied[key.path] = name
    return applied, problems


def _value(key: Key, text: str) -> object:
    """The value that `text` means for this key; `text` itself where it means none."""
    if not text and key.nullable:
        return None
    if key.kind is bool:
        return _FLAGS.get(text.lower(), text)
    if key.kind is int and re.fullmatch("-?[0-9]{1,18}", text):
        return int(text)
    return text


def _put(deploy: dict[str, Any], path: tuple[str, ...], value: object) -> bool:
    """False where a section on the way is no mapping; the schema complains of that."""
    section = deploy
    for name in path[:-1]:
        if section.get(name) is None:
            section[name] = {}
        section = section[name]
        if not isinstance(section, dict):
            return False
    section[path[-1]] = value
    return True


def _why_not(name: str, known: list[str]) -> str:
    containers = {variable(path): key for path, key in keys().items() if not key.is_scalar}
    containers[variable(("environments",))] = Key(("environments",), dict, nullable=False, default=None)
    key = containers.get(name)
    if key is not None and key.is_section:
        return f"deploy.{dotted(key.path)} is a section; override its keys one by one"
    for prefix, container in containers.items():
        if not container.is_section and (name == prefix or name.startswith(f"{prefix}_")):
            kind = "list" if container.kind is tuple else "mapping"
            return f"deploy.{dotted(container.path)} is a {kind}, which no variable can override"
    return f"overrides no key of fabric.yaml{did_you_mean(name, known)}"
