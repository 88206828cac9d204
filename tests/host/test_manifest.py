"""How a release says it is to be run; its author is less privileged than its reader."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from hostlib.program import USAGE, Config, Failure
from hostlib.releasing import manifest
from hostlib.releasing.manifest import App, Health

from tests.support.webhost import WebHost


@pytest.fixture
def config() -> Any:
    host = WebHost()
    (host.root / "releases" / "r1").mkdir()
    yield host.hostlib_config
    host.__exit__()


def write(config: Config, content: object) -> None:
    (config.releases / "r1" / manifest.NAME).write_text(json.dumps(content))


def refused(config: Config) -> str:
    with pytest.raises(Failure) as caught:
        manifest.read(config, "r1")
    assert (caught.value.exit_code, caught.value.state) == (USAGE, "nothing was changed")
    return caught.value.what


def test_what_is_not_said_has_the_documented_default(config: Config) -> None:
    write(config, {"app": {"command": "bin/app --name 'two words'"}, "health": {}})
    assert manifest.read(config, "r1") == (
        App(("bin/app", "--name", "two words"), "fd0", {}, 30, 30, 0, "auto"),
        Health("/", 200, None),
    )


def test_all_problems_are_told_at_once_and_no_value_is_shown(config: Config) -> None:
    write(
        config,
        {
            "app": {
                "command": "unbalanced 'quote",
                "protocol": "scgi",
                "listen": "tcp",
                "env": {"PASSWORD": 12345678, "A=B": "x"},
                "start_timeout": True,
                "drain_timeout": -1,
                "soak_time": 1e9,
                "manager": ["direct"],
            },
            "health": {"path": "/a b", "status": "200", "contains": 5, "smoke": ["/ok", "x"]},
        },
    )
    told = refused(config)
    assert told.partition(" is not usable: ")[2].split("; ") == [
        "app.command should be a command line",
        "app.protocol should be fastcgi",
        "app.listen should be fd0 or path",
        "app.env should be a mapping of variable names to strings",
        "app.start_timeout should be seconds, at most a day",
        "app.drain_timeout should be seconds, at most a day",
        "app.soak_time should be seconds, at most a day",
        "app.manager should be auto, direct or systemd",
        "health.path should be a path that begins with / and has no blanks",
        "health.status should be an HTTP status",
        "health.contains should be a string or null",
        "health.smoke should be a list of paths that begin with / and have no blanks",
    ]
    assert "12345678" not in told


@pytest.mark.parametrize("command", ["", "  ", None, 5, "a\0b", "\ud800"])
def test_a_command_that_cannot_be_run_is_refused(config: Config, command: object) -> None:
    write(config, {"app": {"command": command}, "health": {}})
    assert "app.command should be a command line" in refused(config)


@pytest.mark.parametrize(
    "content", ["[]", "{}", '"text"', '{"app": [], "health": null}', "not json", "[" * 99999]
)
def test_what_is_no_manifest_is_refused(config: Config, content: str) -> None:
    (config.releases / "r1" / manifest.NAME).write_text(content)
    refused(config)


def test_a_missing_one_is_named(config: Config) -> None:
    assert f"{config.releases}/r1/.deploytools.json is missing" in refused(config)


def test_a_link_a_pipe_and_a_giant_are_not_read(config: Config) -> None:
    path = config.releases / "r1" / manifest.NAME
    path.symlink_to("/etc/hostname")
    assert "Too many levels of symbolic links" in refused(config)
    path.unlink()
    os.mkfifo(path)
    assert "it is not a file" in refused(config)
    path.unlink()
    path.write_bytes(b" " * (manifest.LARGEST + 1))
    assert "larger than" in refused(config)


def test_a_health_check_wants_the_status_and_the_text() -> None:
    health = Health("/", 200, "fine")
    assert health.met(200, b"all is fine")
    assert not health.met(200, b"all is well")
    assert not health.met(500, b"all is fine")
    assert Health("/", 204, None).met(204, b"")
