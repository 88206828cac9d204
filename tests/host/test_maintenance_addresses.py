"""Maintenance is a fact on every address that lighttpd serves the site on, and for each of its names."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hostlib.program import DONE, FAILED, USAGE, Failure
from hostlib.switch import maintscript
from hostlib.webserver import counters, elsewhere, web
from hostlib.webserver.listeners import Listener

from tests.support.certificates import self_signed
from tests.support.ports import free_port
from tests.support.switching import lua, switch_down, switch_up
from tests.support.webhost import Reply, WebHost, children, read_reply, wait_until

MakeHost = Callable[..., WebHost]

# How long a proof may take that fails: all of the time that it is given.
SOON = ("--timeout", "2")

OTHER_SITE = """
lighty.r.resp_body.set("another site")
return 200
"""
# An application's page that somebody wrote by hand, as in 2008.
BY_HAND = 'lighty.header["X-Maintenance-Mode"] = "1"\nlighty.content = { "closed, too" }\nreturn 503\n'


@pytest.fixture
def pem(tmp_path: Path) -> Path:
    return self_signed(tmp_path)


def at(host: WebHost, connection: http.client.HTTPConnection, **headers: str) -> Reply:
    """GET / on a connection of one's own making."""
    try:
        connection.request("GET", "/", headers=headers)
        return read_reply(connection)
    finally:
        connection.close()


def https(port: int) -> http.client.HTTPSConnection:
    return http.client.HTTPSConnection("127.0.0.1", port, context=ssl._create_unverified_context())  # noqa: S323


def unix(path: Path) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(path))
    return connection


def listener(address: str, settings: str = "") -> str:
    return f'$SERVER["socket"] == "{address}" {{ {settings} }}\n'


def tls(address: str, pem: Path, settings: str = "") -> str:
    return listener(address, f'ssl.engine = "enable" ssl.pemfile = "{pem}" {settings}')


@pytest.mark.parametrize("max_workers", [0, 4])
def test_plain_http_and_https_on_both_families_and_a_unix_socket_are_proved_in_one_run(
    make_web_host: MakeHost, pem: Path, tmp_path: Path, max_workers: int
) -> None:
    plain, secure, path = free_port(), free_port("::"), Path(tmp_path / "lighttpd.sock")
    extra = 'server.modules += ("mod_openssl")\n' + "".join(
        [
            listener(f"127.0.0.1:{plain}"),
            listener(f"[::1]:{plain}"),
            tls(f"0.0.0.0:{secure}", pem),
            tls(f"[::]:{secure}", pem),
            listener(str(path)),
        ]
    )
    host = make_web_host(max_workers=max_workers, extra=extra)
    host.serve()
    ran = host.run("down")
    assert ran.code == DONE
    assert ran.json["workers"] == max(1, max_workers)
    assert set(ran.json["addresses"]) == {
        f"127.0.0.1:{host.port}",
        f"127.0.0.1:{plain}",
        f"[::1]:{plain}",
        f"0.0.0.0:{secure}",
        f"[::]:{secure}",
        str(path),
    }
    assert f"on {ran.json['addresses'][0]}, " in ran.json["message"]

    def everywhere() -> list[Reply]:
        return [
            at(host, http.client.HTTPConnection("127.0.0.1", plain)),
            at(host, http.client.HTTPConnection("::1", plain)),
            at(host, https(secure)),
            at(host, unix(path)),
        ]

    assert all(reply.in_maintenance for reply in everywhere())
    ran = host.run("up")
    assert (ran.code, len(ran.json["addresses"])) == (DONE, 6)
    assert [reply.text for reply in everywhere()] == ["app /"] * 4


def test_a_listener_for_both_families_is_asked(make_web_host: MakeHost) -> None:
    port = free_port("::")
    host = make_web_host(extra=listener(f"[::]:{port}", 'server.set-v6only = "disable"'))
    host.serve()
    assert f"[::]:{port}" in host.run("down").json["addresses"]


def test_a_site_that_is_served_by_https_alone_is_proved(make_web_host: MakeHost, pem: Path) -> None:
    port = free_port()
    extra = 'server.modules += ("mod_openssl")\n' + tls(f"127.0.0.1:{port}", pem)
    host = make_web_host(extra=extra, config={"url": f"https://127.0.0.1:{port}/"})
    host.serve()
    assert host.run("down").code == DONE
    assert at(host, https(port)).in_maintenance
    assert host.run("up").code == DONE


def test_an_address_that_wants_the_proxy_protocol_is_spoken_to_in_it(make_web_host: MakeHost) -> None:
    port = free_port()
    extra = """
        server.modules += ("mod_extforward")
        extforward.forwarder = ("127.0.0.1" => "trust")
    """ + listener(f"127.0.0.1:{port}", 'extforward.hap-PROXY = "enable"')
    host = make_web_host(extra=extra)
    host.serve()
    ran = host.run("down")
    assert (ran.code, len(ran.json["addresses"])) == (DONE, 2)
    with socket.create_connection(("127.0.0.1", port)) as proxy:
        proxy.sendall(b"PROXY UNKNOWN\r\nGET / HTTP/1.0\r\n\r\n")
        assert proxy.recv(100).startswith(b"HTTP/1.0 503")


class TestAnAddressThatOverridesTheSwitch:
    """The snippet's magnet.attract-raw-url-to holds for all of lighttpd, until a condition sets it again."""

    @pytest.fixture
    def leak(self) -> int:
        return free_port()

    @pytest.fixture
    def host(self, make_web_host: MakeHost, leak: int, tmp_path: Path) -> WebHost:
        other = tmp_path / "other.lua"
        other.write_text("-- nothing\n")
        extra = listener(f"127.0.0.1:{leak}", f'magnet.attract-raw-url-to = ("{other}")')
        host = make_web_host(extra=extra, max_workers=2)
        host.serve()
        return host

    def test_where_the_application_shines_through_down_fails_and_names_it(
        self, host: WebHost, leak: int
    ) -> None:
        ran = host.run("down", *SOON)
        assert ran.code == FAILED
        assert f"workers at 127.0.0.1:{leak} (127.0.0.1:{leak}) answered as expected" in ran.error["what"]
        assert "nothing shows that it is another site" in ran.error["what"]
        assert "magnet.attract-raw-url-to once more" in ran.error["next"]
        assert ran.error["state"] == "the site is up as before"
        assert host.get().text == "app /"

    def test_it_can_be_left_out_and_then_no_proof_speaks_of_it(self, host: WebHost, leak: int) -> None:
        host.config["unproved"] = [f"127.0.0.1:{leak}"]
        host.write_config()
        ran = host.run("down")
        assert (ran.code, ran.json["addresses"]) == (DONE, [f"127.0.0.1:{host.port}"])
        assert f"not asked: 127.0.0.1:{leak}" in ran.json["message"]


class TestAnotherSitesAddress:
    """Known by lighttpd's own count of connections to the application, which a request there leaves alone."""

    @pytest.fixture
    def theirs(self) -> int:
        return free_port()

    @pytest.fixture
    def script(self, tmp_path: Path) -> Path:
        script = tmp_path / "other.lua"
        script.write_text(OTHER_SITE)
        return script

    @pytest.fixture
    def host(self, make_web_host: MakeHost, theirs: int, script: Path, pem: Path) -> WebHost:
        extra = 'server.modules += ("mod_openssl")\n' + tls(
            f"127.0.0.1:{theirs}", pem, f'magnet.attract-raw-url-to = ("{script}") fastcgi.server = ()'
        )
        host = make_web_host(extra=extra, max_workers=3)
        host.serve()
        return host

    def test_it_is_left_alone_and_told(self, host: WebHost, theirs: int) -> None:
        for command in ("down", "down", "up"):
            ran = host.run(command)
            assert ran.code == DONE
            assert at(host, https(theirs)).text == "another site"
            if command == "down":
                assert ran.json["elsewhere"] == [f"127.0.0.1:{theirs} (127.0.0.1:{theirs})"]
                assert f"left alone, as another site's: 127.0.0.1:{theirs}" in ran.json["message"]
                assert host.get().in_maintenance

    def test_files_of_lighttpds_own_are_another_site_too(self, make_web_host: MakeHost, theirs: int) -> None:
        host = make_web_host(
            extra=listener(f"127.0.0.1:{theirs}", "magnet.attract-raw-url-to = () fastcgi.server = ()")
        )
        host.serve()
        assert host.run("down").json["elsewhere"] == [f"127.0.0.1:{theirs} (127.0.0.1:{theirs})"]

    @pytest.mark.parametrize("label", ['"forum" => ', ""])
    def test_another_way_to_the_application_is_none(
        self, make_web_host: MakeHost, theirs: int, label: str
    ) -> None:
        def edit(text: str) -> str:
            socket = re.search(r'"socket" => "[^"]+"', text)
            assert socket
            way = f'fastcgi.server = ("/" => ({label}({socket[0]}, "check-local" => "disable")))'
            return text + listener(f"127.0.0.1:{theirs}", f"magnet.attract-raw-url-to = () {way}")

        host = make_web_host(edit=edit)
        host.serve()
        ran = host.run("down", *SOON)
        assert ran.code == FAILED
        assert f"127.0.0.1:{theirs}" in ran.error["what"]
        assert host.get().text == "app /"

    def test_one_where_only_some_requests_go_to_the_application_is_none(
        self, make_web_host: MakeHost, theirs: int
    ) -> None:
        def edit(text: str) -> str:
            app = re.search(r'"socket" => "[^"]+"', text)
            assert app
            way = f'fastcgi.server = ("/api" => ("x" => ({app[0]}, "check-local" => "disable")))'
            some = f'$HTTP["url"] =^ "/api" {{ {way} }}'
            return text + listener(
                f"127.0.0.1:{theirs}", f"magnet.attract-raw-url-to = () fastcgi.server = () {some}"
            )

        host = make_web_host(edit=edit)
        host.serve()
        api = http.client.HTTPConnection("127.0.0.1", theirs)
        api.request("GET", "/api/users")
        assert read_reply(api).text == "app /api/users"
        ran = host.run("down", *SOON)
        assert ran.code == FAILED
        assert f"127.0.0.1:{theirs}" in ran.error["what"]

    def test_the_look_at_it_ends_with_the_proof(
        self, host: WebHost, theirs: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Looking takes requests of its own, each with a time-out, and the laptop doesn't wait for ever."""
        asked: list[float] = []

        def read(config: object, *, timeout: float, labels: object) -> object:
            asked.append(timeout)
            raise Failure("they can't be had")

        switch_down(host)
        monkeypatch.setattr(counters, "read", read)
        listening = web.Point(Listener("127.0.0.1", theirs), f"127.0.0.1:{theirs}")
        assert not elsewhere.is_elsewhere(host.hostlib_config, listening, time.monotonic() + 1.0)
        assert not elsewhere.is_elsewhere(host.hostlib_config, listening, time.monotonic() - 1.0)
        assert len(asked) == 2
        assert 0 < asked[0] <= 1.0
        assert asked[1] == 0

    def test_it_may_be_in_maintenance_itself(self, host: WebHost, theirs: int, script: Path) -> None:
        their_page = maintscript.down_script(b"closed, too", application="forum", proof="x")
        for page in (their_page, BY_HAND):
            new = script.with_name("new.lua")
            new.write_text(page)
            new.replace(script)
            for command in ("down", "up"):
                assert host.run(command).code == DONE
                assert at(host, https(theirs)).text == "closed, too"
            assert host.get().text == "app /"

    def test_without_the_counters_it_counts_as_the_applications(self, host: WebHost, theirs: int) -> None:
        host.config["statistics_path"] = "/not-there"
        host.write_config()
        ran = host.run("down", *SOON)
        assert ran.code == FAILED
        assert f"127.0.0.1:{theirs}" in ran.error["what"]

    def test_with_an_application_that_is_dead_nothing_can_be_shown(self, host: WebHost, theirs: int) -> None:
        host.stop_backend(1)
        ran = host.run("down", *SOON)
        assert ran.code == FAILED
        assert "nothing shows that it is another site" in ran.error["what"]


def test_an_address_that_wants_a_client_certificate_is_no_proof_and_can_be_left_out(
    make_web_host: MakeHost, pem: Path
) -> None:
    port = free_port()
    verify = f"""
        ssl.ca-file = "{pem}"
        ssl.verifyclient.activate = "enable" ssl.verifyclient.enforce = "enable"
    """
    host = make_web_host(extra='server.modules += ("mod_openssl")\n' + tls(f"127.0.0.1:{port}", pem, verify))
    host.serve()
    ran = host.run("down", "--timeout", "1")
    assert ran.code == FAILED
    assert f'let webserver.unproved in fabric.yaml name "127.0.0.1:{port}"' in ran.error["next"]
    assert host.get().text == "app /"
    host.config["unproved"] = [f"127.0.0.1:{port}"]
    host.write_config()
    assert host.run("down").code == DONE


class TestTheNamesOfASite:
    NAMES = ("www.example.com", "example.com", "example.org")

    @pytest.fixture
    def script(self, tmp_path: Path) -> Path:
        script = tmp_path / "other.lua"
        script.write_text("-- nothing\n")
        return script

    def host(self, make: MakeHost, extra: str, **changes: object) -> WebHost:
        names = {"host_header": self.NAMES[0], "aliases": list(self.NAMES[1:]), **changes}
        host = make(extra=extra, config=names, max_workers=2)
        host.serve()
        return host

    def test_each_is_proved(self, make_web_host: MakeHost) -> None:
        host = self.host(make_web_host, "")
        for command in ("down", "up"):
            assert host.run(command).code == DONE
            for name in self.NAMES:
                assert host.get(headers={"Host": name}).in_maintenance == (command == "down")

    def test_one_that_overrides_the_switch_is_found_by_its_name(
        self, make_web_host: MakeHost, script: Path
    ) -> None:
        extra = f'$HTTP["host"] == "example.org" {{ magnet.attract-raw-url-to = ("{script}") }}'
        host = self.host(make_web_host, extra)
        ran = host.run("down", *SOON)
        assert ran.code == FAILED
        assert "(example.org) answered as expected" in ran.error["what"]
        assert "for example.org" in ran.error["next"]
        assert host.get().text == "app /"

    def test_one_of_a_switch_that_holds_for_all_names_is_found_too(
        self, make_web_host: MakeHost, script: Path
    ) -> None:
        extra = f'$HTTP["host"] == "example.org" {{ magnet.attract-raw-url-to = ("{script}") }}'
        host = self.host(make_web_host, extra, host_header=None)
        assert "(example.org) answered as expected" in host.run("down", *SOON).error["what"]

    def test_names_that_are_not_the_sites_are_left_alone(self, make_web_host: MakeHost, script: Path) -> None:
        script.write_text(OTHER_SITE)
        extra = f'$HTTP["host"] == "forum.example.com" {{ magnet.attract-raw-url-to = ("{script}") }}'
        host = self.host(make_web_host, extra)
        assert host.run("down").code == DONE
        assert host.get(headers={"Host": "forum.example.com"}).text == "another site"


class TestWhoAnswers:
    def test_another_web_server_in_front_proves_nothing(self, own_site: WebHost) -> None:
        port = free_port()
        own_site.config["url"] = f"http://127.0.0.1:{port}/"
        own_site.write_config()
        argv = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port)]
        with subprocess.Popen(argv, stderr=subprocess.DEVNULL, cwd=own_site.run_dir) as front:
            try:
                wait_until(lambda: not socket.socket().connect_ex(("127.0.0.1", port)), what="it accepts")
                ran = own_site.run("down")
            finally:
                front.terminate()
        assert ran.code == USAGE
        assert f"answers at http://127.0.0.1:{port}/, not lighttpd" in ran.error["what"]
        assert "webserver.url" in ran.error["next"]
        assert own_site.get().text == "app /"

    def test_a_worker_that_is_killed_during_the_proof_is_replaced_and_proved(
        self, make_web_host: MakeHost, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        host = make_web_host(max_workers=3)
        host.serve()
        asked, victims = web._ask, list(children(host.pid))

        def ask_and_kill(*given: object) -> object:
            if victims:
                os.kill(victims.pop(), signal.SIGKILL)
            return asked(*given)  # type: ignore[arg-type]

        monkeypatch.setattr(web, "_ask", ask_and_kill)
        before = children(host.pid)
        assert switch_down(host)["workers"] == 3
        assert children(host.pid).isdisjoint(before)
        assert all(host.get().in_maintenance for _ in range(20))
        victims.extend(children(host.pid))
        assert switch_up(host)["workers"] == 3

    @pytest.mark.parametrize("program", ["down", "up"])
    def test_a_program_that_takes_the_address_meanwhile_is_no_proof_and_down_is_taken_back(
        self, own_site: WebHost, monkeypatch: pytest.MonkeyPatch, program: str
    ) -> None:
        if program == "up":
            switch_down(own_site)
        before, asked = lua(own_site).read_bytes(), web._ask
        with socket.socket() as usurper:

            def ask(*given: object) -> object:
                if not usurper.getsockname()[1]:
                    own_site.stop_lighttpd()
                    usurper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    usurper.bind(("127.0.0.1", own_site.port))
                    usurper.listen()
                return asked(*given)  # type: ignore[arg-type]

            monkeypatch.setattr(web, "_ask", ask)
            monkeypatch.setattr(web, "LOOK_AGAIN", -1.0)
            with pytest.raises(Failure, match="not lighttpd") as caught:
                {"down": switch_down, "up": switch_up}[program](own_site, timeout=3.0)
        assert caught.value.exit_code == FAILED
        if program == "down":
            assert lua(own_site).read_bytes() == before
            assert "the files are as before" in caught.value.state
        else:
            assert caught.value.result["unchanged"] is False
            assert "maintenance is off" in caught.value.state

    def test_an_address_that_a_reload_brings_meanwhile_is_proved(
        self, own_site: WebHost, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(web, "LOOK_AGAIN", -1.0)
        config, port = own_site.hostlib_config, free_port()
        file = own_site.base / "lighttpd.conf"
        seen: list[web.Answer] = []

        def slow(answer: web.Answer) -> bool:
            if not seen:
                file.write_text(file.read_text() + listener(f"127.0.0.1:{port}"))
                os.kill(own_site.pid, signal.SIGUSR1)
                wait_until(lambda: not socket.socket().connect_ex(("127.0.0.1", port)), what="it listens")
                seen.append(answer)
                return False
            return answer.status == 200

        proof = web.prove(config, slow, everywhere=True)
        assert set(proof.addresses) == {f"127.0.0.1:{own_site.port}", f"127.0.0.1:{port}"}
