"""Runs `doctor` as the laptop has it, on a host that may not be set up at all. Leaves nothing there.

Travels with the programs' modules, which are imported from memory. What they take for their own place is
where set-up puts them, so that they look at the programs that are installed.
"""

import importlib.abc
import importlib.util
import sys


class Carried(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports what came along: sources by their path below the programs' directory."""

    def __init__(self, sources, place):
        self.sources, self.place = sources, place

    def find_spec(self, name, path=None, target=None):
        stem = name.replace(".", "/")
        for file, package in ((f"{stem}.py", False), (f"{stem}/__init__.py", True)):
            if file in self.sources:
                origin = f"{self.place}/{file}"
                return importlib.util.spec_from_loader(name, self, origin=origin, is_package=package)
        return None

    def exec_module(self, module):
        origin = module.__spec__.origin
        module.__file__ = origin
        exec(compile(self.sources[origin[len(self.place) + 1 :]], origin, "exec"), module.__dict__)  # noqa: S102


def main(bundle):
    sys.meta_path.insert(0, Carried(bundle["modules"], bundle["place"]))
    sys.argv = ["doctor", "--expected", "--json"]
    import io
    import json

    sys.stdin = io.StringIO(json.dumps(bundle["expected"]))
    program = compile(bundle["program"], "doctor", "exec")
    exec(program, {"__name__": "__main__", "__file__": f"{bundle['place']}/doctor"})  # noqa: S102


if "BUNDLE" in globals():  # `fab doctor` passes it in
    main(globals()["BUNDLE"])
