"""sandbox.up, sandbox.down, sandbox.reset: a web host on this machine to try everything on."""

from __future__ import annotations

from typing import Any

from deploytools.tasks.task import operation

# 0 is for the port it had before, or the default: Fabric takes an option's type from its default.
_PORTS = {"http-port": "where the site answers (8080)", "ssh-port": "where sshd answers (2222)"}


@operation(help=_PORTS)
def up(c: Any, http_port: int = 0, ssh_port: int = 0) -> None:
    """Start a web host on this computer, to play with.

    Real lighttpd, real sshd, a guestbook to deploy; under `.sandbox/`.
    """
    from deploytools import sandbox
    from deploytools.executor import project_root

    told = sandbox.up(
        project_root(c), http_port=http_port or None, ssh_port=ssh_port or None, install=lambda: _install(c)
    )
    _revive(c)
    print(told)


@operation()
def down(c: Any) -> None:
    """Stop the local web host; its files stay."""
    from deploytools import sandbox
    from deploytools.executor import project_root

    print(sandbox.down(project_root(c)))


@operation(help=_PORTS)
def reset(c: Any, http_port: int = 0, ssh_port: int = 0) -> None:
    """Throw the local web host away and start a new one."""
    from deploytools import sandbox
    from deploytools.executor import project_root

    root = project_root(c)
    print(
        sandbox.reset(
            root, http_port=http_port or None, ssh_port=ssh_port or None, install=lambda: _install(c)
        )
    )


def _install(c: Any) -> None:
    """Set the sandbox up as `fab on sandbox setup` would."""
    from deploytools import operation as op
    from deploytools import provisioning
    from deploytools.executor import choose_environment, current_settings

    choose_environment(c, "sandbox")
    settings = current_settings(c)
    with op.connected(settings) as fleet:
        provisioning.set_up(settings, fleet)


def _revive(c: Any) -> None:
    """Start the application again on the release that it had when the sandbox went down."""
    from deploytools import operation as op
    from deploytools import plan as plans
    from deploytools import survey
    from deploytools.executor import choose_environment, current_settings
    from deploytools.report.plain import PlainReporter, to_stderr

    choose_environment(c, "sandbox")
    settings = current_settings(c)
    with op.connected(settings) as fleet:
        statuses = survey.ask(fleet, settings, "status")
        status = statuses[str(settings.lock_host)]
        if status["release"] is None or status["lock"] or (status["serving"] or {}).get("alive"):
            return
        plan = plans.hotswap_plan(op.base_plan("hotswap", settings, statuses), settings)
        op.carry_out(plan, settings, fleet, PlainReporter(to_stderr))
