"""The tasks of deploytools, for this checkout: `fab --list`."""

from deploytools.tasks import ns

__all__ = ["ns"]
