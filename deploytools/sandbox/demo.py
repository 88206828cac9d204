"""The main job, on the sandbox, measured: a first deploy, a migration in a window, hot swaps under load.

    python -m deploytools.sandbox.demo

Every command that it runs is shown, and can be typed by hand. It starts from a new sandbox and leaves
it running. It ends non-zero where a visitor's request was lost, where code met a schema that isn't its
own, and where the site was visibly down for longer than the migration plus ALLOWED seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploytools.errors import DeployError, OperationFailed, UsageError
from deploytools.sandbox import layout, repository
from deploytools.sandbox.traffic import LOST, MAINTENANCE

ALLOWED = 1.5  # seconds of visible downtime beyond the migration
DOWNTIME = "downtime beyond the migration"
NOT_BACK = "the site didn't come back"
SWAPS = 5  # hot swaps, at least
SWAP_REQUESTS = 20_000  # requests during them, at least
PACE = 400  # requests a second around the window; leaves the machine some time for the deploy itself
LONGEST = 300  # seconds that visitors keep coming, whatever happens


@dataclass(frozen=True)
class Verdict:
    """One line of the last table."""

    what: str
    measured: str
    promised: str
    kept: bool


Fab = Callable[..., str]


def demo(root: Path, fab: Fab, scratch: Path, ports: Sequence[str], *, throw_away: bool) -> list[Verdict]:
    """Do it all in the project `root`; return what was measured.

    Args:
        fab: runs a command of the toolkit, raises OperationFailed where it fails, returns its output
            where it was told to `capture` it.
        scratch: a directory for the visitors' results.
        ports: options of sandbox.up.
        throw_away: also the commits that somebody made in the sandbox's repository.
    """
    section("A web host on this machine")
    made = layout.load(root)
    if made is not None and repository.changed(made.repository) and not throw_away:
        raise UsageError(
            "the sandbox's repository has work of yours in it, and the demo starts from a new one",
            where=str(made.repository),
            state="nothing was changed",
            next="keep a copy of it, then: python -m deploytools.sandbox.demo --throw-away",
        )
    fab("sandbox.up" if made is None else "sandbox.reset", *ports)

    section("The first deploy")
    on = ("on", layout.HOST)
    fab(*on, "deploy", "--ref", "v1", "--with-downtime", "--yes")

    section("A schema migration, while visitors keep coming")
    with visitors(root, scratch / "window.json", "--rate", str(PACE), "--clients", "16") as crowd:
        fab(*on, "deploy", "--ref", "v2", "--with-downtime", "--yes", "--reason", "visitors get a table")
        window = crowd.result()
    migration = json.loads(fab(*on, "history", "--json", capture=True))[0]["migration_seconds"]
    print(f"\nWhat they were answered, {PACE} requests a second:\n\n{around_the_window(window)}\n")
    down = (window["downtime"] or {}).get("seconds", 0.0)
    print(f"Visibly down for {down:.2f} s; the migration took {migration:.2f} s of that.")

    section("Hot swaps, while visitors ask as fast as they can")
    swaps = 0
    with visitors(root, scratch / "swaps.json", "--clients", "8", "--at-least", str(SWAP_REQUESTS)) as crowd:
        while swaps < SWAPS or not crowd.gone:
            fab(*on, "hotswap")
            swaps += 1
            if swaps >= SWAPS:
                crowd.dismiss()
        load = crowd.result()
    print(
        f"\n{load['sent']} requests, {load['rate']:.0f} a second, answered by {len(load['generations'])} "
        f"generations: half of them within {load['median_ms']} ms, 99 of 100 within {load['p99_ms']} ms, "
        f"all within {load['slowest_ms']} ms."
    )
    return verdicts(window, migration, load)


def verdicts(window: dict[str, Any], migration: float, load: dict[str, Any]) -> list[Verdict]:
    """Hold what was measured against what is promised.

    Args:
        window: the visitors' summary of the deploy with downtime, see deploytools.sandbox.traffic.
        migration: seconds that it took.
        load: the visitors' summary of the hot swaps.
    """
    seen = window["downtime"]
    beyond = seen["seconds"] - migration if seen else 0.0
    mixed = window["mismatches"] + load["mismatches"]
    strangers = load["classes"][MAINTENANCE] + load["lost"]
    swaps = len(load["generations"]) - 1
    return [
        Verdict(
            DOWNTIME,
            f"{beyond:.2f} s" if seen and seen["over"] else NOT_BACK,
            f"< {ALLOWED} s",
            bool(seen and seen["over"]) and beyond < ALLOWED,
        ),
        Verdict(
            "requests lost around the window",
            f"{window['lost']} of {window['sent']}",
            "0",
            not window["lost"],
        ),
        Verdict(
            f"requests lost in {swaps} hot swaps",
            f"{strangers} of {load['sent']}",
            "0",
            not strangers and load["sent"] >= SWAP_REQUESTS and swaps >= SWAPS,
        ),
        Verdict("answers by code on another schema", str(mixed), "0", not mixed),
    ]


def around_the_window(result: dict[str, Any]) -> str:
    """A table of what visitors got, second by second, from two before the window to two after it."""
    seen = result["downtime"] or {"start": 0.0, "end": 0.0}
    releases = list(result["releases"])
    heads = ["second", *releases, "maintenance", "lost"]
    lines = ["  ".join(heads)]
    for row in result["per_second"]:
        if not seen["start"] - 3 < row["second"] < seen["end"] + 3:
            continue
        classes = row["classes"]
        cells = [
            str(row["second"]),
            *(row["releases"].get(release, 0) for release in releases),
            classes.get(MAINTENANCE, 0),
            sum(classes.get(kind, 0) for kind in LOST),
        ]
        lines.append(
            "  ".join(f"{cell or '.':>{len(head)}}" for cell, head in zip(cells, heads, strict=True))
        )
    return "\n".join(lines)


@dataclass(frozen=True)
class Crowd:
    """Visitors in a process of their own, see deploytools.sandbox.traffic."""

    process: subprocess.Popen[str]
    out: Path

    @property
    def gone(self) -> bool:
        return self.process.poll() is not None

    def dismiss(self) -> None:
        """Ask them to go, as soon as there were enough requests."""
        self.process.send_signal(signal.SIGTERM)

    def result(self) -> dict[str, Any]:
        """What they were answered, when they are gone; raises OperationFailed where they tell nothing."""
        self.dismiss()
        try:
            self.process.wait(LONGEST + 60)
            result: dict[str, Any] = json.loads(self.out.read_text())
        except (subprocess.TimeoutExpired, OSError, ValueError) as error:
            raise OperationFailed(
                f"the visitors told nothing: {error}",
                state="the sandbox goes on",
                next="fab on sandbox status",
            ) from error
        return result


@contextmanager
def visitors(root: Path, out: Path, *options: str) -> Iterator[Crowd]:
    """Visitors who keep coming to the sandbox of `root`; they are gone at the end, whatever happens."""
    site = layout.load(root)
    if site is None:
        raise OperationFailed(
            "there is no sandbox any more", where=str(root), state="nothing was measured", next="make demo"
        )
    argv = [sys.executable, "-m", "deploytools.sandbox.traffic", "--url", site.url, "--out", str(out)]
    argv += ["--seconds", str(LONGEST), *options]
    with subprocess.Popen(argv, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline() != "sending\n":
                raise OperationFailed(
                    "no visitor came", state="nothing was measured", next="see what is said above"
                )
            yield Crowd(process, out)
        finally:
            process.kill()


def typed(root: Path, program: Path) -> Fab:
    """`fab` in the project `root`, with each command shown before it runs."""

    def fab(*arguments: str, capture: bool = False) -> str:
        print(f"$ fab {shlex.join(arguments)}", flush=True)
        ran = subprocess.run(
            [program, *arguments],
            cwd=root,
            stdout=subprocess.PIPE if capture else None,
            text=True,
            check=False,
        )
        if ran.returncode != 0:
            raise OperationFailed(
                f"that ended with exit code {ran.returncode}, and says why above",
                state="what runs of the sandbox goes on, to be looked at",
                next="mend it, then make demo again; other ports: "
                'make demo DEMO="--http-port 8081 --ssh-port 2223"',
            )
        return ran.stdout or ""

    return fab


def section(title: str) -> None:
    """A headline."""
    print(f"\n{title}\n{'-' * len(title)}", flush=True)


def main() -> int:
    """The program; return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m deploytools.sandbox.demo", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--down", action="store_true", help="end the sandbox afterwards")
    parser.add_argument("--http-port", type=int, help="where the site answers")
    parser.add_argument("--ssh-port", type=int, help="where sshd answers")
    parser.add_argument(
        "--throw-away", action="store_true", help="also commits of yours in the sandbox's repository"
    )
    arguments = parser.parse_args()
    root = Path.cwd()
    ports = [f"--http-port={arguments.http_port}"] if arguments.http_port else []
    ports += [f"--ssh-port={arguments.ssh_port}"] if arguments.ssh_port else []
    fab = typed(root, Path(sys.executable).with_name("fab"))
    try:
        with tempfile.TemporaryDirectory(prefix="deploytools-demo-") as scratch:
            found = demo(root, fab, Path(scratch), ports, throw_away=arguments.throw_away)
        section("All in all")
        print(table(found))
        if late(found):
            print(
                f"\nTime is promised for a computer that has nothing else to do. This one has "
                f"{os.cpu_count()} processors, and {os.getloadavg()[0]:.1f} programs wanted one in the last "
                "minute. Once more: make demo"
            )
        if arguments.down:
            fab("sandbox.down")
        else:
            made = layout.load(root)
            print(
                f"\nThe sandbox goes on: {made.url if made else ''}\n"
                "To play with it: . .venv/bin/activate; fab on sandbox status\n"
                "It is ended by: fab sandbox.down"
            )
    except DeployError as error:
        print(f"\ndemo: {error.what}", file=sys.stderr)
        for label, text in (("where", error.where), ("state", error.state), ("next", error.next)):
            if text:
                print(f"  {label}: {text}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\ndemo: interrupted; fab sandbox.down ends what still runs", file=sys.stderr)
        return 130
    return 0 if all(verdict.kept for verdict in found) else OperationFailed.exit_code


def late(found: Sequence[Verdict]) -> bool:
    """Whether nothing but the time is not as promised: a busy machine is a reason for that alone."""
    broken = [one for one in found if not one.kept]
    return [one.what for one in broken] == [DOWNTIME] and broken[0].measured != NOT_BACK


def table(found: Sequence[Verdict]) -> str:
    """The verdicts in columns."""
    rows = [("", "measured", "promised", "")]
    rows += [(one.what, one.measured, one.promised, "kept" if one.kept else "BROKEN") for one in found]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


if __name__ == "__main__":
    sys.exit(main())
