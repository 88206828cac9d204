"""`fab deploy --with-downtime` on real hosts: for how long visitors see it, beyond the migration.

    python -m tests.measure.windows --hosts 10 --rounds 7
    python -m tests.measure.windows --hosts 10 --rounds 5 --delay 100

Each round is a whole window: a new release of a php-cgi application with one migration, which takes a second
and does nothing else. Visitors ask every host all the time. The fleet is visibly down from the first answer
that isn't the application's, from any host, to the first one after the last of these, by the time they were
sent; a host by its own answers alone. Told are medians over the rounds, less what the migration took by its
own clock. An answer that is neither the application's nor the marked maintenance page is a failure, and so is
one by the old release after one by the new release.

With --delay all is done a second time while a round trip takes so much longer, in milliseconds.

Prints a table, and one line of JSON.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from deploytools.sandbox.traffic import LOST, Record, classify, classify_error, downtime
from tests.fleet import Host, sample
from tests.fleet.fleet import Fleet

# Visitors of each host, and seconds between the starts of two requests of one; with a delay it takes more of
# them for the same number of requests.
VISITORS, PACE = 2, 0.04
MIGRATION = 1.0  # seconds
APPLIED = "/srv/guestbook/shared/applied"

# A release knows its migrations; those that were applied are lines of a file on the migration host, and no
# other host can tell.
FILES = {
    "public/index.php": """\
<?php
header('X-Schema-Expected: any');
header('X-Release: ' . basename(realpath('..')));
""",
    "status": f"""\
#!/bin/sh
[ "$(hostname)" = web1 ] || exit 1
while read -r name; do
  if grep -qsx "$name" {APPLIED}; then echo "[X] $name"; else echo "[ ] $name"; fi
done <migrations
""",
    "apply": f"#!/bin/sh\nsleep {MIGRATION}\ncp migrations {APPLIED}\n",
}
MIGRATE = """
  migrate:
    adapter: command
    python: /usr/bin/python3
    cwd: "{release}"
    status: ./status
    apply: ./apply
"""


class Visitor(threading.Thread):
    """Asks one host again and again, on a connection that it keeps while it can."""

    def __init__(self, host: Host, port: int, began: float, over: threading.Event) -> None:
        super().__init__(daemon=True)
        self.host, self.port, self.began, self.over = host, port, began, over
        self.records: list[Record] = []
        self.connection: http.client.HTTPConnection | None = None

    def run(self) -> None:
        while not self.over.is_set():
            due = time.monotonic() + PACE
            self.records.append(self.visit(fresh=self.connection is None))
            self.over.wait(due - time.monotonic())

    def visit(self, *, fresh: bool) -> Record:
        start, answer = time.monotonic(), None
        try:
            self.connection = self.connection or http.client.HTTPConnection(
                self.host.address, self.port, timeout=30
            )
            self.connection.request("GET", "/")
            answer = self.connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException) as error:
            if self.connection is not None:
                self.connection.close()
                self.connection = None
            if not fresh and answer is None:  # the server may close a connection that it kept
                return self.visit(fresh=True)
            kind = classify_error(error, answer_begun=answer is not None)
            return Record(start - self.began, time.monotonic() - start, kind)
        headers = {name.lower(): value for name, value in answer.getheaders()}
        return Record(
            start - self.began,
            time.monotonic() - start,
            classify(answer.status, headers),
            answer.status,
            headers.get("x-release", ""),
            schema=headers.get("x-schema", ""),
            expected=headers.get("x-schema-expected", ""),
        )


@contextmanager
def visited(fleet: Fleet, visitors: int, *, port: int = 80) -> Iterator[dict[str, list[Record]]]:
    """Visitors for every host; what they were answered is there at the end, by host."""
    began, over = time.monotonic(), threading.Event()
    crowd = [Visitor(host, port, began, over) for host in fleet for _ in range(visitors)]
    for visitor in crowd:
        visitor.start()
    found: dict[str, list[Record]] = {host.name: [] for host in fleet}
    try:
        yield found
        time.sleep(0.5)  # some answers after the last host is up
    finally:
        over.set()
        for visitor in crowd:
            visitor.join()
            found[visitor.host.name] += visitor.records


@dataclass(frozen=True)
class Round:
    """One window, in seconds beyond the migration: as the fleet's visitors saw it, and each host's."""

    fleet: float
    hosts: tuple[float, ...]
    migration: float
    wall: float
    requests: int
    steps: dict[str, float] = field(default_factory=dict)


class Measurement:
    """Windows on one fleet."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet, self.number, self.delay = fleet, 0, 0.0
        sample.begin(fleet)
        project = fleet.operator.directory
        for path, text in FILES.items():
            (project / path).write_text(text)
        for path in ("status", "apply"):
            (project / path).chmod(0o755)
        with (project / "fabric.yaml").open("a") as file:
            file.write(MIGRATE)
        self._commit()
        fleet.operator.fab("setup", "--as-user", "root", "--yes", timeout=600)
        fleet.operator.fab("deploy", "--with-downtime", "--yes", timeout=600)

    def rounds(self, count: int) -> list[Round]:
        """So many that count, after one that doesn't."""
        took = []
        for number in range(count + 1):
            took.append(self._window())
            print(
                f"round {number} of {count}: {took[-1].fleet:.2f} s, load {os.getloadavg()[0]:.1f}",
                took[-1].steps,
                file=sys.stderr,
            )
        return took[1:]

    def _commit(self) -> None:
        self.number += 1
        names = "".join(f"change-{number}\n" for number in range(1, self.number + 1))
        (self.fleet.operator.directory / "migrations").write_text(names)
        sample.commit(self.fleet, f"Change {self.number}")

    def _window(self) -> Round:
        self._commit()
        began = time.monotonic()
        with visited(self.fleet, VISITORS + int(2 * self.delay / 1000 / PACE)) as seen:
            self.fleet.operator.fab("deploy", "--with-downtime", "--yes", timeout=600)
        wall = time.monotonic() - began
        run = json.loads(self.fleet.operator.fab("history", "--json").stdout)[0]
        every = [record for records in seen.values() for record in records]
        lost = [record for record in every if record.kind in LOST]
        assert not lost, f"lost: {lost[:5]}"
        whole = downtime(every)
        assert whole is not None, "visitors saw no window at all"
        assert_that_nobody_went_back(every)
        migration = run["migration_seconds"]
        hosts = tuple(_downtime(records) - migration for records in seen.values())
        return Round(
            whole["seconds"] - migration, hosts, migration, wall, len(every), _steps(self.fleet, run)
        )


def assert_that_nobody_went_back(records: Sequence[Record]) -> None:
    met = sorted((record.start, record.start + record.seconds, record.release) for record in records)
    old, new = dict.fromkeys(release for _, _, release in met if release)
    last_of_old = max(began for began, _, release in met if release == old)
    first_of_new = min(ended for _, ended, release in met if release == new)
    assert last_of_old < first_of_new, "the old release answered after the new one"


def _downtime(records: Sequence[Record]) -> float:
    found = downtime(records)
    assert found is not None, "a host was never down"
    return float(found["seconds"])


def _steps(fleet: Fleet, run: dict[str, str]) -> dict[str, float]:
    """How long each step took, as the journal has it."""
    journal = fleet.operator.directory / "state/deploytools/journal" / f"{run['run_id']}.jsonl"
    records = [json.loads(line) for line in journal.read_text().splitlines()]
    return {record["step"]: record["seconds"] for record in records if record["kind"] == "outcome"}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hosts", type=int, default=10, help="how many (10)")
    parser.add_argument("--rounds", type=int, default=7, help="how many count (7)")
    parser.add_argument("--delay", type=float, help="then again with round trips this much longer, in ms")
    given = parser.parse_args()

    load = [round(os.getloadavg()[0], 1)]
    with Fleet(given.hosts) as fleet:
        measurement = Measurement(fleet)
        took = {0.0: measurement.rounds(given.rounds)}
        if given.delay:
            fleet.in_parallel(lambda host: host.delay(given.delay))
            measurement.delay = given.delay
            took[given.delay] = measurement.rounds(given.rounds)
    load.append(round(os.getloadavg()[0], 1))
    tell(given, took, load)
    return 0


def tell(given: argparse.Namespace, took: dict[float, list[Round]], load: list[float]) -> None:
    print(f"{given.hosts} hosts, {given.rounds} rounds, {os.cpu_count()} processors, load {load}")
    print("visible downtime beyond the migration, medians in seconds")
    print(f"{'delay':>8}  {'fleet':>6}  {'(most)':>6}  {'a host':>6}  {'whole deploy':>12}  {'requests':>8}")
    told = {}
    for delay, rounds in took.items():
        found = {
            "fleet": statistics.median(one.fleet for one in rounds),
            "most": max(one.fleet for one in rounds),
            "host": statistics.median(host for one in rounds for host in one.hosts),
            "wall": statistics.median(one.wall for one in rounds),
            "requests": sum(one.requests for one in rounds),
        }
        names = rounds[0].steps
        steps = {name: statistics.median(one.steps[name] for one in rounds) for name in names}
        told[f"{delay:g}"] = {**{key: round(value, 2) for key, value in found.items()}, "steps": steps}
        print(
            f"{delay:5g} ms  {found['fleet']:6.2f}  {found['most']:6.2f}  {found['host']:6.2f}"
            f"  {found['wall']:12.1f}  {found['requests']:8}"
        )
    about = {"hosts": given.hosts, "rounds": given.rounds, "delay_ms": given.delay}
    print(json.dumps({**about, "processors": os.cpu_count(), "load": load, "took": told}))


if __name__ == "__main__":
    sys.exit(main())
