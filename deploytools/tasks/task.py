"""The frame of every task: it runs once, its errors are for people, its exit code means something."""

from __future__ import annotations

import functools
import signal
import sys
from collections.abc import Callable
from typing import Any

from fabric import Task
from invoke.exceptions import Exit

from deploytools.errors import DeployError, UsageError
from deploytools.executor import require_once

EVENTS = {"json": "for a machine: the result as one JSON object, and events as JSON lines on stderr"}

UNTOLD = """error: this can't be written to standard output: {}
  state: the task has done its work; only what it tells is lost
  next:  fab status; fab history has what became of a run"""


def operation(*, run: bool = False, **options: Any) -> Callable[[Callable[..., None]], Any]:
    """Make a function a Fabric task that runs once over its hosts, whatever -H says.

    Takes the options of fabric.task. A DeployError becomes its message and its exit code. A task that is
    a `run` has the option --json (EVENTS), with which the error is JSON, too.
    """

    def decorate(body: Callable[..., None]) -> Any:
        about = options.get("help", {})
        # Invoke would make up short options, another letter for the same in each task: -a was --abort here
        # and --batch there, -n was --no-rollback.
        task = Task(_framed(body, run), auto_shortflags=False, **{**options, "help": dict(about)})
        task.once = True
        task.about = about  # Invoke empties its copy when it is first asked for the arguments
        return task

    return decorate


def _framed(body: Callable[..., None], is_run: bool) -> Callable[..., None]:
    @functools.wraps(body)
    def run(c: Any, *args: Any, **kwargs: Any) -> None:
        from deploytools import streams
        from deploytools.report.text import writable

        streams.whole()
        writable(sys.stdout)
        as_json = is_run and bool(kwargs.get("json"))
        try:
            require_once(c)
            body(c, *args, **kwargs)
            sys.stdout.flush()
        except DeployError as error:
            raise _ended(_told(error, c), as_json) from error
        except OSError as error:
            if error.errno not in streams.GONE or error.filename is not None:
                raise
            streams.give_up(sys.stdout)
            # The result of a run is told while the error that it ends with is on its way.
            if isinstance(error.__context__, DeployError):
                raise _ended(_told(error.__context__, c), as_json) from None
            if isinstance(error, BrokenPipeError):  # `fab history | head`
                raise Exit(code=128 + signal.SIGPIPE) from None
            streams.tell(sys.stderr, f"{UNTOLD.format(error.strerror)}\n")
            raise Exit(code=1) from None
        except (KeyboardInterrupt, EOFError) as error:  # Ctrl-D where something is asked
            if isinstance(error.__context__, DeployError):
                raise _ended(_told(error.__context__, c), as_json) from None
            streams.tell(sys.stderr, "interrupted; nothing was under way on a host\n")
            raise Exit(code=130) from None

    return run


def _told(error: DeployError, c: Any) -> DeployError:
    """The error with commands for the environment that was chosen."""
    from deploytools.executor import environment
    from deploytools.report.text import address

    address(error, environment(c))
    error.next = error.next and remedy_in(environment(c), error.next)
    return error


def remedy_in(environment: str | None, remedy: str) -> str:
    """A remedy as it is, but in the sandbox: where that can't be reached, it most often isn't running."""
    from deploytools.settings import SANDBOX

    stopped = environment == SANDBOX and "sshd runs there" in remedy
    return "fab sandbox.up, where it isn't running" if stopped else remedy


def _ended(error: DeployError, as_json: bool) -> Exit:
    """Tell the error, where that can be, and return what ends `fab` with its exit code."""
    from deploytools import streams
    from deploytools.report.text import error_json, error_text

    if as_json:
        streams.tell(sys.stdout, f"{error_json(error)}\n")
    else:
        streams.tell(sys.stderr, f"{error_text(error)}\n")
        streams.tell(sys.stdout)
    return Exit(code=error.exit_code)


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
