"""`fab` as we install it, and `python -m deploytools`: Fabric's, but it has the task `init` where there is no
fabfile yet, and says what is wrong with ~/.fabric.yaml, which Fabric reads before it has anything of ours.

Fabric installs a `fab` of its own: where that one is found instead, all else is the same, and init and the
message are by `python -m deploytools`.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import fabric
from fabric.main import Fab
from invoke.collection import Collection
from invoke.exceptions import CollectionNotFound, Exit

from deploytools import __version__, streams
from deploytools.command_line import ended, list_in_groups, refusing
from deploytools.errors import DeployError
from deploytools.project_file import check
from deploytools.task_help import print_task_help

NO_PROJECT = """error: there is no fabfile.py in this directory, nor in one above it
  state: nothing was changed
  next:  cd to the project, or make one here: python -m deploytools init"""


class Program(Fab):  # type: ignore[misc]
    """Fabric's program; it differs where there is no fabfile, and where Fabric would end in a traceback."""

    def run(self, argv: Any = None, exit: bool = True) -> None:
        try:
            super().run(argv, exit)
        except (
            BrokenPipeError
        ):  # `fab --list | head`: a task's own is not ours to judge, and ends before this
            streams.give_up(sys.stdout)
            sys.exit(128 + signal.SIGPIPE)

    def create_config(self) -> None:
        try:
            for directory, prefix in ((Path("/etc"), "fabric"), (Path.home(), ".fabric")):
                check(directory, prefix)
        except DeployError as error:
            raise ended(error) from error
        super().create_config()

    def parse_tasks(self) -> None:
        refusing(super().parse_tasks)()

    def list_flat(self) -> None:
        list_in_groups(self)

    def print_task_help(self, name: str) -> None:
        print_task_help(self, name, super().print_task_help)

    def print_version(self) -> None:
        print(f"deploytools {__version__}")
        super().print_version()

    def load_collection(self) -> None:
        try:
            super().load_collection()
        except Exit as error:
            if not isinstance(error.__context__, CollectionNotFound):
                raise
            if self.core.unparsed[:1] not in ([], ["init"]):
                raise Exit(NO_PROJECT, code=2) from error
            from deploytools.tasks.start import init

            self.collection = Collection(init)


program = Program(
    name="Fabric",
    binary="fab",
    version=fabric.__version__,
    executor_class=fabric.Executor,
    config_class=fabric.Config,
)

if __name__ == "__main__":
    program.run()
