"""Where lighttpd listens: its workers, every address that they accept on, and whose a connection is."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from hostlib.program import USAGE, Config, Failure
from hostlib.swapping import unixsockets
from hostlib.webserver import sockdiag

WEB_SERVER = "lighttpd"  # what the names of its processes begin with
# Where one connects to reach a listener that takes any address, in the order of trying.
LOOPBACK = {"0.0.0.0": ("127.0.0.1",), "::": ("::1", "127.0.0.1")}  # noqa: S104
# Where one connects from, to the host's own addresses, too: lighttpd tells its counters to these alone.
FROM = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}


class Listener(NamedTuple):
    """An address that lighttpd accepts on: an IP address and a port, or a path and port 0."""

    address: str
    port: int
    interface: int = 0

    def __str__(self) -> str:
        if not self.port:
            return self.address
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"

    def connect(self, timeout: float) -> socket.socket:
        """A new connection; `timeout` is in seconds, and stays set. Raises OSError."""
        if not self.port:
            return _connected(socket.AF_UNIX, self.address, timeout)
        *fallback, last = LOOPBACK.get(self.address, (self.address,))
        for address in fallback:
            try:
                return self._connect(address, timeout)
            except OSError as error:  # a host without IPv6 may have listeners on [::] all the same
                if error.errno not in (errno.EADDRNOTAVAIL, errno.ENETUNREACH):
                    raise
        return self._connect(last, timeout)

    def _connect(self, address: str, timeout: float) -> socket.socket:
        if ":" in address:
            return _connected(socket.AF_INET6, (address, self.port, 0, self.interface), timeout)
        return _connected(socket.AF_INET, (address, self.port), timeout)


def of_url(config: Config, among: Sequence[Listener] = ()) -> Listener:
    """Where config.url leads: one of those that are listened on, if it is `among` them.

    Raises Failure (exit code 2) for a name that this host doesn't know.
    """
    wanted = _resolved(config)
    for one in wanted:
        # The more specific listener is the one that the kernel connects us to. One on [::] may take
        # IPv4 as well.
        for address in (one.address, "0.0.0.0", "::"):  # noqa: S104
            for listener in among:
                if (listener.address, listener.port) == (address, one.port):
                    return listener
    return wanted[0]


def workers(config: Config) -> tuple[int, ...]:
    """lighttpd's processes that accept on config.url's address; () where we may not see whose it is.

    A parent that only supervises (server.max-worker) or passed the socket on (systemd) is not one.
    Raises Failure where another program accepts there: its answers would prove nothing of lighttpd.
    """
    by_address: dict[Listener, set[int]] = {}
    for found in sockdiag.tcp_listeners():
        by_address.setdefault(Listener(found.address, found.port, found.interface), set()).add(found.inode)
    inodes = by_address.get(of_url(config, tuple(by_address)))
    if not inodes:
        return ()
    holders = _holders(inodes, (pid for pid in _processes() if _name(pid).startswith(WEB_SERVER)))
    if holders:
        return holders
    others = sorted({_name(pid) for pid in _holders(inodes, _processes())})
    if others:
        raise Failure(
            f"{' and '.join(others)} answers at {config.url}, not lighttpd",
            state="nothing was changed",
            next="let webserver.url in fabric.yaml name an address of lighttpd's own; then fab setup",
            exit_code=USAGE,
        )
    return ()


def of(pids: Iterable[int]) -> tuple[Listener, ...]:
    """Every address that these processes accept on, in a stable order."""
    inodes = set().union(*map(_sockets, pids))
    tcp = {
        Listener(found.address, found.port, found.interface)
        for found in sockdiag.tcp_listeners()
        if found.inode in inodes
    }
    paths = {Listener(path, 0) for inode, path in unixsockets.listeners().items() if inode in inodes}
    return tuple(sorted(tcp | paths, key=lambda one: (one.port == 0, one.port, one.address)))


def owners(connections: Sequence[socket.socket], among: Sequence[int]) -> list[int | None]:
    """Which of the processes holds the server's side of each connection; None where none is seen to."""
    held_by = {inode: pid for pid in among for inode in _sockets(pid)}

    def owner(connection: socket.socket) -> int | None:
        try:
            return held_by.get(sockdiag.accepted(connection))
        except OSError:  # reset right behind the answer
            return None

    return [owner(connection) for connection in connections]


# -- the address of config.url ---------------------------------------------------------------------


def _resolved(config: Config) -> list[Listener]:
    url = urlsplit(config.url)
    port = url.port or (443 if url.scheme == "https" else 80)
    try:
        found = socket.getaddrinfo(url.hostname, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise Failure(
            f"this host can't resolve {url.hostname} of webserver.url: {error.strerror}",
            state="nothing was changed",
            next="correct webserver.url in fabric.yaml, then fab setup",
            exit_code=USAGE,
        ) from error
    return [Listener(str(address), port) for *_, (address, *_) in found]


# -- processes -------------------------------------------------------------------------------------


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _holders(inodes: set[int], among: Iterable[int]) -> tuple[int, ...]:
    holders = {pid for pid in among if not inodes.isdisjoint(_sockets(pid))}
    return tuple(sorted(holders - {_parent(pid) for pid in holders}))


def _name(pid: int) -> str:
    try:
        # Not by pathlib: this is asked of every process of the host, while visitors wait.
        with open(f"/proc/{pid}/comm", "rb", buffering=0) as file:
            return file.read().rstrip(b"\n").decode(errors="replace")
    except OSError:
        return ""


def _sockets(pid: int) -> set[int]:
    """The inodes of a process's sockets; empty where it has ended or we may not look."""
    inodes = set()
    with contextlib.suppress(OSError):
        directory = f"/proc/{pid}/fd"
        for descriptor in os.listdir(directory):
            with contextlib.suppress(OSError):  # closed meanwhile
                target = os.readlink(f"{directory}/{descriptor}")
                if target.startswith("socket:["):
                    inodes.add(int(target[8:-1]))
    return inodes


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _connected(family: int, address: str | tuple[str | int, ...], timeout: float) -> socket.socket:
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout)
        if family in FROM and address[3:] in ((), (0,)):  # an address of one interface takes no other source
            with contextlib.suppress(OSError):  # no loopback: then as the kernel likes
                connection.bind((FROM[family], 0))
        connection.connect(address)
    except BaseException:
        connection.close()
        raise
    return connection
