from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest

from deploytools import __version__, setup
from deploytools.errors import UsageError
from deploytools.setup import command, lighttpd, programs, sudo
from tests.support.values import settings


def by_path(bundle: dict[str, Any], kind: str) -> dict[str, dict[str, Any]]:
    return {entry["path"]: entry for entry in bundle[kind]}


def text(entry: dict[str, Any]) -> str:
    return base64.b64decode(entry["content"]).decode()


BUNDLE = setup.host_side(settings(shared=[".env", "var"]), "deploy")
TOOLS = "/usr/local/lib/deploytools/guestbook"


def program(name: str) -> dict[str, Any]:
    """A file of the directory of this version."""
    return by_path(BUNDLE, "programs")[name]


def test_programs_belong_to_root_and_releases_to_the_deploy_user() -> None:
    directories = by_path(BUNDLE, "directories")

    assert program("swap")["owner"] == "root"
    assert program("swap")["mode"] == 0o755
    assert program("hostlib/program.py")["mode"] == 0o644
    assert directories["/srv/guestbook"]["owner"] == "root"
    assert directories["/srv/guestbook/run"]["owner"] == "root"
    assert directories["/srv/guestbook/releases"]["owner"] == "deploy"
    assert directories["/srv/guestbook/shared/var"]["owner"] == "www-data"
    assert "/srv/guestbook/shared/.env" not in directories


def test_programs_are_called_by_a_path_that_no_upgrade_changes() -> None:
    links = by_path(BUNDLE, "links")

    assert links[f"{TOOLS}/swap"]["target"] == "current/swap"
    assert links[f"{TOOLS}/config.json"]["target"] == "current/config.json"
    assert re.fullmatch(rf"{re.escape(__version__)}-[0-9a-f]{{12}}", BUNDLE["version"])


def test_the_host_remembers_what_was_put_outside_of_its_version_but_for_the_operators_own() -> None:
    record = json.loads(text(program("installed.json")))

    assert "/etc/sudoers.d/deploytools-guestbook" in record["files"]
    assert "/etc/systemd/system/deploytools-guestbook.service" in record["files"]
    assert record["links"]["/etc/lighttpd/down"] == f"{TOOLS}/down"
    assert not [path for path in record["files"] if "maint." in path]


def test_down_and_up_stand_in_the_maintenance_directory() -> None:
    links = by_path(BUNDLE, "links")

    assert links["/etc/lighttpd/down"]["target"] == f"{TOOLS}/down"
    assert links["/etc/lighttpd/up"]["target"] == f"{TOOLS}/up"


def test_the_operators_page_is_never_replaced() -> None:
    assert by_path(BUNDLE, "files")["/etc/lighttpd/maint.html"]["keep"] is True


def test_what_fabric_yaml_says_of_the_maintenance_page_is_installed_and_in_the_digest() -> None:
    other = settings(page={"title": "Closed for stocktaking"})
    bundle = setup.host_side(other, "deploy")

    for where, name in (("programs", "maint.html"), ("files", "/etc/lighttpd/maint.html")):
        assert '<h1 id="title">Closed for stocktaking</h1>' in text(by_path(bundle, where)[name])
    assert setup.digest(other, "deploy") != setup.digest(settings(), "deploy")


def test_the_switch_is_never_an_empty_file() -> None:
    # The installer puts the script there that `up` puts there: see test_install.py.
    assert by_path(BUNDLE, "files")["/etc/lighttpd/maint.lua"]["kind"] == "switch"


def test_the_sudoers_file_names_programs_by_full_path_and_nothing_else() -> None:
    entry = by_path(BUNDLE, "files")["/etc/sudoers.d/deploytools-guestbook"]

    lines = text(entry).splitlines()
    assert entry["mode"] == 0o440
    assert lines[-1] == "deploy ALL=(root) NOPASSWD: NOSETENV: DEPLOYTOOLS_GUESTBOOK"
    allowed = lines[1].partition(" = ")[2].split(", ")
    assert allowed == json.loads(text(program("config.json")))["sudo"]
    assert sorted(Path(path).name for path in allowed) == ["down", "drain", "migrate", "swap", "up", "verify"]
    assert all(path.startswith(("/etc/lighttpd/", f"{TOOLS}/")) for path in allowed)


def test_nothing_of_the_callers_environment_reaches_what_runs_as_root() -> None:
    defaults = text(by_path(BUNDLE, "files")["/etc/sudoers.d/deploytools-guestbook"]).splitlines()[2]

    assert defaults.startswith("Defaults!DEPLOYTOOLS_GUESTBOOK env_reset, secure_path=")
    scripts = [file for file in BUNDLE["programs"] if file["mode"] == 0o755]
    assert all(text(file).startswith("#!/usr/bin/python3 -EsS\n") for file in scripts)


def test_an_account_that_sudoers_takes_for_an_alias_is_refused_and_odd_ones_are_quoted() -> None:
    with pytest.raises(UsageError, match="alias"):
        setup.host_side(settings(), "ALL")
    assert "\nann\\@example.com ALL=" in sudo.sudoers(settings(), "ann@example.com")


def test_root_needs_no_sudoers_file() -> None:
    assert not [path for path in by_path(setup.host_side(settings(), "root"), "files") if "sudoers" in path]


def test_what_decides_about_privilege_is_in_the_root_owned_config() -> None:
    config = json.loads(text(program("config.json")))

    assert config["user"] == "www-data"
    assert config["root"] == "/srv/guestbook"
    assert config["version"] == __version__
    assert "command" not in config


def test_config_json_has_the_digest_that_the_laptop_expects() -> None:
    config = json.loads(text(program("config.json")))

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
    plain = setup.file

    def with_another_page(path: str, content: bytes, *rest: Any, **more: Any) -> dict[str, Any]:
        return plain(path, b"another" if more.get("keep") else content, *rest, **more)

    monkeypatch.setattr(setup, "file", with_another_page)

    assert setup.digest(settings(), "deploy") == ours
    page = by_path(setup.host_side(settings(), "deploy"), "files")["/etc/lighttpd/maint.html"]
    assert text(page) == "another"


def test_where_systemd_runs_the_units_are_put_in_place_and_the_boot_unit_is_enabled() -> None:
    parts = BUNDLE["where_systemd_runs"]
    link = parts["links"][0]

    assert set(by_path(parts, "files")) == {
        f"/etc/systemd/system/deploytools-guestbook{kind}" for kind in ("@.socket", "@.service", ".service")
    }
    assert link["path"] == "/etc/systemd/system/multi-user.target.wants/deploytools-guestbook.service"
    assert link["target"] == "/etc/systemd/system/deploytools-guestbook.service"


def test_without_root_there_are_no_units() -> None:
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
    snippet = lighttpd.snippet(settings(webserver=webserver))
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
    source = programs.remote_scripts()

    modules = {str(path.relative_to(source)) for path in source.glob("hostlib/**/*.py")}
    assert {name for name in by_path(BUNDLE, "programs") if name.endswith(".py")} == modules
    assert "hostlib/checks/__init__.py" in modules


def test_what_comes_to_a_host_is_locked_as_long_as_it_is_at_work_and_then_gone() -> None:
    """As no other set-up takes it for what a killed one has left."""
    main = """
import fcntl, os
def main(bundle):
    place = os.path.dirname(os.path.dirname(__file__))
    try:
        fcntl.flock(os.open(place, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(place)
"""
    installer = [{"path": "hostsetup/main.py", "content": base64.b64encode(main.encode()).decode()}]
    ran = subprocess.run(
        [sys.executable, "-I", "-c", command._BOOTSTRAP],
        input=zlib.compress(json.dumps({"installer": installer, "programs": []}).encode()),
        capture_output=True,
        check=True,
    )
    place = Path(ran.stdout.decode().strip())
    assert place.name.startswith("deploytools-setup-")
    assert not place.exists()
