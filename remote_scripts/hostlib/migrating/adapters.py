"""Adapters: what speaks to a migration tool in the release's own terms.

Release code is never imported here. An adapter is a program of its own, run by the release's Python
(`migrate.python` of the manifest) as the application's user. From standard input it reads its settings, a
line of JSON, and then commands, a word per line; it answers each command with one line of JSON:

    check     {"current": [...], "target": [...], "pending": [{"revision", "message", "online", "why"}...],
               "strangers": [...], "orphans": [...], "transactional": bool, "atomic": bool, "sessions": [...],
               "database": "..."}
    upgrade   {"applied": [...], "transactional": bool}
    rollback  {"applied": [], "transactional": bool}; only `command` has it

with {"error": "...", "connection_lost": bool} where it went wrong, {} where the command was killed. With the
connection lost the database may still be at work on what it was sent.
"strangers" are revisions of the database that the release doesn't know; "orphans", which may be left out,
are such that may be left over from earlier releases; "transactional" says whether a failed migration is
rolled back whole, and "atomic", which may be left out, whether one that is killed is, too, once its session
has ended; "sessions" is who else is connected (see adapter_engines), null where the engine or the adapter
can't tell; "database" says which one it is, the same on every host, null or left out where nobody can tell.
"online" is true of a migration that its author has labelled safe to run while the release before
serves; where it is false, "why" says so. To add an adapter, write such a program and name it in ADAPTERS.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from hostlib.program import HERE, USAGE, Config, Failure, drop_to
from hostlib.releasing import releases

PROGRAMS = HERE / "hostlib" / "migrating"
ADAPTERS = {name: PROGRAMS / f"{name}_adapter.py" for name in ("alembic", "command", "django")}
PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
# How long a database may take to tell its revision, in seconds.
PATIENCE = 60


@dataclass(frozen=True)
class Adapter:
    """How to run the adapter of one release."""

    argv: tuple[str, ...]
    settings: dict[str, Any]
    cwd: Path
    env: dict[str, str]
    user: str


def of_release(
    config: Config, release: str, run_id: str = "check", *, online: bool = False, back_to: Sequence[str] = ()
) -> Adapter | None:
    """The adapter of `release`; None where it has no migrations. Failure (exit code 2) for an unknown one.

    `online` is for a migration that runs while the application serves, `back_to` for one that is taken back.
    """
    settings = releases.manifest(config, release).get("migrate")
    if settings is None:
        return None
    _check_settings(release, settings)

    def placed(text: str) -> str:
        return text.replace("{release}", str(config.releases / release))

    # What is only a command needs none of the release's modules.
    python = sys.executable if settings["adapter"] == "command" else placed(settings["python"])
    return Adapter(
        argv=(python, str(ADAPTERS[settings["adapter"]])),
        settings={
            **settings,
            "session": session_name(run_id),
            "online": online,
            "back_to": list(back_to),
            "directory": str(config.releases / release),
        },
        cwd=Path(placed(settings["cwd"])),
        env=environment(config.user, settings),
        user=config.user,
    )


def session_name(run_id: str) -> str:
    """What the database session of a migration calls itself; PostgreSQL cuts off a longer name."""
    return f"deploytools-{run_id}"[:63]


def environment(user: str, settings: dict[str, Any]) -> dict[str, str]:
    """A small clean environment, `migrate.env` of the manifest, and what the database engine needs."""
    try:
        account = pwd.getpwnam(user)
    except KeyError as error:
        raise Failure(
            f"there is no account {user}", next="doctor", exit_code=USAGE, unchanged=True
        ) from error
    env = {
        "HOME": account.pw_dir,
        "USER": user,
        "LOGNAME": user,
        "PATH": PATH,
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        **(settings.get("env") or {}),
    }
    if settings.get("engine") == "postgresql":
        # Without the interval a backend whose client died goes on, and commits seconds later.
        options = "-c client_connection_check_interval=1000"
        if settings.get("lock_timeout"):
            options += f" -c lock_timeout={settings['lock_timeout']}"
        env["PGAPPNAME"] = session_name("check")
        env["PGOPTIONS"] = f"{options} {env.get('PGOPTIONS', '')}".rstrip()
    return env


class Conversation:
    """A running adapter: commands go to the descriptor `to`, answers come from the descriptor `come`.

    Both, and with them the conversation, can be handed on to another process of ours.
    """

    def __init__(self, to: int, come: int) -> None:
        self.to, self.come = to, come

    def ask(self, command: str, patience: float | None = None) -> dict[str, Any] | None:
        """The answer to `command`; None where it was killed. TimeoutError after `patience` seconds."""
        said = b""
        deadline = None if patience is None else time.monotonic() + patience
        try:
            self.say(command)
            while not said.endswith(b"\n"):
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                if not select.select([self.come], [], [], left)[0]:
                    raise TimeoutError(f"the database gave no answer in {patience} s")
                more = os.read(self.come, 1 << 16)
                if not more:
                    return None
                said += more
            answer = json.loads(said)
        except (BrokenPipeError, ValueError):
            return None
        return answer if isinstance(answer, dict) and answer else None

    def say(self, line: str) -> None:
        """Send one line. BrokenPipeError where nobody is there any more."""
        os.write(self.to, line.encode() + b"\n")

    def close(self) -> None:
        os.close(self.to)
        os.close(self.come)


@contextlib.contextmanager
def conversation(adapter: Adapter, log: BinaryIO, **options: Any) -> Iterator[Conversation]:
    """Start the adapter as the application's user, with standard error in `log`.

    It ends when everybody who has the conversation has closed it. It has a session of its own, as it may
    outlive us. Raises OSError or SubprocessError where it can't be started.
    """
    process = subprocess.Popen(
        adapter.argv,
        cwd=adapter.cwd,
        env=adapter.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        bufsize=0,
        preexec_fn=drop_to(adapter.user),  # noqa: PLW1509 - we have no threads
        start_new_session=True,
        **options,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    talk = Conversation(os.dup(process.stdin.fileno()), os.dup(process.stdout.fileno()))
    process.stdin.close()
    process.stdout.close()
    try:
        # By the pipe: what is in it may be secret, and others can read a command line.
        with contextlib.suppress(BrokenPipeError):  # which the first command will find, too
            talk.say(json.dumps(adapter.settings))
        yield talk
    except TimeoutError:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    finally:
        talk.close()


def _check_settings(release: str, settings: Any) -> None:
    """Raise Failure (exit code 2) where the manifest's "migrate", the deploy user's word, can't be used."""
    if not isinstance(settings, dict):
        raise _refused(release, "migrate should be a mapping")
    if settings.get("adapter") not in ADAPTERS:
        raise _refused(release, f"the migration adapter {settings.get('adapter')!r} is not supported yet")
    if not (isinstance(settings.get("python"), str) and isinstance(settings.get("cwd"), str)):
        raise _refused(release, "migrate.python and migrate.cwd should be paths")
    env = settings.get("env") or {}
    if not (isinstance(env, dict) and all(isinstance(text, str) for text in env.values())):
        raise _refused(release, "migrate.env should be a mapping of names to strings")
    # A blank or a dash in it would be read as an option of its own.
    if not re.fullmatch(r"(\d+(us|ms|s|min|h)?)?", str(settings.get("lock_timeout") or "")):
        raise _refused(release, "migrate.lock_timeout should be a duration such as 5s")


def _refused(release: str, what: str) -> Failure:
    return Failure(
        f"release {release}: {what}",
        state="nothing was changed",
        next=f"mend `migrate` in fabric.yaml (adapter: {' or '.join(ADAPTERS)}) and deploy again",
        exit_code=USAGE,
        unchanged=True,
    )
