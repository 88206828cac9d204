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
import hashlib
import http.client
import itertools
import json
import os
import shutil
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hostlib import generations
from hostlib.generations import Record

from tests.support.webhost import Ran, WebHost, wait_until

HERE = Path(__file__).resolve().parent
PHP = "/usr/bin/php-cgi"
BIG = 300_000  # bytes; more than fits into socket buffers


class Site:
    """A WebHost and the releases on it.

    Args:
        document_root: webserver.document_root; for applications of single scripts (PHP).
        backend: what lighttpd connects to, relative to run/.
        options: of WebHost.
    """

    def __init__(
        self, *, document_root: str | None = None, backend: str = "app.sock", **options: Any
    ) -> None:
        self.host = _Host(document_root, backend, **options)
        self.root = self.host.root

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

    def release(self, name: str, *, health: dict[str, Any] | None = None, **app: Any) -> Path:
        """A release of the flup application in swapapp.py; `app` overrides keys of its manifest."""
        tree = self._tree(name, {"command": f"{sys.executable} app.py", **app}, health or {})
        shutil.copy(HERE / "swapapp.py", tree / "app.py")
        return tree

    def php_release(self, name: str, *, health: dict[str, Any] | None = None, **app: Any) -> Path:
        """A release of the same application in PHP, served by php-cgi."""
        manifest = {"command": PHP, **app}
        tree = self._tree(name, manifest, {"path": "/index.php", **(health or {})})
        (tree / "public").mkdir()
        shutil.copy(HERE / "swapapp.php", tree / "public" / "index.php")
        return tree

    def _tree(self, name: str, app: dict[str, Any], health: dict[str, Any]) -> Path:
        tree = self.root / "releases" / name
        tree.mkdir()
        manifest = {"id": name, "app": {"start_timeout": 10, "drain_timeout": 10, **app}, "health": health}
        (tree / ".deploytools.json").write_text(json.dumps(manifest))
        return tree

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

    def generation(self, path: str = "/") -> int:
        """The generation that answers a visitor."""
        return int(self.host.get(path).headers["x-generation"])

    def records(self) -> list[Record]:
        return generations.records(self.host.hostlib_config)

    def log(self) -> str:
        file = self.root / "log" / "app.log"
        return file.read_text() if file.exists() else ""

    # -- what is there --------------------------------------------------------------------------

    def processes(self) -> list[int]:
        """Every living process that works below the root: applications, and timers of `swap`."""
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if self._is_ours(pid)]

    def applications(self) -> set[int]:
        """The sessions (first pids) of the applications that run."""
        found = (generations.find_process(pid) for pid in self.processes() if self._is_ours(pid, "releases"))
        return {process.session for process in found if process}

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
        assert self.applications() == {record.pid for record in expected}
        names = {f"app.{record.generation}.{kind}" for record in expected for kind in ("sock", "json")}
        assert self.files() == names | {"app.sock"}


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


class Visitors:
    """Visitors who come without a pause until the block is left, and check all that they get.

    Half of them keep their connection, the others open one for each request. They send small GETs,
    GETs with a large answer, and POSTs with a body that is told back; every third one sends GETs that
    take long enough to be caught by whoever stops an application too early.
    """

    def __init__(self, site: Site, count: int = 6, path: str = "") -> None:
        self.answered = 0
        self.generations: Counter[str] = Counter()
        self.lost: list[str] = []
        self._site, self._path = site, path
        self._leave = threading.Event()
        self._threads = [threading.Thread(target=self._visit, args=(number,)) for number in range(count)]

    def __enter__(self) -> Visitors:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._leave.set()
        for thread in self._threads:
            thread.join()

    def _visit(self, number: int) -> None:
        connection = self._connection()
        body = hashlib.sha256(bytes([number])).digest() * 1000
        requests: Iterator[tuple[str, str, bytes | None]] = itertools.cycle(
            [("GET", "/slow?0.2", None)]
            if number % 3 == 2
            else [("GET", "/", None), ("GET", "/big", None), ("POST", "/echo", body)]
        )
        for method, path, sent in requests:
            if self._leave.is_set():
                break
            try:
                connection.request(method, self._path + path, sent)
                response = connection.getresponse()
                self._check(method, path, sent, response, response.read())
            except (OSError, http.client.HTTPException) as error:
                self.lost.append(f"{method} {path}: {error!r}")
                connection.close()
            if number % 2:
                connection.close()
        connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self._site.host.port, timeout=20)

    def _check(
        self, method: str, path: str, sent: bytes | None, response: http.client.HTTPResponse, got: bytes
    ) -> None:
        wanted = b"x" * BIG if path == "/big" else sent if sent is not None else got
        if response.status != 200 or got != wanted or not got:
            self.lost.append(f"{method} {path}: {response.status}, {len(got)} bytes {got[:60]!r}")
            return
        self.answered += 1
        self.generations[response.headers["X-Generation"]] += 1


def _runs(pid: int) -> bool:
    process = generations.find_process(pid)
    return process is not None and not process.dead
