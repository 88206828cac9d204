"""How the second operator brings an open run to its end, in another checkout: as the messages tell him."""

from __future__ import annotations

from collections.abc import Sequence

from tests.fleet.hosts import wait_until
from tests.fleet.matrix.application import WORK
from tests.fleet.matrix.site import Ran, Site

RESUME, ABORT = "resume", "abort"
# More commands than any open run takes.
ENOUGH = 5


def bring_to_an_end(site: Site, way: str, *, holds: Sequence[str] = ()) -> list[Ran]:
    """Type what the messages say until the run is over, or nothing is left to type; what was typed.

    The migration is let go (from `holds`) once the second operator follows it.
    """
    typed: list[Ran] = []
    while len(typed) < ENOUGH:
        ran = _go_on(site, way, holds) if holds else site.fab("deploy", f"--{way}", by=site.second)
        holds = ()
        typed.append(ran)
        if ran.code not in (4, 130):
            break
        if "migrate.resolve" in ran.err:
            word = "applied" if site.revision() == 2 else "not-applied"
            words = ("migrate.resolve", "--as", word, "--reason", "looked at the table")
            typed.append(site.fab(*words, by=site.second))
        elif way == ABORT and "can't be aborted" in ran.err:
            way = RESUME
        elif len(typed) > 1 and typed[-2].err.split("error:")[-1] == ran.err.split("error:")[-1]:
            break  # it says the same again
    return typed


def _go_on(site: Site, way: str, holds: Sequence[str]) -> Ran:
    running = site.start("deploy", f"--{way}", by=site.second)

    def followed() -> bool:
        records = [record for run in site.journals().values() for record in run]
        return running.process.poll() is not None or any(record["kind"] == "resumed" for record in records)

    wait_until(followed, lambda: "the second operator to go on")
    let_go(site, holds)
    return running.end()


def let_go(site: Site, places: Sequence[str]) -> None:
    """The migration waits no longer at these places."""
    site.web1.run(["rm", "-f", *(f"{WORK}/hold-{place}" for place in places)])
