"""Maintenance on and off, many times over, under load: what did visitors get?

    python -m tests.measure.flips --flips 10000

Each flip is one run of the host program `down` or `up`, with its proof, on a real lighttpd. Prints the
answers by class; ends with 1 if there was any that is neither the application's own nor the marked page.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time

from tests.support.load import Load
from tests.support.webhost import Reply, WebHost


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
    given = parser.parse_args()

    took: list[float] = []
    with WebHost(max_workers=given.workers) as host:
        host.serve()
        load = Load(
            host,
            allow={"app": is_app, "page": is_page},
            clients=given.clients,
            seconds=2 * 3600,
            requests=20_000_000,
        )
        with load:
            for flip in range(given.flips):
                program = "up" if flip % 2 else "down"
                began = time.monotonic()
                ran = host.run(host.maintenance_dir / program)
                took.append(time.monotonic() - began)
                if ran.code != 0:
                    print(f"flip {flip}, {program}: {ran.out}{ran.err}", file=sys.stderr)
                    return 1
                if (flip + 1) % max(1, given.flips // 10) == 0:
                    print(f"{flip + 1} flips, {dict(load.seen)}, other: {len(load.strange)}", file=sys.stderr)
    print(
        json.dumps(
            {
                "flips": given.flips,
                "workers": given.workers,
                "requests": load.requests,
                **load.seen,
                "other": len(load.strange),
                "median_seconds_per_flip": round(statistics.median(took), 3),
            }
        )
    )
    for line in load.strange[:20]:
        print(line, file=sys.stderr)
    return 1 if load.strange else 0


if __name__ == "__main__":
    sys.exit(main())
