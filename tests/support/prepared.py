"""`fab` and the host programs as processes of their own that begin with their modules loaded.

To start Python and to load what a short program needs is most of what the program costs, and the tests run
thousands. So for each process of the suite there is one interpreter for `fab`, which has all of ours loaded,
and one for host programs, which has of the standard library what they need. They are forked for every program
that a test runs, which is then what it would have been: own process id, own session where asked for, its
environment, directory, standard files and exit status. Run as a script, this file is such an interpreter.

    process = Popen([FAB, "status"], cwd=..., env=..., stdout=subprocess.PIPE, text=True)
    done = run([tools / "status", "--json"], env=...)
"""

from __future__ import annotations

import functools
import gc
import importlib
import inspect
import io
import json
import os
import pkgutil
import re
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FAB = Path(sys.executable).with_name("fab")
# What Python itself reads as it starts: where that differs, the interpreter has to be started for it.
OF_PYTHON = ("PYTHON", "LANG", "LC_")
AT_FIRST = dict(os.environ)  # of the suite; a test may change its own
REMOTE_SCRIPTS = Path(__file__).resolve().parents[2] / "remote_scripts"
HOST_PYTHON = ("/usr/bin/python3", "-EsS")  # the first line of every host program
# What else a process may be started with, and what it is where nobody asked for it.
UNASKED: dict[str, Any] = {
    "preexec_fn": None,
    "uid": None,
    "gid": None,
    "gids": None,
    "umask": -1,
    "pass_fds": (),
}


class Popen(subprocess.Popen):  # type: ignore[type-arg]
    """subprocess.Popen, where programs of ours are forked; what a fork can't do right is started as ever."""

    _told: socket.socket | None = None

    def _execute_child(self, *given: Any, **named: Any) -> None:
        start = super()._execute_child  # type: ignore[misc]
        asked = inspect.signature(start).bind(*given, **named).arguments
        environ = dict(os.environ if asked["env"] is None else asked["env"])
        python = _python_of(str(asked["args"][0]), environ)
        if python is None or any(asked.get(name, none) != none for name, none in UNASKED.items()):
            start(*given, **named)
            return
        request = {
            "arguments": list(map(str, asked["args"])),
            "environ": environ,
            "directory": os.path.abspath(asked["cwd"] or "."),
            "session": asked["start_new_session"],
            "umask": _umask(),
        }
        standard = [asked[name] for name in ("p2cread", "c2pwrite", "errwrite")]
        standard = [own if file == -1 else file for own, file in enumerate(standard)]
        self._told, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            socket.send_fds(
                _interpreter(os.getpid(), python),
                [json.dumps(request).encode()],
                [theirs.fileno(), *standard],
            )
        self.pid = int(self._told.recv(100))
        self._child_created = True
        self._close_pipe_fds(  # type: ignore[attr-defined]
            *(asked[name] for name in ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite"))
        )

    def _internal_poll(self, *given: Any, **named: Any) -> int | None:
        if self._told is None:
            return super()._internal_poll(*given, **named)  # type: ignore[misc,no-any-return]
        if self.returncode is None and self._waitpid_lock.acquire(False):  # type: ignore[attr-defined]
            try:
                ended, status = self._try_wait(os.WNOHANG)
                if ended:
                    self.returncode = os.waitstatus_to_exitcode(status)
            finally:
                self._waitpid_lock.release()  # type: ignore[attr-defined]
        return self.returncode

    def _try_wait(self, flags: int) -> tuple[int, int]:
        if self._told is None:
            return super()._try_wait(flags)  # type: ignore[misc,no-any-return]
        self._told.setblocking(not flags & os.WNOHANG)
        try:
            status = int(self._told.recv(100))
        except BlockingIOError:
            return 0, 0
        self._told.close()
        return self.pid, status


def run(argv: Sequence[str | Path], *, timeout: float = 60, **named: Any) -> subprocess.CompletedProcess[str]:
    """Run a program to its end: subprocess.run(capture_output=True, text=True, check=False)."""
    given = named.pop("input", None)
    files = {"stdin": subprocess.PIPE if given is not None else None}
    files |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Popen(list(map(str, argv)), text=True, **{**files, **named}) as process:
        try:
            out, err = process.communicate(given, timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def of_python(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that Python reads as it starts."""
    return {name: value for name, value in environ.items() if name.startswith(OF_PYTHON)}


def _umask() -> int:
    """Of this process; it can be asked for without setting another one for a moment."""
    text = Path("/proc/self/status").read_text()
    return int(text.partition("\nUmask:")[2].split()[0], 8)


def _python_of(program: str, environ: Mapping[str, str]) -> tuple[str, ...] | None:
    """The interpreter that is forked for a program; None where it has to be started for it."""
    if Path(program) == FAB:
        return (sys.executable,) if of_python(environ) == of_python(AT_FIRST) else None
    try:
        with open(program, "rb") as file:
            first_line = file.readline(100)
    except OSError:
        return None
    if first_line != f"#!{' '.join(HOST_PYTHON)}\n".encode() or not os.access(program, os.X_OK):
        return None
    # With -E it reads no variable of its own.
    language = [
        {k: v for k, v in each.items() if k.startswith(OF_PYTHON[1:])} for each in (environ, AT_FIRST)
    ]
    return HOST_PYTHON if language[0] == language[1] else None


@functools.cache
def _interpreter(_: int, python: tuple[str, ...]) -> socket.socket:
    """Start it; it ends when this process does, which closes its end of the socket."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        subprocess.Popen(
            [*python, __file__, str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=AT_FIRST,
            pass_fds=[theirs.fileno()],
        )
    return ours


# -- the interpreter --------------------------------------------------------------------------------


def _load() -> None:
    """All that any `fab` loads, now or later; or what a host program loads of the standard library."""
    if sys.flags.no_site:
        for program in (path for path in REMOTE_SCRIPTS.rglob("*") if path.is_file()):
            text = program.read_text(errors="replace")
            for name in re.findall(r"^(?:from|import) ([a-z_.]+)", text, re.MULTILINE):
                if name.partition(".")[0] in sys.stdlib_module_names - {"__future__"}:
                    importlib.import_module(name)
        return
    import deploytools

    for module in pkgutil.walk_packages(deploytools.__path__, "deploytools."):
        if "guestbook" not in module.name:  # the application of the sandbox, which begins when it is loaded
            importlib.import_module(module.name)


def _serve(channel: socket.socket) -> None:
    """Fork for every request; returns in the processes that are to become a `fab`."""
    while True:
        request, files, _, _ = socket.recv_fds(channel, 1 << 20, 4)
        if not request:
            os._exit(0)
        if os.fork() == 0:
            channel.close()
            return _attend(json.loads(request), *files)
        for file in files:
            os.close(file)


def _attend(request: dict[str, Any], told: int, *standard: int) -> None:
    """Begin it and tell how it ends, as only its parent is told; returns in the one that is begun."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    begun = os.fork()
    if begun == 0:
        os.close(told)
        return _become(request, standard)
    for file in standard:
        os.close(file)
    os.write(told, str(begun).encode())
    os.write(told, str(os.waitpid(begun, 0)[1]).encode())
    os._exit(0)


def _become(request: dict[str, Any], standard: tuple[int, ...]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if request["session"]:
        os.setsid()
    for number, file in enumerate(standard):
        os.dup2(file, number)
        os.close(file)
    sys.stdin, sys.stdout, sys.stderr = map(_renewed, (sys.stdin, sys.stdout, sys.stderr), ("rb", "wb", "wb"))
    os.umask(request["umask"])
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["environ"])
    time.tzset()
    sys.argv = request["arguments"]
    sys.path[0] = os.path.dirname(os.path.realpath(sys.argv[0]))


def _renewed(stream: Any, mode: str) -> io.TextIOWrapper:
    """What a stream of this process would be if it had begun with the file that it has now."""
    unbuffered = 0 if mode == "wb" and stream.write_through else -1
    file = open(stream.fileno(), mode, buffering=unbuffered, closefd=False)  # noqa: SIM115
    return io.TextIOWrapper(
        file,  # type: ignore[arg-type]
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=file.isatty() or stream is sys.stderr,
        write_through=stream.write_through,
    )


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal on which the tests are stopped
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait
    sys.path[0] = ""
    _load()
    gc.freeze()
    _serve(socket.socket(fileno=int(sys.argv[1])))
    runpy.run_path(sys.argv[0], run_name="__main__")
