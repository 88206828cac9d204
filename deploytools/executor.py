"""How `fab` runs our tasks: once over the whole group, which -H limits; and what they ask about the session.

Fabric's own executor runs a task once per host of -H, one after the other: no barrier could hold the hosts
together. fabric.yaml names this one instead: `tasks: {executor_class: deploytools.executor.OnceExecutor}`.
Other people's tasks in the same fabfile keep Fabric's behaviour.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fabric
from invoke.context import Context
from invoke.exceptions import AmbiguousEnvVar, Exit, UncastableEnvVar
from invoke.tasks import Call, Task

from deploytools.errors import DeployError, SettingsError, UsageError

if TYPE_CHECKING:
    from deploytools.settings import Settings

# What `fab on` and -H said, in the configuration that the tasks of one session share.
SESSION = "deploytools"


class ProjectConfig(fabric.Config):  # type: ignore[misc]
    """Fabric's configuration, except that FABRIC_DEPLOY_* is left to `deploytools.settings`.

    Fabric would convert those variables by the type of what fabric.yaml happens to have: "false" to
    true, "abc" to a traceback; and http_proxy beside HTTP_PROXY in `app.env` is an ambiguity to it.
    """

    def load_shell_env(self) -> None:
        deploy = self.pop("deploy", None)
        try:
            super().load_shell_env()
        except (AmbiguousEnvVar, UncastableEnvVar, ValueError, TypeError) as error:
            raise SettingsError(
                f"a FABRIC_* variable doesn't fit what it overrides: {error}",
                where="the environment of the shell",
                state="nothing was changed",
                next="env | grep ^FABRIC_",
            ) from error
        if deploy is not None:
            self["deploy"] = deploy


class OnceExecutor(fabric.Executor):  # type: ignore[misc]
    """Runs a task that is marked by `task.once = True` once, whatever -H says; all others as Fabric does."""

    config: Any

    def execute(self, *tasks: Any) -> Any:
        try:
            self.config = self.config.clone(into=ProjectConfig)
            self.config.update({SESSION: {"hosts": self.core[0].args.hosts.value, "environment": None}})
            return super().execute(*tasks)
        except DeployError as error:
            from deploytools.report.text import error_text

            print(error_text(error), file=sys.stderr)
            raise Exit(code=error.exit_code) from error

    def expand_calls(self, calls: Sequence[Call | Task[Any]], apply_hosts: bool = True) -> list[Call]:
        """Given the calls asked for, return those to make: with a Connection each where Fabric would."""
        if not calls:
            return list(super().expand_calls(calls, apply_hosts))  # `fab -H web1 -- COMMAND`
        if calls[-1].name == "on":
            raise UsageError(
                "`on` chooses an environment for the tasks after it, and there is none",
                state="nothing was changed",
                next="fab on ENVIRONMENT TASK",
            )
        expanded: list[Call] = []
        for call in calls:
            if getattr(call, "once", False):
                expanded += self._once(call)
            else:
                expanded += super().expand_calls([call], apply_hosts)
        return expanded

    def _once(self, call: Call | Task[Any]) -> list[Call]:
        call = Call(call) if isinstance(call, Task) else call
        if self.core.remainder:
            raise UsageError(
                f"a command after -- can't be combined with the task {call.task.name}",
                state="nothing was changed",
                next="run the task and the command one after the other",
            )
        before = self.expand_calls(call.pre, apply_hosts=False) if call.pre else []
        after = self.expand_calls(call.post, apply_hosts=False) if call.post else []
        return [*before, call, *after]


def require_once(c: Context) -> None:
    """Raise UsageError where Fabric's own executor runs a task of ours per host.

    That happens with -H in a project whose fabric.yaml doesn't name OnceExecutor: the task gets a
    Connection to one host then, and would deploy to the hosts one by one.
    """
    if isinstance(c, fabric.Connection):
        raise UsageError(
            f"this task works on all hosts at once, but was started for {c.host} alone",
            where=_file(c),
            state="nothing was done",
            next="add to fabric.yaml: tasks: {executor_class: deploytools.executor.OnceExecutor}",
        )


def runs_once(c: Context) -> bool:
    """Whether fabric.yaml names OnceExecutor."""
    return SESSION in c.config


def choose_environment(c: Context, name: str) -> None:
    """Pick an environment for the rest of the session; raises SettingsError for an unknown one."""
    from deploytools import settings

    settings.check_environment(c.config.get("deploy"), name, _file(c))
    c.config.update({SESSION: {**_session(c), "environment": name}})


def environment(c: Context) -> str | None:
    """What `choose_environment` picked in this session, or None."""
    return _session(c).get("environment")


def selected_hosts(c: Context) -> tuple[str, ...] | None:
    """What -H named, or None without it. Raises UsageError for a -H that is there but names nothing.

    `fab -H "$HOSTS" deploy` with HOSTS unset must not mean every host.
    """
    text = _session(c).get("hosts")
    if text is None:
        return None
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise UsageError(
            "-H names no host",
            where="-H",
            state="nothing was changed",
            next="name hosts of fabric.yaml, or leave out -H for all of them",
        )
    return names


def project_root(c: Context) -> Path:
    """The directory of the fabfile and of fabric.yaml, wherever below it `fab` was started."""
    prefix: str | None = c.config._project_prefix
    return Path(prefix) if prefix else Path.cwd()


def current_settings(c: Context) -> Settings:
    """The settings for a task: fabric.yaml, the environment picked, FABRIC_DEPLOY_* and -H.

    Raises SettingsError with everything that is wrong, UsageError for hosts that -H can't name.
    """
    from deploytools import settings

    raw = c.config.get("deploy")
    picked = environment(c)
    if raw is None and picked != settings.SANDBOX:
        raise SettingsError(
            "there is no section `deploy` that says where to deploy to",
            where=_file(c) if Path(_file(c)).exists() else f"{_file(c)}, which doesn't exist",
            state="nothing was changed",
            next="for the sandbox: fab on sandbox TASK; in a project of your own: python -m deploytools init",
        )
    return settings.load(
        raw,
        environment=picked,
        only_hosts=selected_hosts(c),
        environ=os.environ,
        root=project_root(c),
        file=_file(c),
    )


def _session(c: Context) -> dict[str, Any]:
    return c.config.get(SESSION) or {}


def _file(c: Context) -> str:
    """The project's configuration file: the one that was read, or the one that should be there."""
    path: str | None = c.config._project_path  # fabric.py, the last that was tried, where there is none
    return path if path and Path(path).exists() else str(project_root(c) / "fabric.yaml")
