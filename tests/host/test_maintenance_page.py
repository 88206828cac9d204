"""What visitors see in maintenance, and who gets past it."""

from __future__ import annotations

import contextlib
import html
import json
import os
import re
import shutil
import stat
import subprocess
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
from hostlib.program import DONE
from hostlib.switch import maintenance, maintpage

from deploytools import preview
from tests.support.switching import (
    files,
    is_page,
    lua,
    luac,
    switch_down,
    switch_up,
    token,
)
from tests.support.values import settings
from tests.support.webhost import WebHost, wait_until

MakeHost = Callable[..., WebHost]
SHELL = "$(touch /tmp/pwned) `id` ; & | > < * ? ~ ! # \\"


class TestTheAnswerWhileDown:
    def test_every_request_gets_a_marked_503_with_the_page(self, site: WebHost) -> None:
        assert site.run("down").code == DONE
        reply = site.get("/anything?x=1")
        assert reply.in_maintenance
        assert "be back soon" in reply.text
        assert reply.headers["content-type"] == "text/html; charset=utf-8"
        assert reply.headers["cache-control"] == "no-store"
        assert reply.headers["retry-after"] == "120"
        assert not [name for name in reply.headers if "proof" in name or "bypass" in name]

    def test_head_gets_the_headers_only(self, site: WebHost) -> None:
        switch_down(site)
        reply = site.request("HEAD")
        assert reply.in_maintenance
        assert reply.body == b""

    def test_a_post_gets_the_page_and_does_not_reach_the_application(self, site: WebHost) -> None:
        switch_down(site)
        assert is_page(site.request("POST", body=b"x" * 100_000))

    def test_retry_after_counts_down_to_the_announced_end(self, site: WebHost) -> None:
        site.run("down", "--until", "+1h")
        first = int(site.get().headers["retry-after"])
        assert 3590 <= first <= 3600
        wait_until(lambda: int(site.get().headers["retry-after"]) < first, what="the number goes down")

    def test_past_the_announced_end_retry_after_is_two_minutes(self, site: WebHost) -> None:
        switch_down(site, until=1)
        assert site.get().headers["retry-after"] == "120"

    def test_the_page_tells_the_end_and_the_reason_where_it_wants_to(self, site: WebHost) -> None:
        (site.maintenance_dir / "maint.html").write_text("{until}: {reason} </html>")
        site.run("down", "--until", "2100-05-17T14:30+00:00", "--reason", "<b>new</b> \"schema\" & 'more'")
        text = site.get().text
        assert '<time datetime="2100-05-17T14:30:00Z">' in text
        assert "&lt;b&gt;new&lt;/b&gt; &quot;schema&quot; &amp; &#x27;more&#x27;" in text

    def test_liveness_paths_stay_200(self, make_web_host: MakeHost) -> None:
        host = make_web_host(liveness=("/", "/live"))
        host.serve()
        assert host.run("down").code == DONE
        for path in ("/live", "/", "/live?probe=1"):
            assert (host.get(path).status, host.get(path).body) == (200, b"ok\n")
        assert host.get("/other").in_maintenance
        assert host.run("up").code == DONE
        assert host.get("/live").text == "app /live"


class TestTheBypass:
    def test_header_and_cookie_let_the_operator_through(self, site: WebHost) -> None:
        switch_down(site)
        assert site.get(headers={"X-Maintenance-Bypass": token(site)}).text == "app /"
        assert site.get(headers={"Cookie": f"a=b; maintenance_bypass={token(site)}; c=d"}).text == "app /"

    def test_nothing_else_does(self, site: WebHost) -> None:
        switch_down(site)
        good = token(site)
        for wrong in ("", good[:-1], good + "x", good.swapcase(), " ", "x" * 5_000):
            assert site.get(headers={"X-Maintenance-Bypass": wrong}).in_maintenance
            assert site.get(headers={"Cookie": f"maintenance_bypass={wrong}"}).in_maintenance

    def test_the_application_does_not_get_to_see_the_header(self, site: WebHost) -> None:
        switch_down(site)
        reply = site.get("/headers", headers={"X-Maintenance-Bypass": token(site)})
        assert "HTTP_HOST" in reply.text
        assert token(site) not in reply.text

    def test_the_application_gets_its_own_cookies_but_not_the_bypass(self, site: WebHost) -> None:
        switch_down(site)
        secret = f"maintenance_bypass={token(site)}"
        for sent, left in (
            (secret, None),
            (f"a=b; {secret}; c=d", "a=b; c=d"),
            (f"{secret}; c=d", "c=d"),
            (f"a=b; {secret}", "a=b; "),
        ):
            told = json.loads(site.get("/headers", headers={"Cookie": sent}).text)
            assert told.get("HTTP_COOKIE") == left

    def test_it_is_no_parameter(self, site: WebHost) -> None:
        switch_down(site)
        for name in ("maintenance_bypass", "X-Maintenance-Bypass"):
            assert site.get(f"/?{name}={token(site)}").in_maintenance

    def test_the_old_one_is_worth_nothing_in_the_next_window_or_from_the_scripts_that_lie_ready(
        self, site: WebHost
    ) -> None:
        switch_down(site)
        old = {"X-Maintenance-Bypass": token(site)}
        assert not site.get(headers=old).in_maintenance
        for _ in range(2):
            switch_up(site)
            switch_down(site)
            assert site.get(headers=old).in_maintenance
        shutil.copy(lua(site, ".down"), lua(site, ".new"))
        lua(site, ".new").replace(lua(site))
        assert site.get(headers={"X-Maintenance-Bypass": ""}).in_maintenance
        assert site.get(headers=old).in_maintenance

    def test_it_is_in_no_log_of_lighttpds(self, make_web_host: MakeHost, tmp_path: Path) -> None:
        log = tmp_path / "access.log"
        extra = f"""
            server.modules += ("mod_accesslog")
            accesslog.filename = "{log}"
            accesslog.format = "%r %s {{%{{X-Maintenance-Bypass}}i}} {{%{{Cookie}}i}}"
            debug.log-request-handling = "enable"
            debug.log-file-not-found = "enable"
        """
        host = make_web_host(extra=extra)
        host.serve()
        switch_down(host)
        secret = token(host)
        for headers in ({"X-Maintenance-Bypass": secret}, {"Cookie": f"a=b; maintenance_bypass={secret}"}):
            assert host.get("/through", headers=headers).text == "app /through"
        switch_down(host)
        switch_up(host)
        host.stop_lighttpd()  # it writes its log at the end
        assert "GET /through HTTP/1.1 200 {-} {a=b; }" in log.read_text()
        assert secret not in log.read_text() + host.lighttpd_log()

    def test_it_is_on_no_command_line_and_in_no_environment(self, site: WebHost) -> None:
        switch_down(site)
        secret, seen = token(site).encode(), []
        # Started as by a person: one that is forked has the command line of what it is forked from.
        argv = [site.tools / "down", "--json"]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            while process.poll() is None:
                for name in ("cmdline", "environ"):
                    with contextlib.suppress(OSError):
                        seen.append(Path(f"/proc/{process.pid}/{name}").read_bytes())
            process.communicate()
        assert any(b"/down" in line for line in seen)
        assert not any(secret in line for line in seen)

    def test_the_token_stays_for_a_window_and_is_new_for_the_next(self, site: WebHost) -> None:
        switch_down(site)
        first = token(site)
        switch_down(site)
        assert token(site) == first
        switch_up(site)
        switch_down(site)
        assert token(site) != first

    def test_other_programs_get_it_as_headers_and_nothing_while_up(self, site: WebHost) -> None:
        assert maintenance.bypass_headers(site.hostlib_config) == {}
        switch_down(site)
        assert maintenance.bypass_headers(site.hostlib_config) == {"X-Maintenance-Bypass": token(site)}
        switch_up(site)
        assert maintenance.bypass_headers(site.hostlib_config) == {}

    def test_it_is_told_nowhere(self, site: WebHost) -> None:
        ran = site.run("down", "--reason", "x", "--run-id", "r1")
        told = ran.out + ran.err + (site.maintenance_dir / "maint.json").read_text() + site.get().text
        assert token(site) not in told

    def test_no_file_holds_it_once_the_site_is_up(self, site: WebHost) -> None:
        switch_down(site)
        secret = token(site).encode()
        switch_up(site)
        assert not [file for file, content in files(site).items() if secret in content]

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another group")
    def test_only_root_and_the_web_server_can_read_it(self, make_web_host: MakeHost) -> None:
        host = make_web_host(username="www-data")
        assert host.run("down").code == DONE
        assert host.get().in_maintenance
        assert (lua(host).owner(), lua(host).group()) == ("root", "www-data")
        assert stat.S_IMODE(lua(host).stat().st_mode) == 0o640
        assert [name for name, content in files(host).items() if token(host).encode() in content] == [
            "maint.lua"
        ]
        host.run("up", "--timeout", "0.3")  # no application here
        assert stat.S_IMODE(lua(host).stat().st_mode) == 0o644

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another account")
    def test_others_can_read_the_state_but_not_the_token(self, site: WebHost) -> None:
        switch_down(site, reason="new schema", run_id="r1")
        script = f"""
import os, sys
sys.path.insert(0, {str(site.tools)!r})
from hostlib import program
from hostlib.switch import maintenance
config = program.load_config()
os.setgid(65534); os.setuid(65534)
print(maintenance.read_state(config).as_result())
try:
    print(maintenance.bypass_headers(config))
except program.Failure as failure:
    print(failure.what)
"""
        done = subprocess.run(["/usr/bin/python3", "-c", script], capture_output=True, text=True, check=True)
        state, refused = done.stdout.splitlines()
        assert "'state': 'down'" in state
        assert "'reason': 'new schema'" in state
        assert "maint.lua can't be read" in refused


class TestThePage:
    @pytest.mark.parametrize(
        ("page", "why"),
        [
            (None, "No such file"),
            (b"", "it is empty"),
            (b" \n", "it is empty"),
            (b"caf\xe9", "byte 3 is not UTF-8"),
            (b"x" * (maintpage.PAGE_LIMIT + 1), "it is larger than"),
        ],
        ids=["missing", "empty", "blank", "latin-1", "huge"],
    )
    def test_one_that_cannot_be_used_is_replaced_and_told(
        self, site: WebHost, page: bytes | None, why: str
    ) -> None:
        file = site.maintenance_dir / "maint.html"
        file.unlink()
        if page is not None:
            file.write_bytes(page)
        assert f"{file} can't be used ({why}" in site.run("down").json["message"]
        assert "be back soon" in site.get().text

    def test_without_the_shipped_page_a_minimal_one_is_shown(self, own_site: WebHost) -> None:
        (own_site.maintenance_dir / "maint.html").unlink()
        (own_site.tools / "maint.html").unlink()
        assert own_site.run("down").code == DONE
        assert "Down for maintenance" in own_site.get().text

    @pytest.mark.parametrize(
        "page",
        [
            b'quotes " and \' and \\ and \\" and \\',
            b"]] ]=] [[ --[[ ]]\nreturn 200\n\"..os.execute('false')..\"",
            b"NUL \0 and \x7f and \x1b[2J and \r\n and \r and \n\n1",
            bytes(range(128)),
            "äöü € 🚧  \u2028".encode(),
            b"\n" * 5000 + b".",
            b"%d %s {page} {bypass} {{}} $& \\1",
            b"x" * maintpage.PAGE_LIMIT,
        ],
        ids=["quotes", "Lua", "control", "ASCII", "UTF-8", "newlines", "templates", "largest"],
    )
    def test_any_page_is_shown_byte_by_byte(self, site: WebHost, page: bytes) -> None:
        (site.maintenance_dir / "maint.html").write_bytes(page)
        switch_down(site)
        assert site.get().body == page
        luac(lua(site))

    def test_any_reason_is_only_text(self, site: WebHost) -> None:
        (site.maintenance_dir / "maint.html").write_text("<p>{reason}</p>")
        ran = site.run(
            "down", "--reason", "\"]] .. os.exit() --\n'; rm -rf / \x1b[31m <script>x</script> \t ü \\"
        )
        shown = "\"]] .. os.exit() -- '; rm -rf / [31m <script>x</script> ü \\"
        assert (ran.code, ran.json["reason"]) == (DONE, shown)
        escaped = "&quot;]] .. os.exit() -- &#x27;; rm -rf / [31m &lt;script&gt;x&lt;/script&gt; ü \\"
        assert site.get().text == f"<p>{escaped}</p>"
        luac(lua(site))

    @pytest.mark.parametrize(
        ("make", "why"),
        [
            (os.mkfifo, "it is no regular file"),
            (Path.mkdir, "Is a directory"),
            (lambda page: page.symlink_to("/dev/zero"), "it is no regular file"),
            (lambda page: page.symlink_to(page), "Too many levels of symbolic links"),
            (lambda page: sparse(page, 100 << 20), "it is larger than 1048576 bytes"),
        ],
        ids=["a FIFO", "a directory", "a device", "a link to itself", "100 MB"],
    )
    def test_what_is_no_page_at_all_neither_hangs_nor_hurts(
        self, site: WebHost, make: Callable[[Path], None], why: str
    ) -> None:
        page = site.maintenance_dir / "maint.html"
        page.unlink()
        make(page)
        try:
            ran = site.run("down", timeout=20)
        finally:
            page.rmdir() if page.is_dir() else page.unlink()
        assert ran.code == DONE
        assert f"{page} can't be used ({why})" in ran.json["message"]
        assert "be back soon" in site.get().text

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can read what others can't")
    def test_a_link_shows_visitors_nothing_that_not_everybody_may_read(
        self, make_web_host: MakeHost, tmp_path: Path
    ) -> None:
        host = make_web_host(config={"privileged": True})
        host.serve()
        page, secret = host.maintenance_dir / "maint.html", tmp_path / "secret"
        secret.write_text("secret")
        for target, mode in ((Path("/etc/shadow"), None), (secret, 0o600), (secret, 0o640)):
            page.unlink()
            page.symlink_to(target)
            if mode is not None:
                target.chmod(mode)
            assert f"{page} can't be used (Permission denied)" in host.run("down").json["message"]
            assert "be back soon" in host.get().text
        readable = host.base / "page.html"
        readable.write_text("everybody's {reason}")
        page.unlink()
        page.symlink_to(readable)
        assert "can't be used" not in host.run("down", "--reason", "page").json["message"]
        assert host.get().text == "everybody's page"

    def test_placeholders_are_filled_once_and_not_out_of_each_other(self, site: WebHost) -> None:
        (site.maintenance_dir / "maint.html").write_text("{until}{reason}{reason}{until}{ reason }{{until}}")
        switch_down(site, reason="{until} {reason} \\1 %s")
        assert site.get().text == "shortly" + 2 * "{until} {reason} \\1 %s" + "shortly{ reason }{shortly}"

    def test_a_page_of_nothing_but_placeholders_is_shown(self, site: WebHost) -> None:
        count = maintpage.PAGE_LIMIT // len("{until}")
        (site.maintenance_dir / "maint.html").write_text("{until}" * count)
        switch_down(site)
        assert site.get().body == b"shortly" * count

    def test_the_end_is_told_until_it_has_passed(self, site: WebHost) -> None:
        (site.maintenance_dir / "maint.html").write_text("back {until}")
        switch_down(site, until=int(time.time()) + 2)
        reply = site.get()
        assert reply.text.startswith('back at about <time datetime="')
        assert int(reply.headers["retry-after"]) <= 2
        wait_until(lambda: site.get().text == "back shortly", what="the end has passed")
        assert site.get().headers["retry-after"] == "120"

    @pytest.mark.parametrize(
        ("reason", "told"),
        [
            ("x" * 100_000, "x" * 500),
            (b"caf\xe9".decode(errors="surrogateescape"), "caf?"),
            (
                "$(touch /tmp/pwned) `id` ; & | > < * ? ~ ! # \\",
                "$(touch /tmp/pwned) `id` ; & | > < * ? ~ ! # \\",
            ),
            ("-- ]] --[[ ]=] \x07\r\n%d{0}", "-- ]] --[[ ]=] %d{0}"),
            ("\u202e\u2028\u200b日本語", "日本語"),
            ("", None),
        ],
        ids=["long", "bytes", "shell", "Lua", "Unicode", "nothing"],
    )
    def test_a_strange_reason_is_told_in_one_harmless_line(
        self, site: WebHost, reason: str, told: str | None
    ) -> None:
        (site.maintenance_dir / "maint.html").write_text("<p>{reason}</p>")
        ran = site.run("down", f"--reason={reason}")
        assert (ran.code, ran.json["reason"] or None) == (DONE, told)
        assert html.unescape(site.get().text) == f"<p>{told or ''}</p>"
        luac(lua(site))

    def test_its_sections_tell_a_form_from_a_visit_and_an_end_that_has_passed(self, site: WebHost) -> None:
        (site.maintenance_dir / "maint.html").write_text(
            "{#announced}until {end}{/announced}{#late}late{/late}{#open}open{/open}"
            " {#sent}sent{/sent}{^sent}seen{/sent}"
        )
        switch_down(site)
        assert site.get().text == "open seen"
        assert site.request("POST", body=b"x").text == "open sent"
        switch_down(site, until=int(time.time()) + 3600)
        assert re.fullmatch(r'until <time datetime="[\d:TZ-]+">[\d: -]+ UTC</time> seen', site.get().text)
        switch_down(site, until=1)
        assert site.get().text == "late seen"

    def test_a_preview_is_what_visitors_get_byte_by_byte(self, site: WebHost) -> None:
        for ends in (0, int(time.time()) + 3600):
            down = switch_down(site, until=ends or None)
            since = datetime.fromisoformat(str(down["since"]).replace("Z", "+00:00")).timestamp()
            for sent in (False, True):
                expected = preview.page(settings(), reason=None, ends=ends, sent=sent, now=since)
                reply = site.request("POST", body=b"x") if sent else site.get()
                assert reply.body == expected

    def test_the_shipped_page_is_small_needs_nothing_else_and_says_since_when(self, site: WebHost) -> None:
        down = switch_down(site)
        page = site.get().text
        assert len(page.encode()) < 8_192
        assert not re.search(r"<link|<img|https?://|url\(|@import|src=|[@{][#^/]", page)
        assert f'<time datetime="{down["since"]}">' in page


def sparse(file: Path, size: int) -> None:
    with file.open("wb") as opened:
        opened.truncate(size)
