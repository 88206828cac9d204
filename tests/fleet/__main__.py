"""The test fleet by hand.

python -m tests.fleet up 3 --suite trixie    boots hosts to play with; Ctrl-C ends them
python -m tests.fleet time 10                boots as many, tells how long it took and what they take
python -m tests.fleet images                 makes the images that are missing or too old
python -m tests.fleet down                   removes what fleets left whose owner was killed
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import time

from tests.fleet import images, keeper, sample
from tests.fleet.fleet import Fleet, missing


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fleet",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, act, count in (("up", up, 3), ("time", measure, 10)):
        command = commands.add_parser(name)
        command.add_argument("hosts", nargs="?", type=int, default=count, help=f"how many; {count}")
        command.add_argument("--suite", action="append", choices=images.SUITES, help="may be given twice")
        command.add_argument("--package", action="append", default=[], help="one more Debian package")
        command.set_defaults(act=act)
    commands.add_parser("images").set_defaults(act=make_images)
    commands.add_parser("down").set_defaults(act=down)
    arguments = parser.parse_args()
    if lacking := missing():
        sys.exit(f"no fleet here; missing: {'; '.join(lacking)}")
    arguments.act(arguments)


def up(arguments: argparse.Namespace) -> None:
    with _booted(arguments) as fleet:
        for host in fleet:
            print(f"  {host.name:<8} {host.address:<14} {host.suite:<9} http://{host.address}/")
        sample.begin(fleet)
        print(f"""
In another terminal:
  . {sys.prefix}/bin/activate
  cd {fleet.operator.directory}
  fab setup --as-user root
  fab deploy
  fab maint-down --reason "a look"
  ssh -F {fleet.ssh_config} deploy@web1
Ctrl-C ends the fleet, with the project directory in it.""")
        sys.stdout.flush()
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()


def measure(arguments: argparse.Namespace) -> None:
    started = time.monotonic()
    with _booted(arguments) as fleet:
        took = time.monotonic() - started
        memory = sorted(host.memory / 2**20 for host in fleet)
        print(
            f"{len(fleet.hosts)} hosts: all reachable after {took:.1f} s;"
            f" memory each {memory[0]:.0f} to {memory[-1]:.0f} MiB, {sum(memory):.0f} MiB in all"
        )


def make_images(arguments: argparse.Namespace) -> None:
    for suite in images.SUITES:
        for image in images.ready(suite):
            print(image.directory)


def down(arguments: argparse.Namespace) -> None:
    print(f"removed what was left of {len(keeper.sweep())} fleets")
    if still := keeper.living():
        print(f"somebody runs fleet {', '.join(map(str, still))}")


def _booted(arguments: argparse.Namespace) -> Fleet:
    return Fleet(arguments.hosts, suites=arguments.suite or ["bookworm"], packages=arguments.package)


if __name__ == "__main__":
    main()
