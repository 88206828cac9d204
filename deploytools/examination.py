"""`fab doctor`: every host is examined in one round trip, set up or not, and this computer too.

The checks are those of remote_scripts/hostlib/checks. They travel to the host, so that they work where
nothing is installed yet, and are the laptop's own where another version is.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from deploytools import commands, setup
from deploytools.commands import Command
from deploytools.engine import run
from deploytools.errors import DeployError
from deploytools.fleet import Failed, Fleet, Lost, Ok, Unreached
from deploytools.remote import Remote
from deploytools.settings import Page, Settings
from deploytools.setup import programs

ERROR, WARNING = "error", "warning"
# Clocks further apart than this are told, in seconds.
APART = 2.0
PATIENCE = 180.0

SYNCHRONISE = "timedatectl set-ntp true; where that fails: apt install systemd-timesyncd"

# That there is no python3, or too little of it, can't be said by a program of ours. $1 is BOOTSTRAP.
SHELL = """
if python=$(command -v /usr/bin/python3 || command -v python3); then exec "$python" -c "$1"; fi
cat >/dev/null
printf '{"ok": false, "checks": [{"name": "python", "ok": false, "level": "error", '
printf '"message": "python3 is missing: every host program needs it", "remedy": "apt install python3"}]}\\n'
exit 3
"""
BOOTSTRAP = """
import sys
lacks = "Python 3.9 or newer: it is " + sys.version.split()[0]
try:
    if sys.version_info >= (3, 9):
        import argparse, json, zlib, hashlib, http.client, importlib.util, ipaddress, socket, ssl, subprocess
        lacks = ""
except ImportError as error:
    lacks = "the module " + str(error.name) + ", which the package python3 has and python3-minimal has not"
if lacks:
    sys.stdin.buffer.read()
    print('{"ok": false, "checks": [{"name": "python", "ok": false, "level": "error", "message": '
        '"/usr/bin/python3 is not enough, for want of %s", "remedy": "apt install python3"}]}' % lacks)
    sys.exit(3)
bundle = json.loads(zlib.decompress(sys.stdin.buffer.read()))
exec(bundle["examine"], {"__name__": "examine", "BUNDLE": bundle})
"""


@dataclass(frozen=True)
class Finding:
    """What a check says, as in hostlib.checks.finding; `level` counts where it isn't `ok`."""

    name: str
    ok: bool
    message: str
    remedy: str = ""
    level: str = ERROR
    details: tuple[str, ...] = ()


@dataclass(frozen=True)
class Examined:
    """One host: its findings; `reached` is false where it gave no answer, which is its one finding then.

    `ahead` is how far its clock is ahead of ours, in seconds, as (at least, at most).
    """

    findings: tuple[Finding, ...]
    reached: bool = True
    ahead: tuple[float, float] | None = None


def stops(findings: Iterable[Finding]) -> bool:
    """Whether one of them would stop a deploy."""
    return any(not finding.ok and finding.level == ERROR for finding in findings)


def examine(fleet: Fleet, settings: Settings, users: Mapping[str, str]) -> dict[str, Examined]:
    """Examine the hosts that `users` names its deploy user of. A finding is no error here."""
    orders = _orders(settings, users)

    def look(remote: Remote) -> Examined:
        began = time.time()
        answer = run(remote, orders[remote.name])
        return _understood(answer, began, time.time())

    found = {}
    for host, outcome in fleet.map(look, hosts=list(users)).items():
        match outcome:
            case Ok(examined):
                found[host] = examined
            case Failed(error):
                found[host] = Examined((_silence(error),))
            case Unreached(error) | Lost(error):
                found[host] = Examined((_silence(error),), reached=False)
    return found


def _orders(settings: Settings, users: Mapping[str, str]) -> dict[str, Command]:
    """The command by host. Hosts differ in little, so that most share one."""
    bundle = _bundle(settings)

    @cache
    def command(user: str, migrates: bool) -> Command:
        expected = {**_expected(settings, user), "migrates": migrates}
        packed = zlib.compress(json.dumps({**bundle, "expected": expected}).encode())
        return Command(("sh", "-c", SHELL, "sh", BOOTSTRAP), stdin=packed, timeout=PATIENCE)

    return {host: command(user, _migrates(settings, host)) for host, user in users.items()}


def _bundle(settings: Settings) -> dict[str, Any]:
    source = programs.remote_scripts()
    modules = {str(path.relative_to(source)): path.read_text() for path in source.glob("hostlib/**/*.py")}
    return {
        "examine": (source / "examine.py").read_text(),
        "program": (source / "doctor").read_text(),
        "modules": modules,
        "place": settings.tools_dir,
    }


def _expected(settings: Settings, user: str) -> dict[str, Any]:
    """What a host should be like whose deploy user is `user`."""
    installed = setup.host_side(settings, user)
    files = {entry["path"]: entry for entry in installed["files"] if not entry.get("keep")}
    for entry in installed["programs"]:
        if entry["path"] != "config.json":
            files[f"{settings.tools_dir}/current/{entry['path']}"] = entry
    digests = {
        path: hashlib.sha256(base64.b64decode(entry["content"])).hexdigest() for path, entry in files.items()
    }
    return {
        **commands.expectation(settings, app=True, migrates=False),
        "config": setup.host_config(settings),
        "page": settings.page != Page(),
        "files": digests,
        "digest": setup.digest(settings, user),
    }


def _migrates(settings: Settings, host: str) -> bool:
    return settings.migrate is not None and host == str(settings.lock_host)


def _understood(answer: commands.Answer, began: float, ended: float) -> Examined:
    value = answer.mark.value
    try:
        findings = tuple(Finding(**check) for check in value["checks"])
    except (KeyError, TypeError):
        what = answer.error.get("what", "it gave no answer")
        return Examined((Finding("doctor", False, what, answer.error.get("next") or "fab setup"),))
    now, took = value.get("now"), value.get("took")
    # Its clock was read somewhere between our question and its answer, but not while it was at work.
    if isinstance(now, float) and isinstance(took, float):
        return Examined(findings, ahead=(now - ended, now - took - began))
    return Examined(findings)


def _silence(error: Exception) -> Finding:
    if isinstance(error, DeployError):
        return Finding("connection", False, error.what, error.next or "", details=error.details)
    return Finding("connection", False, str(error), "fab status")


def compare_clocks(
    found: Mapping[str, Examined], window: float
) -> tuple[dict[str, Examined], tuple[Finding, ...]]:
    """Given the examined hosts, add what is wrong with their clocks; or return what is with this computer's.

    As far as it can be known: a host's clock was read somewhere between our question and its answer.
    `window` is how many seconds a window usually takes.
    """
    apart = {host: each.ahead for host, each in found.items() if each.ahead and _distance(each.ahead) > APART}
    known = [each.ahead for each in found.values() if each.ahead]
    common = (max(least for least, _ in known), min(most for _, most in known)) if known else (0.0, 0.0)
    if len(known) > 1 and common[0] <= common[1] and _distance(common) > APART:
        what = f"this computer's clock is {_words((-common[1], -common[0]))} those of all hosts"
        return dict(found), (Finding("clock", False, what, SYNCHRONISE, _level(common, window)),)
    told = dict(found)
    for host, ahead in apart.items():
        level = _level(ahead, window)
        so = ", so by it a window is over before it begins, and --until is refused" if level == ERROR else ""
        wrong = Finding(
            "clock", False, f"its clock is {_words(ahead)} this computer's{so}", SYNCHRONISE, level
        )
        told[host] = replace(found[host], findings=(*found[host].findings, wrong))
    return told, ()


def _distance(ahead: tuple[float, float]) -> float:
    return max(ahead[0], -ahead[1], 0.0)


def _words(ahead: tuple[float, float]) -> str:
    return f"{_distance(ahead):.0f} s {'ahead of' if ahead[0] > 0 else 'behind'}"


def _level(ahead: tuple[float, float], window: float) -> str:
    """A host whose clock is so far ahead takes a window's end for past, and refuses it."""
    return ERROR if ahead[0] > window else WARNING
