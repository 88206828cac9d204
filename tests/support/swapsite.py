"""A web host with releases to swap between, real applications for them, and visitors.

    with Site() as site:
        site.release("r1")
        assert site.swap("--release", "r1").code == 0
        with Visitors(site) as visitors:
            site.swap()
        assert visitors.lost == []

Everything that a swap started is found by its working directory below the host's root, and ended by
pid when the block is left.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Any

from hostlib.swapping import generations, processes, unixsockets
from hostlib.swapping.generations import Record
from hostlib.swapping.managers import Managers

from tests.support import load
from tests.support.runtimes import RUNTIMES, Runtime
from tests.support.webhost import Ran, Reply, WebHost, children, wait_until


class Site:
    """A WebHost and the releases on it.

    Args:
        runtime: of its releases.
        backend: what lighttpd connects to, relative to run/.
        unprivileged: lighttpd and the applications run as www-data where the tests run as root.
        options: of WebHost.
    """

    def __init__(
        self,
        *,
        runtime: Runtime = RUNTIMES["flup"],
        backend: str = "app.sock",
        unprivileged: bool = False,
        **options: Any,
    ) -> None:
        if unprivileged and os.geteuid() == 0:
            options = {
                "username": "www-data",
                **options,
                "config": {"user": "www-data", **options.get("config", {})},
            }
        self.runtime = runtime
        self.host = _Host(runtime.document_root, backend, **options)
        self.root = self.host.root
        # Four workers on a machine that is busy with other tests take their time to answer.
        self.tune("barrier.py", "TIMEOUT = 15.0", "TIMEOUT = 120.0")

    def tune(self, module: str, line: str, other: str) -> None:
        """Let the host programs of this site wait for longer, or less long, than on a real host."""
        path = self.host.tools / "hostlib" / "swapping" / module
        text = path.read_text()
        assert text.count(f"\n{line}") == 1
        path.write_text(text.replace(line, other))

    @property
    def address(self) -> tuple[str, int]:
        return ("127.0.0.1", self.host.port)

    def __enter__(self) -> Site:
        self.host.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        for _ in range(50):  # a parent may start another child while we look
            running = self.processes()
            if not running:
                break
            for pid in running:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            wait_until(lambda: not any(map(_runs, running)), what="the applications end")  # noqa: B023
        self.host.__exit__(*exception)

    # -- releases -------------------------------------------------------------------------------

    def release(self, name: str, **changes: Any) -> Path:
        """A release of the runtime's application; see Runtime.release."""
        return self.runtime.release(self.root / "releases" / name, **changes)

    # -- what a test does -----------------------------------------------------------------------

    def swap(self, *arguments: str, **options: Any) -> Ran:
        return self.host.run("swap", *arguments, **options)

    def first(self, release: str = "r1", **app: Any) -> Record:
        """Make a release and deploy it."""
        self.release(release, **app)
        ran = self.swap("--release", release)
        assert ran.code == 0, ran
        return self.serving()

    def serving(self) -> Record:
        record = generations.serving(self.host.hostlib_config)
        assert record is not None
        return record

    def get(self, path: str = "/", *, timeout: float = 10) -> Reply:
        """What the application answers a visitor."""
        return self.host.get(self.runtime.script + path, timeout=timeout)

    def pid(self, record: Record | None = None) -> int:
        """The application's first process in a generation, by default the serving one."""
        found = Managers(self.host.hostlib_config).look(record or self.serving()).pid
        assert found is not None
        return found

    def wait_for_children(self, count: int) -> None:
        """Until the application of the serving generation has so many children."""
        wait_until(lambda: len(children(self.pid())) == count, what=f"{count} children")

    def generation(self) -> int:
        """The generation that answers a visitor."""
        return int(self.get().headers["x-generation"])

    def records(self) -> list[Record]:
        return generations.records(self.host.hostlib_config)

    def log(self) -> str:
        file = self.root / "log" / "app.log"
        return file.read_text() if file.exists() else ""

    # -- what is there --------------------------------------------------------------------------

    def processes(self) -> list[int]:
        """Every living process that works below the root: applications, and timers of `swap`."""
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if self._is_ours(pid)]

    def commands(self) -> list[str]:
        """The command lines of those processes."""
        found = []
        for pid in self.processes():
            with contextlib.suppress(OSError):
                found.append(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode())
        return found

    def generations(self) -> set[int]:
        """The first processes of the generations that run: a supervisor has no parent below the root."""
        found = {pid: processes.find(pid) for pid in self.processes() if self._is_ours(pid, "releases")}
        return {pid for pid, process in found.items() if process and process.parent not in found}

    def _is_ours(self, pid: int, below: str = "") -> bool:
        try:
            directory = os.readlink(f"/proc/{pid}/cwd")
        except OSError:
            return False
        return Path(directory).is_relative_to(self.root / below) and _runs(pid)

    def files(self) -> set[str]:
        """What is in run/, but for the files that always are."""
        return {path.name for path in self.host.run_dir.iterdir()} - {"swap.lock", "generation"}

    def assert_only(self, *expected: Record) -> None:
        """No process, socket or record of any other generation is there."""
        assert self.generations() == {record.pid for record in expected}
        kinds = ("sock", "json", "env", "life")
        names = {f"app.{record.generation}.{kind}" for record in expected for kind in kinds}
        names |= {Path(record.socket).parent.name for record in expected} - {"run"}  # where one binds itself
        assert self.files() == names | {"app.sock"}


class Visitors(load.Visitors):
    """Visitors of a Site."""

    def __init__(self, site: Site, count: int = 6, **options: Any) -> None:
        super().__init__(site.address, script=site.runtime.script, count=count, **options)


class _Host(WebHost):
    def __init__(self, document_root: str | None, backend: str, **options: Any) -> None:
        self._document_root, self._backend = document_root, backend
        config = {"document_root": document_root, **options.pop("config", {})}
        super().__init__(config=config, **options)

    def _lighttpd_conf(self) -> str:
        text = super()._lighttpd_conf()
        if self._document_root is not None:
            text += f'server.document-root := "{self.root / "current" / self._document_root}"\n'
        return text.replace(str(self.run_dir / "app.sock"), str(self.run_dir / self._backend))


def wait_until_idle(record: Record) -> None:
    """A visitor has all of the answer a moment before the application closes its connection."""
    wait_until(lambda: not unixsockets.connections(record.socket).total, what="its connections are closed")


def _runs(pid: int) -> bool:
    process = processes.find(pid)
    return process is not None and not process.dead
