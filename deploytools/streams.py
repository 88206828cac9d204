"""Standard streams that somebody has closed, that nobody reads any more, or that are full.

What would have been read is lost then. The run that it tells of goes on, and ends with its own exit code.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from typing import TextIO

# What a write to a stream fails with, and no file of ours: EIO is a terminal that has gone.
GONE = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def whole() -> None:
    """Have all three: a stream that was closed before we began is None to Python."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  until the program ends


def tell(stream: TextIO, text: str = "") -> None:
    """Write a text, and what was written before; where that can't be, it is lost."""
    try:
        stream.write(text)
        stream.flush()
    except OSError:
        give_up(stream)


def give_up(stream: TextIO) -> None:
    """Have the stream lead nowhere: what is left for it would fail once more at the end of the program."""
    with contextlib.suppress(OSError, ValueError):  # ValueError: it is none of the system's
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
