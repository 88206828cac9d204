"""A network cable on which everything takes its time. Runs as a process inside a fleet's namespaces.

    python3 tests/fleet/slowcable.py web1 0.05     between host web1 and the bridge, 0.05 s each way

It needs no queueing discipline of the kernel (netem is missing in small kernels): frames go through two tap
devices and wait here in between. It prints a line when the cable is in place, and takes it away when its
standard input ends.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
import subprocess
import sys
import time
from collections import deque

# linux/if_tun.h
TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
# Ethernet's longest frame, with a VLAN tag; without the offloads of virtio none is longer.
LONGEST = 1522
STDIN = 0


def main(host: str, seconds: float) -> None:
    near, far = tap(f"{host}-near"), tap(f"{host}-far")
    ip("link", "add", f"{host}-slow", "type", "bridge")
    for device, bridge in ((f"{host}-near", f"{host}-slow"), (f"{host}-far", "bridge")):
        ip("link", "set", device, "master", bridge, "up")
    ip("link", "set", f"{host}-slow", "up")
    ip("link", "set", host, "master", f"{host}-slow")
    print("in place", flush=True)
    try:
        carry({near: far, far: near}, seconds)
    finally:
        ip("link", "set", host, "master", "bridge")
        ip("link", "delete", f"{host}-slow")


def carry(ways: dict[int, int], seconds: float) -> None:
    """Bring every frame from one side to the other, so many seconds later, until standard input ends."""
    waiting: deque[tuple[float, int, bytes]] = deque()
    while True:
        rest = max(waiting[0][0] - time.monotonic(), 0) if waiting else None
        readable = select.select([STDIN, *ways], [], [], rest)[0]
        if STDIN in readable:
            return
        for side in readable:
            waiting.append((time.monotonic() + seconds, ways[side], os.read(side, LONGEST)))
        while waiting and waiting[0][0] <= time.monotonic():
            _, side, frame = waiting.popleft()
            os.write(side, frame)


def tap(name: str) -> int:
    """The descriptor that is the other end of a new network device; the device goes when it is closed."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    return descriptor


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
