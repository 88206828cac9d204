"""lighttpd's configuration as lighttpd prints it, read back; and which block counts for which request."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from hostlib.program import Failure
from hostlib.webserver import lighttpd
from hostlib.webserver.lighttpd import Condition, Configuration

from tests.support.webhost import REMOTE_SCRIPTS  # noqa: F401 - it makes hostlib importable

LIGHTTPD = "/usr/sbin/lighttpd"
TEXT = r"""
server.document-root = "/srv"
var.name = "a \" b"
index-file.names = ( var.name, "two" )
server.feature-flags = ( "server.graceful-shutdown-timeout" => 5 )
fastcgi.server = ( "/" => (( "host" => "127.0.0.1", "port" => 9000 )) )
fastcgi.server += ( ".x" => ( "y" => ( "socket" => "/s" ) ) )
$HTTP["host"] == "www.example.com" {
  server.document-root = "/www"
  $HTTP["url"] =~ "^/a(b|c) \"$" { server.document-root = "/abc" }
  else $HTTP["remote-ip"] == "10.0.0.0/8" { server.document-root = "/ten" }
}
else $HTTP["host"] =~ "\.example\.com$" { server.document-root = "/any" }
else { server.document-root = "/other" }
$SERVER["socket"] == ":443" { server.document-root = "/tls" }
$REQUEST_HEADER["x-a"] =^ "b" { server.document-root = "/header" }
"""


@pytest.fixture
def configuration(tmp_path: Path) -> Configuration:
    file = tmp_path / "lighttpd.conf"
    file.write_text(TEXT)
    return lighttpd.read(LIGHTTPD, file)


def test_what_newer_versions_print_is_read_alike(configuration: Configuration, tmp_path: Path) -> None:
    """1.4.79, in Debian trixie, writes `if`."""
    (tmp_path / "lighttpd.conf").write_text(TEXT)
    argv = [LIGHTTPD, "-p", "-f", str(tmp_path / "lighttpd.conf")]
    printed = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    newer = re.sub(r"^( *)(else )?(?=\$)", r"\1\2if ", printed, flags=re.MULTILINE)
    assert newer.count("if $") == 6
    assert list(lighttpd.parse(newer))[1:] == list(configuration.blocks)[1:]


def test_thousands_of_values_are_read_at_once(tmp_path: Path) -> None:
    lines = "".join(f'  ".{number}" => "text/plain",\n' for number in range(20_000))
    printed = f"config {{\n    mimetype.assign = (\n{lines})\n\n}}\n"
    began = time.monotonic()
    (block,) = lighttpd.parse(printed)
    assert len(block.settings["mimetype.assign"]) == 20_000
    assert time.monotonic() - began < 60, "with the square of their number it would take many minutes"


def test_values_of_every_kind_are_read(configuration: Configuration) -> None:
    assert configuration.server("index-file.names") == ['a " b', "two"]
    assert configuration.server("server.feature-flags") == {"server.graceful-shutdown-timeout": 5}
    assert configuration.server("fastcgi.server") == {
        "/": [{"host": "127.0.0.1", "port": 9000}],
        ".x": {"y": {"socket": "/s"}},
    }
    assert configuration.server("server.stat-cache-engine") == "simple", "which is lighttpd's default"
    assert configuration.server("no.such-key") is None


def test_blocks_come_in_order_each_with_all_of_its_conditions(configuration: Configuration) -> None:
    www = '$HTTP["host"] == "www.example.com"'
    assert [str(block) for block in configuration.blocks] == [
        "the configuration as a whole",
        www,
        f'{www} and $HTTP["url"] =~ "^/a(b|c) "$"',
        f'{www} and not $HTTP["url"] =~ "^/a(b|c) "$" and $HTTP["remoteip"] == "10.0.0.0/8"',
        f'not {www} and $HTTP["host"] =~ "\\.example\\.com$"',
        f'not {www} and not $HTTP["host"] =~ "\\.example\\.com$"',
        '$SERVER["socket"] == ":443"',
        '$REQUEST_HEADER["x-a"] =^ "b"',
    ]


@pytest.mark.parametrize(
    ("facts", "root"),
    [
        ({}, "/srv"),
        ({"host": "www.example.com"}, "/www"),
        ({"host": "www.example.com", "url": '/ab "'}, "/abc"),
        ({"host": "www.example.com", "url": "/", "remoteip": "10.1.2.3"}, "/ten"),
        ({"host": "www.example.com", "url": "/", "remoteip": "127.0.0.1"}, "/www"),
        ({"host": "a.example.com"}, "/any"),
        ({"host": "localhost"}, "/other"),
        ({"host": "localhost", "socket": "443"}, "/tls"),
        ({"host": "localhost", "socket": "80"}, "/other"),
    ],
)
def test_the_last_block_that_a_request_meets_counts(
    configuration: Configuration, facts: dict[str, str], root: str
) -> None:
    assert configuration.effective("server.document-root", facts) == root


@pytest.mark.parametrize(
    ("value", "listener", "holds"),
    [
        (":443", "443", True),
        ("127.0.0.1:443", "443", True),
        (":443", "0.0.0.0:443", True),
        ("[::]:443", "0.0.0.0:443", False),
        ("[0::1]:443", "[::1]:443", True),
        ("127.0.0.1:443", "127.0.0.2:443", False),
        ("localhost:443", "127.0.0.1:443", None),
        ("127.0.0.1:80", "127.0.0.1:443", False),
        ("/run/lighttpd.sock", "/run/lighttpd.sock", True),
    ],
)
def test_a_listener_is_meant_by_its_address_where_that_is_known(
    value: str, listener: str, holds: bool | None
) -> None:
    assert Condition("socket", "==", value).holds({"socket": listener}) is holds
    assert Condition("socket", "!=", value).holds({"socket": listener}) is (
        None if holds is None else not holds
    )


def test_what_may_count_begins_with_the_last_that_certainly_does(configuration: Configuration) -> None:
    def possible(**facts: str) -> list[object]:
        return [
            block.settings["server.document-root"]
            for block in configuration.possible("server.document-root", facts)
        ]

    assert possible(socket="0.0.0.0:443", host="www.example.com") == ["/tls", "/header"]
    assert possible(socket="0.0.0.0:80", host="localhost") == ["/other", "/header"]
    assert possible(socket="0.0.0.0:80", host="www.example.com") == ["/www", "/abc", "/ten", "/header"]


def test_what_a_block_leaves_open_is_said_around_it(configuration: Configuration) -> None:
    nested = configuration.blocks[2]
    assert configuration.inside(nested, "server.document-root") == "/abc"
    assert configuration.inside(nested, "fastcgi.server") is None


@pytest.mark.parametrize(
    ("condition", "fact", "held"),
    [
        (("host", "!=", "a"), "b", True),
        (("url", "=^", "/a"), "/ab", True),
        (("url", "=$", ".php"), "/ab", False),
        (("url", "!~", "^/a"), "/ab", False),
        (("url", "=~", "(?>a)++*"), "a", None),
        (("remoteip", "==", "::1"), "::1", True),
    ],
)
def test_a_condition_is_compared_as_lighttpd_does(
    condition: tuple[str, str, str], fact: str, held: bool | None
) -> None:
    assert Condition(*condition).holds({condition[0]: fact}) is held
    assert Condition(*condition).holds({}) is None


def test_what_lighttpd_does_not_take_is_told_in_its_words(tmp_path: Path) -> None:
    file = tmp_path / "lighttpd.conf"
    file.write_text("nonsense\n")
    with pytest.raises(Failure, match="parser failed"):
        lighttpd.read(LIGHTTPD, file)
    assert "parser failed" in (lighttpd.refusal(LIGHTTPD, file) or "")
    file.write_text(TEXT)
    assert lighttpd.refusal(LIGHTTPD, file) is None


def test_a_module_that_can_not_be_loaded_is_named() -> None:
    assert lighttpd.missing_module(LIGHTTPD, ("mod_magnet", "mod_nonsense", "mod_other")) == "mod_nonsense"
    assert lighttpd.missing_module(LIGHTTPD, ("mod_magnet",)) is None


def test_a_program_without_a_version_is_no_lighttpd(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="doesn't tell its version"):
        lighttpd.version("/bin/true")


def test_everything_that_debian_ships_is_read() -> None:
    found: Any = lighttpd.read(LIGHTTPD, Path("/etc/lighttpd/lighttpd.conf"))
    assert found.server("server.username") == "www-data"


def test_newer_versions_say_if_before_a_condition() -> None:
    """As lighttpd 1.4.79 prints it."""
    printed = """
config {
    server.document-root = "/srv"
    if $HTTP["host"] == "www.example.com" {
        # block 1
        server.document-root = "/www"
    } # end of $HTTP["host"] == "www.example.com"
    else if $HTTP["remote-ip"] == "10.0.0.0/8" {
        # block 2
        server.document-root = "/ten"
    } # end of $HTTP["remote-ip"] == "10.0.0.0/8"
}
"""
    assert [str(block) for block in lighttpd.parse(printed)] == [
        "the configuration as a whole",
        '$HTTP["host"] == "www.example.com"',
        'not $HTTP["host"] == "www.example.com" and $HTTP["remoteip"] == "10.0.0.0/8"',
    ]


def test_one_that_never_ends_is_a_failure_with_the_command_to_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a program of include_shell waits for something."""
    slow = tmp_path / "lighttpd"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setattr(lighttpd, "PATIENCE", 0.2)
    with pytest.raises(Failure, match="gave no answer in") as caught:
        lighttpd.read(str(slow), Path("/etc/lighttpd/lighttpd.conf"))
    assert caught.value.next == f"{slow} -p -f /etc/lighttpd/lighttpd.conf"
