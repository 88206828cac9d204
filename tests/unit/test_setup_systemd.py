"""The systemd units of an application; systemd itself reads them where it is installed."""

from __future__ import annotations

import base64
import configparser
import shutil
import subprocess
from pathlib import Path

import pytest

from deploytools.setup import systemd
from tests.support.values import settings

APP = {"command": "/usr/bin/php-cgi", "user": "guestbook"}
FILES = {
    entry["path"]: base64.b64decode(entry["content"]).decode()
    for entry in systemd.where_systemd_runs(settings(app=APP))["files"]
}


def unit(name: str) -> configparser.ConfigParser:
    parsed = configparser.ConfigParser(strict=False, interpolation=None)
    parsed.optionxform = str  # type: ignore[assignment, method-assign]
    parsed.read_string(FILES[f"/etc/systemd/system/{name}"])
    return parsed


def test_the_socket_is_where_swap_looks_for_it_and_only_the_web_server_may_connect() -> None:
    socket = unit("deploytools-guestbook@.socket")["Socket"]
    assert socket["ListenStream"] == "/srv/guestbook/run/app.%i.sock"
    assert (socket["SocketUser"], socket["SocketMode"]) == ("www-data", "0660")


def test_neither_crashes_nor_crowds_make_systemd_give_up_the_socket() -> None:
    assert unit("deploytools-guestbook@.socket")["Socket"]["TriggerLimitIntervalSec"] == "0"
    assert unit("deploytools-guestbook@.service")["Unit"]["StartLimitIntervalSec"] == "0"
    assert unit("deploytools-guestbook@.service")["Service"]["Restart"] == "always"


def test_the_application_runs_as_its_user_by_what_its_generations_file_says() -> None:
    service = unit("deploytools-guestbook@.service")["Service"]
    assert service["User"] == "guestbook"
    assert service["EnvironmentFile"] == "/srv/guestbook/run/app.%i.env"
    assert service["ExecStart"].endswith(
        "/usr/local/lib/deploytools/guestbook/current/hostlib/swapping/generation_runner.py"
    )


def test_when_the_host_goes_down_the_web_server_ends_before_its_application() -> None:
    for kind in ("socket", "service"):
        assert unit(f"deploytools-guestbook@.{kind}")["Unit"]["Before"] == "lighttpd.service"


def test_after_a_reboot_the_web_server_waits_for_the_sockets() -> None:
    boot = unit("deploytools-guestbook.service")
    assert boot["Unit"]["Before"] == "lighttpd.service"
    assert boot["Service"]["ExecStart"] == "/usr/local/lib/deploytools/guestbook/swap --boot"
    assert boot["Unit"]["ConditionPathIsSymbolicLink"] == "/srv/guestbook/current", "nothing is deployed yet"


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
def test_systemd_knows_every_key(tmp_path: Path) -> None:
    for path, content in FILES.items():
        name = Path(path).name.replace("@.", "@7.")
        kept = content.replace("User=guestbook", "User=root").replace(
            "SocketUser=www-data", "SocketUser=root"
        )
        (tmp_path / name).write_text(kept)
    argv = ["systemd-analyze", "verify", "--man=no", *map(str, tmp_path.iterdir())]
    said = subprocess.run(argv, capture_output=True, text=True, check=False).stderr
    assert not [line for line in said.splitlines() if str(tmp_path) in line and "not executable" not in line]
