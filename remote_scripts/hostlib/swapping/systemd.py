"""Generations as instances of a pair of unit templates, which `fab setup` installs.

    deploytools-APP@N.socket    the listening socket; systemd owns it, so it outlives the application
    deploytools-APP@N.service   the application; started again whenever it ends

An application that binds its socket itself has no .socket unit. Operators limit and sandbox the
application with `systemctl edit deploytools-APP@.service`.
"""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Sequence
from pathlib import Path

from hostlib.program import USAGE, Config, Failure
from hostlib.swapping import processes
from hostlib.swapping.generation_runner import how_it_ended
from hostlib.swapping.generations import Life, Record

NAME = "systemd"
UNITS = Path("/etc/systemd/system")
ENDED = ("inactive", "failed")  # states of a unit
# What systemd's journal calls the end of a unit's process: SD_MESSAGE_UNIT_PROCESS_EXIT of sd-messages.h.
PROCESS_EXITED = "98e322203f7a4ed290d09fe03c09fe15"
# How long the journal may take, in seconds: the way back of a swap waits for what it tells.
JOURNAL = 5.0


def runs() -> bool:
    """True where systemd is the init of this host: see sd_booted(3)."""
    return Path("/run/systemd/system").is_dir()


def is_ours_to_use(config: Config) -> bool:
    """True where generations can be units: systemd runs, and we may command it."""
    return runs() and config.privileged


class Systemd:
    """The systemd `Manager`."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def start(self, record: Record) -> Record:
        service, units = self._service(record), self._units(record)
        if not (UNITS / f"{self._template}.service").exists():
            raise Failure(
                f"this host has no unit {self._template}.service",
                state="what served before serves on",
                next="fab setup",
                exit_code=USAGE,
            )
        started = _systemctl("start", *units)
        if started.returncode != 0:
            raise Failure(
                f"systemd can't start {service}: {started.stderr.strip()}",
                state="what served before serves on",
                next=f"journalctl -u {service}",
            )
        pid = int(_properties(service, "MainPID")["MainPID"])
        process = processes.find(pid) if pid else None
        return record.saved(
            self._config,
            pid=pid or None,
            start_time=process.start_time if process else None,
            boot_id=processes.boot_id(),
        )

    def look(self, record: Record) -> Life:
        if processes.first_process(record):  # asking systemd takes a while
            return Life(record.pid)
        seen = _properties(
            self._service(record), "MainPID", "NRestarts", "ActiveState", "ExecMainCode", "ExecMainStatus"
        )
        pid, restarts = int(seen["MainPID"]), int(seen["NRestarts"])
        if pid:
            return Life(pid, restarts, ended_before(self._service(record)) if restarts else None)
        ended = _end(int(seen["ExecMainCode"]), int(seen["ExecMainStatus"]))
        return Life(None, restarts, ended, over=seen["ActiveState"] in ENDED)

    def stop(self, record: Record) -> None:
        stopped = _systemctl("stop", *self._units(record))
        if stopped.returncode != 0 and self._is_there(record):
            raise Failure(
                f"systemd can't stop {record}: {stopped.stderr.strip()}",
                next=f"systemctl status {self._service(record)}",
            )

    @property
    def _template(self) -> str:
        return f"deploytools-{self._config.application}@"

    def _service(self, record: Record) -> str:
        return f"{self._template}{record.generation}.service"

    def _units(self, record: Record) -> list[str]:
        """The socket comes first: it is passed to the service."""
        socket = [] if record.binds_itself else [f"{self._template}{record.generation}.socket"]
        return [*socket, self._service(record)]

    def _is_there(self, record: Record) -> bool:
        states = (_properties(unit, "ActiveState")["ActiveState"] for unit in self._units(record))
        return any(state not in ENDED for state in states)


def run_later(seconds: float, argv: Sequence[str]) -> None:
    """Let systemd run `argv` in so many seconds. Raises OSError where it refuses."""
    timer = ["--on-active", f"{math.ceil(seconds)}s", "--timer-property=AccuracySec=100ms"]
    ran = _run("systemd-run", "--quiet", "--collect", *timer, "--", *argv)
    if ran.returncode != 0:
        raise OSError(f"systemd-run: {ran.stderr.strip()}")


def _end(code: int, status: int) -> str:
    """Given ExecMainCode (1: exited, 2 and 3: killed by a signal) and ExecMainStatus, return it in words."""
    return how_it_ended(status if code == 1 else -status) if code else "it is not running"


def ended_before(unit: str) -> str:
    """How the application of a unit ended last, although it was started again: that only the journal tells.

    It tells root, and nobody where there is none.
    """
    try:
        found = _run(
            "journalctl",
            "--quiet",
            f"--unit={unit}",
            f"MESSAGE_ID={PROCESS_EXITED}",
            "--lines=1",
            "--output=json",
            timeout=JOURNAL,
        )
        told = json.loads(found.stdout)
        code, status = str(told["EXIT_CODE"]), int(told["EXIT_STATUS"])
    except (ValueError, KeyError, TypeError, subprocess.TimeoutExpired):
        return "it ended, and was started again"
    return how_it_ended(status if code == "exited" else -status)


def _properties(unit: str, *names: str) -> dict[str, str]:
    """Some properties of a unit; anybody may ask."""
    shown = _systemctl("show", unit, f"--property={','.join(names)}")
    found = dict(line.split("=", 1) for line in shown.stdout.splitlines() if "=" in line)
    if not found.keys() >= set(names):
        raise OSError(f"systemctl show {unit}: {shown.stderr.strip() or shown.stdout.strip()}")
    return found


def _systemctl(*argv: str) -> subprocess.CompletedProcess[str]:
    return _run("systemctl", *argv)


def _run(*argv: str, timeout: float | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=timeout
    )
