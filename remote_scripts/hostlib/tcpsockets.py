"""TCP sockets of this machine by address, as the kernel's sock_diag(7) tells them; it is what `ss` asks.

/proc/net/tcp has the same, but takes 50 ms and more to read on a busy host, where it lists every
connection that ended in the last minute, and it skips rows while the table changes.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator

from hostlib.program import Failure

# linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h, net/tcp_states.h
NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY = 4, 20
NLM_F_REQUEST, NLM_F_DUMP = 0x1, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3
NO_COOKIE = b"\xff" * 8
ANY_STATE, LISTEN = 0xFFFFFFFF, 10
HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
REQUEST = struct.Struct("=BBBxI")  # inet_diag_req_v2: family, protocol, extensions, states; then an id
SOCKET_ID = struct.Struct("!HH16s16s")  # inet_diag_sockid: ports, addresses; interface and cookie follow
FOUND = struct.Struct("=BBBB48s16xI")  # inet_diag_msg: family, state, 2 timers, socket id, 4 numbers, inode


def listeners(port: int) -> dict[str, set[int]]:
    """The inodes of the sockets that listen on `port`, by the address that they are bound to."""
    found: dict[str, set[int]] = {}
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):  # noqa: S104
        any_id = _socket_id(family, (address, 0), (address, 0))
        for state, bound, bound_port, inode in _ask(family, any_id, 1 << LISTEN, NLM_F_DUMP):
            if state == LISTEN and bound_port == port:
                found.setdefault(bound, set()).add(inode)
    return found


def inode(ours: tuple[str, int], theirs: tuple[str, int]) -> int:
    """The inode of the socket whose local end is `ours`; 0 where there is none that a process holds."""
    family = socket.AF_INET6 if ":" in ours[0] else socket.AF_INET
    for state, _, _, found in _ask(family, _socket_id(family, ours, theirs), ANY_STATE, 0):
        if state != LISTEN:  # the kernel names the listener where there is no such connection
            return found
    return 0


def _socket_id(family: int, ours: tuple[str, int], theirs: tuple[str, int]) -> bytes:
    packed = (socket.inet_pton(family, address.partition("%")[0]) for address, _ in (ours, theirs))
    return SOCKET_ID.pack(ours[1], theirs[1], *packed) + struct.pack("=I", 0) + NO_COOKIE


def _ask(family: int, socket_id: bytes, states: int, flags: int) -> Iterator[tuple[int, str, int, int]]:
    """What the kernel answers: state, local address, local port and inode of each socket."""
    asked = REQUEST.pack(family, socket.IPPROTO_TCP, 0, states) + socket_id
    message = HEADER.pack(HEADER.size + len(asked), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | flags, 0, 0) + asked
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as kernel:
        kernel.send(message)
        while True:
            answer = kernel.recv(1 << 16)
            while answer:
                length, kind, *_ = HEADER.unpack_from(answer)
                if kind == NLMSG_DONE:
                    return
                if kind == NLMSG_ERROR:
                    code = -struct.unpack_from("=i", answer, HEADER.size)[0]
                    if code == errno.ENOENT and not flags:
                        return  # no such connection
                    raise _unavailable(os.strerror(code))
                found_family, state, _, _, found_id, found = FOUND.unpack_from(answer, HEADER.size)
                port, _, address, _ = SOCKET_ID.unpack_from(found_id)
                size = 16 if found_family == socket.AF_INET6 else 4
                yield state, socket.inet_ntop(found_family, address[:size]), port, found
                answer = answer[(length + 3) & ~3 :]
            if not flags:  # one socket, one answer
                return


def _unavailable(why: str) -> Failure:
    return Failure(
        f"the kernel does not tell who holds a TCP socket: {why}",
        state="nothing was changed",
        next="modprobe tcp_diag (it needs CONFIG_INET_DIAG and CONFIG_INET_TCP_DIAG)",
    )
