"""Ways to a host other than a plain connection: jump hosts (ProxyJump) and ProxyCommand."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from deploytools.errors import Unreachable

if TYPE_CHECKING:
    from deploytools.remote import Remote

# Seconds to wait for another thread that connects to the same jump host.
PATIENCE = 60.0


class Gateways:
    """Jump hosts: each is opened once, shared by the hosts behind it, and closed after the last of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shared: dict[str, _Shared] = {}

    def lease(self, jump: str, make: Callable[[], Remote]) -> Remote:
        """The open jump host that ProxyJump calls `jump`; whoever leases it releases it.

        Raises what opening it raises.
        """
        with self._lock:
            if jump not in self._shared:
                self._shared[jump] = _Shared(make())
            shared = self._shared[jump]
            shared.users += 1
        try:
            shared.open()
        except BaseException:
            self.release(jump)
            raise
        return shared.remote

    def release(self, jump: str) -> None:
        """Give a lease back."""
        with self._lock:
            shared = self._shared[jump]
            shared.users -= 1
            if shared.users:
                return
            del self._shared[jump]
        shared.remote.close()


class _Shared:
    def __init__(self, remote: Remote) -> None:
        self.remote, self.users = remote, 0
        self._lock = threading.Lock()
        self._attempts = 0
        self._failure: Unreachable | None = None

    def open(self) -> None:
        seen = self._attempts
        # Bounded, because two jump hosts that lead to each other would wait for each other.
        if not self._lock.acquire(timeout=PATIENCE):
            raise Unreachable(
                f"the jump host {self.remote.name} was not connected within {PATIENCE:g} s",
                where=self.remote.name,
                state="nothing was sent",
                next=f"ssh -v {self.remote.name} true",
            )
        try:
            if self._failure is not None and self._attempts != seen:
                raise self._failure  # somebody tried while we waited: don't queue up for the same time-out
            self._attempts += 1
            self._failure = None
            self.remote.open()
        except Unreachable as error:
            self._failure = error
            raise
        finally:
            self._lock.release()


def proxy_command(line: str, undo: contextlib.ExitStack) -> socket.socket:
    """Start a ProxyCommand as ssh does, by a shell, and return the socket that it serves.

    The line is the operator's own, from ssh_config. paramiko's ProxyCommand does not notice when the
    command ends. It gets a session of its own, which keeps Ctrl-C away from it.
    """
    ours, theirs = socket.socketpair()
    undo.callback(ours.close)
    with theirs:
        process = subprocess.Popen(
            ["/bin/sh", "-c", f"exec {line}"],
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            start_new_session=True,
        )
    undo.callback(_end, process)
    return ours


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(2)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
