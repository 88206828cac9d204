"""`doctor`: finds what would stop a deploy, and names the remedy."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.barehost import bare_host
from tests.support.webhost import Ran, WebHost


def examine(host: WebHost) -> Ran:
    """Run it on a host whose lighttpd.conf stands in the maintenance directory, as in a sandbox."""
    conf = host.maintenance_dir / "lighttpd.conf"
    if not conf.is_symlink():
        conf.symlink_to(host.base / "lighttpd.conf")
    return host.run("doctor")


def failed(ran: Ran) -> list[dict[str, Any]]:
    return [check for check in ran.json["checks"] if not check["ok"]]


def the(ran: Ran, name: str) -> dict[str, Any]:
    """The one check of that name that failed."""
    (found,) = [check for check in failed(ran) if check["name"] == name]
    return found


def test_a_host_as_setup_leaves_it_passes(web_host: WebHost) -> None:
    web_host.serve(1)
    before = time.time()
    ran = examine(web_host)
    assert (ran.code, failed(ran)) == (0, [])
    assert {"python", "disk", "socket path", "lighttpd", "configuration", "site"} <= {
        check["name"] for check in ran.json["checks"]
    }
    assert before <= ran.json["now"] <= time.time()


def test_a_site_without_an_application_stops_no_deploy(web_host: WebHost) -> None:
    ran = examine(web_host)
    assert (ran.code, the(ran, "site")["level"]) == (0, "warning")
    assert "503" in the(ran, "site")["message"]


def test_a_site_in_maintenance_is_fine(web_host: WebHost) -> None:
    assert web_host.run(web_host.maintenance_dir / "down").code == 0
    assert failed(examine(web_host)) == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"magnet": False}, "mod_magnet is not loaded"),
        ({"stat_cache": "inotify"}, "misses a flipped switch"),
    ],
    ids=["no mod_magnet", "inotify"],
)
def test_a_web_server_that_would_not_switch_is_an_error(
    make_web_host: Callable[..., WebHost], options: dict[str, Any], told: str
) -> None:
    ran = examine(make_web_host(**options))
    assert ran.code == 3
    assert told in ran.error["what"]
    assert ran.error["next"]


@pytest.mark.parametrize(
    ("version", "fine"),
    [
        ("1.4.69", True),
        ("1.4.82", True),
        ("1.4.83", False),
        ("1.4.84", False),
        ("1.4.85", True),
        ("1.4.55", False),
    ],
)
def test_versions_of_lighttpd_that_lose_the_maintenance_page_are_refused(
    web_host: WebHost, tmp_path: Path, version: str, fine: bool
) -> None:
    program = tmp_path / "lighttpd"
    program.write_text(
        f'#!/bin/sh\n[ "$1" = -v ] && echo "lighttpd/{version} (ssl)" && exit\nexec /usr/sbin/lighttpd "$@"\n'
    )
    program.chmod(0o755)
    (web_host.maintenance_dir / "lighttpd.conf").symlink_to(web_host.base / "lighttpd.conf")
    ran = web_host.run("doctor", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert [check["message"] for check in failed(ran) if check["name"] == "lighttpd"] == (
        [] if fine else [f"lighttpd is {version}"]
    )


def test_a_broken_configuration_is_told_in_lighttpds_words(web_host: WebHost) -> None:
    (web_host.base / "lighttpd.conf").write_text(
        'server.modules = ("mod_nonsense")\nserver.document-root = "/"\n'
    )
    ran = examine(web_host)
    assert "refuses" in the(ran, "configuration")["message"]


@pytest.mark.parametrize("script", [None, ""], ids=["missing", "empty"])
def test_a_missing_or_empty_maintenance_script_is_an_error(web_host: WebHost, script: str | None) -> None:
    lua = web_host.maintenance_dir / "maint.lua"
    lua.unlink()
    if script is not None:
        lua.write_text(script)
    ran = examine(web_host)
    assert (ran.code, the(ran, "maintenance script")["level"]) == (3, "error")


def test_a_site_that_does_not_answer_is_an_error(web_host: WebHost) -> None:
    web_host.stop_lighttpd()
    ran = examine(web_host)
    assert (ran.code, the(ran, "site")["level"]) == (3, "error")


def test_missing_directories_are_an_error(web_host: WebHost) -> None:
    (web_host.root / "state").rmdir()
    (web_host.root / "log" / "lighttpd.log").unlink()
    web_host.run_dir.rename(web_host.root / "elsewhere")
    messages = [check["message"] for check in failed(examine(web_host)) if check["name"] == "directories"]
    assert len(messages) == 2
    assert str(web_host.root / "state") in messages[0]
    assert f"{web_host.run_dir} is missing" in messages


def test_a_root_too_deep_for_a_socket_is_an_error() -> None:
    with bare_host() as host:
        host.config["root"] = f"{host.root}/{'d' * 80}"
        host.write_config()
        ran = host.run("doctor")
        assert ran.code == 3
        assert "choose a shorter root" in the(ran, "socket path")["remedy"]


def test_an_unknown_account_is_an_error(web_host: WebHost) -> None:
    web_host.config["user"] = "nobody-of-that-name"
    web_host.write_config()
    assert the(examine(web_host), "account")["level"] == "error"


def test_what_root_runs_may_be_changed_by_root_only(web_host: WebHost) -> None:
    web_host.config["privileged"] = True
    web_host.write_config()
    (web_host.tools / "swap").chmod(0o777)
    messages = [check["message"] for check in failed(examine(web_host)) if check["name"] == "directories"]
    assert f"others than root can change {web_host.tools / 'swap'}" in messages


def test_by_hand_it_says_what_to_do(web_host: WebHost) -> None:
    (web_host.maintenance_dir / "maint.lua").unlink()
    examine(web_host)
    ran = web_host.run("doctor", as_json=False)
    assert ran.code == 3
    assert "maint.lua is missing" in ran.err
    assert f"{web_host.maintenance_dir}/up" in ran.err
