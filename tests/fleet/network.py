"""The fleet's network: a bridge in the fleet's namespaces, cables to this machine and to every host.

This machine gets its end of one cable, with the first address of 10.77.N.0/24, and before that a blackhole
route for that network: packets for hosts that are gone never leave by another way. The hosts have no route
to anywhere else.
"""

from __future__ import annotations

import ipaddress
import json
import subprocess

from tests.fleet.keeper import Place, inside

# A network namespace kept by file $1, with address $3 on its end of a cable; the other end is called $2.
PLUG = """
: >"$1"
unshare --net="$1" true
ip link add "$2" type veth peer name eth0 netns "$1"
ip link set "$2" master bridge up
nsenter --net="$1" ip address add "$3/24" dev eth0
nsenter --net="$1" ip link set lo up
nsenter --net="$1" ip link set eth0 up
"""


def begin(place: Place, holder: int) -> None:
    """Make the bridge, and connect this machine to it.

    Raises RuntimeError where the machine has a route of its own to the fleet's network.
    """
    own = ipaddress.ip_network(place.subnet)
    for route in json.loads(_ip("-json", "-4", "route", "show", "table", "all")):
        if route["dst"] != "default" and own.overlaps(ipaddress.ip_network(route["dst"], strict=False)):
            raise RuntimeError(f"this machine has a route to {route['dst']}, where the fleet would be")
    # Of the worst metric, so that it counts where the cable's own route is gone.
    _ip("route", "add", "blackhole", place.subnet, "metric", "4294967295")
    _ip("link", "add", place.cable, "type", "veth", "peer", "name", "machine", "netns", str(holder))
    _ip("address", "add", f"{place.address(1)}/24", "dev", place.cable)
    _ip("link", "set", place.cable, "up")
    for words in ("link add bridge type bridge", "link set bridge up", "link set machine master bridge up"):
        subprocess.run(inside(holder, "ip", *words.split()), check=True)


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout
