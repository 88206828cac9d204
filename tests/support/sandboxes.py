"""A project directory with a sandbox in it, and the sample application without the toolkit around it."""

from __future__ import annotations

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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from pathlib import Path

from deploytools import sandbox
from deploytools.sandbox import processes
from deploytools.sandbox.layout import Layout
from tests.support.ports import free_port

SNIPPET = """\
server.modules := ( "mod_magnet" ) + server.modules + ( "mod_fastcgi" )
server.stat-cache-engine := "disable"
magnet.attract-raw-url-to = ( "{maintenance}/maint.lua" )
fastcgi.server = ( "/" => ( "guestbook" => (
  "socket" => "{root}/run/app.sock", "check-local" => "disable"
) ) )
"""


def wait_until(condition: Callable[[], bool], what: str, timeout: float = 10.0) -> None:
    """Poll until `condition` holds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"still not so after {timeout} s: {what}"
        time.sleep(0.01)


@dataclass(frozen=True)
class Project:
    """A directory in which a sandbox can be brought up on ports of its own."""

    root: Path
    http_port: int
    ssh_port: int

    @property
    def layout(self) -> Layout:
        return Layout(self.root / ".sandbox", self.http_port, self.ssh_port)

    def up(self, install: Callable[[], None] | None = None) -> str:
        """Bring it up, with just enough of a host side to serve an application."""
        return sandbox.up(
            self.root, http_port=self.http_port, ssh_port=self.ssh_port, install=install or self.install
        )

    def install(self) -> None:
        """What `fab setup` would do, at its least."""
        settings = sandbox.environment(self.root)
        maintenance = Path(settings["webserver"]["maintenance_dir"])
        (maintenance / "maint.lua").write_text("-- up\n")
        snippet = SNIPPET.format(maintenance=maintenance, root=settings["root"])
        (maintenance / "conf-enabled/50-guestbook.conf").write_text(snippet)
        for name in ("run", "log", "releases", "shared/var"):
            Path(settings["root"], name).mkdir(parents=True, exist_ok=True)

    def pid(self, server: str) -> int:
        """Of lighttpd or sshd."""
        process = processes.recorded(self.layout.run / f"{server}.stat")
        assert process is not None, f"{server} doesn't run"
        return process.pid

    def ssh(self, *command: str) -> list[str]:
        """The argv of a command on the sandbox."""
        return ["ssh", "-F", str(self.layout.ssh / "config"), "sandbox", *command]

    def shell(self, command: str) -> str:
        """What a command prints on the sandbox."""
        ran = subprocess.run(self.ssh(command), capture_output=True, text=True, timeout=30, check=True)
        return ran.stdout

    def request(
        self, path: str = "/", form: str | None = None, timeout: float = 10
    ) -> tuple[int, Message, str]:
        """Status, headers and body of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=timeout)
        try:
            headers = {"Content-Type": "application/x-www-form-urlencoded"} if form else {}
            connection.request("POST" if form else "GET", path, form, headers)
            answer = connection.getresponse()
            return answer.status, answer.msg, answer.read().decode()
        finally:
            connection.close()


@contextmanager
def project() -> Iterator[Project]:
    """A project whose sandbox is ended and deleted, whatever happens in it."""
    root = Path(tempfile.mkdtemp(prefix="sb", dir="/tmp"))  # sockets want a short path
    made = Project(root, free_port(), free_port())
    try:
        yield made
    finally:
        sandbox.down(root)
        left = processes.of(made.layout)
        shutil.rmtree(root)
        assert not left, f"the sandbox left {left}"


class Guestbook:
    """Releases of the sample application, and generations of it, without the toolkit around them."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.root = project.layout.application
        self.log = self.root / "log/app.log"
        self.generations: dict[int, subprocess.Popen[bytes]] = {}

    def release(self, ref: str) -> Path:
        """Put a ref of the repository where a release belongs, unless it is there."""
        release = self.root / "releases" / ref
        if release.exists():
            return release
        archive = subprocess.run(
            ["git", "-C", str(self.project.layout.repository), "archive", ref],
            capture_output=True,
            check=True,
        )
        release.mkdir()
        subprocess.run(["tar", "x", "-C", str(release)], input=archive.stdout, check=True)
        shutil.rmtree(release / "var")
        (release / "var").symlink_to("../../shared/var")
        return release

    def alembic(self, ref: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run Alembic in a release."""
        argv = [sys.executable, "-m", "alembic", *arguments]
        return subprocess.run(
            argv, cwd=self.release(ref), capture_output=True, text=True, check=False, timeout=60
        )

    def serve(self, ref: str, generation: int, log: Path | None = None) -> subprocess.Popen[bytes]:
        """Start a generation and lead the web server to it, as the host programs do."""
        release = self.release(ref)
        path = self.root / "run" / f"app.{generation}.sock"
        with socket.socket(socket.AF_UNIX) as listener, (log or self.log).open("ab") as output:
            listener.bind(str(path))
            listener.listen(128)
            process = subprocess.Popen(
                [sys.executable, "guestbook.py"],
                cwd=release,
                stdin=listener,
                stdout=output,
                stderr=output,
                env={"PATH": "/usr/bin:/bin", "DEPLOYTOOLS_GENERATION": str(generation)},
                start_new_session=True,
            )
        self.generations[generation] = process
        temporary = self.root / "run/.app.sock"
        temporary.symlink_to(path.name)
        os.replace(temporary, self.root / "run/app.sock")
        return process

    def record(self, generation: int) -> None:
        """Write the record that `swap` would have written."""
        process = processes.read(self.generations[generation].pid)
        assert process is not None
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        record = {"pid": process.pid, "start_time": process.started, "boot_id": boot}
        (self.root / "run" / f"app.{generation}.json").write_text(json.dumps(record))

    def close(self) -> None:
        """End all generations."""
        for process in self.generations.values():
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait()
