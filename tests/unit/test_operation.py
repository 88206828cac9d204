"""What the tasks have in common, where no host is needed to see it. The rest is in tests/integration."""

from __future__ import annotations

import getpass
import json
import os
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from deploytools import journal, notification, operation
from deploytools import plan as plans
from deploytools.commands import Command
from deploytools.errors import (
    HostKeyRejected,
    InMaintenance,
    LockHeld,
    OperationFailed,
    Unfinished,
    Unreachable,
    UsageError,
)
from deploytools.fleet import Fleet
from deploytools.operation import unreachable
from deploytools.plan import Target
from deploytools.remote import Result
from deploytools.report.text import error_text
from deploytools.settings import Host
from tests.support.values import BASE, settings
from tests.unit.test_engine import SETTINGS, WINDOW, FakeHost, Silent, World, failing, lost


class Linked(FakeHost):
    sent = 0
    greetings: ClassVar[dict[str, bytes]] = {}

    def open(self) -> None: ...
    def close(self) -> None: ...
    def start(self, programs: list[Command]) -> None:
        self.started = programs

    def greeting(self, command: Command) -> bytes | None:
        assert command == self.started[0]
        return self.greetings.get(self.name)

    def dismiss(self, command: Command) -> None: ...


def fleet(world: World, *names: str) -> Fleet[Any]:
    return Fleet([Host(name) for name in names], lambda host: Linked(str(host), world))


@pytest.fixture
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A window that migrated, and holds because web2 does not swap."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    world = World({("web2", "swap"): [failing("not ready")]})
    with fleet(world, "web1", "web2") as both, pytest.raises(InMaintenance):
        operation.carry_out(WINDOW, SETTINGS, both, Silent())
    world.said.clear()
    return world


def test_a_held_run_goes_on_without_a_host_that_died(held: World) -> None:
    with fleet(held, "web1") as left, pytest.raises(Unfinished, match="done") as caught:
        operation.resume(held.stored, SETTINGS, left, Silent(), exclude=["web2"])  # type: ignore[arg-type]

    assert ("web1", "up") in held.said
    assert caught.value.state == "what was wanted is done on web1"
    assert caught.value.details == ("web2: swap: not ready",)
    assert "web2" not in {host for host, _ in held.said}


def test_a_host_that_a_run_was_resumed_without_is_told_and_stays_left_out(held: World) -> None:
    notes: list[str] = []
    reporter = Silent()
    reporter.note = notes.append  # type: ignore[method-assign]
    held.scripted = {("web1", "up"): [failing("no answer", unchanged=False)]}
    with fleet(held, "web1") as left, pytest.raises(InMaintenance):
        operation.resume(held.stored, SETTINGS, left, reporter, exclude=["web2"])  # type: ignore[arg-type]

    (told,) = [note for note in notes if note.startswith("without web2")]
    assert "last seen in maintenance, on r1" in told
    assert "fab -H web2 maint-down until fab deploy" in told
    assert journal.left_out(held.stored) == ("web2",)
    held.said.clear()
    with fleet(held, "web1", "web2") as both, pytest.raises(Unfinished):
        operation.resume(held.stored, SETTINGS, both, Silent())  # type: ignore[arg-type]
    assert "web2" not in {host for host, _ in held.said}


@pytest.fixture
def cut(held: World) -> World:
    """A window whose operator died when nobody could know any more whether the migration had begun."""
    intent = next(number for number, record in enumerate(held.stored) if record.get("step") == "migrate")
    del held.stored[intent + 1 :]
    return held


@pytest.mark.parametrize("outcome", ["not-started", "failed"])
def test_an_abort_asks_how_the_migration_ended_and_backs_out_where_nothing_is_changed(
    cut: World, outcome: str
) -> None:
    cut.scripted = {("web1", "migrate outcome"): [failing("no", outcome=outcome, unchanged=True)]}
    with fleet(cut, "web1", "web2") as both:
        operation.resume(cut.stored, SETTINGS, both, Silent(), abort=True)  # type: ignore[arg-type]

    assert ("web1", "migrate run") not in cut.said
    assert [word for host, word in cut.said if host == "web2"][-2:] == ["up", "release discard"]
    assert cut.stored[-1]["verdict"] == "reverted"


OLDER = Result(2, "", "usage: migrate\nmigrate: error: unrecognized arguments: --renounce\n", 0.0)


@pytest.mark.parametrize("answer", [failing("runs", outcome="running"), lost(), OLDER])
def test_an_abort_is_refused_while_the_migration_may_have_changed_something(cut: World, answer: Any) -> None:
    before = list(cut.stored)
    cut.scripted = {("web1", "migrate outcome"): [answer]}
    with (
        fleet(cut, "web1", "web2") as both,
        pytest.raises(InMaintenance, match="can't be aborted any more") as caught,
    ):
        operation.resume(before, SETTINGS, both, Silent(), abort=True)  # type: ignore[arg-type]

    assert caught.value.next == "fab deploy --resume"
    assert cut.stored == before, "nothing was done"


def test_ctrl_c_while_others_are_told_does_not_change_how_the_run_ended(
    held: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pressed(*_: object, place: Path) -> str:
        assert place == SETTINGS.project
        raise KeyboardInterrupt

    monkeypatch.setattr(notification, "tell", pressed)
    held.scripted = {("web2", "swap"): [failing("not ready")]}
    notes: list[str] = []
    reporter = Silent()
    reporter.note = notes.append  # type: ignore[method-assign]
    hooked = replace(SETTINGS, hooks=replace(SETTINGS.hooks, notify="curl https://chat.example.com"))
    with fleet(held, "web1", "web2") as both, pytest.raises(InMaintenance):
        operation.resume(held.stored, hooked, both, reporter)  # type: ignore[arg-type]

    assert notes[-1] == "hooks.notify was ended by Ctrl-C"


def test_an_account_without_a_name_is_told_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise KeyError("uid not found")

    monkeypatch.setattr(getpass, "getuser", nobody)

    assert operation.operator()[0] == f"uid {os.getuid()}"


def test_ctrl_c_while_a_line_is_being_written_stops_the_run_as_ever_and_is_told_after_it() -> None:
    writing, told = threading.Lock(), threading.Event()

    class Writes(Silent):
        def note(self, text: str) -> None:
            if threading.current_thread() is threading.main_thread():
                raise RuntimeError("reentrant call inside <_io.BufferedWriter name='<stderr>'>")
            with writing:
                told.set()

    with operation._interruptible(Writes()) as stop, writing:
        signal.raise_signal(signal.SIGINT)
        assert (stop.asked, told.is_set()) == (True, False)

    assert told.wait(30)


def test_a_run_that_has_its_lock_on_another_host_is_not_overlooked() -> None:
    """As where a colleague's fabric.yaml names the hosts in another order."""
    up = {"maintenance": {"state": "up"}, "release": "r1"}
    lock = {"run_id": "run-0", "by": "ann", "laptop": "desk"}
    both = settings(hosts=["web1", "web2"])

    assert operation.base_plan("deploy", both, {"web1": {**up, "lock": lock}, "web2": up}).lock_host == "web1"
    with pytest.raises(LockHeld, match="run run-0 by ann on desk has its lock on web2") as caught:
        operation.base_plan("deploy", both, {"web1": up, "web2": {**up, "lock": lock}})

    assert "by `migrate.host: web2`" in str(caught.value.next)


@pytest.fixture
def no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operation, "_mirror", lambda _: Path("/dev/full"))


@pytest.mark.usefixtures("no_room")
def test_a_laptop_without_room_for_a_journal_begins_nothing() -> None:
    world = World()
    with fleet(world, "web1", "web2") as both, pytest.raises(UsageError, match="No space left") as caught:
        operation.carry_out(WINDOW, SETTINGS, both, Silent())

    assert (world.said, caught.value.state) == ([], "nothing was changed")
    assert "XDG_STATE_HOME" in str(caught.value.next)


@pytest.mark.usefixtures("no_room")
def test_such_a_laptop_takes_a_site_down_all_the_same() -> None:
    world = World()
    with fleet(world, "web1", "web2") as both:
        operation.carry_out(plans.maintenance_plan(BASE, down=True), SETTINGS, both, Silent())

    assert ("web2", "down") in world.said


def test_such_a_laptop_goes_on_with_a_run_that_holds(held: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operation, "_mirror", lambda _: Path("/dev/full"))
    with fleet(held, "web1", "web2") as both:
        operation.resume(held.stored, SETTINGS, both, Silent())  # type: ignore[arg-type]

    assert held.stored[-1]["verdict"] == "done"


def test_another_laptop_that_resumes_has_a_whole_copy_of_the_journal(
    held: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another"))
    with fleet(held, "web1", "web2") as both:
        operation.resume(held.stored, SETTINGS, both, Silent())  # type: ignore[arg-type]

    copy = (operation.journals() / "run-1.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in copy] == held.stored


def test_an_abort_of_a_roll_that_was_not_to_go_back_swaps_back_what_was_begun_when_its_operator_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    world = World({("web2", "swap"): [failing("not ready")]})
    roll = plans.rolling_plan(replace(WINDOW, steps=(), window=False), SETTINGS, rollback=False)
    with fleet(world, "web1", "web2") as both, pytest.raises(InMaintenance):
        operation.carry_out(roll, SETTINGS, both, Silent())
    swaps = [number for number, record in enumerate(world.stored) if record.get("step") == "swap"]
    del world.stored[swaps[-2] + 1 :]  # web2's intent is the last that is known
    world.said.clear()

    with fleet(world, "web1", "web2") as both:
        operation.resume(world.stored, SETTINGS, both, Silent(), abort=True)  # type: ignore[arg-type]

    assert {host for host, word in world.said if word == "swap"} == {"web1", "web2"}
    assert world.stored[-1]["verdict"] == "reverted"


def test_a_host_that_is_away_stops_a_resumed_run_before_it_does_anything(
    held: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Linked) -> None:
        if self.name == "web2":
            raise Unreachable("no route to web2")

    monkeypatch.setattr(Linked, "open", refuse)
    with fleet(held, "web1", "web2") as both, pytest.raises(Unreachable) as caught:
        operation.resume(held.stored, SETTINGS, both, Silent())  # type: ignore[arg-type]

    assert (held.said, caught.value.state) == ([], "nothing was changed")


@pytest.mark.parametrize("exclude", [[], ["web1", "web2"]])
def test_a_run_is_not_resumed_on_hosts_that_it_does_not_have(held: World, exclude: list[str]) -> None:
    with fleet(held, "web1") as left, pytest.raises(UsageError, match="works on"):
        operation.resume(held.stored, SETTINGS, left, Silent(), exclude=exclude)  # type: ignore[arg-type]

    assert held.said == []


UP = {"maintenance": {"state": "up"}, "release": "r1"}
DOWN = {"maintenance": {"state": "down"}, "release": "r2"}
HOSTS = {"web1": UP, "web2": DOWN}


def test_hosts_get_ready_and_say_where_they_stand_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = {name: json.dumps({"waiting": True, **status}).encode() for name, status in HOSTS.items()}
    monkeypatch.setattr(Linked, "greetings", waiting)
    world = World()
    with fleet(world, "web1", "web2") as both:
        plan = operation.get_ready(plans.maintenance_plan(BASE, down=True), SETTINGS, both)

    assert plan.targets == (Target("web1", "r1", down=False), Target("web2", "r2", down=True))
    assert world.said == []


def test_a_host_where_nothing_can_wait_is_asked_by_status(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Linked, "greetings", {"web1": b'{"waiting": true, ' + json.dumps(UP).encode()[1:]})
    world = World({("web2", "status"): [(0, {"ok": True, **DOWN})]})
    with fleet(world, "web1", "web2") as both:
        plan = operation.get_ready(plans.maintenance_plan(BASE, down=True), SETTINGS, both)

    assert plan.down_before == ("web2",)
    assert world.said == [("web2", "status")]


def test_a_host_that_was_never_set_up_stops_it_before_anything_is_changed() -> None:
    absent = failing("status is not installed", 127)
    world = World({("web2", "status"): [absent], ("web1", "status"): [(0, {"ok": True, **UP})]})
    with fleet(world, "web1", "web2") as both, pytest.raises(OperationFailed, match="1 of 2") as caught:
        operation.get_ready(plans.maintenance_plan(BASE, down=True), SETTINGS, both)

    assert caught.value.state == "nothing was changed"
    assert {word for _, word in world.said} == {"status"}


def test_a_host_that_can_not_be_reached_stops_it_before_anything_is_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(self: Linked) -> None:
        if self.name == "web2":
            raise Unreachable("no answer from web2")

    monkeypatch.setattr(Linked, "open", refuse)
    world = World()
    with fleet(world, "web1", "web2") as both, pytest.raises(Unreachable, match="1 host could not") as caught:
        operation.get_ready(plans.maintenance_plan(BASE, down=True), SETTINGS, both)

    assert caught.value.exit_code == 6
    assert caught.value.details == ("web2: no answer from web2",)
    assert world.said == []


def test_an_error_that_is_not_about_reaching_a_host_is_told_as_what_it_is() -> None:
    refused = OperationFailed("web2 refuses to run a command", next="look at the login shell there")

    error = unreachable({"web1": Unreachable("no answer"), "web2": refused})

    assert error.exit_code == 3
    assert error.what == "2 hosts can't be worked on"
    assert error.details == ("web1: no answer", "web2: web2 refuses to run a command")
    assert error.next == "look at the login shell there"
    assert unreachable({"web1": UsageError("ssh_config has no such option")}).exit_code == 2
    with pytest.raises(ZeroDivisionError):
        unreachable({"web1": ZeroDivisionError()})


def test_the_remedy_names_the_hosts_to_exclude_unless_one_of_them_is_needed() -> None:
    away = Unreachable("no answer", next="check that the host is up")

    told = unreachable({"web2": away}, SETTINGS)
    assert told.next == "check that the host is up; or go on without: --exclude web2"
    assert unreachable({"web1": away}, SETTINGS).next == "check that the host is up"  # the lock host


def test_a_refused_host_key_is_told_with_the_fingerprint_to_compare() -> None:
    lost = HostKeyRejected(
        "the host key of web1 is not in known_hosts",
        next="ssh web1 true   (answer yes only if it shows this fingerprint)",
        details=["its ssh-ed25519 key is SHA256:abc"],
    )

    told = error_text(unreachable({"web1": lost, "web2": TimeoutError("no answer")}))

    assert told.startswith("error: 2 hosts could not be reached")
    assert "web1: the host key of web1 is not in known_hosts" in told
    assert "SHA256:abc" in told
    assert "web2: no answer" in told
    assert "next:  ssh web1 true" in told
