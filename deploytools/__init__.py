"""deploytools: maintenance mode, lossless hot swaps and downtime windows over SSH.

Start at `deploytools.tasks` for what an operator types, at `deploytools.plan` for what
a deploy consists of, and at docs/design.md for why.
"""

from importlib.metadata import version

__version__ = version("deploytools")
