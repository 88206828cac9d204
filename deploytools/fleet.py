"""Many hosts at once, but not too many: the same work on each, and one outcome for every one.

Work runs in threads even where there is one host, because Python hands Ctrl-C to the main thread only,
and that one must not be stuck in a socket. It waits here in short steps, and in none that a signal handler
can upset: SimpleQueue.get, for one, waits without end where a handler outlasts its time-out.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import Empty, Queue
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from deploytools.errors import Interrupted, Unreachable, UsageError
from deploytools.remote import Address, OutcomeUnknown

# Seconds after which the waiting thread looks up, and after which `close` leaves a dead link to itself.
GLANCE, FAREWELL = 0.1, 5.0


class Cancel:
    """Says when to stop waiting. Unlike threading.Event it has no lock, which a signal handler that sets it
    may find held by the very code that it came in the middle of."""

    def __init__(self) -> None:
        self._set = False

    def set(self) -> None:
        """Have everybody stop waiting."""
        self._set = True

    def is_set(self) -> bool:
        """Whether nobody waits any more."""
        return self._set

    def wait(self, seconds: float) -> None:
        """Return after so many seconds, or soon after it is set."""
        deadline = time.monotonic() + seconds
        while not self._set and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, GLANCE))


class Link(Protocol):
    """What a fleet needs of a remote."""

    @property
    def sent(self) -> int:
        """How many commands were begun."""

    def open(self) -> None:
        """Connect where there is no live connection. Raises Unreachable."""

    def close(self) -> None:
        """Close the connection, from any thread."""


T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
if TYPE_CHECKING:
    from typing_extensions import TypeVar as TypeVarWithDefault

    from deploytools.remote import Remote

    R = TypeVarWithDefault("R", bound=Link, default=Remote)
else:
    R = TypeVar("R")


@dataclass(frozen=True)
class Ok(Generic[T_co]):
    """The work was done and returned `value`."""

    value: T_co


@dataclass(frozen=True)
class Failed:
    """The work raised `error`; what that leaves is for the error to say."""

    error: Exception


@dataclass(frozen=True)
class Lost:
    """Nobody knows how it ended: the host has to be asked."""

    error: Exception


@dataclass(frozen=True)
class Unreached:
    """Nothing was sent to the host."""

    error: Exception


Outcome = Ok[T] | Failed | Lost | Unreached


class Fleet(Generic[R]):
    """The hosts of an operation.

    Args:
        hosts: in the order of all results; str() of each is its name.
        make: what makes the remote of a host, for instance remote.connector().
        parallel: how many hosts are worked on at a time.

    Attributes:
        cancel: set it to stop waiting: hosts that are being worked on are Lost then, others Unreached.

    Raises UsageError for two hosts of one name.
    """

    def __init__(self, hosts: Sequence[Address], make: Callable[[Address], R], parallel: int = 20) -> None:
        self.names = tuple(str(host) for host in hosts)
        twice = sorted({name for name in self.names if self.names.count(name) > 1})
        if twice:
            raise UsageError(
                f"named more than once: {', '.join(twice)}", where="deploy.hosts", next="name each host once"
            )
        self.cancel = Cancel()
        self._remotes = {str(host): make(host) for host in hosts}
        self._parallel = max(1, parallel)

    def connect(self) -> dict[str, Outcome[None]]:
        """Connect to every host."""
        return self.map(lambda remote: None)

    def map(self, work: Callable[[R], T], hosts: Sequence[str] | None = None) -> dict[str, Outcome[T]]:
        """Do `work` on each of the named hosts (all of them if None), and return how it went on each.

        A host without a live connection is connected first, once.
        """
        names = self.names if hosts is None else tuple(hosts)
        turns = _Round(work, {name: self._remotes[name] for name in names})
        for _ in range(0 if self.cancel.is_set() else min(self._parallel, len(names))):
            # Daemons: a thread that hangs on a dead link must not keep the program from ending.
            threading.Thread(target=turns.work_off, daemon=True).start()
        outcomes = turns.wait(self.cancel)
        return {name: outcomes[name] for name in names}

    def close(self) -> None:
        """Close every connection; gives up on those that take longer than 5 seconds."""
        threads = [threading.Thread(target=remote.close, daemon=True) for remote in self._remotes.values()]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + FAREWELL
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def __enter__(self) -> Fleet[R]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Round(Generic[T, R]):
    """One `map`: hosts that wait for their turn, hosts that are worked on, and outcomes."""

    def __init__(self, work: Callable[[R], T], remotes: dict[str, R]) -> None:
        self._work, self._remotes = work, remotes
        self._turns = deque(remotes)
        self._lock = threading.Lock()
        self._outcomes: Queue[tuple[str, Outcome[T]]] = Queue()

    def work_off(self) -> None:
        """Take one host after the other, in a worker thread."""
        while (name := self._next()) is not None:
            self._outcomes.put((name, _attempt(self._work, self._remotes[name])))

    def wait(self, cancel: Cancel) -> dict[str, Outcome[T]]:
        """Collect every outcome, or what there is when `cancel` is set."""
        outcomes: dict[str, Outcome[T]] = {}
        while len(outcomes) < len(self._remotes) and not cancel.is_set():
            self._collect(outcomes, GLANCE)
        with self._lock:
            waiting = tuple(self._turns)
            self._turns.clear()
        while self._collect(outcomes, 0):
            pass
        for name in self._remotes:
            if name in waiting:
                outcomes[name] = Unreached(
                    Interrupted(
                        "interrupted before its turn came",
                        where=name,
                        state="it was not asked",
                        next="fab status",
                    )
                )
            elif name not in outcomes:
                outcomes[name] = Lost(
                    Interrupted(
                        "interrupted while it was being worked on",
                        where=name,
                        state="what runs there goes on",
                        next="fab status",
                    )
                )
        return outcomes

    def _next(self) -> str | None:
        with self._lock:
            return self._turns.popleft() if self._turns else None

    def _collect(self, outcomes: dict[str, Outcome[T]], seconds: float) -> bool:
        try:
            name, outcome = self._outcomes.get(timeout=seconds) if seconds else self._outcomes.get_nowait()
        except Empty:
            return False
        outcomes[name] = outcome
        return True


def _attempt(work: Callable[[R], T], remote: R) -> Outcome[T]:
    sent = remote.sent
    try:
        remote.open()
        return Ok(work(remote))
    except OutcomeUnknown as error:
        return Lost(error)
    except Unreachable as error:
        # The connection may also have gone between two commands of the same work.
        return Unreached(error) if remote.sent == sent else Lost(error)
    except Exception as error:  # noqa: BLE001  whatever it is, it belongs to this host
        return Failed(error)
