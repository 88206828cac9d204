"""`python -m deploytools`: `fab`, but it has the task `init` where there is no fabfile yet.

Fabric's own `fab` knows no task there, and init is what writes one. A script of our own by the name
`fab` would be a coin toss: two packages would install it, and the last one wins.
"""

from __future__ import annotations

import fabric
from fabric.main import Fab
from invoke.collection import Collection
from invoke.exceptions import CollectionNotFound, Exit

NO_PROJECT = """error: there is no fabfile.py in this directory, nor in one above it
  state: nothing was changed
  next:  cd to the project, or make one here: python -m deploytools init --application NAME --host HOST"""


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
