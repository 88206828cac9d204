"""`fab deploy` without downtime and `fab rollback` on real hosts: what visitors lose, and how long they wait.

    python -m tests.measure.rolling --hosts 10 --rounds 3

Each round is a deploy of a new release of a php-cgi application, host by host after the first, and a
rollback, while visitors ask every host all the time. Any answer that isn't the application's counts as lost.
Of a rollback are told the seconds from the command to when every host was seen to answer by the release
before, and to when the command was done.

Prints a table, and one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from deploytools.sandbox.traffic import APP, Record
from tests.fleet import sample
from tests.fleet.fleet import Fleet
from tests.measure.windows import VISITORS, visited

PAGE = "<?php header('X-Schema-Expected: any'); header('X-Release: ' . basename(realpath('..'))); // %d\n"


@dataclass(frozen=True)
class Round:
    """Seconds of the deploy, of the rollback until it serves everywhere, and until it is done."""

    deploy: float
    serving: float
    rollback: float
    requests: int
    lost: int


class Measurement:
    """Deploys and rollbacks on one fleet."""

    def __init__(self, fleet: Fleet, batch: str) -> None:
        self.fleet, self.fab, self.batch, self.number = fleet, fleet.operator.fab, batch, 0
        sample.begin(fleet)
        self._commit()
        self.fab("setup", "--as-user", "root", "--yes", timeout=600)
        self.fab("deploy", "--yes", timeout=600)

    def round(self) -> Round:
        before = self.fleet.hosts[0].get("/").headers["x-release"]
        self._commit()
        began = time.monotonic()
        with visited(self.fleet, VISITORS) as during_deploy:
            self.fab("deploy", "--yes", "--batch", self.batch, timeout=600)
            deployed = time.monotonic() - began
        began = time.monotonic()
        with visited(self.fleet, VISITORS) as during_rollback:
            self.fab("rollback", "--yes", timeout=600)
            rolled_back = time.monotonic() - began
        every = [each for seen in (during_deploy, during_rollback) for one in seen.values() for each in one]
        lost = [record for record in every if record.kind != APP]
        for record in lost[:5]:
            print(f"lost: {record}", file=sys.stderr)
        serving = max(first_of(before, records) for records in during_rollback.values())
        return Round(deployed, serving, rolled_back, len(every), len(lost))

    def _commit(self) -> None:
        self.number += 1
        (self.fleet.operator.directory / "public/index.php").write_text(PAGE % self.number)
        sample.commit(self.fleet, f"Change {self.number}")


def first_of(release: str, records: Iterable[Record]) -> float:
    """When a host's first answer by `release` was there, in seconds since its visitors began."""
    return min(record.start + record.seconds for record in records if record.release == release)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hosts", type=int, default=10, help="how many (10)")
    parser.add_argument("--rounds", type=int, default=3, help="how many count, after one that doesn't (3)")
    parser.add_argument("--batch", default="1", help="as of fab deploy (1)")
    given = parser.parse_args()

    load = [round(os.getloadavg()[0], 1)]
    rounds = []
    with Fleet(given.hosts) as fleet:
        measurement = Measurement(fleet, given.batch)
        for number in range(given.rounds + 1):
            rounds.append(measurement.round())
            print(f"round {number} of {given.rounds}: {rounds[-1]}", file=sys.stderr)
    load.append(round(os.getloadavg()[0], 1))
    tell(given, rounds[1:], load)
    return 1 if any(one.lost for one in rounds) else 0


def tell(given: argparse.Namespace, rounds: Sequence[Round], load: list[float]) -> None:
    found = {
        "deploy": statistics.median(one.deploy for one in rounds),
        "serving": statistics.median(one.serving for one in rounds),
        "rollback": statistics.median(one.rollback for one in rounds),
        "requests": sum(one.requests for one in rounds),
        "lost": sum(one.lost for one in rounds),
    }
    print(f"{given.hosts} hosts, {given.rounds} rounds, {os.cpu_count()} processors, load {load}")
    print(f"a deploy, --batch {given.batch}: {found['deploy']:.1f} s")
    print(
        f"a rollback: serves everywhere {found['serving']:.2f} s after the command,"
        f" done {found['rollback']:.2f} s"
    )
    print(f"requests: {found['requests']}, lost: {found['lost']}")
    about = {"hosts": given.hosts, "rounds": given.rounds, "batch": given.batch}
    told = {key: round(value, 2) for key, value in found.items()}
    print(json.dumps({**about, "processors": os.cpu_count(), "load": load, **told}))


if __name__ == "__main__":
    sys.exit(main())
