"""Ends generations that don't serve, and never one with a request in it.

Drain, then stop; what isn't done in time is kept and told, and stopped by a later swap. One may be kept
warm for `swap --back`.
"""

from __future__ import annotations

import contextlib
import math
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass

from hostlib.program import TOOLS, UNFINISHED, Config, Failure
from hostlib.releasing.manifest import App
from hostlib.swapping import generations, systemd, unixsockets
from hostlib.swapping.account import Account, count
from hostlib.swapping.generations import DRAINING, SERVING, STARTING, WARM, Record
from hostlib.swapping.links import Links
from hostlib.swapping.managers import Managers

TAKE_BACK_TIMEOUT = 5.0  # seconds


@dataclass(frozen=True)
class Retiring:
    """Ends generations, and writes into `account` what came of it."""

    config: Config
    managers: Managers
    account: Account

    def reap(self, spare: int | None = None) -> None:
        """Stop what earlier swaps left behind, if no request is in it; but not generation `spare`."""
        number, serving = generations.serving_number(self.config), generations.serving(self.config)
        for record in generations.records(self.config):
            if record.generation in (number, spare):
                continue
            if record.state == WARM and self.managers.alive(record) and time.time() < (record.until or 0):
                continue
            cut_short = record.state == SERVING and not self._never_came(record, serving)
            connections = unixsockets.wait_idle(record.socket, 0).total
            if cut_short:
                self.account.keep(record, connections, "the swap away from it was cut short: run swap again")
            elif connections and record.state != STARTING:
                self.account.keep(record, connections, "not done yet")
            else:
                self.stop(record)

    def _never_came(self, record: Record, serving: Record | None) -> bool:
        """True where the swap to `record` was cut short, and what served before it serves."""
        return (
            serving is not None
            and record.previous == serving.generation
            and serving.previous != record.generation  # else that is it, after a `--back` without its barrier
            and self._nobody_is_led_elsewhere()
        )

    def drain_and_stop_all_but(self, new: Record, app: App) -> None:
        """After the barrier. The one before `new` stays warm for app.soak_time."""
        config, soak = self.config, 0 if new.back else app.soak_time
        self.account.kept.clear()  # those that `reap` kept get another chance
        try:
            others = [one for one in generations.records(config) if one.generation != new.generation]
            others = [one if one.state == WARM else one.noted(config, state=DRAINING) for one in others]
            began = time.monotonic()
            idle = []
            for one in others:
                left = began + app.drain_timeout - time.monotonic()
                if connections := unixsockets.wait_idle(one.socket, left).total:
                    self.account.keep(one, connections, f"not done within {app.drain_timeout:g} s")
                else:
                    idle.append(one)
            self.account.drained_in = round(time.monotonic() - began, 3)
            for one in idle:
                if soak and one.generation == new.previous and self.managers.alive(one):
                    if one.state != WARM:
                        one.saved(config, state=WARM, until=time.time() + soak)
                        _reap_after(config, soak)
                else:
                    self.stop(one)
        except OSError as error:
            raise Failure(
                f"an old generation is left over: {error}",
                state=f"{new} serves",
                next=f"{TOOLS}/swap --reap",
                exit_code=UNFINISHED,
            ) from error

    def leave_all_but(self, new: Record) -> None:
        """After the barrier, where time is short: the others are `reap`'s, as soon as it is called."""
        for one in generations.records(self.config):
            if one.generation != new.generation and one.state != WARM:
                one.noted(self.config, state=DRAINING)

    def take_back(self, new: Record, way_back: Links, app: App) -> str:
        """Lead the web server back, and stop `new` once no request is in it; return what became of it."""
        way_back.set(self.config)
        if new.back:
            return f"{new.noted(self.config, state=WARM)} stays warm"
        if not self._nobody_is_led_elsewhere():
            return f"{new} was kept, as not every worker answers; the next swap stops it"
        new = new.noted(self.config, state=DRAINING)
        if left := unixsockets.wait_idle(new.socket, app.drain_timeout).total:
            return f"{new} was kept, as it has {count(left)}; the next swap stops it"
        return self.stop(new)

    def _nobody_is_led_elsewhere(self) -> bool:
        """True where each of the web server's workers has answered since the links lead where they do now."""
        from hostlib.webserver import web

        try:
            web.prove(self.config, lambda _: True, timeout=TAKE_BACK_TIMEOUT)
        except Failure:
            return False
        return True

    @contextlib.contextmanager
    def on_failure(self, new: Record) -> Iterator[None]:
        """If anything goes wrong (Ctrl-C too) stop `new`, which the public can't be in. A warm one stays."""
        try:
            yield
        except BaseException as error:
            became = f"{new} stays warm" if new.state == WARM else self.stop(new)
            if isinstance(error, Failure):
                error.state = f"{became}; nothing else was changed"
            raise

    def stop(self, record: Record) -> str:
        """Stop an idle generation, and return what became of it.

        One that resists is kept on record for the next swap.
        """
        try:
            self.managers.stop(record)
        except (Failure, OSError) as error:
            self.account.keep(record, 0, str(error))
            return f"{record} could not be stopped, which the next swap tries again: {error}"
        self.account.stopped.append(record.generation)
        return f"{record} was stopped"


def _reap_after(config: Config, seconds: float) -> None:
    """Let `swap --reap` run when a warm generation's time is over.

    If that does not come about (a reboot), the next swap does the same.
    """
    again = [str(TOOLS / "swap"), "--reap"]
    if systemd.is_ours_to_use(config):
        systemd.run_later(seconds + 1, again)
        return
    subprocess.Popen(
        ["/bin/sh", "-c", 'sleep "$1" && shift && exec "$@"', "soak", str(math.ceil(seconds) + 1), *again],
        cwd=config.root,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
