"""Certificates for a web server on this machine."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

REQUEST = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=elsewhere", "-days", "1"]


@cache
def _key_and_certificate() -> bytes:
    return subprocess.run([*REQUEST, "-keyout", "-", "-out", "-"], capture_output=True, check=True).stdout


def self_signed(directory: Path) -> Path:
    """A file in `directory` with a key and its certificate, for another name than one asks for."""
    file = directory / "elsewhere.pem"
    file.write_bytes(_key_and_certificate())
    return file
