"""What `doctor` looks at, each check with its remedy. Changes nothing.

A check is a function of the Subject that yields findings; one finding says one thing. A command in a
remedy is for root on that host, unless it begins with `fab`; its steps are parted by "; then", and another
way of doing it comes after "; or".
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Sequence

from hostlib.checks import application, installation, rights, site, system, webserver
from hostlib.checks.finding import WARNING, Finding, Subject
from hostlib.program import Failure

Check = Callable[[Subject], Iterator[Finding]]

# What a host needs before it is set up; the rest would only say in many ways that it isn't.
FOUNDATION: Sequence[Check] = (
    system.python,
    system.disk,
    system.programs,
    system.memory,
    system.backlog,
    system.socket_path,
    system.processes,
    rights.application_account,
    webserver.version,
    webserver.modules,
    webserver.configuration,
    application.command,
    application.manager,
    application.php,
    application.logout,
    installation.neighbours,
)
BEFORE_SETUP: Sequence[Check] = (installation.set_up, rights.becoming_root)
AFTER_SETUP: Sequence[Check] = (
    installation.set_up,
    installation.boot,
    rights.directories,
    rights.strangers,
    rights.trusted,
    rights.ways,
    rights.environment_files,
    rights.sudo,
    webserver.magnet,
    webserver.stat_cache,
    webserver.error_pages,
    webserver.backend,
    site.statistics,
    site.answers_told,
    site.workers,
    site.reload,
    site.loaded,
    site.unit,
    site.reaches,
    site.script,
    site.page,
    site.site,
    application.records,
    application.links_lead_there,
    application.alive,
    application.queue,
    application.kept_connections,
    application.database,
)


def findings(subject: Subject) -> Iterator[Finding]:
    """Run every check that makes sense here; one that can't be carried out is a finding too."""
    for check in (*FOUNDATION, *(BEFORE_SETUP if subject.problem else AFTER_SETUP)):
        name = check.__name__.strip("_").replace("_", " ")
        try:
            yield from check(subject)
        except Failure as failure:
            yield Finding(name, False, failure.what, failure.next or "fab setup")
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            yield Finding(name, False, f"this can't be looked at: {error}", "fab setup")
        except Exception as error:  # noqa: BLE001 - a bug in one check hides no other, and stops no deploy
            what = f"a bug in this check of the toolkit: {error!r}"
            yield Finding(name, False, what, "report it, with lighttpd -p and this message", WARNING)
