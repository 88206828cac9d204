"""on, init, setup: from nothing to a host that can be deployed to."""

from __future__ import annotations

from typing import Any

from deploytools.tasks.task import confirm, operation


@operation(positional=["environment"], help={"environment": "a key of deploy.environments, or sandbox"})
def on(c: Any, environment: str) -> None:
    """Choose an environment for the tasks that follow: fab on staging deploy."""
    from deploytools.executor import choose_environment

    choose_environment(c, environment)


@operation(
    help={
        "application": "the application's name: [a-z][a-z0-9-]*",
        "host": "a web host: [user@]host[:port]; may be given several times",
    },
    iterable=["host"],
)
def init(c: Any, application: str, host: Any = None) -> None:
    """Write a commented fabric.yaml and a fabfile.py into this directory."""
    from pathlib import Path

    from deploytools.scaffold import write_project

    for path in write_project(Path.cwd(), application, list(host or ())):
        print(f"wrote {path.name}")
    print("next: look through fabric.yaml, commit both, then: fab setup --as-user root --plan")


@operation(
    help={
        "plan": "show what would change on every host; change nothing",
        "yes": "don't ask",
        "as-user": "connect as somebody else, such as root; the deploy user stays that of fabric.yaml",
    }
)
def setup(c: Any, plan: bool = False, yes: bool = False, as_user: str | None = None) -> None:
    """Install or upgrade the host side; shows what changes, and a second run changes nothing."""
    from deploytools import operation as op
    from deploytools.executor import current_settings
    from deploytools.report import setup_text

    settings = current_settings(c)
    with op.connected(settings, as_user=as_user) as fleet:
        changes = op.set_up(settings, fleet, plan_only=True)
        for host, changed in changes.items():
            print(setup_text(host, changed, settings.tools_dir, diffs=plan))
        if plan or not any(changes.values()):
            return
        confirm(yes)
        op.set_up(settings, fleet, plan_only=False)
    print(f"set up: {', '.join(changes)}")
