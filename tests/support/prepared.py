"""`fab` as a process of its own that begins with its modules loaded.

Loading them is most of what a short `fab` costs. So one interpreter for each process of the suite loads
them once, and is forked for every `fab` of a test, which is then what it would have been: own process id, own
session where asked for, its environment, directory, standard files and exit status. Run as a script, this
file is that interpreter.

    process = Popen([FAB, "status"], cwd=..., env=..., stdout=subprocess.PIPE, text=True)
    done = fab("status", cwd=..., env=...)
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
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FAB = Path(sys.executable).with_name("fab")
# What Python itself reads as it starts: where that differs, the interpreter has to be started for it.
OF_PYTHON = ("PYTHON", "LANG", "LC_")
AT_FIRST = dict(os.environ)  # of the suite; a test may change its own


class Popen(subprocess.Popen):  # type: ignore[type-arg]
    """subprocess.Popen, where a `fab` is forked; one that a fork can't do right is started as ever."""

    _told: socket.socket | None = None

    def _execute_child(self, *given: Any, **named: Any) -> None:
        start = super()._execute_child  # type: ignore[misc]
        asked = inspect.signature(start).bind(*given, **named).arguments
        environ = dict(os.environ if asked["env"] is None else asked["env"])
        if Path(asked["args"][0]) != FAB or of_python(environ) != of_python(AT_FIRST):
            start(*given, **named)
            return
        request = {
            "arguments": list(map(str, asked["args"])),
            "environ": environ,
            "directory": os.path.abspath(asked["cwd"] or "."),
            "session": asked["start_new_session"],
        }
        standard = [asked[name] for name in ("p2cread", "c2pwrite", "errwrite")]
        standard = [own if file == -1 else file for own, file in enumerate(standard)]
        self._told, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            socket.send_fds(
                _interpreter(os.getpid()), [json.dumps(request).encode()], [theirs.fileno(), *standard]
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


def fab(*arguments: str, cwd: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run `fab ARGUMENTS` to its end, with nothing to read."""
    files = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Popen([FAB, *arguments], cwd=cwd, env=env, text=True, **files) as process:
        try:
            out, err = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    return subprocess.CompletedProcess([FAB, *arguments], process.returncode, out, err)


def of_python(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name.startswith(OF_PYTHON)}


@functools.cache
def _interpreter(_: int) -> socket.socket:
    """Start it; it ends when this process does, which closes its end of the socket."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=AT_FIRST,
            pass_fds=[theirs.fileno()],
        )
    return ours


# -- the interpreter --------------------------------------------------------------------------------


def _load() -> None:
    """All that any `fab` loads, now or later."""
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
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["environ"])
    time.tzset()
    sys.argv = request["arguments"]
    sys.path[0] = str(FAB.parent)


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
    runpy.run_path(str(FAB), run_name="__main__")
