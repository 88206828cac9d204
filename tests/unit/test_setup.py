from __future__ import annotations

import base64
import configparser
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from deploytools import __version__, setup
from tests.support.values import settings


def by_path(bundle: dict[str, Any], kind: str) -> dict[str, dict[str, Any]]:
    return {entry["path"]: entry for entry in bundle[kind]}


def text(entry: dict[str, Any]) -> str:
    return base64.b64decode(entry["content"]).decode()


BUNDLE = setup.host_side(settings(shared=[".env", "var"]), "deploy")
TOOLS = "/usr/local/lib/deploytools/guestbook"


def test_programs_belong_to_root_and_releases_to_the_deploy_user() -> None:
    files, directories = by_path(BUNDLE, "files"), by_path(BUNDLE, "directories")

    assert files[f"{TOOLS}/swap"]["owner"] == "root"
    assert files[f"{TOOLS}/swap"]["mode"] == 0o755
    assert files[f"{TOOLS}/hostlib/program.py"]["mode"] == 0o644
    assert directories["/srv/guestbook"]["owner"] == "root"
    assert directories["/srv/guestbook/run"]["owner"] == "root"
    assert directories["/srv/guestbook/releases"]["owner"] == "deploy"
    assert directories["/srv/guestbook/shared/var"]["owner"] == "www-data"
    assert "/srv/guestbook/shared/.env" not in directories


def test_down_and_up_stand_in_the_maintenance_directory() -> None:
    links = by_path(BUNDLE, "links")

    assert links["/etc/lighttpd/down"]["target"] == f"{TOOLS}/down"
    assert links["/etc/lighttpd/up"]["target"] == f"{TOOLS}/up"


def test_the_operators_page_is_never_replaced() -> None:
    assert by_path(BUNDLE, "files")["/etc/lighttpd/maint.html"]["keep"] is True


def test_the_switch_is_never_an_empty_file() -> None:
    assert text(by_path(BUNDLE, "files")["/etc/lighttpd/maint.lua"]).startswith("--")


def test_the_sudoers_file_names_programs_by_full_path_and_nothing_else() -> None:
    entry = by_path(BUNDLE, "files")["/etc/sudoers.d/deploytools-guestbook"]

    rule = text(entry).splitlines()[-1]
    assert entry["mode"] == 0o440
    assert rule.startswith("deploy ALL=(root) NOPASSWD: ")
    programs = rule.partition(": ")[2].split(", ")
    assert all(program.startswith(("/etc/lighttpd/", f"{TOOLS}/")) for program in programs)
    assert "*" not in rule


def test_root_needs_no_sudoers_file() -> None:
    assert not [path for path in by_path(setup.host_side(settings(), "root"), "files") if "sudoers" in path]


def test_what_decides_about_privilege_is_in_the_root_owned_config() -> None:
    config = json.loads(text(by_path(BUNDLE, "files")[f"{TOOLS}/config.json"]))

    assert config["user"] == "www-data"
    assert config["root"] == "/srv/guestbook"
    assert config["version"] == __version__
    assert "command" not in config


def test_config_json_has_the_digest_that_the_laptop_expects() -> None:
    config = json.loads(text(by_path(BUNDLE, "files")[f"{TOOLS}/config.json"]))

    assert config["digest"] == setup.digest(settings(shared=[".env", "var"]), "deploy")


@pytest.mark.parametrize(
    "other",
    [
        setup.digest(settings(webserver={"liveness": ["/alive"]}), "deploy"),
        setup.digest(settings(shared=["var"]), "deploy"),
        setup.digest(settings(), "somebody"),
    ],
    ids=["a setting", "a directory", "the deploy user"],
)
def test_whatever_set_up_would_change_changes_the_digest(other: str) -> None:
    assert other != setup.digest(settings(), "deploy")


def test_a_setting_that_set_up_does_not_use_leaves_the_digest_alone() -> None:
    assert setup.digest(settings(keep_releases=7), "deploy") == setup.digest(settings(), "deploy")


def test_another_toolkit_has_another_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = setup.digest(settings(), "deploy")
    monkeypatch.setattr(setup, "__version__", "9.9")

    assert setup.digest(settings(), "deploy") != ours


def test_the_page_that_becomes_the_operators_own_is_not_in_the_digest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours = setup.digest(settings(), "deploy")
    monkeypatch.setattr(setup, "UP", b"-- another comment")

    assert setup.digest(settings(), "deploy") == ours


def test_the_boot_unit_starts_the_current_release_and_is_enabled() -> None:
    parts = BUNDLE["where_systemd_runs"]
    unit = by_path(parts, "files")["/etc/systemd/system/deploytools-guestbook.service"]
    link = parts["links"][0]

    assert f"ExecStart={TOOLS}/swap\n" in text(unit)
    assert "ConditionPathExists=/srv/guestbook/current\n" in text(unit), "nothing is deployed yet"
    assert link["path"] == "/etc/systemd/system/multi-user.target.wants/deploytools-guestbook.service"
    assert link["target"] == unit["path"]


def test_stopping_the_boot_unit_ends_no_generation() -> None:
    unit = configparser.ConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(setup.boot_unit(settings()))

    assert unit["Service"]["Type"] == "oneshot", "so that there is no main process to end"
    assert unit["Service"]["KillMode"] == "process"


def test_without_root_there_is_no_boot_unit() -> None:
    assert setup.host_side(settings(privileged=False), "deploy")["where_systemd_runs"] == {}


def test_a_switch_of_ones_own_has_a_directory_of_its_own() -> None:
    bundle = setup.host_side(settings(webserver={"host_header": "www.example.com"}), "deploy")

    (made,) = [entry for entry in bundle["directories"] if entry["path"] == "/etc/lighttpd/guestbook"]
    assert (made["owner"], made["mode"]) == ("root", 0o755)
    assert "/etc/lighttpd" not in by_path(BUNDLE, "directories")


@pytest.mark.parametrize(
    ("host_header", "aliases"), [(None, []), ("www.example.com", []), ("www.example.com", ["example.com:81"])]
)
def test_lighttpd_accepts_the_snippet_beside_debians_own_configuration(
    tmp_path: Path, host_header: str | None, aliases: list[str]
) -> None:
    webserver = {"host_header": host_header, "aliases": aliases}
    snippet = setup.lighttpd_snippet(settings(webserver=webserver))
    (tmp_path / "maint.lua").write_text("-- up\n")
    (tmp_path / "app.conf").write_text(snippet.replace("/etc/lighttpd", str(tmp_path)))
    (tmp_path / "lighttpd.conf").write_text(
        'server.modules = ( "mod_indexfile", "mod_access", "mod_fastcgi" )\n'
        f'server.document-root = "{tmp_path}"\nserver.bind = "127.0.0.1"\nserver.port = 18080\n'
        'fastcgi.server = ( ".php" => (( "socket" => "/run/php.sock" )) )\n'
        'include "app.conf"\n'
    )

    configuration = str(tmp_path / "lighttpd.conf")
    checked = subprocess.run(
        ["/usr/sbin/lighttpd", "-tt", "-f", configuration], capture_output=True, text=True, check=False
    )
    printed = subprocess.run(
        ["/usr/sbin/lighttpd", "-p", "-f", configuration], capture_output=True, text=True, check=True
    )

    assert checked.returncode == 0, checked.stderr
    assert '"mod_magnet", "mod_indexfile"' in " ".join(printed.stdout.split()), "mod_magnet comes first"
    assert "/srv/guestbook/run/app.sock" in printed.stdout
    assert "/run/php.sock" in printed.stdout, "what the operator had stays"


def test_what_the_programs_share_is_put_in_place_with_its_packages() -> None:
    files, directories = by_path(BUNDLE, "files"), list(by_path(BUNDLE, "directories"))
    source = setup.remote_scripts()
    modules = {str(path.relative_to(source)) for path in source.glob("hostlib/**/*.py")}

    assert {path.removeprefix(f"{TOOLS}/") for path in files if path.endswith(".py")} == modules
    assert directories.index(f"{TOOLS}/hostlib") < directories.index(f"{TOOLS}/hostlib/checks")
