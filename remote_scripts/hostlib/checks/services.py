"""What systemd says of a unit. Empty where systemd doesn't run this host; nothing here needs root."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

RUNS = Path("/run/systemd/system")
PATIENCE = 10.0  # seconds
# Settings of systemd.exec(5) that hide a part of the file system from a unit.
SANDBOX = (
    *("PrivateTmp", "ProtectHome", "InaccessiblePaths", "TemporaryFileSystem", "RootDirectory", "RootImage"),
    "RestrictAddressFamilies",
)
HIDDEN_BY = {"PrivateTmp": ("/tmp", "/var/tmp"), "ProtectHome": ("/home", "/root", "/run/user")}  # noqa: S108


def show(unit: str, *names: str) -> dict[str, str]:
    """Properties of a unit by name."""
    said = output("systemctl", "show", unit, *(f"--property={name}" for name in names))
    return dict(line.split("=", 1) for line in said.splitlines() if "=" in line)


def output(*argv: str) -> str:
    """What a program of systemd's prints; "" where systemd doesn't run, or the program can't tell."""
    if not RUNS.is_dir():
        return ""
    try:
        ran = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=PATIENCE
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return ran.stdout if ran.returncode == 0 else ""


def changed_at(unit: str) -> float | None:
    """When the unit was last started or reloaded, in seconds since the epoch; None where it doesn't run."""
    told = show(unit, "ActiveState", "StateChangeTimestampMonotonic")
    if told.get("ActiveState") != "active":
        return None
    since_boot = float(Path("/proc/uptime").read_text().split()[0])
    age = since_boot - int(told["StateChangeTimestampMonotonic"]) / 1e6
    return time.time() - age


def hidden(told: Mapping[str, str], paths: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    """Given a unit's SANDBOX, yield each setting that hides one of `paths` from it, as it is set."""
    for name, places in HIDDEN_BY.items():
        value = told.get(name, "no")
        if value not in ("no", "read-only", ""):
            yield from ((f"{name}={value}", path) for path in paths if _below(path, places))
    for name in ("InaccessiblePaths", "TemporaryFileSystem"):
        places = tuple(word.lstrip("-+").split(":")[0] for word in told.get(name, "").split())
        yield from ((f"{name}={told[name]}", path) for path in paths if _below(path, places))
    for name in ("RootDirectory", "RootImage"):
        if told.get(name, "") not in ("", "/"):
            yield f"{name}={told[name]}", paths[0]


def _below(path: Path, places: Sequence[str]) -> bool:
    return any(Path(place) == path or Path(place) in path.parents for place in places)


def lifted(setting: str) -> str:
    """The line that takes a setting of SANDBOX back."""
    name = setting.partition("=")[0]
    return f"{name}=no" if name in HIDDEN_BY else f"{name}="


def override(unit: str, line: str) -> str:
    """The command that adds a line to section Service of a unit, and makes it count."""
    file = f"/etc/systemd/system/{unit}.d/zz-deploytools.conf"  # the last one counts
    return (
        f"mkdir -p {os.path.dirname(file)} && printf '[Service]\\n{line}\\n' >> {file}"
        f" && systemctl daemon-reload && systemctl restart {unit.removesuffix('.service')}"
    )


def logind(key: str) -> str | None:
    """A setting of logind.conf with its drop-ins; None where it isn't set."""
    said = output("systemd-analyze", "cat-config", "systemd/logind.conf")
    found = re.findall(rf"^\s*{key}\s*=\s*(.*?)\s*$", said, re.MULTILINE)
    return found[-1] if found else None


def version() -> int | None:
    """systemd's version; None where it doesn't run this host."""
    found = re.match(r"systemd (\d+)", output("systemctl", "--version"))
    return int(found[1]) if found else None
