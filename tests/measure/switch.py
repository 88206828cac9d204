"""`fab maint-down` on real hosts, proved, beside what others take merely to touch a file there.

    python -m tests.measure.switch --hosts 10 --rounds 7
    python -m tests.measure.switch --hosts 10 --rounds 5 --delay 100

Every way has its turn in every round, so that a busy machine is busy for all of them; told are medians, and
the median of each round's ratio to `fab maint-down`. After each turn every host is looked at from outside:
it has to answer the marked 503 (or not), or to have the file. Processor time is that of control groups:
the operator's processes, with whatever they leave in the background, and the hosts.

With --delay all is done a second time while a round trip takes so much longer, in milliseconds: the
difference is how many round trips a way takes.

The recipe of 2008 proves nothing: it waits 8 seconds. Prints a table, and one line of JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.fleet import images, keeper
from tests.fleet.fleet import DEPLOY_USER, Fleet
from tests.measure import contestants
from tests.measure.contestants import Way


@dataclass(frozen=True)
class Took:
    """Seconds: on the clock, and of processors on either side."""

    wall: float
    operator: float
    hosts: float


class Measurement:
    """Turns on one fleet; results by the way's name, a `Took` for each round."""

    def __init__(self, fleet: Fleet, ways: list[Way]) -> None:
        self.fleet, self.ways = fleet, ways
        self._turn = 0
        # Whoever keeps Python from saving what it compiled has it compile our modules every time.
        self._environment = {key: os.environ[key] for key in os.environ if not key.startswith("PYTHON")}
        self._operator = fleet.place.cgroups("operator")
        for cgroup in self._operator:
            cgroup.mkdir(exist_ok=True)

    def rounds(self, count: int) -> dict[str, list[Took]]:
        """Each way in its turn, `count` times after one round that doesn't count."""
        took: dict[str, list[Took]] = {way.name: [] for way in self.ways}
        for number in range(count + 1):
            for way in self.ways:
                once = self._do(way)
                if number:
                    took[way.name].append(once)
            self._disconnect()
            print(f"round {number} of {count} done, load {os.getloadavg()[0]:.1f}", file=sys.stderr)
        return took

    def _do(self, way: Way) -> Took:
        self._turn += 1
        path = f"/home/{DEPLOY_USER}/touched-{self._turn}"
        if way.fresh:
            self._disconnect()
        before = self._spent()
        began = time.monotonic()
        done = subprocess.run(
            keeper.joining(self._operator, way.argv(path)),
            cwd=self.fleet.operator.directory,
            env={**self._environment, "XDG_STATE_HOME": str(self.fleet.directory / "state")},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        wall = time.monotonic() - began
        spent = self._spent()
        assert done.returncode == 0, f"{way.name}: {done.returncode}\n{done.stdout}{done.stderr}"
        way.check(path)
        return Took(wall, spent[0] - before[0], spent[1] - before[1])

    def _spent(self) -> tuple[float, float]:
        """Processor seconds of the operator's processes, and of all hosts'."""
        hosts = (_processor_time(self.fleet.place.cgroups(host.name)[0]) for host in self.fleet)
        return _processor_time(self._operator[0]), sum(hosts)

    def _disconnect(self) -> None:
        """End what a way has left in the background: Ansible's connections."""
        while pids := list(keeper.processes(self._operator[0])):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
            time.sleep(0.01)


def _processor_time(cgroup: Path) -> float:
    lines = (cgroup / "cpu.stat").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("usage_usec")) / 1e6


def ratio(took: dict[str, list[Took]], name: str, to: str) -> float:
    """The median of what each round says."""
    pairs = zip(took[name], took[to], strict=True)
    return statistics.median(one.wall / other.wall for one, other in pairs)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hosts", type=int, default=10, help="how many (10)")
    parser.add_argument("--rounds", type=int, default=7, help="how many count (7)")
    parser.add_argument(
        "--suite", action="append", choices=images.SUITES, help="may be given twice (bookworm)"
    )
    parser.add_argument("--delay", type=float, help="then again with round trips this much longer, in ms")
    parser.add_argument("--only", action="append", help="only the ways whose name contains this")
    given = parser.parse_args()

    versions = contestants.install()
    load = [round(os.getloadavg()[0], 1)]
    with Fleet(given.hosts, suites=given.suite or ["bookworm"]) as fleet:
        fleet.operator.fab("setup", "--as-user", "root", "--yes", timeout=600)
        contestants.put_recipe(fleet)
        ways = contestants.all_ways(fleet, versions)
        if given.only:
            ways = [way for way in ways if any(part in way.name for part in ["fab ", *given.only])]
        measurement = Measurement(fleet, ways)
        took = measurement.rounds(given.rounds)
        delayed = None
        if given.delay:
            fleet.in_parallel(lambda host: host.delay(given.delay))
            delayed = measurement.rounds(given.rounds)
    load.append(round(os.getloadavg()[0], 1))
    tell(given, ways, took, delayed, load)
    return 0


def tell(
    given: argparse.Namespace,
    ways: list[Way],
    took: dict[str, list[Took]],
    delayed: dict[str, list[Took]] | None,
    load: list[float],
) -> None:
    ours = ways[0].name
    width = max(len(way.name) for way in ways)
    columns = ["seconds", "ratio", "operator's CPU s", "hosts' CPU s"]
    columns += [f"with {given.delay:g} ms", "round trips"] if delayed else []
    print(f"{given.hosts} hosts, {given.rounds} rounds, {os.cpu_count()} processors, load {load}")
    print("  ".join(["".ljust(width), *columns]))
    told = {}
    for way in ways:
        turns = took[way.name]
        found = {
            "seconds": statistics.median(turn.wall for turn in turns),
            "ratio": ratio(took, way.name, ours),
            "operator_cpu": statistics.median(turn.operator for turn in turns),
            "hosts_cpu": statistics.median(turn.hosts for turn in turns),
        }
        if delayed:
            found["delayed"] = statistics.median(turn.wall for turn in delayed[way.name])
            found["round_trips"] = (found["delayed"] - found["seconds"]) / given.delay * 1000
        told[way.name] = {key: round(value, 2) for key, value in found.items()}
        cells = (f"{value:.2f}".rjust(len(name)) for name, value in zip(columns, found.values(), strict=True))
        print("  ".join([way.name.ljust(width), *cells]))
    about = {"hosts": given.hosts, "rounds": given.rounds, "suites": given.suite, "delay_ms": given.delay}
    print(json.dumps({**about, "processors": os.cpu_count(), "load": load, "ways": told}))


if __name__ == "__main__":
    sys.exit(main())
