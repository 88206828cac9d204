"""A tree of 10,000 files and 100 MB sent to real hosts: for the first time, and with one file changed.

    python -m tests.measure.releases --hosts 10 --rounds 7

Three ways, each in its turn in every round, so that a busy machine is busy for all of them:

- `rsync -a` of the tree over ssh alone, to all hosts at the same time;
- the transfer alone: the same over our connection, in a process of its own that reads the tree, connects, and
  has every host take in the release, checked by digest and flushed to its disk; rsync does neither;
- the whole `fab deploy`: export from git, description, all checks, the transfer, a hot swap host by host; and
  its step alone that sends the release, where tree and connection are ready.

Half of the directories have words in them, half noise, as pictures are. Told are medians, the median of each
round's ratio to rsync, and what went over the hosts' network cards in both directions, per host. It prints a
table, and one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.fleet import sample
from tests.fleet.fleet import DEPLOY_USER, Fleet
from tests.fleet.hosts import Host

FILES, SIZE = 10_000, 10_240
RELEASES = "/srv/guestbook/releases"
WAYS = ("rsync", "transfer", "deploy")
TOLD = (*WAYS, "its step")
TOOLS = "/usr/local/lib/deploytools/guestbook"


@dataclass(frozen=True)
class Took:
    """Seconds on the clock, and bytes per host on its network card."""

    seconds: float
    wire: float


def make_tree(place: Path) -> None:
    """Words in one half of the directories, noise in the other."""
    chance = random.Random(1)  # noqa: S311  the same every time
    letters = b"abcdefghijklmnopqrstuvwxyz"
    words = [bytes(chance.choices(letters, k=chance.randint(2, 9))) for _ in range(5000)]
    for number in range(FILES):
        directory = place / f"d{number // 100:02}" / "sub"
        directory.mkdir(parents=True, exist_ok=True)
        text = b" ".join(chance.choices(words, k=SIZE // 4))[:SIZE]
        noise = number // 100 % 2
        (directory / f"file-{number}.txt").write_bytes(chance.randbytes(SIZE) if noise else text)


def change(place: Path, number: int) -> None:
    """Another content for one file, of another size, so that no way takes it for the old one."""
    (place / "d42/sub/file-4200.txt").write_bytes(b"changed " * (100 + number))


class Measurement:
    """Turns on one fleet."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet, self.number = fleet, 0
        self.project = fleet.operator.directory
        self.tree = self.project / "tree"
        sample.begin(fleet)
        make_tree(self.tree)
        sample.commit(fleet, "The tree")
        fleet.operator.fab("setup", "--as-user", "root", "--yes", timeout=600)
        self.ways: dict[str, Callable[[], None]] = {
            "rsync": self.rsync,
            "transfer": self.transfer,
            "deploy": self.deploy,
        }

    def first(self) -> dict[str, Took]:
        """Every way for the first time; the deploy has a window then, as nobody is served yet."""
        took = {way: self.turn(way) for way in ("rsync", "transfer")}
        self.fleet.in_parallel(lambda host: host.run(f"rm -rf {RELEASES}/* {RELEASES}/.incoming"))
        took["deploy"] = self.turn("deploy")
        return {**took, "its step": self.step(took["deploy"])}

    def again(self, count: int) -> dict[str, list[Took]]:
        """Every way with one file changed, `count` times after one that doesn't count."""
        took: dict[str, list[Took]] = {way: [] for way in TOLD}
        for number in range(count + 1):
            change(self.tree, self.number)
            sample.commit(self.fleet, f"Change {self.number}")
            for way in WAYS:
                once = self.turn(way)
                if number:
                    took[way].append(once)
                if number and way == "deploy":
                    took["its step"].append(self.step(once))
            told = " ".join(f"{way} {took[way][-1].seconds:.2f}" for way in TOLD if took[way])
            print(f"round {number} of {count}: {told}, load {os.getloadavg()[0]:.1f}", file=sys.stderr)
        return took

    def turn(self, way: str) -> Took:
        self.number += 1
        before = sum(self.fleet.in_parallel(on_the_wire))
        began = time.monotonic()
        self.ways[way]()
        seconds = time.monotonic() - began
        after = sum(self.fleet.in_parallel(on_the_wire))
        if way == "transfer":
            self.fleet.in_parallel(self.keep)
        return Took(seconds, (after - before) / len(self.fleet.hosts))

    def rsync(self) -> None:
        shell = f"ssh -F {self.fleet.ssh_config}"
        copies = [
            subprocess.Popen(
                ["rsync", "-a", "--delete", "-e", shell, f"{self.tree}/", f"{DEPLOY_USER}@{host.name}:copy/"]
            )
            for host in self.fleet
        ]
        for copy in copies:
            assert copy.wait(600) == 0, "rsync failed"

    def transfer(self) -> None:
        argv = [sys.executable, "-m", "tests.measure.releases", "--ship", str(self.project)]
        environment = {**os.environ, "XDG_STATE_HOME": str(self.project / "state")}
        subprocess.run([*argv, f"alone-{self.number:06}"], check=True, env=environment, timeout=600)

    def deploy(self) -> None:
        self.fleet.operator.fab("deploy", "--yes", timeout=600)

    def keep(self, host: Host) -> None:
        """Count what the transfer has brought as deployed, or the next deploy would remove it."""
        argv = [f"{TOOLS}/release", "prune", "--keep", "5", "--deployed", f"alone-{self.number:06}"]
        host.run(argv, user=DEPLOY_USER)

    def step(self, deploy: Took) -> Took:
        """The step of the newest run that sends the release, as its journal has it."""
        run = json.loads(self.fleet.operator.fab("history", "--json").stdout)[0]["run_id"]
        journal = self.project / "state/deploytools/journal" / f"{run}.jsonl"
        records = map(json.loads, journal.read_text().splitlines())
        ended = [record for record in records if record["kind"] == "outcome" and record["step"] == "stage"]
        return Took(max(record["seconds"] for record in ended), deploy.wire)


def on_the_wire(host: Host) -> int:
    """The bytes that its network card has sent and received."""
    line = next(line for line in host.read("/proc/net/dev").splitlines() if line.strip().startswith("eth0:"))
    numbers = line.split(":")[1].split()
    return int(numbers[0]) + int(numbers[8])


def ship(project: Path, release: str) -> None:
    """The transfer alone, as a deploy does it."""
    from invoke.util import yaml  # type: ignore[attr-defined]

    from deploytools import commands, engine, settings
    from deploytools import operation as op
    from deploytools.commands import Command
    from deploytools.fleet import Ok
    from deploytools.releasing import contents, packing, selection, transfer
    from deploytools.releasing.selection import FILE, Item

    raw = yaml.safe_load((project / "fabric.yaml").read_text())["deploy"]
    config = settings.load(raw, environment=None, only_hosts=None, environ={}, root=project)
    tree = project / "tree"
    found = contents.entries(tree, selection.select(tree, selection.Rules()).items)
    manifest = json.dumps({"id": release})
    (tree / contents.MANIFEST).write_text(manifest)
    described = contents.entries(tree, [Item(contents.MANIFEST, FILE, len(manifest))])
    parcel = packing.pack(tree, (*described, *found), None)
    argv = commands.program(config, "release", "stage", release, "--sha256", parcel.digest)
    with op.connected(config) as fleet:
        outcomes = fleet.map(
            lambda remote: engine.run(
                remote, Command(argv, timeout=600), None, lambda talk: transfer.send(talk, parcel, _unheeded)
            )
        )
    (tree / contents.MANIFEST).unlink()
    for host, outcome in outcomes.items():
        assert isinstance(outcome, Ok), f"{host}: {outcome}"
        assert outcome.value.exit_code == 0, f"{host}: {outcome.value}"


def _unheeded(sent: int, size: int) -> None:
    """Nobody looks at the progress."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hosts", type=int, default=10, help="how many (10)")
    parser.add_argument("--rounds", type=int, default=7, help="how many redeploys count (7)")
    parser.add_argument("--ship", nargs=2, metavar=("PROJECT", "ID"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.ship:
        ship(Path(given.ship[0]), given.ship[1])
        return 0
    load = [round(os.getloadavg()[0], 1)]
    with Fleet(given.hosts, packages=["rsync"]) as fleet:
        measurement = Measurement(fleet)
        first = measurement.first()
        again = measurement.again(given.rounds)
    load.append(round(os.getloadavg()[0], 1))
    tell(given, {way: [took] for way, took in first.items()}, again, load)
    return 0


def tell(
    given: argparse.Namespace, first: dict[str, list[Took]], again: dict[str, list[Took]], load: list[float]
) -> None:
    print(f"{given.hosts} hosts, {given.rounds} rounds, {os.cpu_count()} processors, load {load}")
    print(f"{FILES:,} files, {FILES * SIZE / 1e6:.0f} MB; seconds, ratio to rsync, kB on the wire per host")
    told: dict[str, dict[str, dict[str, float]]] = {}
    for name, took in (("first", first), ("one file changed", again)):
        for way in TOLD:
            pairs = zip(took[way], took["rsync"], strict=True)
            found = {
                "seconds": statistics.median(once.seconds for once in took[way]),
                "ratio": statistics.median(ours.seconds / theirs.seconds for ours, theirs in pairs),
                "kB": statistics.median(once.wire for once in took[way]) / 1000,
            }
            told.setdefault(name, {})[way] = {key: round(value, 2) for key, value in found.items()}
            print(f"{name:16}  {way:8}  {found['seconds']:7.2f}  {found['ratio']:5.2f}  {found['kB']:10,.0f}")
    about = {"hosts": given.hosts, "rounds": given.rounds, "processors": os.cpu_count(), "load": load}
    print(json.dumps({**about, "took": told}))


if __name__ == "__main__":
    sys.exit(main())
