"""What a person sees of one host and of a hundred."""

from __future__ import annotations

import time
from typing import Any

import pytest

from deploytools.examination import Examined, Finding
from deploytools.report.hosts import doctor_text, status_text

FINE = Finding("disk", True, "room")
HUNDRED = [f"web{number}" for number in range(1, 101)]


def low(mib: int) -> Finding:
    return Finding("memory", False, f"{mib} MiB are free", "free some", "warning")


MAGNET = Finding("mod_magnet", False, "mod_magnet is not loaded", "fab setup")


def test_a_finding_is_told_once_with_its_hosts_and_errors_come_first() -> None:
    examined = {host: Examined((FINE, low(9))) for host in HUNDRED}
    for host in ("web7", "web8", "web9"):
        examined[host] = Examined((low(9), MAGNET))

    assert doctor_text((), examined).splitlines() == [
        "error: mod_magnet is not loaded",
        "  on: web[7-9] (3 of 100 hosts)",
        "  remedy: fab setup",
        "warning: 9 MiB are free",
        "  on: all 100 hosts",
        "  remedy: free some",
        "100 hosts: 97 with warnings, 3 with errors (200 checks)",
    ]


def test_findings_that_differ_in_their_figures_only_are_told_together() -> None:
    web1, web2 = Examined((low(9),)), Examined((low(11),))
    text = doctor_text((), {"web1": web1, "web2": web2, "web3": Examined((FINE,))})

    assert text.splitlines()[:2] == [
        "warning: 9 MiB are free",
        "  on: web1, web2; the figures are those of web1",
    ]


def test_what_is_wrong_on_this_computer_is_told_with_the_hosts() -> None:
    git = Finding("git", False, "git is not installed", "install git")

    assert doctor_text((git,), {"web1": Examined((FINE,))}).splitlines() == [
        "error: git is not installed",
        "  on: this computer",
        "  remedy: install git",
        "1 host: 1 fine (2 checks)",
    ]


def test_a_host_without_an_answer_hides_no_other_and_shows_the_key_to_compare() -> None:
    key = Finding("connection", False, "its key is not known", "ssh web2", details=("it is SHA256:abc",))
    text = doctor_text((), {"web1": Examined((FINE,)), "web2": Examined((key,), reached=False)})

    assert "  it is SHA256:abc\n  on: web2\n  remedy: ssh web2" in text
    assert text.endswith("2 hosts: 1 fine, 1 without an answer (2 checks)")


# -- status ----------------------------------------------------------------------------------------


def status(**more: Any) -> dict[str, Any]:
    serving = {"generation": 3, "alive": True, "pid": 7, "age": 7300.0}
    return {"maintenance": {"state": "up"}, "release": "r1", "serving": serving, "toolkit": "1.0", **more}


def down(since: str = "12:00:00Z", **more: Any) -> dict[str, Any]:
    return status(maintenance={"state": "down", "since": since, "by": "ann", **more})


@pytest.mark.parametrize(
    ("more", "site"),
    [
        ({"maintenance": {"state": "down"}}, "maintenance"),
        ({}, "up"),
        ({"serving": {"alive": False}}, "not running"),
        ({"release": None, "serving": None}, "nothing deployed"),
    ],
)
def test_status_says_what_visitors_of_a_host_get(more: dict[str, Any], site: str) -> None:
    row = status_text("guestbook", {"web1": status(**more)}, None).splitlines()[2]

    assert row.startswith(f"web1  {site}")


def test_a_few_hosts_have_a_line_each() -> None:
    both = {"web1": status(), "web2": status()}
    lines = status_text("guestbook", both, None, {"web3": "no way"}).splitlines()

    assert lines[0] == "guestbook"
    assert lines[1].split() == ["host", "site", "release", "generation", "pid", "age", "toolkit"]
    assert lines[2].split() == ["web1", "up", "r1", "3", "7", "2", "h", "1.0"]
    assert lines[4].split()[:3] == ["web3", "no", "answer"]
    assert lines[5:] == ["no answer from web3: no way"]


def test_a_hundred_hosts_are_told_by_what_they_have_in_common() -> None:
    hosts = {host: status() for host in HUNDRED[:98]}
    hosts["web50"] = status(release="r0")
    lines = status_text("guestbook", hosts, None, dict.fromkeys(HUNDRED[98:], "no way")).splitlines()

    assert [line.split() for line in lines[1:5]] == [
        ["site", "release", "toolkit", "number", "hosts"],
        ["up", "r1", "1.0", "97", "web[1-49],", "web[51-98]"],
        ["no", "answer", "-", "-", "2", "web99,", "web100"],
        ["up", "r0", "1.0", "1", "web50"],
    ]
    assert lines[5:] == ["no answer from web99, web100 (2 of 100 hosts): no way"]


def test_a_window_is_told_once_and_that_it_has_overrun() -> None:
    hosts = {host: down(until="12:30:00Z", run_id="run-1", reason="new schema") for host in HUNDRED}
    hosts["web2"] = down("11:59:58Z", until="12:30:00Z", run_id="run-1", reason="new schema", overrun=125)
    lock = {"by": "ann", "laptop": "desk", "since": "noon", "operation": "deploy", "run_id": "run-1"}
    lines = status_text("guestbook", hosts, {**lock, "phase": "migrate", "heard": 4.2}).splitlines()

    assert lines[3:] == [
        "in maintenance: all 100 hosts, since 11:59:58Z, by ann, until 12:30:00Z, which was 2 min ago,"
        " run run-1, why: new schema",
        "locked by ann on desk since noon: deploy, run run-1",
        "  last heard of 4 s ago in the step migrate",
        "  if that run is not at work any more: fab deploy --resume, or fab deploy --abort",
    ]


def test_moments_are_told_by_the_clock_of_whoever_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    lock = {"by": "ann", "laptop": "desk", "since": "2026-07-01T10:00:00Z", "operation": "deploy"}
    window = down("2026-07-01T10:00:02Z", until="2026-07-01T22:30:00Z")
    with monkeypatch.context() as patched:
        patched.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
        time.tzset()
        text = status_text("shop", {"web1": window}, {**lock, "run_id": "run-1"})
    time.tzset()

    assert "since 2026-07-01 12:00:02 +0200, by ann, until 2026-07-02 00:30:00 +0200" in text
    assert "locked by ann on desk since 2026-07-01 12:00:00 +0200: deploy" in text


def test_a_window_whose_run_has_lost_its_lock_is_told_with_the_way_on() -> None:
    text = status_text("guestbook", {"web1": down(run_id="run-1"), "web2": status()}, None)

    assert "run run-1 has left its window open, and holds the lock no more" in text
    assert "fab maint-up --force run-1" in text
    assert "left its window" not in status_text("guestbook", {"web1": down()}, None)


def test_what_is_out_of_the_ordinary_is_told_with_its_hosts() -> None:
    migration, schema = {"run_id": "run-2"}, {"message": "at 0002"}
    broken = status(problems=["app.3.json is broken"], schema=schema, migration=migration)
    old = {"web2": "deploytools is 0.9 there"}
    text = status_text("guestbook", {"web1": broken, "web2": status()}, None, {}, old)

    assert "problem on web1: app.3.json is broken" in text
    assert "schema, as web1 has it: at 0002" in text
    assert "a migration of run run-2 is running on web1" in text
    assert "web2: deploytools is 0.9 there; next: fab setup" in text


def test_a_host_that_is_not_set_up_is_no_host_without_an_answer() -> None:
    why = {"web2": "status is not installed: the host is not set up", "web3": "no route to host"}

    lines = status_text("shop", {"web1": status()}, None, why).splitlines()

    assert [line.split()[:3] for line in lines[3:5]] == [["web2", "not", "set"], ["web3", "no", "answer"]]
    assert lines[5:] == [
        "not set up: web2; next: fab setup --as-user root",
        "no answer from web3: no route to host",
    ]


def test_on_a_narrow_terminal_each_host_is_told_below_the_other() -> None:
    text = status_text("shop", {"web1": status()}, None, width=40)

    assert "host        web1\nsite        up\n" in text
    assert max(map(len, text.splitlines())) <= 40
