"""The maintenance switch after a crash, on a full disk, and where it can't be proved."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from collections.abc import Callable

import pytest
from hostlib.program import DONE, FAILED, IN_MAINTENANCE, Failure
from hostlib.switch import maintenance, maintscript

from tests.support.switching import (
    TOKEN,
    files,
    is_app,
    is_page,
    lua,
    luac,
    switch_down,
    switch_up,
)
from tests.support.webhost import WebHost

MakeHost = Callable[..., WebHost]


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
