"""One real web host in a temporary directory: lighttpd, the host programs, and what they work on.

    with WebHost(max_workers=3) as host:
        host.serve(1)                            # a small FastCGI application as generation 1
        ran = host.run("down", "--reason", "new schema")
        assert ran.code == 0
        assert host.get("/").status == 503

Everything listens on 127.0.0.1 or on sockets below the temporary directory, and every process is
ended by its own id. Run as a script, this file is the small application itself.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tests.support import prepared
from tests.support.ports import free_port

REMOTE_SCRIPTS = Path(__file__).resolve().parents[2] / "remote_scripts"
sys.path.insert(0, str(REMOTE_SCRIPTS))  # hostlib, as the programs beside it import it

from hostlib.program import Config  # noqa: E402


@dataclass(frozen=True)
class Ran:
    """How a host program ended. `json` is what it printed with --json, else {}."""

    code: int
    out: str
    err: str
    json: dict[str, Any]

    @property
    def error(self) -> dict[str, str]:
        """{what, where, state, next} of a failure."""
        return self.json["error"]  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Reply:
    """An HTTP answer; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def in_maintenance(self) -> bool:
        return self.status == 503 and self.headers.get("x-maintenance-mode") == "1"


class WebHost:
    """A host as `fab setup` leaves it; lighttpd runs between __enter__ and __exit__.

    Args:
        max_workers: lighttpd's server.max-worker; 0 is one process without a supervisor.
        stat_cache: server.stat-cache-engine: disable, simple or inotify.
        application: names the FastCGI backend and so its counters.
        liveness: paths that stay 200 in maintenance.
        magnet: False leaves mod_magnet out, as on a host where nobody loaded it.
        username: the account that lighttpd's workers run as (only root can choose).
        extra: more lines of lighttpd configuration.
        edit: what becomes of its configuration as a whole, for a host that somebody has worked on.
        config: overrides of keys in config.json.
    """

    def __init__(
        self,
        *,
        max_workers: int = 0,
        stat_cache: str = "disable",
        application: str = "guestbook",
        liveness: tuple[str, ...] = (),
        magnet: bool = True,
        username: str | None = None,
        extra: str = "",
        edit: Callable[[str], str] = lambda text: text,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="wh", dir="/tmp"))
        self.base.chmod(0o755)
        self.tools = self.base / "tools"
        self.root = self.base / "r"
        self.run_dir = self.root / "run"
        self.maintenance_dir = self.base / "etc"
        self.application = application
        self.port = free_port()
        self.pid = 0
        self._lighttpd: subprocess.Popen[bytes] | None = None
        self._backends: dict[int, subprocess.Popen[bytes]] = {}
        self._options = (max_workers, stat_cache, magnet, username, extra)
        self._edit = edit

        shutil.copytree(
            REMOTE_SCRIPTS, self.tools, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
        )
        for name, code in _bytecode():
            file = self.tools / name.parent / "__pycache__" / name.name
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(code)
        (self.tools / "maint.html").write_bytes(shipped_page())
        for name in ("releases", "shared", "run", "log", "state", "migrations"):
            (self.root / name).mkdir(parents=True)
        (self.base / "spool").mkdir()
        if username:
            shutil.chown(self.root / "log", username)
            shutil.chown(self.base / "spool", username)
        self.reset_maintenance()
        self.config = {
            "version": "0",
            "application": application,
            "root": str(self.root),
            "user": subprocess.check_output(["id", "-un"], text=True).strip(),
            "privileged": False,
            "maintenance_dir": str(self.maintenance_dir),
            "url": f"http://127.0.0.1:{self.port}/",
            "host_header": None,
            "liveness": list(liveness),
            "statistics_path": "/server-statistics",
            "lighttpd_config": str(self.base / "lighttpd.conf"),
            **(config or {}),
        }
        self.write_config()

    @property
    def hostlib_config(self) -> Config:
        """config.json as the host programs see it, for tests that call hostlib directly."""
        return Config.of(self.config)

    # -- life -----------------------------------------------------------------------------------

    def __enter__(self) -> WebHost:
        try:
            self.start_lighttpd()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for generation in list(self._backends):
            self.stop_backend(generation)
        self.stop_lighttpd()
        shutil.rmtree(self.base, ignore_errors=True)

    def start_lighttpd(self) -> None:
        """Start it, and return when it accepts connections."""
        file = self.base / "lighttpd.conf"
        file.write_text(self._edit(self._lighttpd_conf()))
        # Its own session: a lighttpd with workers ends them by signalling its whole process group.
        self._lighttpd = subprocess.Popen(
            ["/usr/sbin/lighttpd", "-D", "-f", str(file)], start_new_session=True
        )
        self.pid = self._lighttpd.pid
        max_workers = self._options[0]

        def accepts() -> bool:
            assert self._lighttpd is not None
            assert self._lighttpd.poll() is None, f"lighttpd did not start: {self.lighttpd_log()}"
            with socket.socket() as probe:
                return len(children(self.pid)) >= max_workers and not probe.connect_ex(
                    ("127.0.0.1", self.port)
                )

        wait_until(accepts, what="lighttpd accepts, with all its workers")

    def stop_lighttpd(self) -> None:
        if self._lighttpd is not None:
            end(self._lighttpd, group=True)
            self._lighttpd = None

    def lighttpd_log(self) -> str:
        file = self.root / "log" / "lighttpd.log"
        return file.read_text() if file.exists() else ""

    def reset_maintenance(self) -> None:
        """Make the maintenance directory what it is after `fab setup`: the site is up."""
        self.maintenance_dir.mkdir(exist_ok=True)
        new = self.maintenance_dir / ".new"
        new.write_text("-- up\n")
        new.replace(self.maintenance_dir / "maint.lua")
        for file in self.maintenance_dir.iterdir():
            if file.is_dir():
                file.rmdir()
            elif file.name != "maint.lua":
                file.unlink()
        for name in ("down", "up"):
            (self.maintenance_dir / name).symlink_to(self.tools / name)
        (self.maintenance_dir / "maint.html").write_bytes(shipped_page())

    def write_config(self) -> None:
        (self.tools / "config.json").write_text(json.dumps(self.config))

    def _lighttpd_conf(self) -> str:
        max_workers, stat_cache, magnet, username, extra = self._options
        modules = (["mod_magnet"] if magnet else []) + ["mod_status", "mod_fastcgi"]
        lines = [
            f"server.modules = ({', '.join(json.dumps(name) for name in modules)})",
            f'server.document-root = "{self.root / "shared"}"',
            'server.bind = "127.0.0.1"',
            f"server.port = {self.port}",
            f'server.errorlog = "{self.root / "log" / "lighttpd.log"}"',
            f'server.upload-dirs = ("{self.base / "spool"}")',
            f"server.max-worker = {max_workers}",
            f'server.stat-cache-engine = "{stat_cache}"',
            "server.max-connections = 1024",
            "server.max-fds = 2048",
            'server.feature-flags += ("server.graceful-shutdown-timeout" => 30)',
            '$HTTP["remoteip"] == "127.0.0.1" { status.statistics-url = "/server-statistics" }',
            f'fastcgi.server = ("/" => ("{self.application}" =>'
            f' ("socket" => "{self.run_dir / "app.sock"}", "check-local" => "disable")))',
        ]
        if magnet:
            lines.append(f'magnet.attract-raw-url-to = ("{self.maintenance_dir / "maint.lua"}")')
        if username:
            lines.append(f'server.username = "{username}"\nserver.groupname = "{username}"')
        return "\n".join([*lines, extra, ""])

    # -- the application ------------------------------------------------------------------------

    def serve(self, generation: int = 1, *, flip: bool = True) -> int:
        """Start the small application of this file as `generation`; returns its pid when it accepts."""
        path = self.run_dir / f"app.{generation}.sock"
        self._backends[generation] = subprocess.Popen([sys.executable, __file__, str(path), str(generation)])

        def accepts() -> bool:
            assert self._backends[generation].poll() is None, "the application did not start"
            with socket.socket(socket.AF_UNIX) as probe:
                return probe.connect_ex(str(path)) == 0

        wait_until(accepts, what="the application accepts")
        if flip:
            self.flip(generation)
        return self._backends[generation].pid

    def flip(self, generation: int) -> None:
        """Let lighttpd connect to `generation` from now on."""
        temporary = self.run_dir / ".app.sock.new"
        temporary.symlink_to(f"app.{generation}.sock")
        temporary.replace(self.run_dir / "app.sock")

    def stop_backend(self, generation: int) -> None:
        backend = self._backends.pop(generation)
        backend.kill()  # flup looks at its SIGTERM once a second only
        backend.wait()
        with contextlib.suppress(FileNotFoundError):
            (self.run_dir / f"app.{generation}.sock").unlink()

    # -- what a test does with it ---------------------------------------------------------------

    def run(
        self,
        program: str | Path,
        *arguments: str,
        as_json: bool = True,
        timeout: float = 60,
        as_user: str | None = None,
        stdin: str | None = None,
        under: Sequence[str] = (),
        **env: str,
    ) -> Ran:
        """Run a host program to its end, or a program `under` which it runs, such as strace.

        A name is looked up in the tools directory.
        """
        argv = [*under, str(self.tools / program), *arguments, *(["--json"] if as_json else [])]
        done = prepared.run(
            argv,
            input=stdin,
            timeout=timeout,
            env={**os.environ, **env},
            user=as_user,
            extra_groups=None if as_user is None else [],
        )
        parsed: dict[str, Any] = {}
        if as_json and done.stdout.strip():
            parsed = json.loads(done.stdout)
        return Ran(done.returncode, done.stdout, done.stderr, parsed)

    def start(self, program: str | Path, *arguments: str, as_json: bool = True) -> subprocess.Popen[str]:
        """Start a host program; the caller waits for it (communicate) or ends it."""
        argv = [str(self.tools / program), *arguments, *(["--json"] if as_json else [])]
        return prepared.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def request(
        self,
        method: str = "GET",
        path: str = "/",
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        timeout: float = 10,
    ) -> Reply:
        """One request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, body=body, headers=dict(headers or {}))
            return read_reply(connection)
        finally:
            connection.close()

    def get(self, path: str = "/", *, headers: Mapping[str, str] | None = None, timeout: float = 10) -> Reply:
        return self.request("GET", path, headers=headers, timeout=timeout)


@cache
def _bytecode() -> list[tuple[Path, bytes]]:
    """hostlib compiled, as set-up leaves it; every host is a copy of its own, and would compile it anew."""
    with tempfile.TemporaryDirectory() as directory:
        argv = ["/usr/bin/python3", "-m", "compileall", "-q", str(REMOTE_SCRIPTS / "hostlib")]
        subprocess.run(argv, check=True, env={**os.environ, "PYTHONPYCACHEPREFIX": directory})
        compiled = Path(f"{directory}{REMOTE_SCRIPTS}")
        return [(path.relative_to(compiled), path.read_bytes()) for path in compiled.rglob("*.pyc")]


@cache
def shipped_page() -> bytes:
    """maint.html as `fab setup` puts it there where fabric.yaml says nothing of it."""
    from deploytools.settings import Page
    from deploytools.setup.page import rendered

    return rendered(Page())


def read_reply(connection: http.client.HTTPConnection) -> Reply:
    """The whole answer to the request just sent; http.client raises IncompleteRead if it is cut."""
    response = connection.getresponse()
    return Reply(
        response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
    )


def children(pid: int) -> set[int]:
    """The processes that `pid` started and that have not been waited for."""
    return {int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def wait_until(condition: Callable[[], object], *, timeout: float = 10, what: str = "condition") -> None:
    """Poll until `condition()` is true; AssertionError after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {timeout} s"
        time.sleep(0.005)


def end(process: subprocess.Popen[Any], *, group: bool = False) -> None:
    """End a process that we started: SIGTERM, then SIGKILL (to its whole group with `group`)."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=3)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if group:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """What the small application answers.

    /slow?0.3 takes that many seconds; /until?PATH waits for that file to appear; /headers tells the
    request's headers; /form has one (/form?no-store without leave to keep it); a POST is answered with the
    length of its body; X-Generation tells which generation it is.
    """
    path = environ["REQUEST_URI"].partition("?")[0]  # lighttpd puts all of it into SCRIPT_NAME
    if path == "/slow":
        time.sleep(float(environ["QUERY_STRING"]))
    if path == "/until":
        wait_until(Path(environ["QUERY_STRING"]).exists, timeout=30)
    length = int(environ.get("CONTENT_LENGTH") or 0)
    body = f"got {len(environ['wsgi.input'].read(length))}" if length else f"app {path}"
    if path == "/headers":
        body = json.dumps({key: value for key, value in environ.items() if key.startswith("HTTP_")})
    headers = [("Content-Type", "text/plain"), ("X-Generation", sys.argv[2])]
    if path == "/form":
        headers = [("Content-Type", "text/html"), ("Cache-Control", environ["QUERY_STRING"] or "max-age=0")]
        body = '<form method="post" action="/post"><input name="word"><button>Send</button></form>'
    start_response("200 OK", headers)
    return [body.encode()]


if __name__ == "__main__":
    from flup.server.fcgi import WSGIServer

    WSGIServer(application, bindAddress=sys.argv[1]).run()
