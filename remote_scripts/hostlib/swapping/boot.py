"""After a reboot: what served before serves again, before the web server asks for it."""

from __future__ import annotations

from hostlib.program import Config, Failure
from hostlib.releasing import manifest
from hostlib.swapping import applog, generations, notify
from hostlib.swapping.generations import SERVING
from hostlib.swapping.links import Links
from hostlib.swapping.retiring import Retiring


def came_back(config: Config, retiring: Retiring, log: applog.NewLines) -> bool:
    """Start what served, under its old number, and let the web server come; then see it healthy.

    False where it doesn't get so; then a new generation is to be tried.
    """
    managers, account = retiring.managers, retiring.account
    try:
        old = generations.serving(config)
        if old is None:
            return False
        Links.to(old).set(config)  # a swap that was cut off may have led `current` elsewhere
        app, health = manifest.read(config, old.release)
        if not managers.alive(old):
            old = managers.start_again(old.saved(config, state=SERVING), app)
            account.changed = True
        account.new = old
    finally:
        notify.ready()
    try:
        from hostlib.swapping import probe  # only now: the web server is waiting no longer

        account.ready_in = probe.until_ready(config, managers, old, app, health, log, patient=True)
    except Failure:
        return False
    retiring.drain_and_stop_all_but(old, app)
    return True
