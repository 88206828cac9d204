"""Which keys known_hosts has on file for a host. Pure, but for reading the files.

Read here and not by paramiko, whose reader knows no patterns, no @revoked, and only the first key of a
kind, and fails altogether at a @cert-authority line. The format is that of sshd(8).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path


@dataclass(frozen=True)
class KnownKey:
    """One key on file.

    Args:
        marker: "", "@revoked" or "@cert-authority".
        kind: for instance "ssh-ed25519".
        blob: the public key as it goes over the wire.
        file, line: where it stands.
    """

    marker: str
    kind: str
    blob: bytes
    file: Path
    line: int

    @property
    def fingerprint(self) -> str:
        """As `ssh-keygen -l` prints it."""
        return fingerprint(self.blob)


def fingerprint(blob: bytes) -> str:
    """Given a public key as it goes over the wire, return "SHA256:...", as `ssh-keygen -l` prints it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def look_up(names: Sequence[str], files: Iterable[Path]) -> tuple[KnownKey, ...]:
    """Given what a host may be filed under, return its keys; files that can't be read hold none.

    A later name counts only where nothing is on file for an earlier one; revoked keys always count.
    """
    found: list[list[KnownKey]] = [[] for _ in names]
    for file in files:
        for patterns, key in _read(file):
            for name, keys in zip(names, found, strict=True):
                if _matches(patterns, name):
                    keys.append(key)
    revoked = [key for keys in found for key in keys if key.marker == "@revoked"]
    valid = next((keys for keys in found if any(key.marker != "@revoked" for key in keys)), [])
    return tuple(dict.fromkeys([*(key for key in valid if key.marker != "@revoked"), *revoked]))


def _read(file: Path) -> tuple[tuple[str, KnownKey], ...]:
    try:
        about = file.stat()
        return _parsed(file, about.st_mtime_ns, about.st_size)
    except OSError:
        return ()


@lru_cache
def _parsed(file: Path, _changed: int, _size: int) -> tuple[tuple[str, KnownKey], ...]:
    """Every entry of a file with its patterns. Read once for all hosts of a fleet."""
    lines = file.read_text(errors="replace").splitlines()
    parsed = (_parse(line, file, number) for number, line in enumerate(lines, 1))
    return tuple(entry for entry in parsed if entry is not None)


def _parse(line: str, file: Path, number: int) -> tuple[str, KnownKey] | None:
    fields = line.split()
    marker = fields.pop(0) if fields and fields[0].startswith("@") else ""
    if len(fields) < 3 or fields[0].startswith("#"):
        return None
    try:
        blob = base64.b64decode(fields[2], validate=True)
    except binascii.Error:
        return None
    return fields[0], KnownKey(marker, fields[1], blob, file, number)


def _matches(patterns: str, name: str) -> bool:
    name = name.lower()
    if patterns.startswith("|1|"):
        return _matches_hash(patterns, name)
    verdict = False
    for pattern in patterns.lower().split(","):
        if _glob(pattern.removeprefix("!"), name):
            if pattern.startswith("!"):
                return False
            verdict = True
    return verdict


def _glob(pattern: str, name: str) -> bool:
    if "*" not in pattern and "?" not in pattern:
        return name == pattern
    # Not fnmatch: brackets stand for themselves here, as in "[web1.example.com]:2222".
    expression = re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".")
    return re.fullmatch(expression, name) is not None


def _matches_hash(field: str, name: str) -> bool:
    try:
        salt, digest = (base64.b64decode(part, validate=True) for part in field[3:].split("|"))
    except ValueError:  # binascii.Error is one too
        return False
    return hmac.compare_digest(hmac.new(salt, name.encode(), hashlib.sha1).digest(), digest)
