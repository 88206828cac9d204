"""Looks at fabric.yaml before Fabric does, which answers a broken one with a traceback.

Fabric reads the file right after it has imported the fabfile, and the fabfile imports our tasks: that is
the moment for it. What stands below `deploy:` is for `deploytools.settings` to judge.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import fabric
from invoke.exceptions import Exit
from invoke.util import yaml  # type: ignore[attr-defined]  # the parser that Fabric uses

from deploytools.errors import DeployError, SettingsError
from deploytools.executor import SESSION

# What Fabric looks for, in its order; a fabric.py would be code, whose tracebacks are its author's.
SUFFIXES = (".yaml", ".yml", ".json")


def check_project_file() -> None:
    """Check the configuration beside the fabfile that is being imported; without one there is nothing to do.

    Raises Exit, which ends `fab` with the message and exit code 2.
    """
    directory = _project()
    if directory is None:
        return
    try:
        check(directory)
    except DeployError as error:
        from deploytools.report.text import error_text

        print(error_text(error), file=sys.stderr)
        raise Exit(code=error.exit_code) from error


def check(directory: Path, prefix: str = "fabric") -> None:
    """Raise SettingsError where the configuration in `directory` is nothing that Fabric could load.

    `prefix` is what the file is called: `fabric` in a project and in /etc, `.fabric` at home.
    """
    for path in (directory / f"{prefix}{suffix}" for suffix in SUFFIXES):
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise _unfit(path, f"it can't be read: {error.strerror}") from error
        problems = list(_problems(_parsed(path, text)))
        if problems:
            raise _unfit(path, "Fabric can't load it", problems)
        return


def _project() -> Path | None:
    """The directory of the fabfile, known while it is imported (and only if it has its usual name)."""
    file = getattr(sys.modules.get("fabfile"), "__file__", None)
    if file is None:
        return None
    path = Path(file)
    return path.parent.parent if path.name == "__init__.py" else path.parent


def _parsed(path: Path, content: bytes) -> Any:
    try:
        text = content.decode()
        return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)  # type: ignore[no-untyped-call]
    except UnicodeDecodeError as error:
        raise _unfit(path, f"it is not UTF-8 at byte {error.start}") from error
    except RecursionError as error:
        raise _unfit(path, "it is nested too deeply") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise _unfit(path, f"{error.problem or error.context}{place}") from error
    # ValueError: 2024-13-40 looks like a date, and is none.
    except (yaml.YAMLError, ValueError) as error:
        raise _unfit(path, " ".join(str(error).split())) from error


def _problems(document: Any) -> Iterator[str]:
    if document is None:
        return
    if not isinstance(document, dict):
        yield f"it should be a mapping of sections such as deploy, is of type {type(document).__name__}"
        return
    unusable = list(_unusable_keys(document, ()))
    yield from unusable or _misplaced({**fabric.Config.global_defaults(), SESSION: {}}, document, ())
    if not unusable:
        yield from _executor(document.get("tasks"))


def _unusable_keys(
    section: Mapping[Any, Any], path: tuple[str, ...], above: tuple[int, ...] = ()
) -> Iterator[str]:
    """Fabric joins keys to names of variables, so each has to be text; and it follows anchors without end."""
    for key, value in section.items():
        if not isinstance(key, str):
            yield f"{'.'.join((*path, str(key)))}: a key should be text; put it in quotes"
        elif isinstance(value, dict) and id(value) in (*above, id(section)):
            yield f"{'.'.join((*path, key))}: is an anchor that contains itself"
        elif isinstance(value, dict):
            yield from _unusable_keys(value, (*path, key), (*above, id(section)))


def _misplaced(
    defaults: Mapping[str, Any], document: Mapping[str, Any], path: tuple[str, ...]
) -> Iterator[str]:
    """Fabric merges what it finds over its defaults, and only mappings go with mappings."""
    for key in defaults.keys() & document.keys():
        default, value, name = defaults[key], document[key], ".".join((*path, key))
        if isinstance(default, dict) and isinstance(value, dict):
            yield from _misplaced(default, value, (*path, key))
        elif isinstance(default, dict):
            yield f"{name}: should be a mapping"
        elif isinstance(value, dict):
            yield f"{name}: should be a single value"


def _executor(tasks: object) -> Iterator[str]:
    name = tasks.get("executor_class") if isinstance(tasks, dict) else None
    if name is None:
        return
    module, _, attribute = str(name).rpartition(".")
    try:
        found = hasattr(import_module(module), attribute)
    except (ImportError, ValueError):
        found = False
    if not found:
        yield f"tasks.executor_class: there is no {name}; write deploytools.executor.OnceExecutor"


def _unfit(path: Path, what: str, details: Iterable[str] = ()) -> SettingsError:
    return SettingsError(
        f"{path.name} can't be used: {what}",
        where=str(path),
        state="nothing was changed",
        next="mend the file, then run the same command again",
        details=list(details),
    )
