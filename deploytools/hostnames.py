"""Many hosts in few words. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

# Among so many hosts it needs no telling how many of them are named.
FEW = 12


def names(some: Sequence[str], every: Sequence[str]) -> str:
    """Some of `every` host: `web1, db1`, `all 100 hosts`, `web[1-40], db1 (41 of 100 hosts)`."""
    if len(every) > 1 and set(some) == set(every):
        return f"all {len(every)} hosts"
    told = folded(some)
    return told if len(some) == 1 or len(every) <= FEW else f"{told} ({len(some)} of {len(every)} hosts)"


def folded(some: Sequence[str]) -> str:
    """Three and more that differ only in a number, which goes up by one, are written as `web[1-40]`."""
    runs: list[list[_Name]] = []
    for name in map(_Name, some):
        if runs and runs[-1][-1].precedes(name):
            runs[-1].append(name)
        else:
            runs.append([name])
    return ", ".join(
        f"{run[0].before}[{run[0].number}-{run[-1].number}]{run[0].after}"
        if len(run) > 2
        else ", ".join(name.text for name in run)
        for run in runs
    )


class _Name:
    """A name around the first number in it, which is "" where there is none."""

    def __init__(self, text: str) -> None:
        match = re.fullmatch(r"(\D*)(\d*)(.*)", text)
        assert match is not None
        self.text = text
        self.before, self.number, self.after = match.groups()

    def precedes(self, other: _Name) -> bool:
        if not self.number or (self.before, self.after) != (other.before, other.after):
            return False
        return other.number == str(int(self.number) + 1).zfill(len(self.number))
