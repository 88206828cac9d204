"""`doctor` on lighttpd: every way in which the switch or the application isn't reached, made real."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.examined import failed, only, the
from tests.support.webhost import WebHost, wait_until

Make = Callable[..., WebHost]


def replaced(old: str, new: str) -> Callable[[str], str]:
    def edit(text: str) -> str:
        assert old in text
        return text.replace(old, new)

    return edit


# -- version and modules ---------------------------------------------------------------------------


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
    ran = web_host.run("doctor", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert [check["message"] for check in failed(ran) if check["name"] == "lighttpd"] == (
        [] if fine else [f"lighttpd is {version}, which loses the maintenance page"]
    )


def test_a_module_that_is_not_installed_is_named_with_its_package(web_host: WebHost, tmp_path: Path) -> None:
    # lighttpd looks for its modules in a directory that only root of the whole machine could change.
    program = tmp_path / "lighttpd"
    program.write_text('#!/bin/sh\n[ "$1" = -v ] || set -- -m /nowhere "$@"\nexec /usr/sbin/lighttpd "$@"\n')
    program.chmod(0o755)
    ran = web_host.run("doctor", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert the(ran, "modules")["message"] == "lighttpd can't load mod_magnet"
    assert the(ran, "modules")["remedy"] == "apt install lighttpd lighttpd-modules-lua"


def test_a_configuration_that_lighttpd_refuses_is_told_in_its_words(web_host: WebHost) -> None:
    with (web_host.base / "lighttpd.conf").open("a") as file:
        file.write('fastcgi.server += ("/" => ())\n')
    found = only(web_host, "configuration")
    assert "Duplicate array-key '/'" in found["message"]
    assert found["remedy"].endswith(f"lighttpd -tt -f {web_host.base}/lighttpd.conf")


# -- the switch ------------------------------------------------------------------------------------


def test_mod_magnet_that_is_not_loaded_is_an_error(make_web_host: Make) -> None:
    host = make_web_host(magnet=False)
    found = {check["name"]: check for check in failed(host.run("doctor"))}
    assert "mod_magnet is not loaded" in found["mod_magnet"]["message"]
    assert "is not asked" in found["switch"]["message"]


@pytest.mark.parametrize(
    ("before", "level"),
    [(["mod_rewrite"], "error"), (["mod_access", "mod_rewrite"], "error"), (["mod_access"], "warning")],
)
def test_mod_magnet_that_does_not_come_first_is_told(
    make_web_host: Make, before: list[str], level: str
) -> None:
    names = ", ".join(f'"{name}"' for name in before)
    host = make_web_host(edit=replaced('("mod_magnet"', f'({names}, "mod_magnet"'))
    found = only(host, "mod_magnet")
    assert (found["level"], before[-1] in found["message"]) == (level, True)
    assert "server.modules" in found["remedy"]


def test_rewriting_before_the_switch_really_changes_what_it_sees(make_web_host: Make) -> None:
    """Why that is an error: in maintenance a path still answers that is rewritten to a liveness path."""
    rewriting = '\nurl.rewrite-once = ("^/$" => "/alive")'
    first = replaced('"mod_magnet"', '"mod_rewrite", "mod_magnet"')
    host = make_web_host(edit=lambda text: first(text) + rewriting, liveness=("/alive",))
    assert host.run(host.maintenance_dir / "down").code == 0
    assert (host.get("/").status, host.get("/page").status) == (200, 503)


def test_a_script_that_is_not_asked_is_an_error(make_web_host: Make) -> None:
    host = make_web_host(edit=replaced("maint.lua", "other.lua"))
    found = the(host.run("doctor"), "switch")
    assert f"{host.maintenance_dir}/maint.lua is not asked" in found["message"]
    assert f'magnet.attract-raw-url-to = ( "{host.maintenance_dir}/maint.lua" )' in found["remedy"]


@pytest.mark.parametrize(
    "condition",
    ['$HTTP["host"] == "www.example.com"', '$HTTP["url"] =^ "/admin"', '$HTTP["remoteip"] == "10.0.0.0/8"'],
)
def test_a_part_of_the_site_past_the_switch_is_an_error(make_web_host: Make, condition: str) -> None:
    host = make_web_host(extra=f'{condition} {{ magnet.attract-raw-url-to = ("/srv/own.lua") }}')
    found = only(host, "switch")
    assert found["level"] == "error"
    assert f"where {condition}, magnet.attract-raw-url-to is set anew" in found["message"]
    both = f'magnet.attract-raw-url-to = ( "{host.maintenance_dir}/maint.lua", "/srv/own.lua" )'
    assert both in found["remedy"]
    # The remedy, word for word: that in place of what stands in that line.
    line, place = found["remedy"].partition(";")[0].split(" in ")
    file, number = place.split(":")
    lines = Path(file).read_text().splitlines()
    lines[int(number) - 1] = f"{condition} {{ {line} }}"
    Path(file).write_text("\n".join(lines))
    assert [check["name"] for check in failed(host.run("doctor"))] == ["site"]


def test_a_script_that_is_asked_for_a_part_of_the_site_only_is_an_error(make_web_host: Make) -> None:
    def edit(text: str) -> str:
        (line,) = (line for line in text.splitlines() if line.startswith("magnet."))
        return text.replace(line, f'$HTTP["host"] == "www.example.com" {{ {line} }}')

    host = make_web_host(edit=edit)
    assert "is not asked" in only(host, "switch")["message"]
    host.config["host_header"] = "www.example.com"
    host.write_config()
    assert "switch" not in {check["name"] for check in failed(host.run("doctor"))}


@pytest.mark.parametrize(
    "extra",
    [
        '$HTTP["host"] == "shop.example.com" { magnet.attract-raw-url-to = ("/etc/shop/maint.lua")'
        ' fastcgi.server = ("/" => ("shop" => ("socket" => "/run/shop.sock", "check-local" => "disable"))) }',
        '$HTTP["host"] == "static.example.com" { server.document-root = "/var/www" }',
        '$HTTP["url"] =~ "^/admin" { magnet.attract-raw-url-to += ("/dev/null") }',
    ],
    ids=["another application", "another site", "one script more"],
)
def test_another_site_with_its_own_switch_is_nobodys_business(make_web_host: Make, extra: str) -> None:
    host = make_web_host(extra=extra)
    assert [check for check in failed(host.run("doctor")) if check["name"] == "switch"] == []


def test_a_site_with_a_name_is_judged_by_what_is_said_of_that_name(make_web_host: Make) -> None:
    name = {"host_header": "www.example.com"}
    other = '$HTTP["host"] == "other.example.com" { magnet.attract-raw-url-to = ("/dev/null") }'
    host = make_web_host(config=name, extra=other)
    assert [check["name"] for check in failed(host.run("doctor"))] == ["site"]
    own = '$HTTP["host"] =~ "(^|\\.)example\\.com$" { magnet.attract-raw-url-to = ("/dev/null") }'
    host = make_web_host(config=name, extra=own)
    assert "is set anew without" in the(host.run("doctor"), "switch")["message"]


@pytest.mark.parametrize(("engine", "level"), [("inotify", "error"), ("simple", "warning")])
def test_a_stat_cache_that_notices_late_is_told(make_web_host: Make, engine: str, level: str) -> None:
    found = only(make_web_host(stat_cache=engine), "stat cache")
    assert (found["level"], engine in found["message"]) == (level, True)
    assert 'server.stat-cache-engine := "disable"' in found["remedy"]


def test_a_stat_cache_that_nobody_chose_is_the_default(make_web_host: Make) -> None:
    host = make_web_host(edit=replaced('server.stat-cache-engine = "disable"', ""))
    assert only(host, "stat cache")["level"] == "warning"


INTERCEPT = 'server.error-intercept = "enable"'


@pytest.mark.parametrize("page", ["", '\nserver.errorfile-prefix = "/nowhere/"'])
def test_error_pages_that_replace_the_maintenance_page_are_an_error(make_web_host: Make, page: str) -> None:
    host = make_web_host(extra=INTERCEPT + page)
    found = only(host, "error pages")
    assert "replaces the maintenance page" in found["message"]
    assert found["remedy"].startswith(f'server.error-intercept = "disable" in {host.base}/lighttpd.conf:')
    assert host.run(host.maintenance_dir / "down", "--timeout", "1").code == 3, "because it does"


@pytest.mark.parametrize(
    "lines", ['server.errorfile-prefix = "/nowhere/"', INTERCEPT + '\nserver.error-handler = "/oops"']
)
def test_error_pages_that_leave_it_alone_are_fine(make_web_host: Make, lines: str) -> None:
    host = make_web_host(extra=lines)
    assert host.run(host.maintenance_dir / "down").code == 0
    assert failed(host.run("doctor")) == []


@pytest.mark.parametrize(("text", "told"), [(None, "is missing"), ("", "is empty"), ("x = 1", "is not ours")])
def test_a_script_that_is_not_whole_is_an_error(web_host: WebHost, text: str | None, told: str) -> None:
    lua = web_host.maintenance_dir / "maint.lua"
    lua.unlink()
    if text is not None:
        lua.write_text(text)
    found = the(web_host.run("doctor"), "maintenance script")
    assert (found["level"], told in found["message"]) == ("error", True)
    # The remedy is a command, and it helps.
    assert web_host.run(found["remedy"]).code == 0
    assert [check["name"] for check in failed(web_host.run("doctor"))] == ["site"]


@pytest.mark.parametrize("text", [None, ""])
def test_a_page_that_is_missing_or_empty_is_told(web_host: WebHost, text: str | None) -> None:
    page = web_host.maintenance_dir / "maint.html"
    page.unlink()
    if text is not None:
        page.write_text(text)
    assert only(web_host, "maintenance page")["level"] == "warning"


# -- the backend -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("/app.sock", "/other.sock", "doesn't lead to"),
        ('"check-local" => "disable"', '"check-local" => "enable"', "check-local is enabled"),
        (', "check-local" => "disable"', "", "check-local is enabled"),
        ('"guestbook" =>', '"blog" =>', "labelled blog"),
        ('"guestbook" =>', "", "not labelled"),
    ],
)
def test_a_backend_that_is_not_as_it_has_to_be_is_an_error(
    make_web_host: Make, old: str, new: str, told: str
) -> None:
    host = make_web_host(edit=replaced(old, new))
    ran = host.run("doctor")
    found = the(ran, "backend")
    assert told in found["message"]
    assert (
        f'"guestbook" => ( "socket" => "{host.run_dir}/app.sock", "check-local" => "disable"'
        in found["remedy"]
    )


def test_a_backend_that_lighttpd_starts_itself_is_an_error(make_web_host: Make) -> None:
    edit = replaced('"check-local"', '"bin-path" => "/usr/bin/php-cgi", "max-procs" => 1, "check-local"')
    host = make_web_host(edit=edit)
    wait_until((host.run_dir / "app.sock-0").is_socket, what="what is wrong about it")
    found = the(host.run("doctor"), "backend")
    assert "bin-path is set: lighttpd starts /usr/bin/php-cgi itself" in found["message"]


def test_no_backend_at_all_is_an_error(make_web_host: Make) -> None:
    host = make_web_host(edit=lambda text: text.replace("fastcgi.server = ", "var.nothing = "))
    assert the(host.run("doctor"), "backend")["message"].endswith("but to no FastCGI backend")


# -- counters, workers, reloads --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('status.statistics-url = "/server-statistics"', "", "answers 503"),
        ('"mod_status", ', "", "answers 503"),
        ('"/server-statistics"', '"/counters"', "the counters are at /counters"),
    ],
)
def test_counters_that_drain_does_not_find_are_an_error(
    make_web_host: Make, old: str, new: str, told: str
) -> None:
    host = make_web_host(edit=replaced(old, new))
    found = only(host, "statistics")
    assert (found["level"], told in found["message"]) == ("error", True)
    assert 'status.statistics-url := "/server-statistics"' in found["remedy"]


def test_counters_without_the_application_are_an_error(make_web_host: Make) -> None:
    host = make_web_host(edit=replaced('"guestbook" =>', '"blog" =>'))
    assert "without gw.backend.guestbook.load" in the(host.run("doctor"), "statistics")["message"]


def test_many_workers_are_fine_as_long_as_proofs_can_tell_them_apart(make_web_host: Make) -> None:
    host = make_web_host(max_workers=3)
    assert [check["name"] for check in failed(host.run("doctor"))] == ["site"]


def test_more_workers_than_a_proof_is_quick_for_are_told(make_web_host: Make) -> None:
    assert "lighttpd has 20 workers" in only(make_web_host(max_workers=20), "workers")["message"]


@pytest.mark.skipif(os.geteuid() != 0, reason="takes another account")
def test_workers_that_a_proof_can_not_tell_apart_are_told(make_web_host: Make) -> None:
    host = make_web_host(max_workers=3, username="www-data")
    ran = host.run("doctor", as_user="nobody")
    found = the(ran, "workers")
    assert found["level"] == "warning"
    assert "nobody but root and www-data can tell which of them answered" in found["message"]


def test_a_reload_that_cuts_long_requests_is_told_with_the_line_to_change(make_web_host: Make) -> None:
    flag = '"server.graceful-shutdown-timeout" => '
    host = make_web_host(edit=replaced(f"{flag}30", f"{flag}2"))
    found = only(host, "reload")
    assert (found["level"], "longer than 2 s" in found["message"]) == ("warning", True)
    line, place = only(host, "reload")["remedy"].partition(";")[0].split(" in ")
    file, number = place.split(":")
    assert line == f"server.feature-flags += ( {flag}30 )"
    lines = Path(file).read_text().splitlines()
    assert f"{flag}2" in lines[int(number) - 1]
    lines[int(number) - 1] = line
    Path(file).write_text("\n".join(lines))
    assert [check["name"] for check in failed(host.run("doctor"))] == ["site"]


@pytest.mark.parametrize("debians", ['"server.graceful-shutdown-timeout" => 5', '"server.h2c" => "enable"'])
def test_what_debian_and_lighttpd_have_by_default_is_no_warning_for_everybody(
    make_web_host: Make, debians: str
) -> None:
    host = make_web_host(edit=replaced('"server.graceful-shutdown-timeout" => 30', debians))
    assert [check["name"] for check in failed(host.run("doctor"))] == ["site"]


# -- the site --------------------------------------------------------------------------------------


def test_a_site_that_does_not_answer_is_an_error(web_host: WebHost) -> None:
    web_host.stop_lighttpd()
    ran = web_host.run("doctor")
    assert (ran.code, the(ran, "site")["level"]) == (3, "error")


def test_a_site_without_an_application_stops_no_deploy(web_host: WebHost) -> None:
    ran = web_host.run("doctor")
    assert (ran.code, the(ran, "site")["level"]) == (0, "warning")
    assert "503" in the(ran, "site")["message"]


def test_a_site_in_maintenance_is_fine(web_host: WebHost) -> None:
    assert web_host.run(web_host.maintenance_dir / "down").code == 0
    assert failed(web_host.run("doctor")) == []


def test_a_site_that_redirects_to_another_address_is_an_error(make_web_host: Make) -> None:
    redirect = 'server.modules += ("mod_redirect")\nurl.redirect = ("^/" => "https://www.example.com/")'
    host = make_web_host(extra=redirect)
    found = the(host.run("doctor"), "site")
    assert (found["level"], "redirected to https://www.example.com/" in found["message"]) == ("error", True)
    assert "url: https://www.example.com/" in found["remedy"]


def test_a_name_of_the_site_that_has_no_address_is_an_error(web_host: WebHost) -> None:
    web_host.config["url"] = "http://no-such-host.invalid/"
    web_host.write_config()
    assert "no-such-host.invalid" in the(web_host.run("doctor"), "site")["message"]


@pytest.mark.skipif(os.geteuid() != 0, reason="takes another account")
@pytest.mark.parametrize(("owner", "told"), [("games", True), ("www-data", False)])
def test_an_account_of_lighttpd_that_can_not_reach_the_socket_is_an_error(
    make_web_host: Make, owner: str, told: bool
) -> None:
    host = make_web_host(username="www-data", config={"webserver_user": owner, "privileged": True})
    checks = [check for check in failed(host.run("doctor")) if check["name"] == "socket"]
    assert ["lighttpd runs as www-data" in check["message"] for check in checks] == [True] * told
    assert [check["remedy"].startswith("webserver: {user: www-data}") for check in checks] == [True] * told
