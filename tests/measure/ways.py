"""A change of the application made in several ways, side by side: what did visitors lose each time?

    python -m tests.measure.ways --changes 20

One real Debian host, one PHP application, one lighttpd, and the same visitors at the same pace for each way.
Needs root. Tells, for each way, the requests by what became of them, and for how long a change was
noticed: from the first to the last request that was lost (median and most of all changes).

    swap          this toolkit, by systemd and by plain processes
    restart       systemctl restart of a service that runs spawn-fcgi -n
    respawn       spawn-fcgi: kill, wait for the end, spawn anew
    reload        systemctl reload of php-fpm, as Debian configures it
    reload, 10 s  the same with process_control_timeout = 10s
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.fleet import Fleet, Host
from tests.fleet.swaphost import SwapHost, set_up
from tests.measure.swaps import percentiles
from tests.support.load import Visitors
from tests.support.runtimes import RUNTIMES

PACKAGES = ["php-fpm", "spawn-fcgi"]
PLAIN = "/srv/plain"
LIGHTTPD = """\
$SERVER["socket"] == ":{port}" {{
  server.document-root = "{root}/public"
  fastcgi.server = (".php" => (("socket" => "{socket}", "check-local" => "disable")))
}}
"""
RESTARTED = """\
[Service]
User=www-data
RuntimeDirectory=restarted
Environment=PHP_FCGI_CHILDREN=6 PHP_FCGI_MAX_REQUESTS=0 DEPLOYTOOLS_GENERATION=0 DEPLOYTOOLS_RELEASE=plain
ExecStart=/usr/bin/spawn-fcgi -n -s /run/restarted/app.sock -- /usr/bin/php-cgi
[Install]
WantedBy=multi-user.target
"""
RESPAWN = """\
#!/bin/sh
set -eu
pidfile=/run/respawned/app.pid
if [ -e "$pidfile" ]; then
  pid=$(cat "$pidfile")
  kill "$pid"
fi
export PHP_FCGI_MAX_REQUESTS=0 DEPLOYTOOLS_GENERATION=0 DEPLOYTOOLS_RELEASE=plain
set -- -s /run/respawned/app.sock -P "$pidfile" -u www-data -g www-data -C 6 -- /usr/bin/php-cgi
# It refuses as long as a child of the old one is there.
until spawn-fcgi "$@" >/dev/null 2>&1; do sleep 0.02; done
"""
POOL = """\
[www]
user = www-data
group = www-data
listen = /run/php/app.sock
listen.owner = www-data
pm = static
pm.max_children = 6
env[DEPLOYTOOLS_GENERATION] = 0
env[DEPLOYTOOLS_RELEASE] = plain
"""


@dataclass(frozen=True)
class Way:
    """A way to exchange the application, the port where the visitors of it come, and what it takes before."""

    name: str
    port: int
    change: Callable[[], object]
    before: Callable[[], object] = lambda: None


def plain(swaphost: SwapHost) -> None:
    """Put the application under the care of Debian's own means, each behind a port of its own."""
    host = swaphost.host
    host.run(["cp", "-a", "/srv/guestbook/releases/direct", PLAIN])
    host.write("/etc/systemd/system/restarted.service", RESTARTED)
    host.write("/usr/local/bin/respawn", RESPAWN, mode=0o755)
    host.run(["install", "-d", "-o", "www-data", "/run/respawned"])
    host.write(f"/etc/php/{php_version(host)}/fpm/pool.d/www.conf", POOL)
    sockets = {8001: "/run/restarted/app.sock", 8002: "/run/respawned/app.sock", 8003: "/run/php/app.sock"}
    lines = [LIGHTTPD.format(port=port, root=PLAIN, socket=path) for port, path in sockets.items()]
    host.write("/etc/lighttpd/conf-enabled/99-plain.conf", "".join(lines))
    host.run("systemctl daemon-reload && systemctl start restarted && respawn")
    host.run(["systemctl", "restart", fpm(host), "lighttpd"])


def php_version(host: Host) -> str:
    return host.run("ls /etc/php").stdout.strip()


def fpm(host: Host) -> str:
    return f"php{php_version(host)}-fpm"


def patient(host: Host) -> None:
    """Let php-fpm wait for its requests when it is reloaded; it reads that when it starts."""
    path = f"/etc/php/{php_version(host)}/fpm/php-fpm.conf"
    host.run(["sed", "-i", "s/^;*process_control_timeout.*/process_control_timeout = 10s/", path])
    host.run(["grep", "-q", "^process_control_timeout = 10s", path])
    host.run(["systemctl", "restart", fpm(host)])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--changes", type=int, default=20, help="of each way (20)")
    add("--rate", type=float, default=200, help="requests a second (200)")
    add("--clients", type=int, default=8, help="(8)")
    add("--suite", default="bookworm")
    add("--seed", type=int, default=1, help="of the pauses between two changes (1)")
    given = parser.parse_args()
    php = RUNTIMES["php-cgi"]
    with Fleet(1, suites=(given.suite,), packages=PACKAGES) as fleet:
        set_up(fleet, php)
        swaphost = SwapHost(fleet.hosts[0], php)
        host = swaphost.host
        for manager in ("systemd", "direct"):
            swaphost.release(manager, manager=manager)
        plain(swaphost)

        def swap(release: str) -> None:
            ran = swaphost.swap("--release", release)
            assert ran.code == 0, ran

        ways = [
            Way("swap, systemd", 80, lambda: swap("systemd"), lambda: swap("systemd")),
            Way("swap, direct", 80, lambda: swap("direct"), lambda: swap("direct")),
            Way("restart", 8001, lambda: host.run(["systemctl", "restart", "restarted"])),
            Way("respawn", 8002, lambda: host.run(["respawn"])),
            Way("reload", 8003, lambda: host.run(["systemctl", "reload", fpm(host)])),
            Way(
                "reload, 10 s",
                8003,
                lambda: host.run(["systemctl", "reload", fpm(host)]),
                lambda: patient(host),
            ),
        ]
        print(HEADS)
        for way in ways:
            way.before()
            print(tried(way, host, given), flush=True)
    return 0


KINDS = ("refused", "reset", "truncated", "unmarked_5xx", "timeout", "other")
COLUMNS = "{:14} {:>7} {:>8}  " + " ".join("{:>" + str(max(5, len(kind))) + "}" for kind in KINDS)
COLUMNS += "  {:>14} {:>13}"
HEADS = COLUMNS.format("way", "changes", "requests", *KINDS, "noticed for s", "p50, p99 ms")


def tried(way: Way, host: Host, given: argparse.Namespace) -> str:
    """Make the changes in this way; return the row of the table."""
    draw = random.Random(given.seed)  # noqa: S311 - so that it is the same for each way
    times = []
    options = {"count": given.clients, "interval": given.clients / given.rate, "seconds": 3600.0}
    with Visitors((host.address, way.port), script="/index.php", **options) as visitors:
        time.sleep(1)
        for _ in range(given.changes):
            times.append(time.monotonic())
            way.change()
            # Longer than lighttpd gives up on an application that it could not reach.
            time.sleep(draw.uniform(3.5, 4.5))
    for detail in visitors.lost[:3]:
        print(f"  {detail}", file=sys.stderr)
    noticed = []
    for number, began in enumerate(times):
        until = times[number + 1] if number + 1 < len(times) else float("inf")
        lost = [at for at in visitors.lost_at if began - 1 <= at < until]
        noticed.append(max(lost) - min(lost) if lost else 0.0)
    return COLUMNS.format(
        way.name,
        given.changes,
        visitors.requests,
        *(visitors.seen[kind] for kind in KINDS),
        f"{statistics.median(noticed):.2f} {max(noticed):.2f}",
        "{:.1f} {:.1f}".format(*(1000 * one for one in percentiles(visitors.took))),
    )


if __name__ == "__main__":
    sys.exit(main())
