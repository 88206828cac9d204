"""What has to hold after every trial, whatever was broken; and what a fault must cause and is forgiven.

- a run begins its migration at most once
- no code meets a schema in front of the public that it isn't made for
- the public gets no unmarked error, hang or cut-off answer but by an `Allowance`
- what was done is in the journal on the lock host, whole and in order
- the end is all-new, all-old, or every host in maintenance and explained; exit codes tell the truth
- no worker is left quiet in front of the public
- while somebody holds the lock, `fab status` says who, and what to type
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.fleet.hosts import wait_until
from tests.fleet.matrix.application import WORK
from tests.fleet.matrix.observer import Seen
from tests.fleet.matrix.site import MIGRATIONS, Ran, Site

NEW, OLD, HELD = "all-new", "all-old", "in maintenance"
# What a command may end with. 1 is a bug of the toolkit.
CODES = {0, 2, 3, 4, 5, 6, 7, 130, -9}


@dataclass(frozen=True)
class Allowance:
    """What a fault must cause: such answers from these hosts, under way in that time.

    Args:
        hosts: by name.
        kinds: as observer.Seen has them.
        why: in words.
        saying: what is in the detail of each.
    """

    hosts: tuple[str, ...]
    since: float
    until: float
    kinds: tuple[str, ...]
    why: str
    saying: str = ""

    def forgives(self, seen: Seen) -> bool:
        return (
            seen.host in self.hosts
            and seen.kind in self.kinds
            and self.saying in seen.detail
            and seen.ended >= self.since
            and seen.began <= self.until
        )


def settled(site: Site) -> str:
    """Wait until the public gets the same from every host, after this moment; which of the ends that is."""
    began = time.time()
    ends = {(2, 2, 2): NEW, (1, 1, 1): OLD, None: HELD}
    found: list[str] = []

    def alike() -> bool:
        newest = {seen.host: seen for seen in site.observer.since(began)}
        usable = [seen for seen in newest.values() if seen.kind in ("app", "maintenance")]
        found[:] = [ends.get(seen.met, f"mixed: {seen}") for seen in usable]
        return len(found) == len(site.fleet.hosts) and len(set(found)) == 1

    wait_until(alike, lambda: f"the same from every host: {site.observer.since(began)[-6:]}", 45)
    return found[0]


def violations(
    site: Site, began: float, end: str, commands: Sequence[Ran], allowed: Sequence[Allowance]
) -> list[str]:
    """Given when a trial began, how it ended and what was typed, return what doesn't hold, in lines."""
    return [
        *_starts(site),
        *public(site.observer.since(began), allowed),
        *_journals(site),
        *_end(site, end, commands),
    ]


def unexplained(lock: Mapping[str, Any], status: Ran) -> list[str]:
    """Given who holds the lock and what `fab status` said, return what it should have said of that."""
    missing = [word for word in (lock["run_id"], "fab deploy --resume") if word not in status.out]
    return [f"fab status doesn't explain the lock, it lacks {missing}: {status}"] if missing else []


def _starts(site: Site) -> list[str]:
    counted = Counter(site.starts())
    return [f"begun {count} times: {what}" for what, count in counted.items() if count > 1]


def public(answers: Sequence[Seen], allowed: Sequence[Allowance]) -> list[str]:
    """Given what the public got, return what it must not get."""
    mixed = [f"code met another schema: {seen}" for seen in answers if seen.mixed]
    bad = [seen for seen in answers if seen.kind not in ("app", "maintenance")]
    bad = [seen for seen in bad if not any(allowance.forgives(seen) for allowance in allowed)]
    return mixed + [f"the public got: {seen}" for seen in bad[:5]] + [f"... {len(bad)} such"] * (len(bad) > 5)


def _journals(site: Site) -> list[str]:
    """What was done is on the lock host, in the order in which this computer has it."""
    found, kept = [], site.journals()
    for run_id, mirror in site.mirrors().items():
        stored = kept.get(run_id, [])
        same = 0
        while same < min(len(stored), len(mirror)) and stored[same] == mirror[same]:
            same += 1
        looks = {step["name"] for step in mirror[0]["plan"]["steps"] if step.get("looks")}
        rest = [r["step"] for r in mirror[same:] if r["kind"] == "intent" and r["step"] not in looks]
        # The last one is of a step that wasn't begun. Without the lock there is no journal to write to.
        if stored and len(rest) > 1:
            found.append(f"run {run_id}: done, and not in the journal on the lock host: {rest}")
        if stored[same:] and stored[same]["kind"] != "resumed":
            found.append(f"run {run_id}: the lock host has other records: {stored[same]}")
    for line in site.starts():
        run_id = line.split()[1].removeprefix("deploytools-")
        if not _intended(kept.get(run_id, []), "migrate"):
            found.append(f"run {run_id} has begun its migration, and its journal doesn't say so")
    return found


def _intended(records: Sequence[Mapping[str, Any]], step: str) -> bool:
    return any(record["kind"] == "intent" and record["step"] == step for record in records)


def _end(site: Site, end: str, commands: Sequence[Ran]) -> list[str]:
    found = [f"exit code {ran.code}: {ran}" for ran in commands if ran.code not in CODES]
    statuses, revision = site.statuses(), site.revision()
    releases = {told["release"] for told in statuses.values()}
    lock = statuses[site.web1.name]["lock"]
    if end == HELD:
        last = commands[-1]
        if last.code not in (4, 130) or "state:" not in last.err or "next:" not in last.err:
            found.append(f"in maintenance, and not explained: {last}")
        if lock is None:
            found.append("in maintenance, and nobody holds the lock")
        return found
    wanted = {NEW: 2, OLD: 1}[end]
    if revision != wanted:
        found.append(f"{end}, and the schema is at {revision}")
    if len(releases) != 1 or (releases == {site.release}) != (end == OLD):
        found.append(f"{end}, and the hosts have {releases}")
    if lock is not None:
        found.append(f"{end}, and the lock is held: {lock}")
    for host in site.fleet:
        if host.exists(f"{WORK}/quiet"):
            found.append(f"{end}, and the workers of {host.name} were not resumed")
    left = site.web1.run(["systemctl", "list-units", "--plain", "--no-legend", MIGRATIONS]).stdout
    if left:
        found.append(f"{end}, and a migration is left over: {left}")
    promised = {0: {NEW, OLD}, 7: {NEW}, 3: {OLD}}.get(commands[-1].code)
    if promised and end not in promised:
        found.append(f"{end}, after {commands[-1]}")
    return found
