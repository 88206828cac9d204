"""A project with a sandbox of its own, driven through the real `fab`, with visitors on it."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.operators import Operator
from tests.support.ports import free_port

FABRIC_YAML = "tasks: {executor_class: deploytools.executor.OnceExecutor}\n"


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 30) -> Any:
    """Poll until `condition()` is true, and return it."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.02)
    return found


@dataclass
class Site(Operator):
    """A project directory with a sandbox in it."""

    http_port: int
    ssh_port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}/"

    @property
    def root(self) -> Path:
        """The application's directory on the "host"."""
        return self.directory / ".sandbox" / "host" / "srv" / "guestbook"

    def on(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        return self.fab("on", "sandbox", *arguments, code=code)

    def status(self, code: int = 0) -> dict[str, Any]:
        """What `fab status --json` says of the host; `code` is 3 where it has a complaint."""
        status: dict[str, Any] = json.loads(self.on("status", "--json", code=code).stdout)
        return {**status["hosts"]["sandbox"], "lock": status["lock"]}

    def history(self) -> list[dict[str, Any]]:
        runs: list[dict[str, Any]] = json.loads(self.on("history", "--json").stdout)
        return runs

    def get(self, path: str = "") -> tuple[int, dict[str, str]]:
        """One request as a visitor: status and headers (lower-case names)."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=20) as answer:  # noqa: S310
                return answer.status, {name.lower(): value for name, value in answer.headers.items()}
        except urllib.error.HTTPError as error:
            return error.code, {name.lower(): value for name, value in error.headers.items()}

    @property
    def serves(self) -> str:
        """Which ref the site answers with, by the commit in its release's name."""
        return self.get()[1]["x-release"].rsplit("-", 1)[-1]

    def commit(self, ref: str) -> str:
        """The short commit that a release of `ref` ends with."""
        repository = self.directory / ".sandbox" / "guestbook"
        done = subprocess.run(
            ["git", "-C", repository, "rev-parse", f"{ref}^{{commit}}"],
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout[:8]

    @contextlib.contextmanager
    def visitors(self, *options: str) -> Iterator[Callable[[], dict[str, Any]]]:
        """Visitors in a process of their own; what is yielded sends them home and tells what they got."""
        out = self.directory / "visitors.json"
        out.unlink(missing_ok=True)
        argv = [sys.executable, "-m", "deploytools.sandbox.traffic", "--url", self.url, "--out", str(out)]
        with subprocess.Popen(
            [*argv, "--seconds", "100", *options], stdout=subprocess.PIPE, text=True
        ) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == "sending\n"

                def result() -> dict[str, Any]:
                    process.send_signal(signal.SIGTERM)
                    process.wait(60)
                    told: dict[str, Any] = json.loads(out.read_text())
                    return told

                yield result
            finally:
                process.kill()


@contextlib.contextmanager
def new_site() -> Iterator[Site]:
    """A site whose sandbox is up and empty; nothing of it is left afterwards."""
    # Not below pytest's tmp_path: a unix socket's path is short, and ssh distrusts directories of others.
    directory = Path(tempfile.mkdtemp(prefix="dt-"))
    (directory / "fabfile.py").write_text("from deploytools.tasks import ns  # noqa: F401\n")
    (directory / "fabric.yaml").write_text(FABRIC_YAML)
    site = Site(directory, free_port(), free_port())
    try:
        site.fab("sandbox.up", f"--http-port={site.http_port}", f"--ssh-port={site.ssh_port}")
        yield site
    finally:
        site.fab("sandbox.down")
        shutil.rmtree(directory)
