"""Sockets of this machine, as the kernel's sock_diag(7) tells them; it is what `ss` asks.

/proc/net/tcp has the same, but takes 50 ms and more to read on a busy host, where it lists every
connection that ended in the last minute, and it skips rows while the table changes.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from hostlib.program import Failure

# linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h, linux/unix_diag.h, net/tcp_states.h
NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY = 4, 20
NLM_F_REQUEST, NLM_F_DUMP = 0x1, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3
NO_COOKIE = b"\xff" * 8
ANY_STATE, LISTEN = 0xFFFFFFFF, 10
UDIAG_SHOW_PEER, UNIX_DIAG_PEER = 0x4, 2
HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
INET_REQUEST = struct.Struct("=BBBxI")  # inet_diag_req_v2: family, protocol, extensions, states; then an id
SOCKET_ID = struct.Struct("!HH16s16s")  # inet_diag_sockid: ports, addresses; interface and cookie follow
INTERFACE = struct.Struct("=36xI")
INET_FOUND = struct.Struct("=BBBB48s16xI")  # inet_diag_msg: family, state, 2 timers, id, 4 numbers, inode
UNIX_REQUEST = struct.Struct("=BBHIII8s")  # unix_diag_req: family, protocol, pad, states, inode, show, cookie
UNIX_FOUND = 16  # bytes of a unix_diag_msg; attributes follow
ATTRIBUTE = struct.Struct("=HHI")  # rtattr: length, type; and the one number that is its value


class TcpSocket(NamedTuple):
    """A TCP socket: state, local address and port, inode; the interface where the address is link-local."""

    state: int
    address: str
    port: int
    inode: int
    interface: int


def tcp_listeners() -> list[TcpSocket]:
    """Every TCP socket that listens, on whatever address. Raises Failure where the kernel can't tell."""
    return [
        found
        for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::"))  # noqa: S104
        for found in _tcp(family, _socket_id((address, 0), (address, 0)), 1 << LISTEN, NLM_F_DUMP)
        if found.state == LISTEN
    ]


def accepted(connection: socket.socket) -> int:
    """The inode of the other end of a connection within this machine; 0 where no process holds it.

    Raises OSError where the connection has been reset, or the kernel can't tell.
    """
    if connection.family == socket.AF_UNIX:
        return _unix_peer(os.fstat(connection.fileno()).st_ino)
    theirs, ours = connection.getpeername()[:2], connection.getsockname()[:2]
    for found in _tcp(connection.family, _socket_id(theirs, ours), ANY_STATE, 0):
        if found.state != LISTEN:  # the kernel names the listener where there is no such connection
            return found.inode
    return 0


def _socket_id(ours: tuple[str, int], theirs: tuple[str, int]) -> bytes:
    family = socket.AF_INET6 if ":" in ours[0] else socket.AF_INET
    packed = (socket.inet_pton(family, address.partition("%")[0]) for address, _ in (ours, theirs))
    return SOCKET_ID.pack(ours[1], theirs[1], *packed) + struct.pack("=I", 0) + NO_COOKIE


def _tcp(family: int, socket_id: bytes, states: int, flags: int) -> Iterator[TcpSocket]:
    request = INET_REQUEST.pack(family, socket.IPPROTO_TCP, 0, states) + socket_id
    try:
        for answer in _ask(request, flags):
            found_family, state, _, _, found_id, inode = INET_FOUND.unpack_from(answer)
            port, _, address, _ = SOCKET_ID.unpack_from(found_id)
            size = 16 if found_family == socket.AF_INET6 else 4
            text = socket.inet_ntop(found_family, address[:size])
            yield TcpSocket(state, text, port, inode, INTERFACE.unpack_from(found_id)[0])
    except OSError as error:
        if error.errno != errno.ENOENT or flags:  # otherwise: no such connection
            raise Failure(
                f"the kernel does not tell who holds a TCP socket: {error.strerror}",
                state="nothing was changed",
                next="modprobe tcp_diag (it needs CONFIG_INET_DIAG and CONFIG_INET_TCP_DIAG)",
            ) from error


def _unix_peer(inode: int) -> int:
    request = UNIX_REQUEST.pack(socket.AF_UNIX, 0, 0, ANY_STATE, inode, UDIAG_SHOW_PEER, NO_COOKIE)
    for answer in _ask(request, 0):
        attributes = answer[UNIX_FOUND:]
        while len(attributes) >= ATTRIBUTE.size:
            length, kind, value = ATTRIBUTE.unpack_from(attributes)
            if kind == UNIX_DIAG_PEER:
                return int(value)
            attributes = attributes[(length + 3) & ~3 :]
    return 0


def _ask(request: bytes, flags: int) -> Iterator[bytes]:
    """What the kernel answers, message by message without their headers. Raises OSError."""
    message = HEADER.pack(HEADER.size + len(request), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | flags, 0, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as kernel:
        kernel.send(message + request)
        while True:
            answer = kernel.recv(1 << 16)
            while answer:
                length, kind, *_ = HEADER.unpack_from(answer)
                if kind == NLMSG_DONE:
                    return
                if kind == NLMSG_ERROR:
                    code = -struct.unpack_from("=i", answer, HEADER.size)[0]
                    raise OSError(code, os.strerror(code))
                yield answer[HEADER.size : length]
                answer = answer[(length + 3) & ~3 :]
            if not flags:  # one socket, one answer
                return
