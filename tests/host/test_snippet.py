"""The lighttpd configuration that `fab setup` writes, in front of real applications of both kinds."""

from __future__ import annotations

import contextlib
import http.client
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from hostlib.switch import maintscript

from deploytools.setup import lighttpd as lighttpd_conf
from tests.support.ports import free_port
from tests.support.site import wait_for
from tests.support.values import settings

PHP = """<?php
header("Content-Type: text/plain");
echo $_SERVER["REQUEST_URI"], "|", $_SERVER["PATH_INFO"] ?? "", "|", $_GET["x"] ?? "";
"""
WSGI = """
from flup.server.fcgi import WSGIServer

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{environ['SCRIPT_NAME']}|{environ['PATH_INFO']}|{environ['QUERY_STRING']}".encode()]

WSGIServer(app, bindAddress="run/app.sock").run()
"""


@contextlib.contextmanager
def running(*argv: str | Path, cwd: Path) -> Iterator[None]:
    with subprocess.Popen(argv, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()


@contextlib.contextmanager
def lighttpd(root: Path, document_root: str | None) -> Iterator[str]:
    """lighttpd with the snippet for an application in `root`; yields the site's URL."""
    port = free_port()
    (root / "maint.lua").write_text(maintscript.UP)
    snippet = lighttpd_conf.snippet(
        settings(root=str(root), webserver={"maintenance_dir": str(root), "document_root": document_root})
    )
    (root / "app.conf").write_text(snippet)
    (root / "lighttpd.conf").write_text(
        'server.modules = ( "mod_indexfile", "mod_access" )\n'
        f'server.document-root = "{root}"\nserver.bind = "127.0.0.1"\nserver.port = {port}\n'
        'mimetype.assign = ( ".css" => "text/css" )\ninclude "app.conf"\n'
    )
    with running("/usr/sbin/lighttpd", "-D", "-f", root / "lighttpd.conf", cwd=root):
        yield f"http://127.0.0.1:{port}"


def get(url: str) -> str | None:
    with contextlib.suppress(urllib.error.URLError, ConnectionError):
        return urllib.request.urlopen(url, timeout=10).read().decode()  # noqa: S310
    return None


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path


def test_php_gets_scripts_and_whatever_is_no_file_and_lighttpd_serves_the_files(root: Path) -> None:
    public = root / "releases" / "r1" / "public"
    public.mkdir(parents=True)
    (root / "current").symlink_to("releases/r1")
    (public / "index.php").write_text(PHP)
    (public / "style.css").write_text("body {}")

    with lighttpd(root, "public") as url, running("/usr/bin/php-cgi", "-b", root / "run/app.sock", cwd=root):
        assert wait_for(lambda: get(f"{url}/"), "php") == "/|/|"
        assert get(f"{url}/guests/7?x=1") == "/guests/7?x=1|/guests/7|1"
        assert get(f"{url}/index.php?x=2") == "/index.php?x=2||2"
        assert get(f"{url}/style.css") == "body {}"
        assert "gw.backend.guestbook" in (get(f"{url}/server-statistics") or "")


def test_the_bypass_holds_where_lighttpd_rewrites_the_path_and_asks_again(root: Path) -> None:
    public = root / "current" / "public"
    public.mkdir(parents=True)
    (public / "index.php").write_text('<?php echo $_SERVER["HTTP_X_MAINTENANCE_BYPASS"] ?? "no token";')

    with lighttpd(root, "public") as url, running("/usr/bin/php-cgi", "-b", root / "run/app.sock", cwd=root):
        assert wait_for(lambda: get(f"{url}/"), "php") == "no token"
        (root / "down.lua").write_text(
            maintscript.down_script(b"closed", application="guestbook", bypass="secret")
        )
        (root / "down.lua").rename(root / "maint.lua")
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)

        def ask(**headers: str) -> tuple[int, str]:
            connection.request("GET", "/guests/7", headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

        assert ask(**{maintscript.BYPASS: "secret"}) == (200, "no token")
        assert ask() == (503, "closed"), "it holds for one request, not for the connection"
        assert ask(**{maintscript.BYPASS: "guessed"}) == (503, "closed")


def test_any_other_application_gets_every_request_with_its_path(root: Path) -> None:
    (root / "app.py").write_text(WSGI)

    with lighttpd(root, None) as url, running(sys.executable, "app.py", cwd=root):
        assert wait_for(lambda: get(f"{url}/"), "the application") == "|/|"
        assert get(f"{url}/guests/7?x=1") == "|/guests/7|x=1"
        assert "gw.backend.guestbook" in (get(f"{url}/server-statistics") or "")
