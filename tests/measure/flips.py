"""Maintenance on and off, many times over, under load: what did visitors get?

    python -m tests.measure.flips --flips 10000

Each flip is what the host programs `down` and `up` do, with its proof, on a real lighttpd; with --programs
each is such a program of its own, which takes an hour. Prints the answers by class; ends with 1 if there was
any that is neither the application's own nor the marked page.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

from tests.support.load import Load
from tests.support.webhost import Reply, WebHost

# Flips in one process, a line per flip. The arguments: the directory of the host programs, and how many.
FLIPPER = """
import sys, time
sys.path.insert(0, sys.argv[1])
from hostlib.switch import maintenance
from hostlib.program import load_config
config = load_config()
for flip in range(int(sys.argv[2])):
    began = time.monotonic()
    if flip % 2:
        maintenance.up(config, names=["ann"], run_id=None, force=None, timeout=30)
    else:
        maintenance.down(config, by="ann", reason=None, until=None, run_id=None, timeout=30)
    print(time.monotonic() - began, flush=True)
"""


def in_one_process(host: WebHost, flips: int) -> Iterator[float]:
    """Flip, and yield how long each took, in seconds."""
    argv = ["/usr/bin/python3", "-c", FLIPPER, str(host.tools), str(flips)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as flipper:
        assert flipper.stdout is not None
        yield from map(float, flipper.stdout)
    if flipper.returncode:
        raise SystemExit("a flip failed, see above")


def by_programs(host: WebHost, flips: int) -> Iterator[float]:
    """As `in_one_process`, each by a program of its own."""
    for flip in range(flips):
        began = time.monotonic()
        ran = host.run(host.maintenance_dir / ("up" if flip % 2 else "down"))
        if ran.code != 0:
            raise SystemExit(f"flip {flip}: {ran.out}{ran.err}")
        yield time.monotonic() - began


def is_app(reply: Reply) -> bool:
    return reply.status == 200 and reply.body == b"app /"


def is_page(reply: Reply) -> bool:
    return reply.in_maintenance and reply.text.rstrip().endswith("</html>")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--flips", type=int, default=10_000, help="how many, up and down together (10000)")
    parser.add_argument("--workers", type=int, default=3, help="lighttpd's server.max-worker (3)")
    parser.add_argument("--clients", type=int, default=4, help="clients that ask without a pause (4)")
    parser.add_argument("--programs", action="store_true", help="start the program anew for each flip")
    given = parser.parse_args()

    times: list[float] = []
    with WebHost(max_workers=given.workers) as host:
        host.serve()
        load = Load(
            host,
            allow={"app": is_app, "page": is_page},
            clients=given.clients,
            seconds=2 * 3600,
            requests=20_000_000,
            interval=0,
        )
        with load:
            for took in (by_programs if given.programs else in_one_process)(host, given.flips):
                times.append(took)
                if len(times) % max(1, given.flips // 10) == 0:
                    counts = f"{dict(load.seen)}, other: {len(load.strange)}"
                    print(f"{len(times)} flips, {counts}", file=sys.stderr)
    print(
        json.dumps(
            {
                "flips": len(times),
                "workers": given.workers,
                "requests": load.requests,
                **load.seen,
                "other": len(load.strange),
                "median_seconds_per_flip": round(statistics.median(times), 3),
            }
        )
    )
    for line in load.strange[:20]:
        print(line, file=sys.stderr)
    return 1 if load.strange else 0


if __name__ == "__main__":
    sys.exit(main())
