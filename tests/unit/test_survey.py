"""Questions to the hosts: one round trip each, and one host's trouble hides no other's answer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from deploytools import __version__, examination, survey
from deploytools.commands import Command
from deploytools.errors import LockHeld, Unreachable, UsageError
from deploytools.fleet import Fleet
from deploytools.remote import Result
from deploytools.settings import Host
from tests.support.answering import Hosts, Link
from tests.support.values import settings

SETTINGS = settings(hosts=["web1", "web2", "web3"])


def test_status_takes_one_command_per_host_and_asks_the_lock_host_for_the_schema() -> None:
    hosts = Hosts({"web1": {"release": "r1"}, "web2": {"release": "r1"}, "web3": Unreachable("no way")})
    answers, silent = survey.statuses(hosts.fleet, SETTINGS)

    assert hosts.asked("web1") == [["--schema", "--json"]]
    assert hosts.asked("web2") == [["--json"]]
    assert list(answers) == ["web1", "web2"]
    assert silent["web3"].what == "no way"


def test_without_migrations_nobody_is_asked_for_a_schema() -> None:
    hosts = Hosts({"web1": {}, "web2": {}, "web3": {}})
    survey.statuses(hosts.fleet, settings(hosts=["web1", "web2", "web3"], migrate={"adapter": None}))

    assert hosts.asked("web1") == [["--json"]]


def test_history_takes_one_command_however_many_runs_there_were() -> None:
    runs = [{"run_id": f"run-{number}", "records": [{"n": number}]} for number in range(50)]
    hosts = Hosts({"web1": {"runs": runs, "damaged": [{"run_id": "run-x", "error": "line 3"}]}})
    past, damaged = survey.past_runs(hosts.fleet, settings(hosts=["web1"]))

    assert hosts.asked("web1") == [["list", "--records", "--json"]]
    assert list(past) == [f"run-{number}" for number in range(50)]
    assert damaged == {"run-x": "line 3"}


def test_doctor_takes_one_command_per_host() -> None:
    check = {"name": "disk", "ok": True, "message": "room", "remedy": "", "level": "error"}
    answer = {"checks": [check], "now": 1.0, "took": 0.1}
    hosts = Hosts({"web1": answer, "web2": answer, "web3": Unreachable("no way", next="ssh web3")})
    found = examination.examine(hosts.fleet, SETTINGS, dict.fromkeys(["web1", "web2", "web3"], "deploy"))

    assert [len(hosts.links[name].asked) for name in found] == [1, 1, 0]
    assert [each.reached for each in found.values()] == [True, True, False]
    assert found["web3"].findings[0].remedy == "ssh web3"


def test_a_refusal_of_the_only_host_that_is_asked_is_no_missing_answer() -> None:
    held = survey.Silence("the lock is held by ann", "fab deploy --resume", LockHeld.exit_code)

    error = survey.silence("lock", {"web1": held}, 1)

    assert isinstance(error, LockHeld)
    assert (error.what, error.where) == ("the lock is held by ann", "web1")
    assert error.next == "fab deploy --resume"


def test_hosts_that_have_different_troubles_each_say_what_to_type_and_one_out_of_reach_decides() -> None:
    absent = survey.Silence("status is not installed", "fab setup", 127)
    away = survey.Silence("the name web2 has no address", "look at the DNS", Unreachable.exit_code)

    error = survey.silence("status", {"web1": absent, "web2": away}, 3)

    assert isinstance(error, Unreachable)
    assert error.what == "status has no answer from 2 of 3 hosts"
    assert error.next == "as said above, host by host"
    assert error.details[1::2] == ("  next: fab setup", "  next: look at the DNS")
    alike = survey.silence("status", {"web1": absent, "web2": absent}, 3)
    assert (alike.exit_code, alike.what, alike.next) == (3, "status failed on 2 of 3 hosts", "fab setup")


def of(**more: Any) -> dict[str, Any]:
    return {
        "toolkit": __version__,
        "digest": "d1",
        "deploy_user": "ann",
        "maintenance": {"state": "up"},
        **more,
    }


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (of(), None),
        (of(toolkit="0.9"), f"deploytools is 0.9 there, and {__version__} here"),
        (of(digest="d2"), "fabric.yaml or the toolkit has changed since it was set up"),
        (of(digest="d2", deploy_user="bob"), None),  # whose digest nobody has computed
    ],
)
def test_a_host_that_was_set_up_otherwise_is_told(status: dict[str, Any], told: str | None) -> None:
    assert survey.outdated({"web1": status}, {"ann": "d1"}) == ({"web1": told} if told else {})


def test_what_hosts_do_not_agree_on_is_told_with_the_hosts_on_each_side() -> None:
    hundred = {f"web{number}": of(release="r1") for number in range(1, 101)}
    hundred["web7"] = of(release="r2", maintenance={"state": "down", "since": "noon"})

    assert survey.disagreements(hundred) == [
        "maintenance: up on web[1-6], web[8-100] (99 of 100 hosts); down on web7",
        "release: r1 on web[1-6], web[8-100] (99 of 100 hosts); r2 on web7",
    ]
    assert survey.disagreements({"web1": of(release="r1"), "web2": of(release="r1")}) == []


def test_a_refusal_of_this_computers_own_ssh_is_told_with_its_remedy() -> None:
    refused = UsageError("ssh can't tell how to reach web1", next="ssh -T -G -- web1")
    _, silent = survey.statuses(Hosts({"web1": refused}).fleet, settings(hosts=["web1"]))

    assert silent["web1"] == survey.Silence(refused.what, "ssh -T -G -- web1", 2)


LOCK = {"run_id": "run-0", "by": "ann", "laptop": "desk", "operation": "deploy", "phase": "migrate"}


class Locked(Link):
    """A lock host that tells another of these each time it is asked, the last one for ever."""

    def run(self, command: Command, on_line: object = None, dialog: object = None) -> Result:
        self.asked.append(command)
        told = self.answer.pop(0) if len(self.answer) > 1 else self.answer[0]
        return Result(0, json.dumps({"ok": True, "lock": told}), "", 0.1)


def locked(*told: Any) -> Fleet[Any]:
    return Fleet([Host("web1")], lambda host: Locked(str(host), list(told)))


class Clock:
    """Time that passes only when somebody waits."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_a_lock_is_waited_for_and_it_is_said_whose_it_is() -> None:
    clock, notes = Clock(), list[str]()
    fleet = locked(LOCK, LOCK, {**LOCK, "run_id": "run-1"}, None)

    survey.wait_for_lock(fleet, SETTINGS, 600, notes.append, clock=clock, sleep=clock.sleep)

    assert notes == [f"waiting for run {run} by ann on desk: deploy" for run in ("run-0", "run-1")]
    assert clock.now < 1010


def test_a_lock_is_waited_for_no_longer_than_was_said() -> None:
    clock = Clock()

    survey.wait_for_lock(locked(LOCK), SETTINGS, 90, lambda _: None, clock=clock, sleep=clock.sleep)

    assert clock.now == 1090


def test_a_run_whose_lock_is_on_another_host_than_by_this_fabric_yaml_is_found_there() -> None:
    free = Hosts({name: {"lock": None} for name in ("web1", "web2", "web3")})
    with pytest.raises(UsageError) as caught:
        survey.open_lock(free.fleet, SETTINGS)
    assert (caught.value.what, caught.value.next) == ("no run is open", "fab status")

    held = Hosts({"web1": {"lock": None}, "web2": Unreachable("no way"), "web3": {"lock": LOCK}})
    with pytest.raises(UsageError, match="run run-0 by ann on desk has it on web3") as caught:
        survey.open_lock(held.fleet, SETTINGS)
    assert caught.value.next == "the same in a checkout whose fabric.yaml has web3 there"


def test_without_a_word_nobody_waits_or_asks() -> None:
    survey.wait_for_lock(locked(), SETTINGS, 0, lambda _: None)


@pytest.mark.parametrize(
    "told",
    [
        [{**LOCK, "heard": None}],
        [{**LOCK, "heard": 3600.0}],
        [{**LOCK, "heard": 3.0}, {**LOCK, "heard": 4.0}, {**LOCK, "heard": None}],
        [{**LOCK, "heard": 18.0}, {**LOCK, "heard": 19.0}, {**LOCK, "heard": 20.0}],
        [{**LOCK, "heard": 3.0}, None],
    ],
    ids=["seen to end", "long ago", "ends", "silent", "let go"],
)
def test_a_run_whose_process_has_gone_may_be_taken_over(told: list[Any]) -> None:
    notes: list[str] = []
    survey.wait_until_gone(locked(*told[1:], None), SETTINGS, told[0], notes.append, sleep=lambda _: None)
    assert [note.partition(" s ")[0] for note in notes] == (
        [f"looking for up to {20 - told[0]['heard']:.0f}"] if told[1:] else []
    ), "whoever waits knows for how long at most"


def test_a_run_that_is_at_work_is_not_taken_over() -> None:
    fleet = locked({**LOCK, "heard": 4.0}, {**LOCK, "heard": 0.2})

    with pytest.raises(LockHeld, match="run run-0 is at work: ann on desk") as caught:
        survey.wait_until_gone(fleet, SETTINGS, {**LOCK, "heard": 3.0}, lambda _: None, sleep=lambda _: None)

    assert caught.value.exit_code == 5
    assert "Ctrl-C" in (caught.value.next or "")


@pytest.mark.parametrize(
    ("records", "who"),
    [
        ([{"kind": "begin", "plan": {"by": "ann", "laptop": "desk", "novel": 1}}], "ann on desk"),
        ([{}], "nobody"),
    ],
)
def test_a_run_of_another_version_is_left_to_the_computer_that_has_it(records: list[Any], who: str) -> None:
    hosts = Hosts({"web1": {"records": records}})

    with pytest.raises(UsageError, match=f"run-0 can't be read by deploytools {__version__}") as caught:
        survey.read_journal(hosts.fleet, SETTINGS, "run-0")

    assert caught.value.state == "nothing was changed by this command"
    assert f"by {who}" in str(caught.value.next)


def test_the_lock_of_a_run_that_is_at_work_is_not_freed() -> None:
    link = Locked("web1", [{**LOCK, "heard": 3.0}, {**LOCK, "heard": 0.2}])
    fleet: Fleet[Any] = Fleet([Host("web1")], lambda _: link)

    with pytest.raises(LockHeld, match="run run-0 is at work: ann on desk"):
        survey.free_lock(fleet, SETTINGS, "run-0", lambda _: None, sleep=lambda _: None)

    assert ["break"] not in [list(command.argv[1:2]) for command in link.asked]


@pytest.mark.parametrize("told", [{**LOCK, "heard": None}, {**LOCK, "run_id": "other", "heard": 1.0}, None])
def test_that_of_a_dead_run_is_and_of_another_one_the_host_says_no(told: Any) -> None:
    link = Locked("web1", [told])
    survey.free_lock(Fleet([Host("web1")], lambda _: link), SETTINGS, "run-0", lambda _: None)

    assert list(link.asked[-1].argv[1:3]) == ["break", "--run-id=run-0"]


def test_a_lock_that_is_dropped_leaves_a_window_and_that_is_said() -> None:
    down = {"maintenance": {"state": "down", "run_id": "run-1"}}
    statuses = {"web1": down, "web2": {"maintenance": {"state": "down", "run_id": "other"}}, "web3": down}
    silent = {"web4": survey.Silence("no route", "", 6)}

    assert survey.still_down(statuses, silent, "run-1") == [
        "no answer from web4: it may still be in maintenance",
        "still in maintenance: web1, web3",
        "next: fab deploy --with-downtime takes the window over; fab maint-up --force run-1 ends it,"
        " where what serves fits the schema (fab migrate --status)",
    ]
    assert survey.still_down({"web1": {"maintenance": {"state": "up"}}}, {}, "run-1") == []
