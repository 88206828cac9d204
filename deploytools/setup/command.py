"""The commands that set a host up, or take everything off it again.

The installer comes with them, on standard input.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from deploytools.commands import Command
from deploytools.settings import Settings
from deploytools.setup import host_side, programs

Action = Literal["install", "remove"]


@dataclass(frozen=True)
class Work:
    """What a host has to change, or has changed, and remarks on that for a person.

    A change has `path`, `what` happens to it, a `diff`, and whether it is a `program` of ours.
    """

    changes: Sequence[Mapping[str, Any]]
    notes: Sequence[str]


# As root, and with Debian's search path for root: `sudo -n`, or because it was root who logged in.
_AS_ROOT = """\
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
if [ "$(id -u)" = 0 ]; then exec sh -c "$@"; else exec sudo -n -- sh -c "$@"; fi
"""
# Asked before anything else, because without Python nothing else can be asked. /usr/bin/python3 may also be
# that of python3-minimal, which lacks half of the standard library.
_RUN = """\
missing=
need() {
  package=$1
  shift
  "$@" >/dev/null 2>&1 || missing="$missing $package"
}
need python3 /usr/bin/python3 -I -c 'import argparse, difflib, http.client, json, subprocess, tempfile'
if [ "$2" = install ]; then
  need lighttpd command -v lighttpd
  need lighttpd-modules-lua test -e /usr/lib/lighttpd/mod_magnet.so
  need sudo command -v visudo
fi
if [ -n "$missing" ]; then
  printf '{"missing": "%s", "error": {"what": "packages are missing:%s"}}\\n' "${missing# }" "$missing"
  exit 3
fi
exec /usr/bin/python3 -I -c "$1"
"""
_APT = """\
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update && apt-get -qq -y -o Dpkg::Use-Pty=0 install --no-install-recommends "$@"
"""
# Everything is written to a directory of its own, whose name nobody else could know before. What a killed one
# leaves is not locked any more, and goes with the next set-up.
_BOOTSTRAP = """\
import base64, fcntl, json, os, sys, tempfile, zlib
bundle = json.loads(zlib.decompress(sys.stdin.buffer.read()))
with tempfile.TemporaryDirectory(prefix="deploytools-setup-") as place:
    fcntl.flock(os.open(place, os.O_RDONLY), fcntl.LOCK_EX)
    for entry in bundle["installer"] + bundle["programs"]:
        path = os.path.join(place, entry["path"])
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(base64.b64decode(entry["content"]))
    sys.path.insert(0, place)
    from hostsetup.main import main
    code = main(bundle)
sys.exit(code)
"""
# Seconds: the check of lighttpd's configuration, a reload that waits for requests, a busy disk.
_PATIENCE = 180.0
_PACKAGES = 1800.0


def setup_command(
    settings: Settings, user: str, action: Action, *, plan_only: bool, purge: bool = False
) -> Command:
    """The command that sets a host up for `user`, or removes that; with `plan_only` it only tells.

    `purge` is for a removal of data too. Raises UsageError as `host_side` does.
    """
    bundle: dict[str, Any] = {
        **host_side(settings, user),
        "action": action,
        "plan_only": plan_only,
        "purge": purge,
        "drain": settings.app.drain_timeout,
        "installer": programs.installer(),
    }
    python = ("/usr/bin/python3", "-I", "-c", _BOOTSTRAP)
    argv = ("sh", "-c", _AS_ROOT, "sh", _RUN, "setup", _BOOTSTRAP, action) if settings.privileged else python
    patience = _PATIENCE + (settings.app.drain_timeout if action == "remove" else 0)
    return Command(argv, stdin=zlib.compress(json.dumps(bundle).encode()), timeout=patience)


def packages_command(names: tuple[str, ...]) -> Command:
    """The command that installs Debian packages."""
    return Command(
        ("sh", "-c", _AS_ROOT, "sh", _APT, "packages", *names), timeout=_PACKAGES, repeatable=False
    )
