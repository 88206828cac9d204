"""What the laptop sends while a release is taken in, and what it is told in between.

It sends messages, each in frames: a letter, the length in four bytes, the payload. `s` is stored, `z` is
deflated, `e` ends the message. It is told one JSON object per line.
"""

from __future__ import annotations

import json
import os
import select
import struct
import sys
import zlib
from collections.abc import Iterator
from typing import Any

from hostlib.program import Failure

HEADER = struct.Struct(">cI")
# The most that one frame unpacks to, and the most that a message other than content may have: bytes.
FRAME, MESSAGE = 1 << 20, 1 << 28
# After so long without a byte (seconds) the connection is dead, though the kernel may not know it yet:
# whoever comes back shouldn't have to wait for us.
SILENCE = 60.0


class Inlet:
    """Standard input, read without ever waiting for more than `silence` seconds."""

    def __init__(self, descriptor: int = 0, silence: float = SILENCE) -> None:
        self._descriptor, self._silence = descriptor, silence
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)

    def say(self, **told: Any) -> None:
        """Tell the laptop what to send next."""
        print(json.dumps(told), flush=True)

    def message(self) -> bytes:
        """The whole of a message. Raises Failure where it is cut."""
        whole = bytearray()
        for part in self.parts():
            whole += part
            if len(whole) > MESSAGE:
                raise _broken("a message is too long")
        return bytes(whole)

    def parts(self) -> Iterator[bytes]:
        """A message as it comes. Raises Failure where it is cut."""
        while True:
            kind, length = HEADER.unpack(self._read(HEADER.size))
            if kind == b"e":
                return
            if kind not in (b"s", b"z") or length > 2 * FRAME:
                raise _broken("a frame is damaged")
            payload = self._read(length)
            yield _inflated(payload) if kind == b"z" else payload

    def _read(self, size: int) -> bytes:
        blocks = []
        while size:
            if not self._poll.poll(self._silence * 1000):
                raise _cut(f"nothing came for {self._silence:g} s")
            block = os.read(self._descriptor, min(size, FRAME))
            if not block:
                raise _cut("the connection ended")
            blocks.append(block)
            size -= len(block)
        return b"".join(blocks)


def refuse_terminal() -> None:
    """Raise Failure where a person started us by hand."""
    if sys.stdin.isatty():
        raise Failure(
            "what a release consists of is sent by the laptop, not typed",
            state="nothing was changed",
            next="fab deploy",
            exit_code=2,
        )


def _inflated(payload: bytes) -> bytes:
    stream = zlib.decompressobj()
    try:
        block = stream.decompress(payload, FRAME + 1)
    except zlib.error as error:
        raise _broken(f"a frame can't be unpacked: {error}") from error
    if len(block) > FRAME or not stream.eof:
        raise _broken("a frame is longer than it may be")
    return block


def _broken(what: str) -> Failure:
    return Failure(what, state="nothing was changed", next="deploy again")


def _cut(why: str) -> Failure:
    return Failure(
        f"the release did not arrive whole: {why}",
        state="nothing was changed; what arrived is kept for the next attempt",
        next="deploy again, which sends only the rest",
    )
