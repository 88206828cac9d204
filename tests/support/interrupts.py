"""Host programs that meet their end, or an error of the kernel, at a system call that the test chooses.

    for call in calls_of(lambda under: site.swap(under=under), STEPS):
        assert site.swap(under=killed_at(call)).code == -signal.SIGKILL

By strace, which follows the program's own thread only: what it starts goes on undisturbed.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

# What a program does to files, sockets and processes.
STEPS = "rename,symlink,unlink,mkdir,rmdir,bind,listen,chmod,chown,clone,vfork,kill"
# Those of its calls that a full disk may refuse.
WRITES = "write,pwrite64,ftruncate,rename,symlink,mkdir,bind"


# A test that interrupts a program at each of its steps takes every `stride`th one; all of them are for
# `make test-all`.
SOME_OR_EVERY = pytest.mark.parametrize(
    "stride", [8, pytest.param(1, marks=pytest.mark.exhaustive)], ids=["some", "every"]
)


class Call(NamedTuple):
    """The `number`th call of that name that a program makes, from 1 on, and what it looked like."""

    name: str
    number: int
    line: str


def calls_of(
    run: Callable[[list[str]], object], names: str, read: Callable[[str], str] | None = None
) -> list[Call]:
    """Which of these calls a program makes, in their order.

    Args:
        run: given what to run the program under, does so.
        read: given a path, returns what is there, where the program runs on another host.
    """
    with tempfile.NamedTemporaryFile("r") as trace:
        run(["strace", "-qq", "-o", trace.name, "-e", f"trace={names}"])
        text = read(trace.name) if read else Path(trace.name).read_text()
    counted: Counter[str] = Counter()
    found = []
    for line in text.splitlines():
        if named := re.match(r"\w+(?=\()", line):
            counted[named[0]] += 1
            found.append(Call(named[0], counted[named[0]], line))
    return found


def killed_at(call: Call) -> list[str]:
    """What to run a program under so that it is killed just before that call."""
    return _injected(call, "signal=KILL")


def failing_at(call: Call, error: str) -> list[str]:
    """What to run a program under so that this call fails, by an error such as ENOSPC."""
    return _injected(call, f"error={error}")


def _injected(call: Call, what: str) -> list[str]:
    strace = ["strace", "-qq", "-o", "/dev/null", "-e", f"trace={call.name}"]
    return [*strace, "-e", f"inject={call.name}:{what}:when={call.number}"]
