"""After a reboot: what served before serves again, before the web server asks for it."""

from __future__ import annotations

import os
import socket

from hostlib.program import Config, Failure
from hostlib.releasing import manifest
from hostlib.swapping import applog
from hostlib.swapping.generations import SERVING, Record
from hostlib.swapping.retiring import Retiring


def came_back(config: Config, old: Record | None, retiring: Retiring, log: applog.NewLines) -> bool:
    """Start `old`, which served, under its old number, and let the web server come; then see it healthy.

    False where it doesn't get so; then a new generation is to be tried.
    """
    managers, account = retiring.managers, retiring.account
    try:
        if old is None:
            return False
        app, health = manifest.read(config, old.release)
        if managers.look(old).over:
            old = managers.start_again(old.saved(config, state=SERVING), app)
            account.changed = True
        account.new = old
    finally:
        tell_systemd()
    try:
        from hostlib.swapping import probe  # only now: the web server is waiting no longer

        account.ready_in = probe.until_ready(config, managers, old, app, health, log, patient=True)
    except Failure:
        return False
    retiring.drain_and_stop_all_but(old, app)
    return True


def tell_systemd() -> None:
    """That the service is ready, where systemd asked for it: see sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notice:
            notice.sendto(b"READY=1", address.replace("@", "\0", 1))
