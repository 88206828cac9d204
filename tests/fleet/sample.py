"""A project for a fleet, as a new user has it after the second step of the README."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.fleet.fleet import DEPLOY_USER, Fleet

PAGE = "<?php echo 'release ', basename(realpath('..')), ' on ', gethostname();\n"


def begin(fleet: Fleet) -> None:
    """Write it in place of the operator's own fabric.yaml: an application of one page, on php-cgi."""
    project = fleet.operator.directory
    for name in ("fabfile.py", "fabric.yaml"):
        (project / name).unlink()
    hosts = [word for host in fleet for word in ("--host", f"{DEPLOY_USER}@{host.name}")]
    argv = [sys.executable, "-m", "deploytools", "init", "--application", "guestbook", *hosts]
    subprocess.run(argv, cwd=project, check=True, capture_output=True)
    written = (project / "fabric.yaml").read_text()
    assert written.count("\ndeploy:\n") == 1
    ours = f"\ndeploy:\n  ssh_config: {json.dumps(str(fleet.ssh_config))}\n"
    (project / "fabric.yaml").write_text(written.replace("\ndeploy:\n", ours))
    (project / "public").mkdir()
    (project / "public/index.php").write_text(PAGE)
    (project / ".gitignore").write_text("state/\n")
    git(project, "init", "-q")
    for key, value in (("user.name", "Ann"), ("user.email", "ann@example.com"), ("core.compression", "0")):
        git(project, "config", key, value)
    commit(fleet, "The first page")


def commit(fleet: Fleet, message: str) -> None:
    """Commit all that changed in it."""
    git(fleet.operator.directory, "add", "-A")
    git(fleet.operator.directory, "commit", "-qm", message)


def git(directory: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", directory, *arguments], check=True, capture_output=True)
