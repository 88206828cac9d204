"""`fab`, which has the task `init` even where there is no fabfile yet: it is to write one.

Takes the place of Fabric's own `fab`, which knows no task there; the same as `python -m deploytools`.
"""

from __future__ import annotations

import fabric
from fabric.main import Fab
from invoke.collection import Collection
from invoke.exceptions import CollectionNotFound, Exit

NO_PROJECT = """error: there is no fabfile.py in this directory, nor in one above it
  state: nothing was changed
  next:  cd to the project, or make one of this directory: fab init --application NAME --host HOST"""


class Program(Fab):  # type: ignore[misc]
    """Fabric's program; it differs only where neither this directory nor one above has a fabfile."""

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
    name="Fabric", version=fabric.__version__, executor_class=fabric.Executor, config_class=fabric.Config
)

if __name__ == "__main__":
    program.run()
