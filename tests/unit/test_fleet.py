"""Many hosts at once: every host has its outcome, whatever becomes of the others.

The remotes are fakes that meet at barriers and events, so nothing here depends on how fast it runs.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from deploytools.commands import Command
from deploytools.errors import Interrupted, OperationFailed, Unreachable, UsageError
from deploytools.fleet import GLANCE, Cancel, Failed, Fleet, Lost, Ok, Unreached
from deploytools.remote import Address, LinkLost, StillRunning

# Seconds after which a test that hangs is a failed one.
PATIENCE = 10.0


@dataclass(frozen=True)
class Host:
    host: str
    user: str | None = None
    port: int | None = None

    def __str__(self) -> str:
        return self.host


@dataclass
class FakeRemote:
    """A host that answers at once, unless it is told to be away."""

    name: str
    away: bool = False
    sent: int = 0
    opened: int = 0
    alive: bool = False
    closed: threading.Event = field(default_factory=threading.Event)

    def open(self) -> None:
        if self.away:
            raise Unreachable(f"no answer from {self.name}")
        if not self.alive:
            self.opened += 1
            self.alive = True

    def close(self) -> None:
        self.alive = False
        self.closed.set()

    def run(self) -> str:
        self.open()
        self.sent += 1
        return f"done on {self.name}"


def fleet_of(
    *names: str, parallel: int = 20, make: Callable[[Address], FakeRemote] | None = None
) -> tuple[Fleet[FakeRemote], dict[str, FakeRemote]]:
    remotes = {name: FakeRemote(name) for name in names}
    hosts = [Host(name) for name in names]
    return Fleet(hosts, make or (lambda host: remotes[str(host)]), parallel), remotes


def in_thread(body: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    results: list[object] = []
    thread = threading.Thread(target=lambda: results.append(body()), daemon=True)
    thread.start()
    return thread, results


def test_every_host_has_its_outcome() -> None:
    fleet, _ = fleet_of("web1", "web2")
    assert fleet.map(FakeRemote.run) == {"web1": Ok("done on web1"), "web2": Ok("done on web2")}


def test_results_come_in_the_order_of_the_hosts_and_not_of_their_speed() -> None:
    fleet, _ = fleet_of("web1", "web2", "web3")
    done = {name: threading.Event() for name in ("web1", "web2", "web3")}

    def last_first(remote: FakeRemote) -> None:
        after = {"web1": "web2", "web2": "web3"}.get(remote.name)
        assert after is None or done[after].wait(PATIENCE)
        done[remote.name].set()

    assert list(fleet.map(last_first)) == ["web1", "web2", "web3"]
    assert list(fleet.map(FakeRemote.run, hosts=("web3", "web1"))) == ["web3", "web1"]


def test_only_the_named_hosts_are_worked_on() -> None:
    fleet, remotes = fleet_of("web1", "web2", "web3")
    assert list(fleet.map(FakeRemote.run, hosts=["web2"])) == ["web2"]
    assert [remote.sent for remote in remotes.values()] == [0, 1, 0]


def test_no_hosts_no_outcomes() -> None:
    fleet, _ = fleet_of("web1")
    assert fleet.map(FakeRemote.run, hosts=()) == {}


def test_an_error_is_that_hosts_alone() -> None:
    fleet, _ = fleet_of("web1", "web2", "web3")
    broken = OperationFailed("the disk is full")

    def work(remote: FakeRemote) -> str:
        if remote.name == "web2":
            raise broken
        return remote.run()

    assert fleet.map(work) == {"web1": Ok("done on web1"), "web2": Failed(broken), "web3": Ok("done on web3")}


def test_a_bug_in_the_work_is_told_and_does_not_hang() -> None:
    fleet, _ = fleet_of("web1")
    outcome = fleet.map(lambda remote: {}["missing"])["web1"]
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, KeyError)


@pytest.mark.parametrize("error", [LinkLost, StillRunning])
def test_a_command_whose_end_was_not_seen_is_lost_and_not_failed(error: type[LinkLost]) -> None:
    fleet, _ = fleet_of("web1")
    unknown = error("web1", Command(("swap",)), "gone")

    def work(remote: FakeRemote) -> None:
        raise unknown

    assert fleet.map(work) == {"web1": Lost(unknown)}


def test_a_host_that_is_away_is_unreached_and_the_others_go_on() -> None:
    fleet, remotes = fleet_of("web1", "web2", "web3")
    remotes["web2"].away = True
    outcomes = fleet.map(FakeRemote.run)
    assert [type(outcome) for outcome in outcomes.values()] == [Ok, Unreached, Ok]
    assert str(outcomes["web2"].error) == "no answer from web2"  # type: ignore[union-attr]
    assert remotes["web2"].sent == 0


def test_connect_tells_every_host_that_is_away() -> None:
    fleet, remotes = fleet_of("web1", "web2", "web3")
    remotes["web1"].away = remotes["web3"].away = True
    assert [type(outcome) for outcome in fleet.connect().values()] == [Unreached, Ok, Unreached]


def test_a_connection_that_died_in_between_is_opened_anew_once_per_map() -> None:
    fleet, remotes = fleet_of("web1")
    fleet.connect()
    fleet.map(FakeRemote.run)
    assert remotes["web1"].opened == 1
    remotes["web1"].alive = False
    assert fleet.map(FakeRemote.run) == {"web1": Ok("done on web1")}
    assert remotes["web1"].opened == 2


def test_a_host_that_goes_away_between_two_commands_is_lost_and_not_unreached() -> None:
    fleet, _ = fleet_of("web1")

    def work(remote: FakeRemote) -> None:
        remote.run()
        remote.away = True
        remote.run()

    assert isinstance(fleet.map(work)["web1"], Lost)


@pytest.mark.parametrize("parallel", [1, 2, 3])
def test_never_more_hosts_at_a_time_than_allowed_and_no_fewer(parallel: int) -> None:
    names = [f"web{number}" for number in range(parallel * 4)]
    fleet, _ = fleet_of(*names, parallel=parallel)
    together = threading.Barrier(parallel)
    lock, working, most = threading.Lock(), 0, 0

    def work(remote: FakeRemote) -> None:
        nonlocal working, most
        with lock:
            working += 1
            most = max(most, working)
        together.wait(PATIENCE)  # breaks unless `parallel` hosts get here
        with lock:
            working -= 1
        together.wait(PATIENCE)  # nobody takes the next host before all have left

    assert all(isinstance(outcome, Ok) for outcome in fleet.map(work).values())
    assert most == parallel


def test_work_never_runs_in_the_thread_that_waits() -> None:
    fleet, _ = fleet_of("web1")
    assert fleet.map(lambda remote: threading.current_thread()) != {"web1": Ok(threading.current_thread())}


def test_two_names_of_one_machine_are_two_hosts() -> None:
    machine = FakeRemote("one machine")
    fleet, _ = fleet_of("web1", "web1.example.com", make=lambda host: machine)
    assert list(fleet.map(FakeRemote.run)) == ["web1", "web1.example.com"]
    assert machine.sent == 2


def test_one_name_for_two_hosts_is_refused() -> None:
    with pytest.raises(UsageError, match="web1"):
        Fleet([Host("web1", port=22), Host("web1", port=2222)], lambda host: FakeRemote(str(host)))


def test_cancel_stops_the_wait_and_leaves_nobody_out() -> None:
    fleet, remotes = fleet_of("done", "working", "waiting", parallel=1)
    started, release = threading.Event(), threading.Event()

    def work(remote: FakeRemote) -> str:
        if remote.name == "working":
            started.set()
            assert release.wait(PATIENCE)
        return remote.run()

    thread, results = in_thread(lambda: fleet.map(work))
    assert started.wait(PATIENCE)
    fleet.cancel.set()
    thread.join(PATIENCE)
    (outcomes,) = results
    assert isinstance(outcomes, dict)
    assert outcomes["done"] == Ok("done on done")
    assert isinstance(outcomes["working"], Lost)
    assert isinstance(outcomes["waiting"], Unreached)
    assert isinstance(outcomes["working"].error, Interrupted)
    release.set()
    assert remotes["waiting"].sent == 0


def test_nothing_begins_after_cancel() -> None:
    fleet, remotes = fleet_of("web1", "web2")
    fleet.cancel.set()
    assert [type(outcome) for outcome in fleet.map(FakeRemote.run).values()] == [Unreached, Unreached]
    assert all(remote.opened == 0 for remote in remotes.values())


def test_ctrl_c_is_seen_while_a_host_hangs() -> None:
    fleet, _ = fleet_of("web1")
    release = threading.Event()

    def work(remote: FakeRemote) -> bool:
        os.kill(os.getpid(), signal.SIGINT)
        return release.wait(PATIENCE)

    before = signal.signal(signal.SIGINT, lambda *_: fleet.cancel.set())
    try:
        outcomes = fleet.map(work)
    finally:
        signal.signal(signal.SIGINT, before)
        release.set()
    assert isinstance(outcomes["web1"], Lost)


def test_nor_does_it_matter_how_long_the_handler_of_ctrl_c_takes() -> None:
    """Of a busy laptop. SimpleQueue waits without end then."""
    fleet, _ = fleet_of("web1")
    release = threading.Event()

    def work(remote: FakeRemote) -> bool:
        os.kill(os.getpid(), signal.SIGINT)
        return release.wait(PATIENCE)

    def slow(*_: object) -> None:
        time.sleep(2 * GLANCE)
        fleet.cancel.set()

    before = signal.signal(signal.SIGINT, slow)
    try:
        outcomes = fleet.map(work)
    finally:
        signal.signal(signal.SIGINT, before)
        release.set()
    assert isinstance(outcomes["web1"], Lost)


def test_whoever_waits_a_while_goes_on_when_a_handler_says_so() -> None:
    cancel, began = Cancel(), time.monotonic()
    before = signal.signal(signal.SIGINT, lambda *_: cancel.set())
    try:
        threading.Thread(target=lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        cancel.wait(PATIENCE)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (cancel.is_set(), time.monotonic() - began < PATIENCE) == (True, True)


def test_close_closes_every_connection() -> None:
    fleet, remotes = fleet_of("web1", "web2")
    with fleet:
        fleet.connect()
    assert all(remote.closed.is_set() for remote in remotes.values())


def test_close_does_not_wait_for_a_dead_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploytools.fleet.FAREWELL", 0.05)
    release = threading.Event()

    class DeadLink(FakeRemote):
        def close(self) -> None:
            release.wait(PATIENCE)

    fine, dead = FakeRemote("fine"), DeadLink("dead")
    fleet, _ = fleet_of("dead", "fine", make=lambda host: {"dead": dead, "fine": fine}[str(host)])
    thread, _ = in_thread(fleet.close)
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert fine.closed.is_set()
    release.set()
