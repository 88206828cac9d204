"""Starting a process that outlives whoever asked for it: the ssh session, its terminal, its cgroup.

A session of its own keeps hang-ups and Ctrl-C away. Where systemd runs that isn't enough: logind may kill
whatever is left of a login, and `systemctl stop ssh` all that sshd ever started. So there the process gets
a scope, a cgroup of its own; being a scope, it still is our child and inherits our descriptors.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def scope(name: str | None = None) -> list[str]:
    """What to put before a command so that it runs in a scope, of this name; nothing where that can't be.

    Even where it can, systemd-run may end without ever having become the command.
    """
    if os.geteuid() != 0 or not Path("/run/systemd/system").is_dir() or not shutil.which("systemd-run"):
        return []
    named = [f"--unit={name}"] if name else []
    return ["systemd-run", "--scope", "--quiet", "--collect", *named, "--"]


def start(argv: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start `argv` in a session of its own. Takes the options of Popen."""
    return subprocess.Popen(argv, start_new_session=True, **options)
