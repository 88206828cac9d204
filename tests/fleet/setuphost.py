"""What tests of `fab setup` on real hosts have in common: what is on a host, a site, its visitors."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from typing import Any

from tests.fleet.fleet import Fleet
from tests.fleet.hosts import Host

ROOT, TOOLS = "/srv/guestbook", "/usr/local/lib/deploytools/guestbook"
AS_ROOT = ("setup", "--as-user", "root", "--yes")
REMOVE = (*AS_ROOT, "--remove")
# What a host changes by itself: mounts, logs, what systemd and journald keep.
VOLATILE = "/proc /sys /run /dev /tmp /var/tmp /var/log /var/lib/systemd"
PAGE = '<?php usleep((int) ($_GET["ms"] ?? 0) * 1000); echo "the page";\n'


def listing(host: Host) -> list[str]:
    """Every file of a host with owner, mode and size, and the content of those that a set-up could change."""
    prune = "-path " + " -o -path ".join(VOLATILE.split())
    told = host.run(
        f"find / -xdev \\( {prune} \\) -prune -o -type d -printf '%p %y %u:%g %m\\n'"
        " -o -printf '%p %y %u:%g %m %s %l\\n' | sort;"
        " find /etc /srv /usr/local /home /opt -xdev -type f -exec sha256sum {} + | sort"
    )
    return told.stdout.splitlines()


def purge(fleet: Fleet) -> None:
    """Take the application and its data off all hosts, where there is anything of it."""
    if any(host.exists(TOOLS) or host.exists(ROOT) for host in fleet):
        fleet.operator.fab(*REMOVE, "--purge")


def settings(fleet: Fleet, **changes: Any) -> None:
    """Write fabric.yaml for a site of PHP pages, with `changes` to `deploy`."""
    deploy = {
        "application": "guestbook",
        "hosts": [f"deploy@{host.name}" for host in fleet],
        "ssh_config": str(fleet.ssh_config),
        "app": {"command": "/usr/bin/php-cgi", "env": {"PHP_FCGI_CHILDREN": "8"}},
        "health": {"path": "/index.php"},
        **changes,
    }
    deploy["webserver"] = {"document_root": "public", **changes.get("webserver", {})}
    told = {"tasks": {"executor_class": "deploytools.executor.OnceExecutor"}, "deploy": deploy}
    (fleet.operator.directory / "fabric.yaml").write_text(json.dumps(told))  # JSON is YAML, too


def serve(host: Host, *, page: str = PAGE, application: str = "guestbook") -> None:
    """Put a release on a host by hand and have it serve."""
    release = f"/srv/{application}/releases/r1"
    app = {"command": "/usr/bin/php-cgi", "env": {"PHP_FCGI_CHILDREN": "8"}}
    manifest = {"id": "r1", "app": app, "health": {"path": "/index.php"}, "migrate": None}
    script = """
    install -d -o deploy -g deploy "$1" "$1/public"
    printf %s "$2" >"$1/public/index.php"
    printf %s "$3" >"$1/.deploytools.json"
    """
    host.run(["sh", "-euc", script, "sh", release, page, json.dumps(manifest)])
    host.run([f"/usr/local/lib/deploytools/{application}/swap", "--release", "r1"])


@contextmanager
def visitors(host: Host, path: str, *, site: str | None = None) -> Iterator[Counter[str]]:
    """People who ask for a page, each time on a connection of their own, until the block is left."""
    seen: Counter[str] = Counter()
    over = threading.Event()

    def ask() -> None:
        while not over.wait(0.02):  # or they would have most of the processor
            try:
                reply = host.get(path, headers={"Host": site or host.address})
                seen["the page" if reply.status == 200 and reply.text == "the page" else str(reply)] += 1
            except (OSError, HTTPException) as error:
                seen[repr(error)] += 1

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        over.set()
        for thread in threads:
            thread.join()
