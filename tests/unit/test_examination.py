"""What is made of a host's answer. The examination itself is in tests/integration and tests/fleet."""

from __future__ import annotations

import json
import zlib

import pytest

from deploytools import examination
from deploytools.commands import Answer
from deploytools.examination import Examined, Finding, compare_clocks, stops
from deploytools.saga import Mark, State
from tests.support.values import settings

FINE = Finding("disk", True, "room")


def at(least: float, most: float) -> Examined:
    return Examined((FINE,), ahead=(least, most))


def told(examined: Examined) -> list[str]:
    return [f"{finding.level}: {finding.message}" for finding in examined.findings if not finding.ok]


def test_clocks_that_may_be_right_are_left_alone() -> None:
    found, here = compare_clocks({"web1": at(-0.1, 0.2), "web2": at(-30.0, 5.0), "web3": at(1.9, 2.5)}, 300)

    assert here == ()
    assert [told(each) for each in found.values()] == [[], [], []]


REFUSES = ", so by it a window is over before it begins, and --until is refused"


@pytest.mark.parametrize(
    ("ahead", "message"),
    [
        ((90.0, 90.4), "warning: its clock is 90 s ahead of this computer's"),
        ((-3600.5, -3600.0), "warning: its clock is 3600 s behind this computer's"),
        ((301.0, 302.0), "error: its clock is 301 s ahead of this computer's" + REFUSES),
    ],
)
def test_a_clock_that_is_wrong_is_told_and_one_that_refuses_a_windows_end_is_an_error(
    ahead: tuple[float, float], message: str
) -> None:
    found, here = compare_clocks({"web1": at(-0.1, 0.2), "web2": at(*ahead)}, 300)

    assert (told(found["web1"]), told(found["web2"]), here) == ([], [message], ())
    assert "timedatectl set-ntp true" in found["web2"].findings[-1].remedy


def test_one_host_alone_is_compared_with_this_computer() -> None:
    found, here = compare_clocks({"web1": at(9.0, 9.1)}, 300)

    assert (told(found["web1"]), here) == (["warning: its clock is 9 s ahead of this computer's"], ())


def test_where_all_hosts_agree_it_is_this_computers_clock_that_is_wrong() -> None:
    found, here = compare_clocks({"web1": at(59.9, 60.2), "web2": at(60.0, 60.5), "web3": Examined(())}, 300)

    assert [told(each) for each in found.values()] == [[], [], []]
    assert [(one.message, one.level) for one in here] == [
        ("this computer's clock is 60 s behind those of all hosts", "warning")
    ]


def test_an_answer_that_is_none_is_a_finding() -> None:
    answer = Answer(Mark(State.FAILED), {"what": "This account is not available.", "next": "chsh"}, 1)
    (finding,) = examination._understood(answer, 0.0, 1.0).findings

    assert (finding.ok, finding.message, finding.remedy) == (False, "This account is not available.", "chsh")


def test_a_hosts_clock_is_known_as_well_as_the_round_trip_lets_it_be() -> None:
    value = {"checks": [], "now": 1005.0, "took": 3.0}
    answer = Answer(Mark(State.OK, value), {}, 0)

    assert examination._understood(answer, 1000.0, 1004.0).ahead == (1.0, 2.0)


def test_only_errors_stop_a_deploy() -> None:
    warning = Finding("memory", False, "little", "more", "warning")

    assert not stops([FINE, warning])
    assert stops([warning, Finding("disk", False, "full", "room")])


def test_hosts_that_are_alike_share_one_command_and_the_lock_host_is_asked_for_its_database() -> None:
    names = ["web1", "web2", "web3"]
    orders = examination._orders(settings(hosts=names), dict.fromkeys(names, "ann"))
    sent = {host: json.loads(zlib.decompress(command.stdin or b"")) for host, command in orders.items()}

    assert orders["web2"] is orders["web3"]
    assert [sent[host]["expected"]["migrates"] for host in sent] == [True, False, False]
    assert sent["web1"]["place"] == "/usr/local/lib/deploytools/guestbook"
    assert "hostlib/checks/system.py" in sent["web1"]["modules"]
    assert len(orders["web1"].stdin or b"") < 160_000, "a hundred hosts share the operator's line"
