"""Tells systemd that a service is ready: see sd_notify(3)."""

from __future__ import annotations

import os
import socket


def ready() -> None:
    """Does nothing where nobody asked for it."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notice:
            notice.sendto(b"READY=1", address.replace("@", "\0", 1))
