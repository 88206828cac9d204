"""The frame of every host program: arguments in, one result out, an exit code that means something.

By hand a program prints sentences. With --json it prints one JSON object, which is what the
laptop reads: {"ok": true, ...} or {"ok": false, "error": {what, where, state, next}, ...}.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import pwd
import signal
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DONE, BUG, USAGE, FAILED, IN_MAINTENANCE, BUSY, UNREACHABLE, UNFINISHED = range(8)
# This version of the programs, and the path by which all versions are called: see hostlib/__init__.py.
HERE = Path(__file__).resolve().parent.parent
TOOLS = HERE.parent.parent if HERE.parent.name == "versions" else HERE

AS_TOLD = "as `status` tells"

Result = dict[str, Any]

# Parent of every sub-command's parser, so that --json may stand at the end of the line.
JSON = argparse.ArgumentParser(add_help=False)
JSON.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)

# Parent of the parsers of programs that can wait: see `wait_until_told`.
WHEN_TOLD = argparse.ArgumentParser(add_help=False)
WHEN_TOLD.add_argument(
    "--when-told", action="store_true", help="begin when a line comes on standard input, or end with it"
)


class Failure(Exception):
    """A failure to be told: what, the state it leaves, the next command, and the exit code.

    Without state or next it is `status` that tells how the host stands.
    """

    def __init__(
        self, what: str, *, state: str = "", next: str = "", exit_code: int = FAILED, **result: Any
    ) -> None:
        super().__init__(what)
        self.what, self.state, self.next, self.exit_code, self.result = what, state, next, exit_code, result


@dataclass(frozen=True)
class Config:
    """What `fab setup` decided for one application on this host: config.json beside the programs.

    Args:
        sudo: the programs that the deploy user may run as root.
        digest: of everything that was installed, as `deploytools.setup.digest` computes it on the laptop.
        webserver_user: who connects to the application; None for its own account.
        lighttpd_config: lighttpd's main configuration file.
        aliases: further names of the site, each of which is proved to be in maintenance, too.
        unproved: addresses of lighttpd that no proof covers, as the operator decided.
    """

    version: str
    application: str
    root: Path
    user: str
    privileged: bool
    maintenance_dir: Path
    url: str
    host_header: str | None
    liveness: tuple[str, ...]
    statistics_path: str
    document_root: str | None = None
    webserver_user: str | None = None
    sudo: tuple[str, ...] = ()
    digest: str = ""
    lighttpd_config: Path = Path("/etc/lighttpd/lighttpd.conf")
    aliases: tuple[str, ...] = ()
    unproved: tuple[str, ...] = ()

    @classmethod
    def of(cls, raw: dict[str, Any]) -> Config:
        """What config.json has, as a Config. Raises KeyError or TypeError for what isn't one."""
        paths = ("root", "maintenance_dir", "lighttpd_config")
        return cls(
            **{
                **raw,
                **{name: Path(raw[name]) for name in paths if name in raw},
                **{
                    name: tuple(raw[name])
                    for name in ("liveness", "aliases", "unproved", "sudo")
                    if name in raw
                },
            }
        )

    @property
    def run(self) -> Path:
        """Sockets and generation records."""
        return self.root / "run"

    @property
    def releases(self) -> Path:
        return self.root / "releases"

    @property
    def shared(self) -> Path:
        return self.root / "shared"

    @property
    def current(self) -> Path:
        return self.root / "current"

    @property
    def release(self) -> str | None:
        """The release that `current` points at; None before the first deploy."""
        try:
            return Path(os.readlink(self.current)).name
        except FileNotFoundError:
            return None

    @property
    def state(self) -> Path:
        """The lock and the journals; used on the lock host."""
        return self.root / "state"

    @property
    def migrations(self) -> Path:
        """One directory per migration run; used on the migration host."""
        return self.root / "migrations"

    @property
    def log(self) -> Path:
        return self.root / "log"


def load_config() -> Config:
    """Read config.json beside the programs; raises Failure (exit code 2) where it is missing or broken."""
    path = HERE / "config.json"
    try:
        return Config.of(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise Failure(
            f"{path} can't be used: {error}", next="fab setup", exit_code=USAGE, state="nothing was changed"
        ) from error


def become_root(config: Config, program: Path) -> None:
    """Go on as root through sudo where the application was set up that way; does not return then."""
    if config.privileged and os.geteuid() != 0:
        os.execvp("sudo", ["sudo", "-n", str(program), *sys.argv[1:]])


def wait_until_told(arguments: argparse.Namespace, about: Callable[[], Result] = dict) -> None:
    """With --when-told say that it waits, and what `about` tells; return when a line comes on standard input.

    The start of Python, of its modules and of sudo is over then, and what follows takes milliseconds.
    Raises Failure (exit code 2) where standard input ends instead.
    """
    if not arguments.when_told:
        return
    told = json.dumps({"waiting": True, **about()})
    print(told if arguments.json else "ready; waiting for a line", flush=True)
    if not sys.stdin.readline().endswith("\n"):
        raise Failure("it was not told to begin", state="nothing was changed", exit_code=USAGE)


def caller() -> str:
    """The account that whoever runs this program came with, before sudo."""
    return os.environ.get("SUDO_USER") or pwd.getpwuid(os.getuid()).pw_name


def become_owner(directory: Path) -> None:
    """Go on as the owner of `directory`, where root runs by hand what works on the deploy user's files."""
    owner = directory.stat()
    if os.geteuid() != 0 or owner.st_uid == 0:
        return
    os.setgroups([owner.st_gid])
    os.setgid(owner.st_gid)
    os.setuid(owner.st_uid)


def drop_to(user: str) -> Callable[[], None]:
    """What a child process of root calls to become `user`; does nothing when we aren't root.

    It goes to its directory once more as that user: root gets to open directories behind closed ones, which
    a release could name as the place to start in.
    """
    if os.geteuid() != 0:
        return lambda: None
    account = pwd.getpwnam(user)

    def drop() -> None:
        if account.pw_uid != os.geteuid():
            os.initgroups(user, account.pw_gid)
            os.setgid(account.pw_gid)
            os.setuid(account.pw_uid)
        try:
            os.chdir(os.getcwd())
        except OSError as error:
            print(f"{user} can't start in {error.filename}: {error.strerror}", file=sys.stderr, flush=True)
            raise

    return drop


def main(
    parser: argparse.ArgumentParser, body: Callable[[argparse.Namespace], Result], *, lingers: bool = True
) -> None:
    """Parse, run `body`, print its result, exit.

    `body` returns a result whose "message" is what a person reads, or raises Failure. A program that was
    started with --when-told and --json adds its exit code to its answer, and `lingers` until the end of its
    standard input: its own end, and sudo's and sshd's, take as long as many an answer, and others wait for
    theirs on the same processors. One that prints to standard error, too, doesn't: that may come later.
    """
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of sentences")
    arguments = parser.parse_args()
    # Where our parent ignored it, nobody could tell us how the programs ended that we run.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    code = DONE
    try:
        result = {"ok": True, **body(arguments)}
    except Failure as failure:
        code = failure.exit_code
        result = {"ok": False, "error": _failed(failure), **failure.result}
    except KeyboardInterrupt:
        code = 130
        result = {"ok": False, "error": _explain("interrupted", AS_TOLD, f"{TOOLS}/status")}
    except OSError as error:
        # Nobody foresaw it, so nobody can promise that the host is as it was: not FAILED.
        code = BUG
        result = {"ok": False, "error": _explain(str(error), AS_TOLD, remedy(error))}
    lingers = lingers and arguments.json and getattr(arguments, "when_told", False)
    if lingers:
        result["exit_code"] = code
    try:
        if arguments.json:
            print(json.dumps(result, sort_keys=True))
        elif code == DONE:
            print(result.get("message", "done"))
        else:
            _complain(parser.prog, result["error"], result.get("details", ()))
        sys.stdout.flush()
    except OSError as error:
        code = code or BUG
        lingers = False
        _untold(parser.prog, result, error)
    if lingers:
        with contextlib.suppress(OSError, KeyboardInterrupt):
            sys.stdin.buffer.read()
    sys.exit(code)


def _complain(program: str, error: dict[str, str], details: Iterable[str] = ()) -> None:
    print(f"{program}: {error['what']}", file=sys.stderr)
    for label in ("where", "state", "next"):
        if error[label]:
            print(f"  {label}: {error[label]}", file=sys.stderr)
    for line in details:
        print(f"  | {line}", file=sys.stderr)


def _untold(program: str, result: Result, error: OSError) -> None:
    """Standard output can't be written (a closed pipe, a full disk): say what was done where that can be."""
    came_of_it = result["error"]["what"] if "error" in result else result.get("message", "done")
    what = f"this can't be written to standard output: {error.strerror}"
    with contextlib.suppress(OSError):
        _complain(program, _explain(what, came_of_it, f"{TOOLS}/status"))
        sys.stderr.flush()
    # Python writes what is left in its buffers when it ends, and would complain as well.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


def remedy(error: OSError) -> str:
    """What to do about an error of the operating system."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return "make room (df -h; df -i), then the same command again" if full else f"{TOOLS}/status"


def _failed(failure: Failure) -> dict[str, str]:
    """With what holds wherever a failure doesn't say it better."""
    state = failure.state or ("nothing was changed" if failure.exit_code == USAGE else AS_TOLD)
    return _explain(failure.what, state, failure.next or f"{TOOLS}/status")


def _explain(what: str, state: str, next: str) -> dict[str, str]:
    return {"what": what, "where": os.uname().nodename, "state": state, "next": next}
