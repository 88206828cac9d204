"""The section `deploy:` of fabric.yaml for tests: a small one, a whole one, and what becomes of one."""

from __future__ import annotations

import copy
from dataclasses import MISSING
from pathlib import Path
from typing import Any, get_args

import pytest
from invoke.util import yaml

from deploytools.errors import SettingsError
from deploytools.settings import Settings, load
from deploytools.settings.keys import Key, keys

MINIMAL = {"application": "guestbook", "hosts": ["web1", "web2"], "app": {"command": "/usr/bin/php-cgi"}}
EXAMPLE = """
application: guestbook
hosts:
  - web1.example.com
  - {host: web2.example.com, user: deploy, port: 2222}
environments:
  staging: {hosts: [stage.example.com], migrate: {host: null}, app: {env: {DEBUG: "1"}}}
root: /srv/guestbook
keep_releases: 5
source: {path: ., ref: HEAD, build: null, exclude: []}
shared: [.env, var]
app:
  command: /usr/bin/php-cgi
  protocol: fastcgi
  listen: fd0
  env: {}
  user: www-data
  start_timeout: 30
  drain_timeout: 30
  manager: auto
health: {path: /, status: 200, contains: null}
webserver:
  kind: lighttpd
  maintenance_dir: /etc/lighttpd
  url: http://127.0.0.1/
  host_header: null
  document_root: null
  liveness: []
migrate:
  adapter: alembic
  host: web1.example.com
  cwd: "{release}"
  env: {}
  engine: postgresql
  lock_timeout: 5s
hooks: {quiesce: null, resume: null, backup: null, notify: null}
window: {expected: 5m}
"""
SCALARS = [key for key in keys().values() if key.is_scalar]
# What the keys of the adapter `command` need beside them.
COMMANDS: dict[str, dict[str, Any]] = {
    "status": {},
    "apply": {"status": "x"},
    "rollback": {"status": "x"},
    "pending": {"pending": {"cmd": "x"}, "current": "x"},
    "current": {"pending": {"cmd": "x"}},
    "transactional": {"status": "x"},
    "files": {"status": "y"},
    "squawk": {"status": "y", "engine": "postgresql", "files": "db"},
}


def read(raw: object, **about: Any) -> Settings:
    options: dict[str, Any] = {
        "environment": None,
        "only_hosts": None,
        "environ": {},
        "root": Path("/home/ann/guestbook"),
    }
    return load(raw, **{**options, **about})


def problems(raw: object, **about: Any) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        read(raw, **about)
    assert caught.value.exit_code == 2
    assert caught.value.state == "nothing was changed"
    return list(caught.value.details)


def with_(path: str, value: object) -> dict[str, Any]:
    """MINIMAL with `value` at a dotted path."""
    raw: dict[str, Any] = copy.deepcopy(MINIMAL)
    section = raw
    *sections, last = path.split(".")
    for name in sections:
        section = section.setdefault(name, {})
    section[last] = value
    return raw


def example() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(EXAMPLE)
    return loaded


def around(key: Key, value: object) -> dict[str, Any]:
    """MINIMAL with a value at `key`, and beside it what that key needs; MISSING leaves it out."""
    raw: dict[str, Any] = copy.deepcopy(MINIMAL)
    if key.path[0] == "migrate":
        name = key.path[-1] if len(key.path) < 3 else key.path[1]
        beside = COMMANDS.get(name)
        raw["migrate"] = (
            {"adapter": "alembic"} if beside is None else {"adapter": "command", "apply": "x", **beside}
        )
        raw = copy.deepcopy(raw)
    section = raw
    for name in key.path[:-1]:
        section = section.setdefault(name, {})
    section[key.path[-1]] = value
    if value is MISSING:
        del section[key.path[-1]]
    return raw


def another(key: Key) -> object:
    """A value for `key` that isn't its default."""
    special = {
        ("application",): "shop",
        ("privileged",): False,
        ("health", "status"): 204,
        ("app", "user"): "ann",
        ("webserver", "user"): "lighttpd",
        ("webserver", "url"): "http://127.0.0.1:8080/",
        ("webserver", "public_url"): "https://www.example.com/",
        ("webserver", "host_header"): "www.example.com",
        ("webserver", "document_root"): "public",
        ("page", "color"): "#0b57d0",
        ("migrate", "adapter"): "django",
        ("migrate", "host"): "web2",
        ("migrate", "lock_timeout"): "7s",
        ("migrate", "transactional"): True,
        ("migrate", "files"): "db",
        ("migrate", "squawk"): True,
    }
    if key.path in special:
        return special[key.path]
    choices = get_args(key.kind)
    return choices[-1] if choices else {int: 7, float: 7.5}.get(key.kind, "/opt/x")
