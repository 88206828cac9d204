"""The fleet of the trials: set up, with v1 deployed, watched by the public; restored between two trials.

with Site(fleet) as site:
    site.restore()
    run = site.deploy("v2", point="send:swap", act="kill")
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.fleet.fleet import Fleet
from tests.fleet.hosts import Host, wait_until
from tests.fleet.matrix import application
from tests.fleet.matrix.application import WORK
from tests.fleet.matrix.observer import Observer
from tests.support.operators import Operator

ROOT, TOOLS = "/srv/guestbook", "/usr/local/lib/deploytools/guestbook"
# Migrations' runners, as systemd knows them.
MIGRATIONS = "deploytools-guestbook-migration-*"
RUN_ID = 'import json; print(json.load(open("/etc/lighttpd/maint.json")).get("run_id") or "")'
# A host as it is after the first deploy. $1: that release; $2 prints the run whose window is open.
RESTORE = f"""
rm -rf {WORK}/*
systemctl kill --signal=SIGKILL '{MIGRATIONS}' || :
systemctl reset-failed
run=$(python3 -c "$2" 2>/dev/null || :)
[ -z "$run" ] || /etc/lighttpd/up --force "$run" >/dev/null
if [ "$(readlink {ROOT}/current)" != "releases/$1" ]; then {TOOLS}/swap --release "$1" >/dev/null; fi
for release in {ROOT}/releases/* {ROOT}/releases/.[a-z]*; do
  [ "$release" = "{ROOT}/releases/$1" ] || rm -rf "$release"
done
rm -rf {ROOT}/state/lock {ROOT}/state/journal/* {ROOT}/migrations/* {ROOT}/migrations/.[a-z]*
"""


@dataclass(frozen=True)
class Ran:
    """A `fab` that came to its end; code -9 where it was killed."""

    code: int
    out: str
    err: str
    command: str

    def __str__(self) -> str:
        return f"$ {self.command}\n{self.out}{self.err}(exit code {self.code})"


class Running:
    """A `fab` that is under way.

    Args:
        gate: where the operator says that he waits at the point, and is told to go on.
        reached: there once the point was reached.
    """

    def __init__(self, process: subprocess.Popen[str], command: str, gate: Path) -> None:
        self.process, self._command, self._gate = process, command, gate
        self.reached = gate.with_suffix(".reached")

    def wait_until_here(self) -> None:
        """Until it waits at its point. Raises AssertionError where it ends before."""
        here = Path(f"{self._gate}.here")
        wait_until(
            lambda: here.exists() or self.process.poll() is not None,
            lambda: f"{self._command} to come to its point",
            120,
        )
        if not here.exists():
            raise AssertionError(f"it didn't come to its point: {self.end()}")

    def go_on(self) -> None:
        """From the point on."""
        Path(f"{self._gate}.go").touch()
        self.process.send_signal(signal.SIGCONT)

    def end(self, seconds: float = 200) -> Ran:
        """Wait for its end."""
        out, err = self.process.communicate(timeout=seconds)
        assert "\nTraceback" not in f"\n{err}", err
        return Ran(self.process.returncode, out, err, self._command)


class Site:
    """What the trials have in common.

    Attributes:
        first, second: two operators, each with a checkout and a memory of his own. The second one's is at
            another commit, with hooks and an application that no run is about.
        release: of v1.
    """

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.web1: Host = fleet.hosts[0]
        self.first = fleet.operator
        self.second = Operator(fleet.directory / "elsewhere")
        self._runs = fleet.directory / "runs"
        self._runs.mkdir()
        self._number = 0
        self.observer = Observer({host.name: host.address for host in fleet}, fleet.directory / "seen.jsonl")

    def __enter__(self) -> Site:
        application.begin(self.fleet)
        application.prepare(self.fleet)
        self.first.fab("setup", "--as-user", "root", "--yes")
        self.first.fab("deploy", "--ref", "v1", "--yes")
        self.release = self.web1.run(["readlink", f"{ROOT}/current"]).stdout.strip().rpartition("/")[2]
        shutil.copytree(self.first.directory, self.second.directory, ignore=shutil.ignore_patterns("state"))
        application.elsewhere(self.second.directory)
        self.observer.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.observer.__exit__(kind, error, trace)

    # -- before a trial ---------------------------------------------------------------------------

    def restore(self) -> None:
        """Everything as it was after the first deploy, and seen to be so by the public."""
        self.fleet.in_parallel(self._restore)
        began = time.time()

        def restored() -> bool:
            newest = {seen.host: seen for seen in self.observer.since(began)}
            return len(newest) == len(self.fleet.hosts) and all(
                seen.met == (1, 1, 1) for seen in newest.values()
            )

        wait_until(restored, lambda: f"v1 in front of the public: {self.observer.since(began)[-4:]}")
        shutil.rmtree(self.first.directory / "state", ignore_errors=True)
        shutil.rmtree(self.second.directory / "state", ignore_errors=True)

    def _restore(self, host: Host) -> None:
        if not host.is_running:
            host.boot()
        host.link_up()
        host.free_disk()
        host.run(["sh", "-eu", "-c", RESTORE, "sh", self.release, RUN_ID], timeout=120)
        if host is self.web1:
            application.reset(host)

    # -- in a trial -------------------------------------------------------------------------------

    def deploy(
        self, ref: str, *, point: str = "", act: str = "kill", by: Operator | None = None, **variables: str
    ) -> Running:
        """Begin a window that brings that commit."""
        words = ("deploy", "--ref", ref, "--with-downtime", "--reason", "a trial", "--yes")
        return self.start(*words, point=point, act=act, by=by, **variables)

    def start(
        self, *words: str, point: str = "", act: str = "kill", by: Operator | None = None, **variables: str
    ) -> Running:
        """Begin `fab WORDS`, in the first checkout where nobody else is named."""
        self._number += 1
        gate = self._runs / str(self._number)
        if point:
            act = f"{act}:{gate}" if act in ("wait", "freeze") else act
            variables.update(MATRIX_POINT=point, MATRIX_ACT=act, MATRIX_REACHED=f"{gate}.reached")
        process = (by or self.first).start(*words, **variables)
        return Running(process, f"fab {' '.join(words)}", gate)

    def fab(self, *words: str, by: Operator | None = None, **variables: str) -> Ran:
        """`fab WORDS` to its end."""
        return self.start(*words, by=by, **variables).end()

    def wait_until_at(self, place: str, running: Running) -> None:
        """Until the migration waits there."""

        def at() -> bool:
            assert running.process.poll() is None, running.end()
            return self.web1.exists(f"{WORK}/at-{place}")

        wait_until(at, lambda: f"the migration to wait {place} its transaction", 120)

    # -- after it ---------------------------------------------------------------------------------

    def status(self, host: Host) -> dict[str, Any]:
        """What the host says of itself."""
        told: dict[str, Any] = json.loads(host.run([f"{TOOLS}/status", "--json"]).stdout)
        return told

    def statuses(self) -> dict[str, dict[str, Any]]:
        found = self.fleet.in_parallel(self.status)
        return {host.name: told for host, told in zip(self.fleet.hosts, found, strict=True)}

    def revision(self) -> int:
        """The schema's."""
        return int(application.ask(self.web1, "select max(name)::int from migrations"))

    def starts(self) -> list[str]:
        """A line for each time that a migration was begun: its name, and its session's."""
        return self.web1.run(f"cat {WORK}/started", check=False).stdout.splitlines()

    def journals(self) -> dict[str, list[Mapping[str, Any]]]:
        """What the lock host remembers, by run."""
        return _journals(Path(f"/proc/{self.web1.leader}/root{ROOT}/state/journal"))

    def mirrors(self) -> dict[str, list[Mapping[str, Any]]]:
        """What the first operator's computer remembers, by run."""
        return _journals(self.first.directory / "state/deploytools/journal")


def _journals(directory: Path) -> dict[str, list[Mapping[str, Any]]]:
    return {
        path.stem: [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted(directory.glob("*.jsonl"))
    }
