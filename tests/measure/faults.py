"""Downtime windows broken at random on real hosts: is there any way to leave a site in an unknown state?

    make soak SOAK="faults --trials 300 --seed 7"
    make soak SOAK="faults --trial 'power send:swap web2 resume'"

Draws trials from all there are (tests/fleet/matrix), the same for the same seed. Prints how each ended, and
at the end a table by fault; a trial that fails says how to run it alone. Ends with 1 if one did. Needs root.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections import Counter

from tests.fleet import Fleet
from tests.fleet.matrix.application import PACKAGES
from tests.fleet.matrix.site import Site
from tests.fleet.matrix.trials import FAULTS, Trial, drawn, run


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.measure.faults",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--trials", type=int, default=300, help="how many; 300")
    parser.add_argument("--seed", type=int, default=1, help="which ones; 1")
    parser.add_argument("--skip", type=int, default=0, help="how many of them were done already")
    parser.add_argument("--trial", action="append", type=Trial.read, help="this one; may be given twice")
    arguments = parser.parse_args()
    trials = arguments.trial or list(
        itertools.islice(drawn(arguments.seed), arguments.skip, arguments.trials)
    )
    sys.exit(soak(trials, arguments.skip + 1))


def soak(trials: list[Trial], first: int = 1) -> int:
    """Run the trials one after the other, numbered from `first` on; 1 if any failed, otherwise 0."""
    ends: dict[str, Counter[str]] = {name: Counter() for name in FAULTS}
    failed = False
    with Fleet(2, packages=PACKAGES) as fleet, Site(fleet) as site:
        for number, trial in enumerate(trials, first):
            end, wrong = _one(site, trial)
            ends[trial.fault][end] += 1
            print(f"{number:4} {trial}: {end}", flush=True)
            if wrong:
                failed = True
                print(f"{wrong}\nreplay: make soak SOAK=\"faults --trial '{trial}'\"", flush=True)
    for name, counted in ends.items():
        if counted:
            print(f"{name:<20} {', '.join(f'{count} {end}' for end, count in sorted(counted.items()))}")
    return int(failed)


def _one(site: Site, trial: Trial) -> tuple[str, str]:
    """How the trial ended, and what is wrong with that; nothing if all is well."""
    try:
        site.restore()
        result = run(site, trial)
    except (AssertionError, OSError) as error:
        return "FAILED", str(error)
    return (result.end, "") if not result.violations else ("FAILED", str(result))


if __name__ == "__main__":
    main()
