"""What the host programs share. Standard library of Debian's python3 only.

Set-up keeps every version of the programs whole, in a directory of its own, and turns a link to it:

    TOOLS/swap -> current/swap        the path that everybody uses, sudoers too
    TOOLS/current -> versions/ID      turned by one rename
    TOOLS/versions/ID/                the programs, hostlib, config.json

Python looks for hostlib beside the program that the links led it to, so a program that runs goes on with its
own version. One that is started at the very moment of the turn could be read from the new version and given
the hostlib of the old one: it is started anew.
"""

from __future__ import annotations

import os
import sys


def _of_another_version(program: str, here: str) -> bool:
    """Given the real paths of a program and of the directory of its hostlib: did the link turn in between?"""
    directory, versions = os.path.dirname(program), os.path.dirname(here)
    return (
        os.path.basename(versions) == "versions"
        and os.path.dirname(directory) == versions
        and directory != here
    )


_program = getattr(sys.modules["__main__"], "__file__", None)
if _program:
    _program = os.path.realpath(_program)
    if _of_another_version(_program, os.path.dirname(os.path.dirname(os.path.realpath(__file__)))):
        os.execv(_program, [_program, *sys.argv[1:]])
