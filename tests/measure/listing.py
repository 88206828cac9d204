"""How long `fab --list` takes beside bare Fabric on an empty fabfile: `make measure MEASURE=listing`.

Each round times both, one after the other; the ratios are of the medians.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

# By the module that is the program.
FABFILES = {"fabric": "", "deploytools": "from deploytools.tasks import ns\n"}


def taken(argv: Sequence[str], directory: Path) -> tuple[float, float]:
    """Seconds on the clock, and of the processor for the program itself."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        argv, cwd=directory, capture_output=True, check=False, env={**os.environ, "HOME": "/nowhere"}
    )
    after, ended = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    return ended - began, after.ru_utime - before.ru_utime


def main(rounds: int) -> dict[str, float]:
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in FABFILES}
    with tempfile.TemporaryDirectory() as place:
        for name, fabfile in FABFILES.items():
            (Path(place) / name).mkdir()
            (Path(place) / name / "fabfile.py").write_text(fabfile)
        for number in range(-1, rounds):
            for name, times in seconds.items():
                took = taken([sys.executable, "-m", name, "--list"], Path(place) / name)
                if number >= 0:  # the first one reads the files from the disk
                    times.append(took)
    middle = {
        f"{name} {what}": round(median(took[index] for took in times), 3)
        for name, times in seconds.items()
        for index, what in enumerate(("wall s", "user s"))
    }
    return {
        **middle,
        "ratio of wall": round(middle["deploytools wall s"] / middle["fabric wall s"], 2),
        "ratio of user": round(middle["deploytools user s"] / middle["fabric user s"], 2),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    print(json.dumps(main(parser.parse_args().rounds), indent=2))
