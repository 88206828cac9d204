"""Connections to a unix socket, as the kernel shows them: nothing that still waits may be overlooked."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hostlib.swapping import unixsockets
from hostlib.swapping.unixsockets import PAUSE, Connections, connections, wait_idle


class Listener:
    """A real listener and its clients, all closed at the end."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self.path = str(path)
        self._stack = stack
        self._socket = self._own()
        self._socket.bind(self.path)
        self._socket.listen()

    def connect(self, path: str | None = None) -> socket.socket:
        client = self._own()
        client.connect(path or self.path)
        return client

    def accept(self) -> socket.socket:
        return self._stack.enter_context(self._socket.accept()[0])

    def _own(self) -> socket.socket:
        return self._stack.enter_context(socket.socket(socket.AF_UNIX))


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def listener(tmp_path: Path, stack: ExitStack) -> Listener:
    return Listener(tmp_path / "app 1.sock", stack)


def counts(path: str) -> tuple[int, int]:
    seen = connections(path)
    return seen.queued, seen.accepted


def test_a_listener_alone_has_no_connection(listener: Listener) -> None:
    assert connections(listener.path) == Connections(0, 0, frozenset())


def test_a_connection_is_queued_until_it_is_accepted_and_counts_until_the_application_closes_it(
    listener: Listener,
) -> None:
    first, _ = listener.connect(), listener.connect()
    assert counts(listener.path) == (2, 0)
    accepted = listener.accept()
    assert counts(listener.path) == (1, 1)
    first.close()
    assert counts(listener.path) == (1, 1), "the application does not know yet that the client is gone"
    accepted.close()
    assert counts(listener.path) == (1, 0)


def test_a_queued_connection_counts_even_when_its_client_is_gone(listener: Listener) -> None:
    listener.connect().close()
    assert counts(listener.path) == (1, 0)


def test_that_somebody_connected_is_seen_even_when_he_is_gone_again(
    listener: Listener, tmp_path: Path
) -> None:
    """Fails where the temporary directory is on a file system that is mounted noatime."""
    listener.connect().close()
    for number in range(2):
        unixsockets.forget_access(listener.path)
        assert not unixsockets.was_accessed(listener.path)
        link = tmp_path / f"link {number}"
        link.symlink_to("app 1.sock")
        listener.connect(str(link)).close()
        assert unixsockets.was_accessed(listener.path)


def test_a_link_in_the_place_of_a_socket_leads_nobody_to_another_file(tmp_path: Path) -> None:
    """An application may put it into its own directory; a swap is root."""
    other, link = tmp_path / "other", tmp_path / "app.sock"
    other.touch()
    link.symlink_to(other)
    before = other.stat()

    unixsockets.forget_access(str(link))

    assert (other.stat().st_atime_ns, other.stat().st_mtime_ns) == (before.st_atime_ns, before.st_mtime_ns)


def test_connections_by_way_of_a_link_count_for_the_path_that_was_bound(
    listener: Listener, tmp_path: Path
) -> None:
    link = tmp_path / "app.sock"
    link.symlink_to("app 1.sock")
    listener.connect(str(link))
    assert counts(listener.path) == (1, 0)
    assert counts(str(link)) == (0, 0)


def test_an_accepted_connection_is_known_by_its_inode(listener: Listener) -> None:
    listener.connect()
    listener.accept()
    before = connections(listener.path).inodes
    listener.connect()
    second = listener.accept()
    new = connections(listener.path).inodes - before
    assert new == {os.fstat(second.fileno()).st_ino}


def test_a_path_that_only_begins_alike_is_another_one(
    listener: Listener, tmp_path: Path, stack: ExitStack
) -> None:
    Listener(tmp_path / "app 1.sock2", stack).connect()
    assert counts(listener.path) == (0, 0)


# -- waiting for the last one ----------------------------------------------------------------------


class Script:
    """Samples in the order given (the last one again and again), and a clock that only sleep moves."""

    def __init__(self, *totals: int) -> None:
        self._totals = list(totals)
        self.now, self.samples = 0.0, 0

    def sample(self, _: str) -> Connections:
        self.samples += 1
        return Connections(self._totals.pop(0) if len(self._totals) > 1 else self._totals[0], 0, frozenset())

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def wait(self, timeout: float) -> int:
        return wait_idle("any", timeout, sample=self.sample, clock=self.clock, sleep=self.sleep).total


def test_idle_takes_two_empty_samples_in_a_row() -> None:
    script = Script(1, 0, 1, 0, 0)
    assert script.wait(timeout=10) == 0
    assert script.samples == 5
    assert script.now == pytest.approx(4 * PAUSE)


def test_the_deadline_tells_what_is_still_there() -> None:
    script = Script(3)
    assert script.wait(timeout=1) == 3
    assert 1 <= script.now < 1 + 2 * PAUSE


def test_without_any_time_it_still_takes_two_samples_to_be_idle() -> None:
    assert (Script(0).wait(timeout=0), Script(0, 2).wait(timeout=0)) == (0, 2)


def test_the_longest_path_is_what_bind_accepts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as fits, socket.socket(socket.AF_UNIX) as does_not:
        fits.bind("x" * unixsockets.LONGEST_PATH)
        with pytest.raises(OSError, match="too long"):
            does_not.bind("x" * (unixsockets.LONGEST_PATH + 1))
