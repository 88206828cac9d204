"""Hot swaps without a pause under load, for every runtime: what was lost, and what did it cost the others?

    python -m tests.measure.swaps --requests 1000000
    python -m tests.measure.swaps --requests 60000 --rate 300 --runtimes php-cgi c

Each combination of a runtime, a kind of listener, a manager and a place first has visitors alone for a
while, then the same visitors and one swap after the other. Places are real hosts of the test fleet (needs
root) and `here`: without systemd, so by plain processes only. Prints a line for each; ends with 1 if a
request was lost or a swap failed. Finished combinations are kept in a file, so the same command goes on where
it was interrupted. Which swaps follow each other, and with which pauses, is drawn from --seed.

Times are in milliseconds. `p50` and `p99` are what it took to answer without swaps and (after the arrow) the
requests that were under way while a swap was at work. `extra` is the time from typing the command until
a visitor met the new generation, less the application's own start: median and most.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import sys
import time
from array import array
from bisect import bisect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tests.fleet import Fleet
from tests.fleet.images import SUITES
from tests.fleet.swaphost import PACKAGES, SwapHost, set_up
from tests.support.load import Visitors
from tests.support.runtimes import RUNTIMES, Runtime
from tests.support.webhost import Ran, wait_until

from tests.support.swapsite import Site  # isort: skip - finds hostlib by way of webhost

HERE = "here"
QUIET = 0.2  # the part of the requests that are sent without swaps, for comparison
LONGEST_PAUSE = 0.5  # seconds between two swaps
WARM = 3  # seconds for which some of the old generations stay, to be gone back to


@dataclass(frozen=True)
class Cell:
    """What is measured together."""

    runtime: str
    listen: str
    manager: str
    place: str


@dataclass
class Result:
    """What was seen of a cell; times in seconds."""

    cell: Cell | None = None
    swaps: int = 0
    back: int = 0  # so many of them with --back
    requests: int = 0  # while there were swaps
    lost: dict[str, int] = field(default_factory=dict)
    details: list[str] = field(default_factory=list)
    quiet: tuple[float, float] = (0, 0)  # p50, p99
    swapping: tuple[float, float] = (0, 0)
    extra: list[float] = field(default_factory=list)

    COLUMNS = "{:8} {:5} {:8} {:9} {:>5} {:>5} {:>8} {:>4}  {:>16} {:>16} {:>10}"
    HEADS = COLUMNS.format(
        *("runtime", "takes", "manager", "place", "swaps", "back", "requests", "lost"),
        *("p50 -> swapping", "p99 -> swapping", "extra"),
    )

    def line(self) -> str:
        cell = self.cell
        assert cell
        change = [
            f"{1000 * one:.1f} -> {1000 * two:.1f}"
            for one, two in zip(self.quiet, self.swapping, strict=True)
        ]
        extra = [
            f"{1000 * one:.0f}" for one in (statistics.median(self.extra or [0]), max(self.extra or [0]))
        ]
        return self.COLUMNS.format(
            *(cell.runtime, cell.listen, cell.manager, cell.place),
            *(self.swaps, self.back, self.requests, sum(self.lost.values())),
            *change,
            " ".join(extra),
        )


class Place(Protocol):
    """Where the application of a runtime is swapped; Site and SwapHost are such."""

    runtime: Runtime

    @property
    def address(self) -> tuple[str, int]: ...
    def release(self, name: str, **app: Any) -> object: ...
    def swap(self, *arguments: str) -> Ran: ...


class Places:
    """A host for each place, for as long as the block lasts; lighttpd has several workers on all of them."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._hosts = ExitStack()
        self._fleets: dict[str, Fleet] = {}

    def __enter__(self) -> Places:
        return self

    def __exit__(self, *_: object) -> None:
        self._hosts.close()

    @contextmanager
    def at(self, place: str, runtime: Runtime) -> Iterator[Place]:
        if place == HERE:
            with Site(runtime=runtime, max_workers=self._workers, unprivileged=True) as site:
                yield site
            return
        if place not in self._fleets:
            fleet = self._fleets[place] = self._hosts.enter_context(Fleet(suites=(place,), packages=PACKAGES))
            fleet.hosts[0].write(
                "/etc/lighttpd/conf-enabled/98-workers.conf", f"server.max-worker = {self._workers}\n"
            )
            fleet.hosts[0].run(["systemctl", "restart", "lighttpd"])
        set_up(self._fleets[place], runtime)
        yield SwapHost(self._fleets[place].hosts[0], runtime)


def measured(cell: Cell, places: Places, *, requests: int, rate: float, clients: int, seed: int) -> Result:
    """Visitors alone, then visitors and swaps."""
    with places.at(cell.place, RUNTIMES[cell.runtime]) as place:
        names = [f"{cell.runtime}-{cell.listen}-{cell.manager}-{number}" for number in (1, 2)]
        for name, soak in zip(names, (0, WARM), strict=True):
            place.release(name, listen=cell.listen, manager=cell.manager, soak_time=soak)
        ran = place.swap("--release", names[0])
        assert ran.code == 0, ran
        interval = clients / rate if rate else 0.0

        def visitors(count: int) -> Visitors:
            return Visitors(
                place.address,
                script=place.runtime.script,
                count=clients,
                requests=count,
                seconds=6 * 3600,
                interval=interval,
            )

        with visitors(int(QUIET * requests)) as alone:
            alone.wait()
        with visitors(requests) as others:
            result, times = swapped(place, others, names, random.Random(f"{seed} {cell}"))  # noqa: S311
    result.cell = cell
    result.requests = others.requests
    for each in (alone, others):
        result.details += each.lost
        for kind, count in each.seen.items():
            if kind != "app":
                result.lost[kind] = result.lost.get(kind, 0) + count
    result.quiet = percentiles(alone.took)
    result.swapping = percentiles(overlapping(others.began, others.took, times))
    return result


def swapped(
    place: Place, visitors: Visitors, names: Sequence[str], draw: random.Random
) -> tuple[Result, list[tuple[float, float]]]:
    """One swap after the other until the visitors are done, and when each of them was at work."""
    result, times, warm = Result(), [], False
    while visitors.is_busy:
        arguments = draw.choice((["--release", names[0]], ["--release", names[1]], ["--back"]))
        if arguments == ["--back"] and not warm:
            arguments = ["--release", names[1]]
        began = time.monotonic()
        ran = place.swap(*arguments)
        times.append((began, time.monotonic()))
        warm = bool(ran.json.get("warm"))
        if ran.code == 2 and arguments == ["--back"]:
            continue  # its time was over meanwhile
        if ran.code != 0:
            result.details.append(f"swap {' '.join(arguments)}: {ran}")
            result.lost["swap failed"] = result.lost.get("swap failed", 0) + 1
            continue
        result.swaps += 1
        served = str(ran.json["generation"])
        if arguments == ["--back"]:
            result.back += 1
        else:
            wait_until(lambda: served in visitors.first or not visitors.is_busy, timeout=60)  # noqa: B023
            if served in visitors.first:
                result.extra.append(visitors.first[served] - began - ran.json["ready_in"])
        time.sleep(draw.uniform(0, LONGEST_PAUSE))
    return result, times


def overlapping(
    began: Sequence[float], took: Sequence[float], times: Sequence[tuple[float, float]]
) -> array[float]:
    """How long those requests took that were under way at one of these times (which don't overlap)."""
    starts = [start for start, _ in times]
    found = array("d")
    for start, seconds in zip(began, took, strict=True):
        last = bisect(starts, start + seconds) - 1  # the last one to begin before the request was over
        if last >= 0 and times[last][1] >= start:
            found.append(seconds)
    return found


def percentiles(seconds: Sequence[float]) -> tuple[float, float]:
    """The median, and what 99 of 100 didn't exceed."""
    if len(seconds) < 2:
        return (0, 0)
    ranks = statistics.quantiles(seconds, n=100, method="inclusive")
    return ranks[49], ranks[98]


def cells(given: argparse.Namespace) -> Iterator[Cell]:
    for place, *rest in itertools.product(given.places, given.runtimes, given.listen, given.managers):
        cell = Cell(*rest, place)
        if cell.manager == "direct" or place != HERE:
            yield cell


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--requests", type=int, default=1_000_000, help="in all, while there are swaps (1000000)")
    add("--rate", type=float, default=0, help="requests a second; 0, the default: as many as there can be")
    add("--clients", type=int, default=8, help="(8)")
    add("--seed", type=int, default=1, help="(1)")
    add("--runtimes", nargs="+", choices=RUNTIMES, default=list(RUNTIMES))
    add("--listen", nargs="+", choices=("fd0", "path"), default=["fd0", "path"])
    add("--managers", nargs="+", choices=("systemd", "direct"), default=["systemd", "direct"])
    add("--places", nargs="+", choices=(HERE, *SUITES), default=[HERE, *SUITES])
    add("--workers", type=int, default=2, help="lighttpd's server.max-worker (2)")
    add(
        "--out",
        type=Path,
        default=Path("build/swaps.jsonl"),
        help="finished combinations (build/swaps.jsonl)",
    )
    given = parser.parse_args()

    wanted = list(cells(given))
    share = given.requests // len(wanted)
    options = {"requests": share, "rate": given.rate, "clients": given.clients, "seed": given.seed}
    done = finished(given.out)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    results = []
    print(Result.HEADS)
    with Places(given.workers) as places:
        for cell in wanted:
            key = json.dumps([asdict(cell), given.workers, options], sort_keys=True)
            if key not in done:
                done[key] = asdict(measured(cell, places, **options))
                with given.out.open("a") as file:
                    file.write(json.dumps({"key": key, "result": done[key]}) + "\n")
            results.append(Result(**{**done[key], "cell": cell}))
            print(results[-1].line(), flush=True)
            for detail in results[-1].details[:10]:
                print(f"  {detail}", file=sys.stderr)
    lost = sum(sum(result.lost.values()) for result in results)
    swaps, requests = (sum(getattr(one, name) for one in results) for name in ("swaps", "requests"))
    print(f"{swaps} swaps, {requests} requests, {lost} lost; in {given.out}")
    return 1 if lost else 0


def finished(file: Path) -> dict[str, dict]:  # type: ignore[type-arg]
    """The results in `file`, by what was measured; a line that was cut off counts for nothing."""
    found = {}
    for line in file.read_text().splitlines() if file.exists() else []:
        try:
            read = json.loads(line)
        except ValueError:
            continue
        found[read["key"]] = read["result"]
    return found


if __name__ == "__main__":
    sys.exit(main())
