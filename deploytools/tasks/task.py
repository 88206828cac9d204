"""The frame of every task: it runs once, its errors are for people, its exit code means something."""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from fabric import Task
from invoke.exceptions import Exit

from deploytools.errors import DeployError, UsageError
from deploytools.executor import require_once

EVENTS = {"json": "for a machine: the result as one JSON object, and events as JSON lines on stderr"}


def operation(*, run: bool = False, **options: Any) -> Callable[[Callable[..., None]], Any]:
    """Make a function a Fabric task that runs once over its hosts, whatever -H says.

    Takes the options of fabric.task. A DeployError becomes its message and its exit code. A task that is
    a `run` has the option --json (EVENTS), with which the error is JSON, too.
    """

    def decorate(body: Callable[..., None]) -> Any:
        about = options.get("help", {})
        task = Task(_framed(body, run), **{**options, "help": dict(about)})
        task.once = True
        task.about = about  # Invoke empties its copy when it is first asked for the arguments
        return task

    return decorate


def _framed(body: Callable[..., None], is_run: bool) -> Callable[..., None]:
    @functools.wraps(body)
    def run(c: Any, *args: Any, **kwargs: Any) -> None:
        from deploytools.report.text import error_json, error_text, writable

        writable(sys.stdout)
        try:
            require_once(c)
            body(c, *args, **kwargs)
            sys.stdout.flush()
        except DeployError as error:
            if is_run and kwargs.get("json"):
                print(error_json(error))
            else:
                print(error_text(error), file=sys.stderr)
            raise Exit(code=error.exit_code) from error
        except BrokenPipeError:
            # `fab history | head`. What Python flushes at its end would be a traceback once more.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise Exit(code=128 + signal.SIGPIPE) from None
        except (KeyboardInterrupt, EOFError):  # Ctrl-D where something is asked
            print("interrupted; nothing was under way on a host", file=sys.stderr)
            raise Exit(code=130) from None

    return run


def confirm(yes: bool) -> None:
    """Ask whether to go ahead, unless --yes was given. Without a terminal it has to be given.

    Raises UsageError where the answer is no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError("there is no terminal to ask on", state="nothing was changed", next="add --yes")
    if input("go ahead? [y/N] ").strip().lower() not in ("y", "yes"):
        raise UsageError("not confirmed", next="the same command again, when it is time")
