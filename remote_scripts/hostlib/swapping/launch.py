"""What has to be in run/ before a generation is started, whoever its manager is.

    app.N.json   its record
    app.N.env    DEPLOYTOOLS_START='{...}', for `generation_runner`; root's alone: app.env may hold secrets
    app.N.d/     for an application that binds its socket itself, because run/ is root's
    app.N.word   of one that stands by: a FIFO by which its runner is told to go on (see `standby`)

So a generation is started again after a crash or a reboot just as it was at first.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import time
from pathlib import Path

from hostlib import files
from hostlib.program import USAGE, Config, Failure
from hostlib.releasing.manifest import FD0, App
from hostlib.swapping import applog, generations, unixsockets
from hostlib.swapping.generations import Record

VARIABLE = "DEPLOYTOOLS_START"
RUNNER = ("/usr/bin/python3", "-IS", str(Path(__file__).with_name("generation_runner.py")))
# Where the application finds programs; systemd has the same.
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
LONGEST = 120_000  # bytes of a variable; the kernel takes 131,072 at most


def new_record(config: Config, generation: int, release: str, manager: str, app: App) -> Record:
    """A record that can be started, saved.

    Raises Failure (exit code 2), and leaves nothing, where the host has no such account or the
    socket's path is too long.
    """
    account(config)
    name = generations.socket_name(generation)
    path = config.run / name if app.listen == FD0 else config.run / f"app.{generation}.d" / "app.sock"
    if len(os.fsencode(path)) > unixsockets.LONGEST_PATH:
        raise Failure(
            f"the path of the socket is longer than {unixsockets.LONGEST_PATH} bytes: {path}",
            state="nothing was changed",
            next="choose a shorter deploy.root",
            exit_code=USAGE,
        )
    record = Record(generation, release, manager, str(path), round(time.time(), 3))
    return record.saved(config)


def prepare(config: Config, record: Record, app: App, *, standing_by: bool = False) -> None:
    """Everything that must be there before `record` is started. Raises Failure or OSError."""
    owner = account(config)
    start = {
        "argv": app.argv,
        "directory": str(config.releases / record.release),
        "env": _environment(record, app, owner.pw_dir),
        "listen": app.listen,
        "user": config.user,
    }
    if standing_by:
        word = generations.word_path(config, record.generation)
        os.mkfifo(word, 0o600)
        if os.geteuid() == 0:
            os.chown(word, owner.pw_uid, owner.pw_gid)
        start["word"] = str(word)
    # JSON is ASCII here, and without an apostrophe it is literal text between two of them.
    told = json.dumps(start).replace("'", "\\u0027")
    if len(told) > LONGEST:
        raise Failure(
            f"app.command and app.env of release {record.release} are longer than {LONGEST} bytes",
            state="nothing was changed",
            next="put large values into a file below `shared`",
            exit_code=USAGE,
        )
    files.write_atomic(_environment_file(config, record), f"{VARIABLE}='{told}'\n", 0o600)
    if record.binds_itself:
        own = Path(record.socket).parent
        own.mkdir(exist_ok=True)
        if os.geteuid() == 0:  # with the web server's group, which passes on to the socket
            os.chown(own, owner.pw_uid, webserver_account(config).pw_gid)
            own.chmod(0o2755)
        Path(record.socket).unlink(missing_ok=True)
        stable = config.run / generations.socket_name(record.generation)
        files.link_atomic(stable, str(Path(record.socket).relative_to(config.run)))
    os.close(applog.opened(config, owner))


def environment(config: Config, record: Record) -> dict[str, str]:
    """The environment of `record`'s runner, as systemd reads it from the same file."""
    name, _, value = _environment_file(config, record).read_text().strip().partition("=")
    return {name: value.strip("'")}


def forget(config: Config, generation: int) -> None:
    """Remove all that `prepare` and a manager left of a generation that has ended."""
    for kind in ("sock", "life", "env", "word"):
        (config.run / f"app.{generation}.{kind}").unlink(missing_ok=True)
    shutil.rmtree(config.run / f"app.{generation}.d", ignore_errors=True)
    # Last, because it is what leads to the rest.
    generations.record_path(config, generation).unlink(missing_ok=True)


def remove_strays(config: Config) -> None:
    """Remove files of generations that have no record, unless somebody listens there."""
    known = {record.generation for record in generations.records(config)}
    used = unixsockets.listeners().values()
    for number in generations.numbers(config) - known - {generations.serving_number(config)}:
        its_own = str(config.run / f"app.{number}.")  # .sock, or a socket in .d
        if not any(path.startswith(its_own) for path in used):
            forget(config, number)


def account(config: Config) -> pwd.struct_passwd:
    """Who the application runs as; Failure (exit code 2) where the host has no such account."""
    return _account(config.user, f"adduser --system {config.user}, or set app.user and run fab setup")


def webserver_account(config: Config) -> pwd.struct_passwd:
    """Who connects to the application; Failure (exit code 2) where the host has no such account."""
    if config.webserver_user is None:
        return account(config)
    return _account(config.webserver_user, "set webserver.user and run fab setup")


def _account(name: str, remedy: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(name)
    except KeyError as error:
        raise Failure(
            f"there is no account {name}", state="nothing was changed", next=remedy, exit_code=USAGE
        ) from error


def _environment_file(config: Config, record: Record) -> Path:
    return config.run / f"app.{record.generation}.env"


def _environment(record: Record, app: App, home: str) -> dict[str, str]:
    """A clean one: nothing of the operator's shell reaches the application."""
    environment = {
        "PATH": SEARCH_PATH,
        "HOME": home,
        "LANG": "C.UTF-8",
        "PHP_FCGI_MAX_REQUESTS": "0",  # php-cgi ends after 500 otherwise
        **app.env,
        "DEPLOYTOOLS_RELEASE": record.release,
        "DEPLOYTOOLS_GENERATION": str(record.generation),
    }
    if record.binds_itself:
        environment["APP_SOCKET"] = record.socket
    return environment
