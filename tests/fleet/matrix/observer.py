"""The public: asks every host all the time, and writes down what it got. A process of its own.

    with Observer({"web1": "10.77.1.2"}, Path("seen.jsonl")) as observer:
        began = time.time()
        ...
        for answer in observer.since(began): ...

Two visitors per host, ten requests a second each: one connects anew each time, the other keeps its
connection. Every fifth request asks the application to take its time, so that some are always in flight.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

INTERVAL = 0.1  # seconds between the requests of a visitor
SLOW_EVERY, SLOW = 5, 150  # each so many requests, and the milliseconds that it takes
HANG = 15.0  # seconds without an answer; this machine may be busy
IDLE = 2.0  # seconds after which a kept connection may have been closed for good reasons
ANSWER = re.compile(r"code=(\d+) schema=(\d+),(\d+)\n")


@dataclass(frozen=True)
class Seen:
    """One request, and what came of it.

    Args:
        began, ended: seconds since the epoch.
        kind: `app`, `maintenance` (the marked page), `refused`, `lost` (cut off before or in the answer),
            `hang`, or `error` for any other answer.
        met: with `app`, the code and the schema's revision before and after its work.
    """

    host: str
    began: float
    ended: float
    kind: str
    detail: str
    met: tuple[int, int, int] | None = None

    @property
    def mixed(self) -> bool:
        """Whether code met a schema that it isn't made for."""
        return self.met is not None and len(set(self.met)) > 1


class Observer:
    """The process, from `__enter__` to `__exit__`; what it saw is in a file, a line per request."""

    def __init__(self, hosts: Mapping[str, str], file: Path) -> None:
        self._argv = [sys.executable, __file__, str(file), *(f"{name}={at}" for name, at in hosts.items())]
        self._file = file
        self._process: subprocess.Popen[bytes] | None = None
        self._seen: list[Seen] = []
        self._read = 0  # bytes of the file that are in _seen

    def __enter__(self) -> Observer:
        self._file.touch()
        self._process = subprocess.Popen(self._argv, stdin=subprocess.PIPE)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        self._process.communicate(timeout=2 * HANG)

    def since(self, began: float) -> list[Seen]:
        """The requests that began at that moment or later and have come to their end."""
        assert self._process is not None
        assert self._process.poll() is None, "the observer has ended"
        # Only what is new: this is polled, and the file grows by dozens of lines a second.
        with self._file.open("rb") as file:
            file.seek(self._read)
            new = [line for line in file if line.endswith(b"\n")]
        self._read += sum(map(len, new))
        self._seen += map(_read, new)
        return [seen for seen in self._seen if seen.began >= began]


def _read(line: bytes) -> Seen:
    told = json.loads(line)
    return Seen(**{**told, "met": told["met"] and tuple(told["met"])})


def watch(file: Path, hosts: Mapping[str, str]) -> None:
    """Be the observer, until standard input ends."""
    leave, lock = threading.Event(), threading.Lock()
    with file.open("a") as out:
        visitors = [
            threading.Thread(target=_visit, args=(name, at, keep, leave, lock, out), daemon=True)
            for name, at in hosts.items()
            for keep in (False, True)
        ]
        for visitor in visitors:
            visitor.start()
        sys.stdin.read()
        leave.set()
        for visitor in visitors:
            visitor.join(HANG)


def _visit(
    host: str, address: str, keep: bool, leave: threading.Event, lock: threading.Lock, out: IO[str]
) -> None:
    connection = http.client.HTTPConnection(address, timeout=HANG)
    number, ended = 0, 0.0
    while not leave.wait(INTERVAL):
        number += 1
        if not keep or time.time() - ended > IDLE:
            connection.close()
        began = time.time()
        path = f"/?slow={SLOW}" if number % SLOW_EVERY == 0 else "/"
        kind, detail, met = _ask(connection, path)
        ended = time.time()
        if kind not in ("app", "maintenance"):
            connection.close()
        told = {"host": host, "began": began, "ended": ended, "kind": kind, "detail": detail, "met": met}
        with lock:
            out.write(json.dumps(told) + "\n")
            out.flush()


def _ask(connection: http.client.HTTPConnection, path: str) -> tuple[str, str, tuple[int, ...] | None]:
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read().decode(errors="replace")
    except TimeoutError:
        return "hang", f"{path}: no answer for {HANG:g} s", None
    except ConnectionRefusedError:
        return "refused", path, None
    except (OSError, http.client.HTTPException) as error:
        return "lost", f"{path}: {error!r}", None
    if answer.status == 503 and answer.getheader("X-Maintenance-Mode") == "1":
        return "maintenance", "", None
    if answer.status == 200 and (told := ANSWER.fullmatch(body)):
        return "app", "", tuple(map(int, told.groups()))
    return "error", f"{path}: {answer.status} {body[:200]!r}", None


def between(answers: list[Seen], since: float, until: float) -> Iterator[Seen]:
    """Those that were under way in that time."""
    return (seen for seen in answers if seen.ended >= since and seen.began <= until)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        pairs = [word.split("=", 1) for word in sys.argv[2:]]
        watch(Path(sys.argv[1]), dict(pairs))
