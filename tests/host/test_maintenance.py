"""The maintenance switch, on a real lighttpd."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hostlib import maintenance, maintscript
from hostlib.program import BUSY, DONE, FAILED, IN_MAINTENANCE, USAGE, Failure

from tests.support.load import Load
from tests.support.webhost import REMOTE_SCRIPTS, Reply, WebHost, wait_until

MakeHost = Callable[..., WebHost]
TOKEN = re.compile(r'^local bypass = "([\w-]{32})"$', re.MULTILINE)


@pytest.fixture(scope="module")
def shared_host() -> Iterator[WebHost]:
    with WebHost() as host:
        host.serve()
        yield host


@pytest.fixture
def site(shared_host: WebHost) -> WebHost:
    """A site that is up, with one lighttpd process and an application that answers."""
    shared_host.reset_maintenance()
    return shared_host


@pytest.fixture
def own_site(web_host: WebHost) -> WebHost:
    """The same for a test that breaks more of it than the maintenance directory."""
    web_host.serve()
    return web_host


def lua(host: WebHost, suffix: str = "") -> Path:
    return host.maintenance_dir / f"maint.lua{suffix}"


def token(host: WebHost) -> str:
    found = TOKEN.search(lua(host).read_text())
    assert found
    return found[1]


def files(host: WebHost) -> dict[str, bytes]:
    """What is in the maintenance directory."""
    return {file.name: file.read_bytes() for file in host.maintenance_dir.iterdir() if file.is_file()}


def is_app(reply: Reply) -> bool:
    return reply.status == 200 and reply.body == b"app /"


def is_page(reply: Reply) -> bool:
    return reply.in_maintenance and reply.body.rstrip().endswith(b"</html>")


def switch_down(host: WebHost, **changes: object) -> dict[str, object]:
    """`down` without the cost of a new process."""
    given = {"by": "tester", "reason": None, "until": None, "run_id": None, "timeout": 10.0, **changes}
    return maintenance.down(host.hostlib_config, **given)  # type: ignore[arg-type]


def switch_up(host: WebHost, **changes: object) -> dict[str, object]:
    return maintenance.up(host.hostlib_config, **{"run_id": None, "force": None, "timeout": 10.0, **changes})  # type: ignore[arg-type]


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
        for file in (lua(host), lua(host, ".down")):
            assert (file.owner(), file.group()) == ("root", "www-data")
            assert stat.S_IMODE(file.stat().st_mode) == 0o640
        host.run("up", "--timeout", "0.3")  # no application here
        assert stat.S_IMODE(lua(host).stat().st_mode) == 0o644

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another account")
    def test_others_can_read_the_state_but_not_the_token(self, site: WebHost) -> None:
        switch_down(site, reason="new schema", run_id="r1")
        script = f"""
import os, sys
sys.path.insert(0, {str(site.tools)!r})
from hostlib import maintenance, program
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


class TestDown:
    def test_it_tells_what_it_did(self, site: WebHost) -> None:
        ran = site.run(
            "down", "--reason", "new schema", "--until", "2100-01-01T00:00Z", "--by", "ann", "--run-id", "r1"
        )
        told = ran.json
        assert ran.code == DONE
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", told.pop("since"))
        assert told.pop("took") < 5
        assert told == {
            "ok": True,
            "state": "down",
            "changed": True,
            "until": "2100-01-01T00:00:00Z",
            "by": "ann",
            "reason": "new schema",
            "run_id": "r1",
            "workers": 1,
            "certain": True,
            "message": "in maintenance, proved by the only worker",
        }

    def test_by_hand_it_prints_a_sentence(self, site: WebHost) -> None:
        ran = site.run(site.maintenance_dir / "down", as_json=False)
        assert (ran.code, ran.out, ran.err) == (DONE, "in maintenance, proved by the only worker\n", "")

    def test_who_did_it_is_found_out(self, site: WebHost) -> None:
        assert site.run("down", SUDO_USER="ann").json["by"] == "ann"

    def test_a_second_down_is_harmless(self, site: WebHost) -> None:
        first = site.run("down", "--reason", "new schema", "--run-id", "r1").json
        for again in (("--run-id", "r1"), ()):
            ran = site.run("down", *again, "--by", "bob")
            assert ran.code == DONE
            assert ran.json["changed"] is False
            assert [ran.json[key] for key in ("since", "by", "reason", "run_id")] == [
                first[key] for key in ("since", "by", "reason", "run_id")
            ]
        assert site.get().in_maintenance

    def test_a_second_down_may_renew_page_reason_and_end(self, site: WebHost) -> None:
        switch_down(site, reason="one")
        (site.maintenance_dir / "maint.html").write_text("the new page: {reason}")
        ran = site.run("down", "--reason", "two", "--until", "+1h")
        assert ran.json["reason"] == "two"
        assert site.get().text == "the new page: two"
        assert int(site.get().headers["retry-after"]) > 3500

    def test_a_dead_runs_window_is_taken_over_by_its_name(self, site: WebHost) -> None:
        switch_down(site, reason="new schema", by="ann", run_id="r1")
        assert site.run("down", "--run-id", "r2", "--force", "r3").code == 5
        ran = site.run("down", "--run-id", "r2", "--force", "r1", "--reason", "the fix")
        assert (ran.code, ran.json["run_id"], ran.json["reason"]) == (0, "r2", "the fix")
        assert site.run("up", "--run-id", "r1").code == 5
        assert site.run("up", "--run-id", "r2").code == 0

    def test_another_runs_window_is_refused_with_who_and_why(self, site: WebHost) -> None:
        switch_down(site, reason="new schema", by="ann", run_id="r1")
        before = lua(site).read_bytes()
        ran = site.run("down", "--run-id", "r2")
        assert ran.code == BUSY
        assert re.search(r"belongs to run r1 \(by ann since 20\S+: new schema\)", ran.error["what"])
        assert ran.json["run_id"] == "r1"
        assert lua(site).read_bytes() == before

    def test_a_run_takes_over_a_window_that_was_opened_by_hand(self, site: WebHost) -> None:
        since = switch_down(site)["since"]
        ran = site.run("down", "--run-id", "r1")
        assert (ran.code, ran.json["run_id"], ran.json["since"]) == (DONE, "r1", since)
        assert site.run("up").code == BUSY

    @pytest.mark.parametrize("stat_cache", ["disable", "simple"])
    def test_every_worker_is_proved(self, make_web_host: MakeHost, stat_cache: str) -> None:
        host = make_web_host(max_workers=3, stat_cache=stat_cache)
        host.serve()
        host.get()  # one worker has the old script in its cache
        ran = host.run("down")
        assert (ran.code, ran.json["workers"]) == (DONE, 3)
        assert all(host.get().in_maintenance for _ in range(50))
        ran = host.run("up")
        assert (ran.code, ran.json["workers"]) == (DONE, 3)
        assert all(is_app(host.get()) for _ in range(50))

    @pytest.mark.parametrize(
        "arguments",
        [
            ("--until", "2001-01-01T00:00"),
            ("--until", "soon"),
            ("--timeout", "0"),
            ("--timeout", "nan"),
            ("--run-id", "../r1"),
            ("--run-id", ""),
            ("--what",),
        ],
    )
    def test_bad_arguments_change_nothing(self, site: WebHost, arguments: tuple[str, ...]) -> None:
        ran = site.run("down", *arguments)
        assert ran.code == USAGE
        assert "Traceback" not in ran.err
        assert is_app(site.get())

    @pytest.mark.parametrize("program", ["down", "up", "drain", "verify"])
    def test_help_is_there(self, web_host: WebHost, program: str) -> None:
        ran = web_host.run(program, "--help", as_json=False)
        assert ran.code == DONE
        assert "--timeout S" in ran.out


class TestUp:
    def test_it_tells_what_it_did(self, site: WebHost) -> None:
        switch_down(site)
        ran = site.run("up")
        assert (ran.code, ran.json["state"], ran.json["changed"]) == (DONE, "up", True)
        assert ran.json["message"] == "up, proved by the only worker"
        assert is_app(site.get())

    def test_there_is_no_lua_logic_while_the_site_is_up(self, site: WebHost) -> None:
        switch_down(site)
        switch_up(site)
        script = lua(site).read_text()
        assert script
        assert all(line.startswith("--") for line in script.splitlines())
        assert lua(site, ".up").read_text() == script

    def test_a_second_up_is_harmless(self, site: WebHost) -> None:
        for _ in range(2):
            ran = site.run("up")
            assert (ran.code, ran.json["changed"], ran.json["workers"]) == (DONE, False, 1)

    def test_another_runs_window_is_not_lifted(self, site: WebHost) -> None:
        switch_down(site, run_id="r1", by="ann", reason="new schema")
        ran = site.run("up", "--run-id", "r2")
        assert ran.code == BUSY
        assert "run r1 (by ann since" in ran.error["what"]
        assert "--force r1" in ran.error["next"]
        for given in ({}, {"force": "r2"}, {"run_id": "r2", "force": "r3"}):
            with pytest.raises(Failure, match="belongs to run r1"):
                switch_up(site, **given)
        assert site.get().in_maintenance

    @pytest.mark.parametrize(
        "arguments", [("--run-id", "r1"), ("--force", "r1"), ("--run-id", "r2", "--force", "r1")]
    )
    def test_it_is_lifted_by_its_run_or_by_force(self, site: WebHost, arguments: tuple[str, ...]) -> None:
        switch_down(site, run_id="r1")
        assert site.run("up", *arguments).code == DONE
        assert is_app(site.get())

    def test_a_run_may_lift_a_window_that_belongs_to_nobody(self, site: WebHost) -> None:
        switch_down(site)
        assert site.run("up", "--run-id", "r1").code == DONE

    def test_an_application_that_is_broken_is_no_reason_to_stay_down(self, own_site: WebHost) -> None:
        switch_down(own_site)
        own_site.stop_backend(1)
        assert own_site.run("up").code == DONE
        reply = own_site.get()
        assert (reply.status, reply.in_maintenance) == (503, False)

    def test_an_application_that_hangs_is_told(self, own_site: WebHost) -> None:
        switch_down(own_site)
        application = own_site.serve(2)
        os.kill(application, signal.SIGSTOP)
        ran = own_site.run("up", "--timeout", "0.5")
        assert ran.code == FAILED
        assert "the site does not answer: 0 of 1 workers" in ran.error["what"]
        assert ran.json["unchanged"] is False
        assert "maintenance is off" in ran.error["state"]
        os.kill(application, signal.SIGCONT)
        ran = own_site.run("up")
        assert (ran.code, ran.json["changed"]) == (DONE, False)
        assert not (own_site.maintenance_dir / "maint.json").exists()

    def test_a_worker_that_keeps_the_old_script_is_told(self, make_web_host: MakeHost) -> None:
        host = make_web_host(stat_cache="inotify")  # it overlooks a rename for 15 s
        host.serve()
        lua(host).write_text(maintscript.down_script(b"page"))
        wait_until(lambda: host.get().in_maintenance, what="lighttpd has the down script")
        ran = host.run("up", "--timeout", "0.5")
        assert ran.code == IN_MAINTENANCE
        assert "a worker still shows the maintenance page" in ran.error["state"]
        assert 'stat-cache-engine = "disable"' in ran.error["next"]


class TestUnderLoad:
    """Nobody ever sees anything but the application's own answer or the whole marked page."""

    @pytest.mark.parametrize("max_workers", [0, 3])
    def test_flips_are_lossless(self, make_web_host: MakeHost, max_workers: int) -> None:
        host = make_web_host(max_workers=max_workers)
        host.serve()
        switch_down(host)
        up, down = maintscript.UP.encode(), lua(host).read_bytes()
        with Load(host, allow={"app": is_app, "page": is_page}) as load:
            for flip in range(300):
                maintenance.write_atomic(lua(host), down if flip % 2 else up)
                before = load.requests
                wait_until(lambda: load.requests > before + 4, what="some requests between two flips")  # noqa: B023
        assert load.strange == []
        assert min(load.seen["app"], load.seen["page"]) > 100

    def test_the_programs_are_lossless_and_true(self, make_web_host: MakeHost) -> None:
        host = make_web_host(max_workers=3)
        host.serve()
        with Load(host, allow={"app": is_app, "page": is_page}) as load:
            for _ in range(10):
                assert switch_down(host)["workers"] == 3
                assert all(host.get().in_maintenance for _ in range(10))
                assert switch_up(host)["workers"] == 3
                assert all(is_app(host.get()) for _ in range(10))
        assert load.strange == []


class TestThePage:
    @pytest.mark.parametrize(
        ("page", "why"),
        [
            (None, "No such file"),
            (b"", "it is empty"),
            (b" \n", "it is empty"),
            (b"caf\xe9", "byte 3 is not UTF-8"),
            (b"x" * (maintscript.PAGE_LIMIT + 1), "it is larger than"),
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
        assert f"{file} can't be used ({why}" in str(switch_down(site)["message"])
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
            b"x" * maintscript.PAGE_LIMIT,
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

    def test_the_shipped_page_needs_nothing_else(self) -> None:
        page = (REMOTE_SCRIPTS / "maint.html").read_text()
        assert not re.search(r"<script|<link|<img|https?:|url\(|@import", page)
        assert 'lang="en"' in page
        assert "prefers-color-scheme" in page


class TestAfterACrash:
    """Whichever write was the last, the state is told truly and the same command again repairs it."""

    def test_the_record_was_written_but_not_the_script(self, site: WebHost) -> None:
        switch_down(site, reason="old", run_id="r1")
        crashed = (site.maintenance_dir / "maint.json").read_bytes()
        switch_up(site, run_id="r1")
        (site.maintenance_dir / "maint.json").write_bytes(crashed)
        assert maintenance.read_state(site.hostlib_config).as_result()["state"] == "up"
        told = switch_down(site, run_id="r2", reason="new")
        assert (told["changed"], told["reason"]) == (True, "new")

    def test_up_had_not_yet_taken_the_record_away(self, site: WebHost) -> None:
        switch_down(site, run_id="r1")
        lua(site).write_text(maintscript.UP)
        assert maintenance.read_state(site.hostlib_config) == maintenance.State("up")
        ran = site.run("up")
        assert (ran.code, ran.json["changed"]) == (DONE, False)
        assert not (site.maintenance_dir / "maint.json").exists()
        assert not TOKEN.search(lua(site, ".down").read_text())

    def test_a_second_down_had_written_its_record_but_not_its_script(self, site: WebHost) -> None:
        switch_down(site, reason="one", run_id="r1")
        old = lua(site).read_bytes()
        switch_down(site, reason="two")
        lua(site).write_bytes(old)
        state = maintenance.read_state(site.hostlib_config).as_result()
        assert (state["state"], state["reason"], state["run_id"]) == ("down", "two", "r1")
        assert site.run("down").code == DONE

    @pytest.mark.parametrize("broken", ["", "{", "[]", '{"strange": 1}'])
    def test_a_broken_record_hides_no_maintenance(self, site: WebHost, broken: str) -> None:
        switch_down(site)
        (site.maintenance_dir / "maint.json").write_text(broken)
        assert maintenance.read_state(site.hostlib_config).state == "down"
        assert switch_down(site, reason="again")["reason"] == "again"
        assert switch_up(site)["changed"] is True

    def test_left_over_temporary_files_do_no_harm(self, site: WebHost) -> None:
        (site.maintenance_dir / ".maint.lua.abcdefgh").write_text("half a scri")
        assert switch_down(site)["changed"] is True
        assert switch_up(site)["changed"] is True

    @pytest.mark.parametrize("content", [None, b"", b"garbage (", b"\xff\xfe", b"return 404"])
    @pytest.mark.parametrize("command", ["down", "up"])
    def test_a_missing_empty_or_strange_script_is_replaced(
        self, site: WebHost, content: bytes | None, command: str
    ) -> None:
        lua(site).unlink()
        if content is not None:
            lua(site).write_bytes(content)
        assert maintenance.read_state(site.hostlib_config) == maintenance.State("unknown")
        told = switch_down(site) if command == "down" else switch_up(site)
        assert (told["changed"], told["state"]) == (True, command)
        assert site.get().in_maintenance == (command == "down")

    def test_the_scripts_can_still_be_copied_by_hand(self, site: WebHost) -> None:
        switch_down(site, run_id="r1")
        switch_up(site, run_id="r1")
        luac(lua(site, ".down"))
        shutil.copy(lua(site, ".down"), lua(site, ".new"))
        lua(site, ".new").replace(lua(site))
        assert is_page(site.get())
        state = maintenance.read_state(site.hostlib_config).as_result()
        assert (state["state"], state["by"], state["run_id"]) == ("down", "unknown", None)
        with pytest.raises(Failure, match="was put in place by hand"):
            maintenance.bypass_headers(site.hostlib_config)
        assert site.get(headers={"X-Maintenance-Bypass": "", "X-Maintenance-Proof": ""}).in_maintenance
        assert switch_down(site)["changed"] is False
        assert "X-Maintenance-Bypass" in maintenance.bypass_headers(site.hostlib_config)
        assert switch_up(site)["changed"] is True

    def test_the_scripts_of_2008_are_understood(self, site: WebHost) -> None:
        script = 'lighty.header["X-Maintenance-Mode"] = "1"\nlighty.content = { "<p>old page" }\nreturn 503\n'
        lua(site, ".new").write_text(script)
        lua(site, ".new").replace(lua(site))
        assert site.get().in_maintenance
        assert maintenance.read_state(site.hostlib_config).as_result()["by"] == "unknown"
        assert switch_down(site)["changed"] is False
        assert is_page(site.get())
        assert switch_up(site)["changed"] is True

    def test_killed_at_any_moment_the_next_command_finds_its_way(self, site: WebHost) -> None:
        for delay in range(0, 160, 8):
            command = "up" if site.get().in_maintenance else "down"
            process = site.start(command)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=delay / 1000)
            process.kill()
            process.communicate()
            reply = site.get()
            assert is_app(reply) or is_page(reply)
            told = maintenance.read_state(site.hostlib_config).state
            assert told == ("down" if reply.in_maintenance else "up")
        assert switch_down(site)["state"] == "down"
        assert switch_up(site)["state"] == "up"


class TestWhenItCannotBeProved:
    def test_mod_magnet_is_not_loaded(self, make_web_host: MakeHost) -> None:
        host = make_web_host(magnet=False)
        host.serve()
        before = files(host)
        ran = host.run("down", "--timeout", "0.5")
        assert ran.code == FAILED
        assert "0 of 1 workers" in ran.error["what"]
        assert "mod_magnet does not seem to be loaded" in ran.error["what"]
        assert "lighttpd-modules-lua" in ran.error["next"]
        assert ran.error["state"] == "the site is up as before"
        assert files(host) == before
        assert is_app(host.get())

    def test_lighttpd_looks_too_late(self, make_web_host: MakeHost) -> None:
        host = make_web_host(stat_cache="inotify")  # it overlooks a rename for 15 s
        host.serve()
        host.get()
        ran = host.run("down", "--timeout", "0.5")
        assert ran.code == FAILED
        assert "has not looked at it again" in ran.error["what"]
        assert 'server.stat-cache-engine = "disable"' in ran.error["next"]
        assert maintscript.is_up(lua(host).read_text())

    def test_lighttpd_runs_another_script(self, make_web_host: MakeHost) -> None:
        host = make_web_host()
        host.serve()
        other = host.base / "other"
        shutil.copytree(host.maintenance_dir, other, symlinks=True)
        host.config["maintenance_dir"] = str(other)
        host.write_config()
        ran = host.run("down", "--timeout", "0.3")
        assert ran.code == FAILED
        assert f'magnet.attract-raw-url-to = ("{other}/maint.lua")' in ran.error["next"]

    def test_a_script_that_does_not_run_is_soon_taken_back(
        self, site: WebHost, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(maintscript, "_DOWN", "{first_line}, window {window}.\nerror('old lighttpd')\n")
        with pytest.raises(Failure, match=r"lighttpd can't run .*maint\.lua") as caught:
            switch_down(site, timeout=30.0)
        assert caught.value.exit_code == FAILED
        assert "1.4.60 or newer" in caught.value.next
        assert caught.value.state == "the site is up as before"
        assert is_app(site.get())

    def test_what_can_not_be_put_back_is_not_said_to_be_as_before(
        self, site: WebHost, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(saved: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(maintscript, "_DOWN", "{first_line}, window {window}.\nerror('old lighttpd')\n")
        monkeypatch.setattr(maintenance, "_put_back", full)
        with pytest.raises(Failure, match="can't run") as caught:
            switch_down(site, timeout=30.0)
        assert caught.value.exit_code == IN_MAINTENANCE
        assert "could not be put back" in caught.value.state

    def test_lighttpd_is_not_running(self, own_site: WebHost) -> None:
        own_site.stop_lighttpd()
        ran = own_site.run("down", "--timeout", "1")
        assert ran.code == FAILED
        assert ran.error["next"].startswith("systemctl start lighttpd")
        assert maintenance.read_state(own_site.hostlib_config).state == "up"

    def test_a_window_that_was_open_before_stays_open(
        self, site: WebHost, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        switch_down(site, reason="one", run_id="r1")
        before = files(site)
        monkeypatch.setattr(maintscript, "PROOF", "X-Mistaken")
        monkeypatch.setattr(maintscript, "_DOWN", maintscript._DOWN.replace("{proof_header}", "X-Mistaken"))
        with pytest.raises(Failure) as caught:
            switch_down(site, reason="two", timeout=0.3)
        assert caught.value.exit_code == IN_MAINTENANCE
        assert caught.value.state == "the site is still in maintenance as before"
        assert files(site) == before
        assert site.get().in_maintenance

    @pytest.mark.parametrize("content", [None, b"", b"return 404"])
    def test_a_strange_script_is_put_back_but_never_an_empty_one(
        self, make_web_host: MakeHost, content: bytes | None
    ) -> None:
        host = make_web_host(magnet=False)
        lua(host).unlink()
        if content is not None:
            lua(host).write_bytes(content)
        with pytest.raises(Failure) as caught:
            switch_down(host, timeout=0.1)
        assert caught.value.exit_code == FAILED
        assert lua(host).read_bytes() == (content or maintscript.UP.encode())

    @pytest.mark.parametrize("down_before", [False, True])
    def test_a_full_disk_changes_nothing(self, site: WebHost, down_before: bool) -> None:
        if down_before:
            switch_down(site)
        before = files(site)
        # No file may grow beyond 1000 bytes; the script needs more.
        limited = ["prlimit", "--fsize=1000", str(site.tools / "down"), "--json"]
        done = subprocess.run(limited, capture_output=True, text=True, check=False)
        error = json.loads(done.stdout)["error"]
        assert done.returncode == (IN_MAINTENANCE if down_before else FAILED)
        assert "can't be written: File too large" in error["what"]
        assert "as before" in error["state"]
        assert files(site) == before


class TestTwoOperators:
    def test_commands_at_the_same_time_take_turns(self, site: WebHost) -> None:
        for _ in range(2):
            running = [site.start(command) for command in ("down", "up", "down", "up", "down")]
            ended = [process.communicate(timeout=30) for process in running]
            assert [process.returncode for process in running] == [DONE] * 5, ended
            state = maintenance.read_state(site.hostlib_config).state
            assert state == ("down" if site.get().in_maintenance else "up")

    def test_one_that_waits_too_long_says_so(self, site: WebHost) -> None:
        switch_up(site)
        lock = site.maintenance_dir / "maint.lock"
        assert stat.S_IMODE(lock.stat().st_mode) == 0o700
        with holding(lock):
            ran = site.run("down", "--timeout", "0.2")
        assert ran.code == BUSY
        assert str(lock) in ran.error["what"]
        assert is_app(site.get())

    def test_only_one_of_two_runs_gets_the_window(self, site: WebHost) -> None:
        running = [site.start("down", "--run-id", run) for run in ("r1", "r2")]
        for process in running:
            process.communicate(timeout=30)
        assert sorted(process.returncode for process in running) == [DONE, BUSY]


class TestPrivilege:
    def test_without_root_it_goes_on_through_sudo_by_full_path(
        self, own_site: WebHost, tmp_path: Path
    ) -> None:
        """The sudo here prints its arguments: what matters is which command line sudoers will see."""
        own_site.config["privileged"] = True
        own_site.write_config()
        sudo = tmp_path / "sudo"
        sudo.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
        sudo.chmod(0o755)
        own_site.tools.chmod(0o755)
        as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        if os.geteuid() != 0:
            as_nobody = []
        tmp_path.chmod(0o755)
        for parent in list(tmp_path.parents)[:-2]:  # but for / and /tmp
            parent.chmod(0o755)
        for program, path in (
            ("down", own_site.maintenance_dir),
            ("up", own_site.maintenance_dir),
            ("drain", own_site.tools),
        ):
            done = subprocess.run(
                [*as_nobody, str(own_site.tools / program), "--timeout", "3"],
                env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
                capture_output=True,
                text=True,
                check=True,
            )
            assert done.stdout.splitlines() == ["-n", str(path / program), "--timeout", "3"]


def luac(script: Path) -> None:
    """The Lua compiler has nothing against it."""
    compiler = shutil.which("luac5.4") or shutil.which("luac")
    assert compiler, "install lua5.4"
    subprocess.run([compiler, "-p", str(script)], check=True)


@contextlib.contextmanager
def holding(directory: Path) -> Iterator[None]:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
