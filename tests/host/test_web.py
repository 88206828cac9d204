"""The host's own web server is asked, and the worker that answered is known."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hostlib.program import USAGE, Failure
from hostlib.webserver import web

from tests.support.certificates import self_signed
from tests.support.ports import free_port
from tests.support.webhost import REMOTE_SCRIPTS, WebHost, children, wait_until

MakeHost = Callable[..., WebHost]


@pytest.fixture
def site(web_host: WebHost) -> WebHost:
    web_host.serve()
    return web_host


def ok(answer: web.Answer) -> bool:
    return answer.status == 200


class TestRequest:
    def test_the_answer_comes_with_lower_case_headers_and_its_worker(self, site: WebHost) -> None:
        answer = web.request(site.hostlib_config, "/hello")
        assert (answer.status, answer.body) == (200, b"app /hello")
        assert answer.headers["x-generation"] == "1"
        assert answer.worker == site.pid

    def test_method_and_headers_are_passed_on(self, site: WebHost) -> None:
        config = site.hostlib_config
        assert web.request(config, method="HEAD").body == b""
        assert b'"HTTP_X_ONE": "1"' in web.request(config, "/headers", headers={"X-One": "1"}).body

    def test_the_host_header_of_the_configuration_is_sent(self, site: WebHost) -> None:
        config = dataclasses.replace(site.hostlib_config, host_header="www.example.com")
        assert b'"HTTP_HOST": "www.example.com"' in web.request(config, "/headers").body

    def test_the_worker_is_known_even_if_the_server_closes_the_connection(
        self, make_web_host: MakeHost
    ) -> None:
        host = make_web_host(extra="server.max-keep-alive-requests = 0")
        host.serve()
        answer = web.request(host.hostlib_config)
        assert answer.headers["connection"] == "close"
        assert answer.worker == host.pid

    def test_a_server_that_is_not_there_is_an_os_error(self, site: WebHost) -> None:
        site.stop_lighttpd()
        with pytest.raises(ConnectionRefusedError):
            web.request(site.hostlib_config)

    def test_an_application_that_hangs_is_an_os_error_in_time(self, site: WebHost) -> None:
        with pytest.raises(OSError, match="timed out"):
            web.request(site.hostlib_config, "/slow?5", timeout=0.1)

    @pytest.mark.parametrize("sent", [b"hm", b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\ncut"])
    def test_what_is_no_complete_http_answer_is_an_os_error(self, site: WebHost, sent: bytes) -> None:
        port = free_port()
        config = dataclasses.replace(site.hostlib_config, url=f"http://127.0.0.1:{port}/")
        script = f"""
import socket
open("/proc/self/comm", "w").write("lighttpd, but a strange one")
connection, _ = socket.create_server(("127.0.0.1", {port})).accept()
connection.recv(1000)
connection.send({sent!r})
"""
        with subprocess.Popen([sys.executable, "-c", script]) as server:
            wait_until(lambda: web.workers(config), what="the server listens")
            with pytest.raises(web.NoAnswer, match="no complete HTTP answer"):
                web.request(config)
            server.wait(timeout=5)

    def test_https_works_whatever_the_certificate_says(self, make_web_host: MakeHost, tmp_path: Path) -> None:
        port, pem = free_port(), self_signed(tmp_path)
        extra = f"""
            server.modules += ("mod_openssl")
            $SERVER["socket"] == "127.0.0.1:{port}" {{ ssl.engine = "enable"  ssl.pemfile = "{pem}" }}
        """
        host = make_web_host(extra=extra, config={"url": f"https://127.0.0.1:{port}/"})
        host.serve()
        answer = web.request(host.hostlib_config)
        assert (answer.status, answer.worker) == (200, host.pid)

    @pytest.mark.parametrize("address", ["[::1]", "127.0.0.1"])
    def test_a_listener_for_both_families_is_recognised(self, make_web_host: MakeHost, address: str) -> None:
        port = free_port()
        extra = f'$SERVER["socket"] == "[::]:{port}" {{ server.set-v6only = "disable" }}'
        host = make_web_host(extra=extra, config={"url": f"http://{address}:{port}/"})
        host.serve()
        assert web.workers(host.hostlib_config) == (host.pid,)
        assert web.request(host.hostlib_config).worker == host.pid


class TestWorkers:
    def test_one_process_is_its_own_worker(self, site: WebHost) -> None:
        assert web.workers(site.hostlib_config) == (site.pid,)

    def test_the_supervising_parent_is_not_a_worker(self, make_web_host: MakeHost) -> None:
        host = make_web_host(max_workers=3)
        assert set(web.workers(host.hostlib_config)) == children(host.pid)
        assert len(children(host.pid)) == 3

    def test_where_nobody_listens_there_is_none(self, site: WebHost) -> None:
        site.stop_lighttpd()
        assert web.workers(site.hostlib_config) == ()

    def test_a_name_that_cannot_be_resolved_is_a_configuration_error(self, site: WebHost) -> None:
        config = dataclasses.replace(site.hostlib_config, url="http://no-such-host.invalid/")
        with pytest.raises(Failure, match="can't resolve no-such-host") as caught:
            web.workers(config)
        assert caught.value.exit_code == USAGE


class TestProve:
    def test_the_only_worker_is_proved(self, site: WebHost) -> None:
        proof = web.prove(site.hostlib_config, ok)
        assert (proof.workers, proof.certain) == (1, True)

    @pytest.mark.parametrize("path", ["/", "/server-statistics"])
    def test_every_one_of_several_workers_is_seen(self, make_web_host: MakeHost, path: str) -> None:
        host = make_web_host(max_workers=4)
        host.serve()
        seen = set()

        def noted(answer: web.Answer) -> bool:
            seen.add(answer.worker)
            return ok(answer)

        assert web.prove(host.hostlib_config, noted, path=path).workers == 4
        assert seen == children(host.pid)

    def test_one_worker_that_answers_otherwise_is_enough_to_fail(self, make_web_host: MakeHost) -> None:
        host = make_web_host(max_workers=2)
        host.serve()
        stubborn = min(children(host.pid))
        with pytest.raises(web.NotProved, match=r"1 of 2 workers .* within 1 s; .* 200 without") as caught:
            web.prove(host.hostlib_config, lambda answer: answer.worker != stubborn, timeout=1)
        assert caught.value.result == {"seen": 1, "workers": 2}

    def test_it_goes_on_until_the_answer_is_the_wanted_one(self, site: WebHost) -> None:
        answers = []

        def third_time(answer: web.Answer) -> bool:
            answers.append(answer)
            return len(answers) >= 3

        assert web.prove(site.hostlib_config, third_time).workers == 1

    def test_without_any_answer_the_failure_says_so(self, site: WebHost) -> None:
        site.stop_lighttpd()
        with pytest.raises(web.NotProved, match=r"0 of 0 workers .* no answer \(.*refused"):
            web.prove(site.hostlib_config, ok, timeout=0.1)

    def test_a_worker_that_dies_and_is_replaced_is_not_waited_for(self, make_web_host: MakeHost) -> None:
        host = make_web_host(max_workers=2)
        host.serve()
        victim = min(children(host.pid))
        killed = []

        def after_the_kill(answer: web.Answer) -> bool:
            if not killed:
                os.kill(victim, signal.SIGKILL)
                killed.append(victim)
            return ok(answer) and answer.worker != victim

        assert web.prove(host.hostlib_config, after_the_kill, timeout=10).workers == 2

    def test_the_test_may_end_it_with_a_failure_of_its_own(self, site: WebHost) -> None:
        def hopeless(_: web.Answer) -> bool:
            raise Failure("hopeless")

        with pytest.raises(Failure, match="hopeless"):
            web.prove(site.hostlib_config, hopeless)

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can become an account that may not look")
    def test_where_the_worker_cannot_be_told_it_claims_none(self, site: WebHost) -> None:
        script = f"""
import os, sys
sys.path.insert(0, {str(REMOTE_SCRIPTS)!r})
import encodings.idna  # while we may read wherever Python is installed
from hostlib.webserver import web
from hostlib.program import Config
from pathlib import Path
os.setgid(65534); os.setuid(65534)
config = Config("0", "x", Path("/"), "x", False, Path("/"), {site.config["url"]!r}, None, (), "/s")
proof = web.prove(config, lambda answer: answer.status == 200)
print(proof.workers, proof.certain, proof.took >= 1.2, proof)
"""
        done = subprocess.run(["/usr/bin/python3", "-c", script], capture_output=True, text=True, check=False)
        assert done.stderr == ""
        assert done.stdout.startswith("0 False True as every answer was right; but which worker gave it")
