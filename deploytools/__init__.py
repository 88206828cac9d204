"""deploytools: maintenance mode, lossless hot swaps and downtime windows over SSH.

Start at `deploytools.tasks` for what an operator types, at `deploytools.plan` for what
a deploy consists of, and at docs/design.md for why.
"""

from __future__ import annotations


def __getattr__(name: str) -> str:
    """`__version__`, looked up when somebody asks: the look-up costs `fab --list` 10 ms."""
    if name == "__version__":
        from importlib.metadata import version

        return version("deploytools")
    raise AttributeError(name)
