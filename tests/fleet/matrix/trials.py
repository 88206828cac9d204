"""The trials: which there are, how one goes, and what becomes of it.

result = run(site, Trial.read("power send:swap web2 resume"))
result.end, result.violations
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from deploytools.plan import downtime_plan
from tests.fleet.matrix import faults, invariants
from tests.fleet.matrix.application import PLACES
from tests.fleet.matrix.faults import Broken
from tests.fleet.matrix.recovery import ABORT, RESUME, bring_to_an_end
from tests.fleet.matrix.site import Ran, Site
from tests.support.values import BASE, settings

_HOOKS = dict.fromkeys(("quiesce", "backup", "resume"), "true")
_PLANNED = downtime_plan(BASE, settings(hooks=_HOOKS)).steps
STEPS = tuple(step.name for step in _PLANNED)
# What is undone where the migration fails.
UNDOINGS = tuple(step.name for step in _PLANNED[: STEPS.index("migrate")] if step.undo)
MOMENTS = ("intend", "send", "first", "record", "wrote")
HOSTS = ("web1", "web2")
# Nobody is asked to drain where nothing was in flight when maintenance was proved.
POINTS = tuple(
    f"{moment}:{step}" for step in STEPS for moment in MOMENTS if (moment, step) != ("first", "drain")
)
# For two operators: before the lock is taken another may take it, and after it is given back nobody goes on.
LOCKED = tuple(point for point in POINTS if point.split(":")[1] not in ("lock", "unlock"))
INSIDE = PLACES[:2]
UNDONE = tuple(f"{moment}:undo-{step}" for step in UNDOINGS for moment in MOMENTS)
EVERYWHERE = (*POINTS, *UNDONE)
# Where somebody comes to who goes on with a window that was killed before it began, or backs out of one.
RESUMED = tuple(point for point in POINTS if STEPS.index(point.split(":")[1]) > STEPS.index("maintenance-on"))


@dataclass(frozen=True)
class Fault:
    """A way to break a window, where it can be done, and to whom."""

    act: Callable[[Broken], None]
    points: tuple[str, ...]
    hosts: tuple[str, ...] = HOSTS[:1]


FAULTS = {
    "kill": Fault(faults.kill, (*EVERYWHERE, *PLACES)),
    "kill-again": Fault(faults.kill_again, (*RESUMED, *UNDONE)),
    "interrupt": Fault(faults.interrupt, (*EVERYWHERE, *PLACES)),
    "interrupt-twice": Fault(faults.interrupt_twice, PLACES),
    "reboot": Fault(faults.reboot, (*EVERYWHERE, *PLACES), HOSTS),
    "power": Fault(faults.power, (*EVERYWHERE, *PLACES), HOSTS),
    "link": Fault(faults.link, (*EVERYWHERE, *PLACES), HOSTS),
    "sshd": Fault(faults.sshd, (*EVERYWHERE, *PLACES), HOSTS),
    "lighttpd": Fault(faults.lighttpd, (*EVERYWHERE, *PLACES), HOSTS),
    "disk": Fault(faults.disk, EVERYWHERE, HOSTS),
    "migration-fails": Fault(faults.migration_fails, PLACES),
    "locked-before": Fault(faults.locked_before, ("before",)),
    "locked-meanwhile": Fault(faults.locked_meanwhile, ("before",)),
    "runner-killed": Fault(faults.runner_killed, PLACES),
    "database-killed": Fault(faults.database_killed, INSIDE),
    "outlives-the-link": Fault(faults.outlives_the_link, INSIDE),
    "outlives-by-a-minute": Fault(faults.outlives_by_a_minute, INSIDE),
    "unhealthy": Fault(faults.unhealthy, ("swap",)),
    "sick": Fault(faults.sick, ("verify",), HOSTS),
    "two-operators": Fault(faults.two_operators, LOCKED),
    "taken-over": Fault(faults.taken_over, LOCKED),
}


@dataclass(frozen=True)
class Trial:
    """One cell of the matrix; str() of it is how it is asked for again."""

    fault: str
    point: str
    host: str = "web1"
    way: str = RESUME

    def __str__(self) -> str:
        return f"{self.fault} {self.point} {self.host} {self.way}"

    @staticmethod
    def read(text: str) -> Trial:
        """Given str() of a trial, return it. Raises ValueError where there is no such trial."""
        fault, point, host, way = text.split()
        if fault not in FAULTS or point not in FAULTS[fault].points or host not in FAULTS[fault].hosts:
            raise ValueError(f"no such trial: {text}")
        if way not in (RESUME, ABORT):
            raise ValueError(f"{way} is neither {RESUME} nor {ABORT}")
        return Trial(fault, point, host, way)


def drawn(seed: int) -> Iterator[Trial]:
    """Trials without end, the same for the same seed; each fault as often as each other."""
    chance = random.Random(seed)  # noqa: S311 - no secret
    while True:
        name = chance.choice(tuple(FAULTS))
        fault = FAULTS[name]
        yield Trial(
            name, chance.choice(fault.points), chance.choice(fault.hosts), chance.choice((RESUME, ABORT))
        )


@dataclass(frozen=True)
class Result:
    """What became of a trial: how it ended, what doesn't hold, and all that was typed."""

    trial: Trial
    end: str
    violations: tuple[str, ...]
    typed: tuple[Ran, ...]
    seconds: float

    def __str__(self) -> str:
        lines = [f"{self.trial}: {self.end} after {self.seconds:.1f} s", *self.violations]
        return "\n".join([*lines, *map(str, self.typed)])


def run(site: Site, trial: Trial) -> Result:
    """Break a window on a site that is as it was, and bring it to its end."""
    began = time.time()
    broken = Broken(site, trial.point, site.fleet[trial.host])
    FAULTS[trial.fault].act(broken)
    found = []
    if (lock := site.status(site.web1)["lock"]) is not None:
        found += invariants.unexplained(lock, site.fab("status", by=site.second))
        broken.typed += bring_to_an_end(site, trial.way, holds=broken.holds)
    end = invariants.settled(site)
    found += invariants.violations(site, began, end, broken.typed, broken.allowed)
    return Result(trial, end, tuple(found), tuple(broken.typed), time.time() - began)


def check(site: Site, text: str, *ends: str) -> None:
    """Run the trial of that text on the site, restored, which has to end in one of these ways.

    Raises AssertionError, which shows all that was typed.
    """
    site.restore()
    result = run(site, Trial.read(text))
    assert not result.violations, result
    assert result.end in ends, result
