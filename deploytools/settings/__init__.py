"""The settings of one operation: fabric.yaml, the chosen environment, FABRIC_DEPLOY_* and -H.

`load` reports everything that is wrong at once, each problem by its dotted path. It reads no file and
asks no host.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from deploytools.errors import SettingsError, UsageError
from deploytools.settings import keys, overrides, problems, rules
from deploytools.settings.schema import (
    App,
    Deploy,
    Fleet,
    Health,
    Hooks,
    Host,
    Migrate,
    Page,
    Pending,
    Source,
    Webserver,
    Window,
    split_address,
)
from deploytools.settings.values import absolute

__all__ = [
    "App",
    "Deploy",
    "Fleet",
    "Health",
    "Hooks",
    "Host",
    "Migrate",
    "Page",
    "Pending",
    "Settings",
    "Source",
    "Webserver",
    "Window",
    "check_environment",
    "environments",
    "load",
]

SANDBOX = "sandbox"
FILE = "fabric.yaml"


@dataclass(frozen=True, kw_only=True)
class Settings(Deploy):
    """The section `deploy:` with every default filled in, and what was asked for on the command line.

    Args:
        hosts: the hosts of this operation, after -H.
        all_hosts: all that are configured.
        lock_host: where the lock, the journal and migrations live; the same with and without -H.
        migrate: None where the application has no database.
        environment: what `fab on` picked, or None.
        project: the directory of fabric.yaml, to which paths of the laptop were relative.
    """

    all_hosts: tuple[Host, ...]
    lock_host: Host
    environment: str | None
    project: Path


def environments(raw: object) -> tuple[str, ...]:
    """Given the mapping `deploy`, return the names that `fab on` knows; `sandbox` is always among them."""
    named = raw.get("environments") if isinstance(raw, Mapping) else None
    names = [name for name in named if isinstance(name, str)] if isinstance(named, Mapping) else []
    return tuple(dict.fromkeys([*names, SANDBOX]))


def check_environment(raw: object, name: str, file: str = FILE) -> None:
    """Raise SettingsError where `fab on` can't pick `name`."""
    known = environments(raw)
    if name not in known:
        raise SettingsError(
            f"there is no environment {name!r}{keys.did_you_mean(name, known)}",
            where=f"deploy.environments in {file}",
            state="nothing was changed",
            next=f"fab on {known[0]} ...",
            details=[f"known environments: {', '.join(known)}"],
        )


def load(
    raw: object,
    *,
    environment: str | None,
    only_hosts: Sequence[str] | None,
    environ: Mapping[str, str],
    root: Path,
    file: str = FILE,
) -> Settings:
    """Return the settings of one operation, or raise SettingsError with a line per problem.

    Args:
        raw: the mapping `deploy` of fabric.yaml as YAML gives it; None where there is none.
        environment: one of `environments(raw)`, or None for `deploy` as it stands.
        only_hosts: what -H limits the operation to, each a name or [user@]host[:port]; None for all hosts.
        environ: variables of the shell; those that begin with FABRIC_DEPLOY_ override scalars.
        root: the project directory.
        file: what messages call fabric.yaml.

    Raises UsageError where `environment` is sandbox and the sandbox was never made.
    """
    base, overlay = _chosen(raw, environment, root, file)
    merged = _merge(base, overlay)
    variables, lines = overrides.apply(merged, environ)
    found = rules.contradictions(merged)
    try:
        deploy = TypeAdapter(Deploy).validate_python(merged)
    except ValidationError as error:
        found = [*problems.problems_of(error), *found]

    def place(path: keys.KeyPath) -> str:
        """Where the operator wrote what stands at `path`."""
        for length in range(len(path), 0, -1):
            if path[:length] in variables:
                return variables[path[:length]]
        within = ("environments", environment) if environment and _reaches(overlay, path) else ()
        return keys.dotted(("deploy", *within, *path))

    lines += [problem.line(place) for problem in found]
    if lines:
        incomplete = environment is None and any(problem.text == "is missing" for problem in found)
        raise _unfit(lines, file, environments(raw) if incomplete else ())
    return _resolved(deploy, merged, environment, only_hosts, environ, root)


def _chosen(
    raw: object, environment: str | None, root: Path, file: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The mapping to start from, and what the environment lays over it."""
    deploy = {} if raw is None else raw
    if not isinstance(deploy, Mapping):
        raise _unfit([f"deploy: should be a mapping, is {problems.shown(raw)}"], file)
    named = deploy.get("environments") or {}
    if not isinstance(named, Mapping):
        raise _unfit([f"deploy.environments: should be a mapping, is {problems.shown(named)}"], file)
    base = {key: value for key, value in deploy.items() if key != "environments"}
    if environment is None:
        return base, {}
    check_environment(raw, environment, file)
    overlay = named.get(environment) or {}
    if not isinstance(overlay, Mapping):
        raise _unfit(
            [f"deploy.environments.{environment}: should be a mapping, is {problems.shown(overlay)}"], file
        )
    if environment == SANDBOX:
        from deploytools import sandbox

        base = sandbox.environment(root)
    return base, dict(overlay)


def _merge(base: Mapping[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """A new mapping: mappings are merged key by key, everything else of `overlay` replaces."""
    merged = {key: _merge(value, {}) if isinstance(value, Mapping) else value for key, value in base.items()}
    for key, value in overlay.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _reaches(overlay: Mapping[str, Any], path: keys.KeyPath) -> bool:
    """Whether what stands at `path` was written in `overlay`."""
    here: Any = overlay
    for part in path:
        if isinstance(here, Mapping):
            if part not in here:
                return False
        elif not isinstance(here, list):
            break
        here = here[part]
    return True


def _unfit(lines: Sequence[str], file: str, others: Sequence[str] = ()) -> SettingsError:
    several = f"{len(lines)} settings" if len(lines) > 1 else "a setting"
    choose = (
        f", or choose an environment (fab on {others[0]} ...)" if others[:1] not in ((), (SANDBOX,)) else ""
    )
    return SettingsError(
        f"{several} can't be used",
        where=file,
        state="nothing was changed",
        next=f"mend what is listed{choose}, then run the same command again",
        details=lines,
    )


def _own_switch(deploy: Deploy, written: Mapping[str, Any]) -> Webserver:
    """One of several sites of a host has a maintenance directory of its own, unless one was written."""
    webserver = deploy.webserver
    if webserver.host_header is None or "maintenance_dir" in (written.get("webserver") or {}):
        return webserver
    return replace(webserver, maintenance_dir=f"{webserver.maintenance_dir}/{deploy.application}")


def _resolved(
    deploy: Deploy,
    written: Mapping[str, Any],
    environment: str | None,
    only_hosts: Sequence[str] | None,
    environ: Mapping[str, str],
    root: Path,
) -> Settings:
    """Fill in what one setting takes from another, and limit the hosts."""
    values = {entry.name: getattr(deploy, entry.name) for entry in fields(deploy)}
    for name in ("root", "tools_dir"):
        values[name] = values[name].replace("{application}", deploy.application)
    values["webserver"] = _own_switch(deploy, written)
    home = environ.get("HOME")
    values["source"] = replace(
        deploy.source,
        path=absolute(deploy.source.path, root, home),
        patches=tuple(absolute(patch, root, home) for patch in deploy.source.patches),
    )
    values["page"] = replace(
        deploy.page,
        file=deploy.page.file and absolute(deploy.page.file, root, home),
        logo=deploy.page.logo and absolute(deploy.page.logo, root, home),
    )
    if deploy.ssh_config is not None:
        values["ssh_config"] = absolute(deploy.ssh_config, root, home)
    migrate = deploy.migrate
    lock_host = _named(deploy.hosts, migrate.host) if migrate and migrate.host else deploy.hosts[0]
    values["migrate"] = migrate if migrate and migrate.adapter else None
    values["hosts"] = deploy.hosts if only_hosts is None else _limited(deploy.hosts, only_hosts)
    return Settings(
        **values, all_hosts=deploy.hosts, lock_host=lock_host, environment=environment, project=root
    )


def _named(hosts: Sequence[Host], name: str) -> Host:
    return next(host for host in hosts if host.host.lower() == name.lower())


def _limited(hosts: Sequence[Host], only: Sequence[str]) -> tuple[Host, ...]:
    """The hosts that -H names, in the order of fabric.yaml."""
    wanted = {text: [host for host in hosts if _answers_to(host, text)] for text in only}
    unknown = [text for text, found in wanted.items() if not found]
    if unknown or not wanted:
        known = [host.address for host in hosts]
        hint = keys.did_you_mean(unknown[0], known) if unknown else ""
        raise UsageError(
            f"-H names no host of deploy.hosts: {', '.join(unknown) or '(none)'}{hint}",
            where="-H",
            state="nothing was changed",
            next="name some of the hosts above, or leave out -H for all of them",
            details=known,
        )
    return tuple(host for host in hosts if any(host in found for found in wanted.values()))


def _answers_to(host: Host, text: str) -> bool:
    """Whether `text`, [user@]host[:port], means this host: what it leaves out may be anything."""
    asked = split_address(text)
    mine = {"host": host.host.lower(), "user": host.user, "port": host.port}
    return isinstance(asked, dict) and all(
        mine[part] == (value.lower() if part == "host" else value) for part, value in asked.items()
    )
