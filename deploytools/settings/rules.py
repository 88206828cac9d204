"""What two keys of fabric.yaml say together. Judged on what was written, so that these problems are
reported along with those of single values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from deploytools.settings.keys import did_you_mean
from deploytools.settings.problems import Problem
from deploytools.settings.schema import split_address

COMMANDS = ("status", "pending", "current", "apply", "rollback")
# What stands in sudoers, where a space would divide a program from its arguments.
_IN_SUDOERS = (("root",), ("tools_dir",), ("webserver", "maintenance_dir"))


def contradictions(deploy: Mapping[str, Any]) -> list[Problem]:
    """Given the merged mapping `deploy`, valid or not, return what doesn't go together."""
    return [*_privileged(deploy), *_migrate(deploy), *_page(deploy)]


def _privileged(deploy: Mapping[str, Any]) -> Iterator[Problem]:
    if deploy.get("privileged", True) is not True:
        if _at(deploy, "app", "manager") == "systemd":
            yield Problem(("app", "manager"), "can't be systemd where `privileged` is false")
        return
    if _at(deploy, "app", "user") == "root":
        yield Problem(("app", "user"), "should not be root")
    for path in _IN_SUDOERS:
        value = _at(deploy, *path)
        if isinstance(value, str) and " " in value:
            yield Problem(path, "should have no space in it where `privileged` is true")


def _migrate(deploy: Mapping[str, Any]) -> Iterator[Problem]:
    migrate = deploy.get("migrate")
    if not isinstance(migrate, Mapping):
        return
    host, names = migrate.get("host"), _host_names(deploy.get("hosts"))
    if isinstance(host, str) and names and host.lower() not in map(str.lower, names):
        yield Problem(
            ("migrate", "host"), f"should be one of deploy.hosts, is {host!r}{did_you_mean(host, names)}"
        )
    given = [
        name for name in (*COMMANDS, "transactional", "files", "squawk") if migrate.get(name) is not None
    ]
    match migrate.get("adapter"):
        case "command":
            yield from _needed(given)
            yield from _squawk(migrate)
            if migrate.get("transactional") and migrate.get("engine") in ("mysql", "mariadb"):
                yield Problem(
                    ("migrate", "transactional"),
                    f"can't be true: {migrate['engine']} commits every DDL at once",
                )
        case "alembic" | "django" | None as adapter:
            for name in given:
                yield Problem(
                    ("migrate", name),
                    f"belongs to the adapter command, but the adapter is {adapter or 'null'}",
                )


def _page(deploy: Mapping[str, Any]) -> Iterator[Problem]:
    page = deploy.get("page")
    if isinstance(page, Mapping) and page.get("file") is not None:
        for name in [name for name in page if name != "file" and page[name] is not None]:
            yield Problem(("page", name), "has no effect beside `file`, which is the whole page")


def _squawk(migrate: Mapping[str, Any]) -> Iterator[Problem]:
    if not migrate.get("squawk"):
        return
    if migrate.get("engine") != "postgresql":
        yield Problem(
            ("migrate", "squawk"), "can't be true: squawk knows PostgreSQL, so engine should be that"
        )
    if migrate.get("files") is None:
        yield Problem(("migrate", "files"), "is missing; squawk has to know where the migrations are")


def _needed(given: list[str]) -> Iterator[Problem]:
    if "status" not in given and "pending" not in given:
        yield Problem(("migrate",), "should have `status` or `pending`, as the adapter is command")
    if "status" in given and "pending" in given:
        yield Problem(("migrate",), "should have either `status` or `pending`, not both")
    if "pending" in given and "current" not in given:
        yield Problem(
            ("migrate", "current"), "is missing; `pending` alone doesn't tell where the schema stands"
        )
    if "apply" not in given:
        yield Problem(("migrate", "apply"), "is missing, as the adapter is command")


def _host_names(hosts: object) -> list[str]:
    entries = map(split_address, hosts) if isinstance(hosts, list | tuple) else ()
    names = [entry.get("host") for entry in entries if isinstance(entry, Mapping)]
    return [name for name in names if isinstance(name, str)]


def _at(deploy: Mapping[str, Any], *path: str) -> object:
    """What is written at `path`; None where nothing is, and the schema's defaults break no rule."""
    value: object = deploy
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value
