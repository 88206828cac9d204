"""Ports for the servers of tests."""

from __future__ import annotations

import random
import socket

# Below what Linux takes for outgoing connections (net.ipv4.ip_local_port_range begins at 32768): those of the
# tests beside this one would take such a port before its server has it.
FIRST, LAST = 10_000, 32_000


def free_port(address: str = "127.0.0.1") -> int:
    """A TCP port of `address` that nobody listens on; `::` stands for every address there is."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    while True:
        port = random.randint(FIRST, LAST)  # noqa: S311 (no secret)
        with socket.socket(family) as probe:
            try:
                probe.bind((address, port))
            except OSError:
                continue
            return port
