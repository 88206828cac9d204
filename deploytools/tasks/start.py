"""on, init, setup: from nothing to a host that can be deployed to."""

from __future__ import annotations

from typing import Any

from deploytools.tasks.task import confirm, operation


@operation(positional=["environment"], help={"environment": "a key of deploy.environments, or sandbox"})
def on(c: Any, environment: str) -> None:
    """Choose an environment for the tasks that follow.

    `fab on staging deploy`; `sandbox` is built in.
    """
    from deploytools.executor import choose_environment

    choose_environment(c, environment)


@operation(
    help={
        "application": "its name: small letters, digits and dashes (default: that of this directory)",
        "host": "a web host: [user@]host[:port]; may be given several times",
        "command": "what starts the application (default: what its files tell)",
    },
    iterable=["host"],
    positional=[],
)
def init(c: Any, application: str | None = None, host: Any = None, command: str | None = None) -> None:
    """Write fabric.yaml and fabfile.py for a project.

    Into this directory, never over existing ones, with what the project's files tell: how the application is
    started, its migrations, its database. Without options it asks, on a terminal. Before there is a
    fabfile it is `python -m deploytools init`.
    """
    import sys
    from dataclasses import replace
    from pathlib import Path

    from deploytools.detection import detect
    from deploytools.scaffold import EXAMPLE_HOST, refuse_over_another, write_project

    refuse_over_another(Path.cwd())  # before anything is asked
    found, hosts = detect(Path.cwd()), list(host or ())
    for note in found.notes:
        print(f"found: {note}", file=sys.stderr)
    if sys.stdin.isatty() and not (application or hosts or command):
        application = _asked("the application's name", found.application)
        hosts = _asked("its hosts, with spaces between them", EXAMPLE_HOST).split()
        command = _asked("what starts it, in its directory and without a shell", found.command)
    wanted = replace(found, application=application or found.application, command=command or found.command)
    for path in write_project(Path.cwd(), wanted, hosts):
        print(f"wrote {path.name}")
    if hosts in ([], [EXAMPLE_HOST]):
        print(f"{EXAMPLE_HOST} in it is an example: put your own hosts there")
    print("next: look through fabric.yaml, commit both, then: fab setup --as-user root --plan")


def _asked(question: str, default: str) -> str:
    return input(f"{question} [{default}]: ").strip() or default


@operation(
    help={
        "plan": "show what would change on every host; change nothing",
        "yes": "don't ask",
        "as-user": "connect as somebody else, such as root; the deploy user stays that of fabric.yaml",
        "install-packages": "install the Debian packages that are missing, before anything else",
        "remove": "take everything off the hosts again, but for data",
        "purge": "with --remove: data too, such as releases, uploads, logs and past runs",
    }
)
def setup(
    c: Any,
    plan: bool = False,
    yes: bool = False,
    as_user: str | None = None,
    install_packages: bool = False,
    remove: bool = False,
    purge: bool = False,
) -> None:
    """Install, upgrade or remove the host side.

    Shows what changes and asks; a second run changes nothing. With --remove it takes everything of the
    application off the hosts, data only with --purge.
    """
    from deploytools import operation as op
    from deploytools import provisioning
    from deploytools.errors import UsageError
    from deploytools.executor import current_settings
    from deploytools.report.setup import alike, setup_text
    from deploytools.report.text import addressed, clean
    from deploytools.setup.command import Action

    if (purge and not remove) or (install_packages and remove):
        what = "--install-packages doesn't go with --remove" if remove else "--purge goes with --remove only"
        raise UsageError(what, where="fab setup", state="nothing was changed", next="fab --help setup")
    action: Action = "remove" if remove else "install"
    settings = current_settings(c)
    with op.connected(settings, as_user=as_user) as fleet:
        try:
            works = provisioning.plan(settings, fleet, action, purge=purge)
        except provisioning.PackagesMissing as error:
            if not install_packages:
                raise
            for host, names in error.by_host.items():
                print(f"{host}:\n  install: {' '.join(names)}")
            if plan:
                print("what set-up itself would change can be told when they are there")
                return
            confirm(yes)
            provisioning.install_packages(fleet, error.by_host)
            works = provisioning.plan(settings, fleet, action, purge=purge)
        for hosts, work in alike(works) if plan else works.items():
            print(setup_text(hosts, work, settings, diffs=plan, removal=remove))
        if plan or not any(work.changes for work in works.values()):
            return
        confirm(yes)
        done = provisioning.carry_out(settings, fleet, action, purge=purge)
    for host, work in done.items():
        for note in work.notes:
            print(clean(f"{host}: {note}"))
    print(f"{'removed from' if remove else 'set up'}: {', '.join(done)}")
    if not remove:
        print(addressed("next: fab doctor, then fab deploy", settings.environment))
