"""Programs that were started on a host and wait there for a line of standard input."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping

from paramiko import Channel, SSHException, Transport

Argv = tuple[str, ...]


class Waiting:
    """The waiting programs of one connection, each on a channel of its own."""

    def __init__(self) -> None:
        self._channels: dict[Argv, Channel] = {}

    def start(self, transport: Transport, lines: Mapping[Argv, bytes], seconds: float) -> None:
        """Start programs at the same time, and know them by the keys of `lines`; none that waits already.

        Returns after `seconds` at the latest. One that could not be started until then isn't there.
        """

        def begin(argv: Argv, line: bytes) -> None:
            with contextlib.suppress(SSHException, EOFError, OSError):
                channel = transport.open_session(timeout=seconds)
                channel.exec_command(line)
                self._channels[argv] = channel

        new = [item for item in lines.items() if self.get(item[0]) is None]
        threads = [threading.Thread(target=begin, args=item, daemon=True) for item in new]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + seconds
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def get(self, argv: Argv) -> Channel | None:
        """The channel of a program that waits; None where none does."""
        channel = self._channels.get(argv)
        if channel is None or channel.closed or channel.eof_received or channel.exit_status_ready():
            return None
        return channel

    def take(self, argv: Argv) -> Channel | None:
        """As `get`, for a program that is about to end."""
        channel = self.get(argv)
        self._channels.pop(argv, None)
        return channel

    def keep(self, argv: Argv, channel: Channel) -> None:
        """Add a program that was started otherwise."""
        self._channels[argv] = channel

    def clear(self) -> None:
        """Forget all of them; they end with their connection."""
        self._channels.clear()
