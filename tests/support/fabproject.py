"""A project of its own for the real `fab`: a fabric.yaml, and tasks that print what they are given."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from tests.support import prepared

REPOSITORY = Path(__file__).parents[2]

FABFILE = """
import json

from deploytools.project_file import check_project_file

check_project_file()

from fabric import task

from deploytools import executor
from deploytools.tasks.task import operation


@task
def theirs(c):
    "Somebody else's task."
    print(json.dumps({"task": "theirs", "host": getattr(c, "host", None)}))


@task
def uptime(c):
    print(json.dumps({"task": "uptime", "said": c.run("echo up", hide=True).stdout.strip()}))


@operation()
def show(c):
    "What the session is."
    settings = executor.current_settings(c)
    print(json.dumps({
        "task": "show",
        "hosts": [str(host) for host in settings.hosts],
        "environment": executor.environment(c),
        "root": str(executor.project_root(c)),
        "start_timeout": settings.app.start_timeout,
        "privileged": settings.privileged,
        "env": dict(settings.app.env),
    }))


@operation(pre=[theirs], post=[show])
def framed(c):
    print(json.dumps({"task": "framed"}))


@operation()
def idle(c):
    print(json.dumps({"task": "idle"}))


@operation(positional=["name"])
def on(c, name):
    executor.choose_environment(c, name)
"""
ONCE = "tasks: {executor_class: deploytools.executor.OnceExecutor}\n"
DEPLOY = """
deploy:
  application: guestbook
  hosts: [web1, "deploy@web2:2222", web3]
  app: {command: /usr/bin/php-cgi, env: {http_proxy: here, HTTP_PROXY: there}}
  environments:
    staging: {hosts: [stage1]}
"""


class Project:
    """Give it a directory that is empty; `fabric_yaml` None is for a project without one."""

    def __init__(self, directory: Path, fabric_yaml: str | bytes | None = ONCE + DEPLOY) -> None:
        self.directory = directory
        (directory / "fabfile.py").write_text(FABFILE)
        if isinstance(fabric_yaml, str):
            fabric_yaml = fabric_yaml.encode()
        if fabric_yaml is not None:
            (directory / "fabric.yaml").write_bytes(fabric_yaml)

    def fab(self, *arguments: str, below: str = ".", **variables: str) -> subprocess.CompletedProcess[str]:
        """Run `fab` in the project (or `below` it) with a home directory that has nothing in it."""
        home = self.directory / "home"
        for directory in (home, self.directory / below):
            directory.mkdir(exist_ok=True)
        environ = {"HOME": str(home), "PATH": os.environ["PATH"]}
        environ |= {**prepared.of_python(os.environ), **variables}
        return prepared.run(
            [prepared.FAB, *arguments], stdin=subprocess.DEVNULL, cwd=self.directory / below, env=environ
        )

    def printed(self, *arguments: str, **options: Any) -> list[dict[str, Any]]:
        """What the tasks of a successful `fab` print."""
        done = self.fab(*arguments, **options)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def refused(self, *arguments: str, **options: Any) -> str:
        """The message of a `fab` that refuses: exit code 2, no task's output, and no traceback."""
        done = self.fab(*arguments, **options)
        assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
        assert done.stdout == ""
        assert "Traceback" not in done.stderr
        assert done.stderr.startswith("error: ")
        return done.stderr
