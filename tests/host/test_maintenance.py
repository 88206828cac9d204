"""The maintenance switch, on a real lighttpd: what down and up do, and tell."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hostlib.program import BUSY, DONE, FAILED, IN_MAINTENANCE, USAGE, Failure
from hostlib.switch import maintenance, maintscript
from hostlib.webserver import web

from tests.support.load import Load
from tests.support.switching import (
    holding,
    is_app,
    is_page,
    lua,
    switch_down,
    switch_up,
)
from tests.support.webhost import WebHost, wait_until

MakeHost = Callable[..., WebHost]


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
            "addresses": [f"127.0.0.1:{site.port}"],
            "elsewhere": [],
            "message": "in maintenance, proved by the only worker",
        }

    def test_a_runs_end_that_has_passed_meanwhile_is_no_reason_to_stay_up(self, site: WebHost) -> None:
        passed = "2001-01-01T00:00:00Z"
        by_hand = site.run("down", "--until", passed)
        assert (by_hand.code, site.get().in_maintenance) == (USAGE, False)
        assert "has passed already" in by_hand.err
        ran = site.run("down", "--until", passed, "--run-id", "r1")
        assert (ran.code, ran.json["until"]) == (DONE, passed)
        assert site.get().headers["retry-after"] == "120"

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

    def test_somebody_elses_window_stays_theirs_and_one_is_told(self, site: WebHost) -> None:
        first = site.run("down", "--by", "ann", "--reason", "moving the database", "--until", "+1h").json
        ran = site.run("down", "--by", "bob", "--reason", "mine", "--until", "+9h")
        assert ran.code == DONE
        assert [ran.json[key] for key in ("since", "by", "reason", "until")] == [
            first[key] for key in ("since", "by", "reason", "until")
        ]
        assert re.search(
            r"it was so before by ann since 20[^:]+:\d\d:\d\d [+-]\d{4}: moving the database; that",
            ran.json["message"],
        )
        assert site.run("up", "--by", "bob").code == BUSY

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
        assert re.search(r"belongs to run r1 \(by ann since 20[^()]+: new schema\)", ran.error["what"])
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
        assert re.fullmatch(r"up, proved by the only worker, after \d+ s in maintenance", ran.json["message"])
        assert site.run("up").json["lasted"] is None
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

    def test_somebody_elses_window_is_not_lifted_and_said_whose_it_is(self, site: WebHost) -> None:
        switch_down(site, by="ann", reason="moving the database")
        ran = site.run("up", "--by", "bob")
        assert ran.code == BUSY
        assert re.fullmatch(
            r"maintenance was put on by ann since 20[^()]+: moving the database", ran.error["what"]
        )
        assert ran.error["next"] == "ask ann; then up --force ann"
        assert ran.error["state"] == "nothing was changed; the site is in maintenance"
        assert site.get().in_maintenance

    @pytest.mark.parametrize("arguments", [("--by", "ann"), ("--by", "bob", "--force", "ann")])
    def test_it_is_lifted_by_whose_it_is_or_by_force(self, site: WebHost, arguments: tuple[str, ...]) -> None:
        switch_down(site, by="ann")
        assert site.run("up", *arguments).code == DONE

    def test_by_hand_the_account_counts_and_not_only_the_name_given(self, site: WebHost) -> None:
        assert site.run("down", SUDO_USER="deploy").json["by"] == "deploy"
        assert site.run("up", SUDO_USER="carol").code == BUSY
        assert site.run("up", "--by", "ann", SUDO_USER="deploy").code == DONE

    def test_a_window_that_was_opened_by_copying_a_script_is_anybodys(self, site: WebHost) -> None:
        lua(site, ".new").write_text(maintscript.down_script(b"page", application="guestbook"))
        lua(site, ".new").replace(lua(site))
        assert site.run("up", "--by", "bob").code == DONE

    def test_a_name_with_spaces_and_quotes_is_quoted_in_the_next_command(self, site: WebHost) -> None:
        switch_down(site, by="Ann O'Hara; rm")
        ran = site.run("up", "--by", "bob")
        assert ran.error["next"].endswith("""up --force 'Ann O'"'"'Hara; rm'""")
        assert site.run("up", "--by", "bob", "--force", "Ann O'Hara; rm").code == DONE

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
        lua(host).write_text(maintscript.down_script(b"page", application="guestbook"))
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
        with Load(host, allow={"app": is_app, "page": is_page}, interval=0) as load:
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


class TestTwoOperators:
    def test_commands_at_the_same_time_take_turns(self, site: WebHost) -> None:
        for _ in range(2):
            running = [site.start(command) for command in ("down", "up", "down", "up", "down")]
            ended = [process.communicate(timeout=30) for process in running]
            assert [process.returncode for process in running] == [DONE] * 5, ended
            state = maintenance.read_state(site.hostlib_config).state
            assert state == ("down" if site.get().in_maintenance else "up")

    def test_whatever_they_do_visitors_get_the_page_or_the_application_and_the_record_tells_which(
        self, make_web_host: MakeHost
    ) -> None:
        host = make_web_host(max_workers=2)
        host.serve()
        with Load(host, allow={"app": is_app, "page": is_page}, clients=2, seconds=110) as load:
            for number in range(8):
                running = [
                    host.start(command, "--by", who, "--reason", f"{who} {number}")
                    if command == "down"
                    else host.start(command, "--by", who, "--force", "ann", "--timeout", "60")
                    for who, command in (("ann", "down"), ("bob", "up"), ("ann", "up"), ("ann", "down"))
                ]
                if number % 2:  # one of them is killed on its way
                    running[0].kill()
                codes = [process.wait(timeout=100) for process in running]
                assert set(codes) <= {DONE, -9}, codes
                state = maintenance.read_state(host.hostlib_config)
                assert state.state == ("down" if host.get().in_maintenance else "up")
                recorded = host.maintenance_dir / "maint.json"
                if state.window:
                    assert state.window.by == "ann"
                    assert json.loads(recorded.read_text())["window"] in lua(host).read_text()
                else:
                    assert not recorded.exists() or number % 2
        assert load.strange == []

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


class TestLighttpdInAWindow:
    """Its restart, reload and log rotation change nothing: what is true stands in the file."""

    @pytest.mark.parametrize("max_workers", [0, 2])
    @pytest.mark.parametrize(("name", "number"), [("reload", signal.SIGUSR1), ("rotation", signal.SIGHUP)])
    def test_a_reload_and_a_rotation_show_nothing_but_the_page(
        self, make_web_host: MakeHost, max_workers: int, name: str, number: signal.Signals
    ) -> None:
        host = make_web_host(max_workers=max_workers)
        host.serve()
        switch_down(host)
        with Load(host, allow={"page": is_page}) as load:
            for _ in range(3):
                workers, before = web.workers(host.hostlib_config), load.requests
                os.kill(host.pid, number)
                wait_until(lambda: load.requests > before + 50, what="requests after it")  # noqa: B023
                if name == "reload" and max_workers:
                    wait_until(lambda: set(web.workers(host.hostlib_config)).isdisjoint(workers))  # noqa: B023
            assert switch_down(host)["changed"] is False
            assert host.get().in_maintenance
        # A reload closes idle connections; a request that crosses that is sent again by any browser.
        closed = "reset: RemoteDisconnected" if name == "reload" else "nothing"
        assert [line for line in load.strange if closed not in line] == []
        assert switch_up(host)["workers"] == max(1, max_workers)

    def test_after_a_restart_it_is_as_before(self, own_site: WebHost) -> None:
        switch_down(own_site, reason="moving", until=2_000_000_000)
        bypass = maintenance.bypass_headers(own_site.hostlib_config)
        own_site.stop_lighttpd()
        own_site.start_lighttpd()
        assert int(own_site.get().headers["retry-after"]) > 120
        assert is_app(own_site.get(headers=bypass))
        assert own_site.run("up").code == DONE


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
