"""git checkouts for tests that ship something, made by the real git."""

from __future__ import annotations

import subprocess
from pathlib import Path

AUTHOR = "Ann <ann@example.com>"


def git(path: Path, *arguments: str) -> str:
    """Run git as Ann, whoever runs the tests; return what it prints."""
    identity = ["-c", "user.name=Ann", "-c", "user.email=ann@example.com", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", "-C", path, *identity, "-c", "protocol.file.allow=always", *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def checkout(path: Path, **files: str | bytes) -> Path:
    """A new repository in `path` with one commit of these files; of a sample where none is given."""
    path.mkdir()
    git(path, "init", "--quiet", "--initial-branch=main")
    if not files:
        (path / "run").write_text("#!/bin/sh\n")
        (path / "run").chmod(0o755)
        (path / "link").symlink_to("index.php")
        files = {"index.php": "<?php\n", "odd name\n": "odd", "-dash": "", "\udcffbytes ü": "x"}
    commit(path, "first", **files)
    git(path, "tag", "v1")
    return path


def commit(path: Path, message: str, **files: str | bytes) -> str:
    """Write these files and commit all there is; return the commit."""
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    git(path, "add", "--all")
    git(path, "commit", "--quiet", "--message", message)
    return git(path, "rev-parse", "HEAD")
