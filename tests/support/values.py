"""Settings, plans and hosts' answers for tests that need some, without a file or a host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deploytools.commands import Answer
from deploytools.plan import Plan, Target
from deploytools.saga import Mark, State
from deploytools.settings import Settings, load


def settings(**overrides: Any) -> Settings:
    """A guestbook on web1 and web2, migrated by Alembic; `overrides` replace keys of `deploy`."""
    deploy = {
        "application": "guestbook",
        "hosts": ["web1", "web2"],
        "root": "/srv/guestbook",
        "app": {"command": "/usr/bin/php-cgi"},
        "migrate": {"adapter": "alembic"},
        **overrides,
    }
    return load(deploy, environment=None, only_hosts=None, environ={}, root=Path("/project"))


BASE = Plan(
    operation="deploy",
    run_id="run-1",
    application="guestbook",
    targets=(Target("web1", "r1"), Target("web2", "r1")),
    lock_host="web1",
    steps=(),
    by="ann",
    laptop="desk",
    release="r2",
)


def ok(**value: Any) -> Answer:
    """A host program that went well."""
    return Answer(Mark(State.OK, value), {}, 0)


def failed(what: str = "it broke", exit_code: int = 3, **value: Any) -> Answer:
    """A host program that failed, leaving the host as it was."""
    return Answer(Mark(State.FAILED, {"unchanged": True, **value}), {"what": what}, exit_code)
