"""What goes over an open connection: a command's streams."""

from __future__ import annotations

import select
import time
from collections.abc import Callable

from paramiko import Channel

# How much to read at a time, and the most that fits into one packet to OpenSSH.
BLOCK, PACKET = 1 << 20, 1 << 15


class TimeUp(Exception):
    """The deadline has passed and the command has not ended."""


class Ended(Exception):
    """The program says no more, or takes in no more: it has its answer ready, or the link is gone."""


class Talk:
    """Both sides of a conversation with a program, which may take as long as it goes on.

    Args:
        patience: seconds that may pass with nothing sent or said, before TimeUp is raised.
        alive: called whenever the program has taken or said something.

    Attributes:
        said: everything that it has printed so far.
    """

    def __init__(self, channel: Channel, patience: float, alive: Callable[[], None]) -> None:
        self._channel, self._alive = channel, alive
        self.said = bytearray()
        self._read = 0
        channel.settimeout(patience)

    def send(self, data: bytes) -> None:
        """Give it all of `data`. Raises Ended or TimeUp."""
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[self._channel.send(bytes(rest[:PACKET])) :]
            except TimeoutError:
                raise TimeUp from None
            except OSError as error:
                raise Ended from error
            self._alive()

    def read_line(self) -> bytes:
        """Return the next line that it prints, without its end. Raises Ended or TimeUp."""
        while (end := self.said.find(b"\n", self._read)) < 0:
            try:
                block = self._channel.recv(BLOCK)
            except TimeoutError:
                raise TimeUp from None
            if not block:
                raise Ended
            self.said += block
            self._alive()
        line = bytes(self.said[self._read : end])
        self._read = end + 1
        return line


def converse(
    channel: Channel,
    stdin: bytes,
    deadline: float,
    on_line: Callable[[str], None] | None,
    answered: Callable[[bytes], bool] | None = None,
) -> tuple[bytes, bytes]:
    """Feed a command its stdin and collect what it prints, until the channel is closed.

    Args:
        deadline: by time.monotonic().
        on_line: called with each line of stderr as it comes.
        answered: tells of what a command has printed whether that is its answer, which is returned at once.
            Its stdin isn't closed then.

    Raises TimeUp at the deadline, unless the command has ended by then and only something that it left
    in the background holds its stdout open.
    """
    stdout, stderr, told = bytearray(), bytearray(), 0
    rest: memoryview | None = memoryview(stdin)
    poll = select.poll()
    poll.register(channel.fileno(), select.POLLIN)
    while True:
        closed = channel.closed  # looked at before reading, or the last bytes could be missed
        if rest is not None:
            rest = _feed(channel, rest, close=answered is None)
        while channel.recv_ready():
            stdout += channel.recv(BLOCK)
        while channel.recv_stderr_ready():
            stderr += channel.recv_stderr(BLOCK)
        if on_line is not None:
            told = _tell(stderr, told, on_line, last=closed)
        left = deadline - time.monotonic()
        done = answered is not None and answered(bytes(stdout))
        if done or closed or (left <= 0 and channel.exit_status_ready()):
            return bytes(stdout), bytes(stderr)
        if left <= 0:
            raise TimeUp
        # Nothing wakes us when the other side makes room for more stdin, so look again soon.
        poll.poll(1000 * (left if rest is None else min(left, 0.01)))


def exchange(channel: Channel, line: bytes, deadline: float) -> bytes:
    """Give a program one more line, and return the line that it answers, without its end.

    Raises TimeUp at the deadline (by time.monotonic()), EOFError where the program has ended.
    """
    channel.settimeout(max(0.1, deadline - time.monotonic()))
    try:
        channel.sendall(line + b"\n")
    except TimeoutError:
        raise TimeUp from None
    return read_line(channel, deadline)


def read_line(channel: Channel, deadline: float) -> bytes:
    """Return the one line that a program prints before it waits for us. Raises as `exchange` does."""
    channel.settimeout(max(0.1, deadline - time.monotonic()))
    answer = bytearray()
    try:
        while not answer.endswith(b"\n"):
            block = channel.recv(BLOCK)
            if not block:
                raise EOFError(channel.recv_stderr(BLOCK).decode(errors="replace") or "it has ended")
            answer += block
    except TimeoutError:
        raise TimeUp from None
    finally:
        channel.settimeout(None)
    return bytes(answer[:-1])


def _feed(channel: Channel, rest: memoryview, *, close: bool) -> memoryview | None:
    """Send what the other side has room for; None once everything is sent, or nobody reads it."""
    try:
        while rest and channel.send_ready():
            rest = rest[channel.send(bytes(rest[:PACKET])) :]
        if rest:
            return rest
        if close:
            channel.shutdown_write()
    except OSError:
        if not channel.closed:
            raise
    return None


def _tell(text: bytearray, told: int, on_line: Callable[[str], None], *, last: bool) -> int:
    """Pass on the whole lines of `text` from `told` on; return how far that was."""
    while (end := text.find(b"\n", told)) >= 0:
        on_line(text[told:end].decode(errors="replace"))
        told = end + 1
    if last and told < len(text):
        on_line(text[told:].decode(errors="replace"))
        told = len(text)
    return told
