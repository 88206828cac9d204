"""`journal`: records are added whole, in order, once, and never get lost."""

from __future__ import annotations

import json
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hostlib.runs import journals

from tests.support.barehost import bare_host
from tests.support.webhost import Ran, WebHost


@pytest.fixture
def host() -> Iterator[WebHost]:
    with bare_host() as host:
        yield host


def lines(*values: Any) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


def append(
    host: WebHost, text: str, *options: str, run_id: str = "run1", limit: Callable[[], None] | None = None
) -> Ran:
    argv = [host.tools / "journal", "append", run_id, *options, "--json"]
    done = subprocess.run(argv, input=text, capture_output=True, text=True, check=False, preexec_fn=limit)
    return Ran(done.returncode, done.stdout, done.stderr, json.loads(done.stdout) if done.stdout else {})


def follow(host: WebHost, text: str) -> list[dict[str, Any]]:
    argv = [host.tools / "journal", "follow", "run1", "--json"]
    done = subprocess.run(argv, input=text, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def records(host: WebHost, run_id: str = "run1") -> list[Any]:
    found: list[Any] = host.run("journal", "read", run_id).json["records"]
    return found


def file_of(host: WebHost, run_id: str = "run1") -> Path:
    return host.root / "state" / "journal" / f"{run_id}.jsonl"


def test_what_quotes_logs_is_for_nobody_else_to_read(host: WebHost) -> None:
    append(host, lines({"n": 1}))

    directory = host.root / "state" / "journal"
    assert directory.stat().st_mode & 0o077 == 0
    assert (directory / "run1.jsonl").stat().st_mode & 0o077 == 0


def test_what_is_appended_can_be_read_in_order(host: WebHost) -> None:
    assert append(host, lines({"n": 1}, {"n": 2})).json["count"] == 2
    assert append(host, lines({"n": 3, "text": "zwölf\nlines"})).json["count"] == 3
    assert records(host) == [{"n": 1}, {"n": 2}, {"n": 3, "text": "zwölf\nlines"}]


@pytest.mark.parametrize("text", ["", "\n", "no json\n", "[1]\n", '{"n": 1}\n{"n": \n', '{"n": 1}\n3\n'])
def test_what_is_no_record_is_refused_and_nothing_is_added(host: WebHost, text: str) -> None:
    ran = append(host, text)
    assert ran.code == 2
    assert "Traceback" not in ran.err
    assert not file_of(host).exists()


class TestFollow:
    """One program for all appends of a run."""

    def test_every_line_is_an_append_with_its_answer(self, host: WebHost) -> None:
        wanted = [
            {"expect": 0, "lines": ['{"n": 1}', '{"n": 2}']},
            {"expect": 2, "lines": ['{"n": 3}']},
            {"expect": 2, "lines": ['{"n": 3}']},
        ]
        answers = follow(host, lines(*wanted))
        assert [answer["ok"] for answer in answers] == [True] * 4, "one for each, and one at the end"
        assert [answer.get("appended") for answer in answers] == [2, 1, 0, None]
        assert records(host) == [{"n": 1}, {"n": 2}, {"n": 3}]

    @pytest.mark.parametrize("line", ["nonsense", "[]", '{"lines": []}', '{"expect": 5, "lines": ["{}"]}'])
    def test_what_can_not_be_appended_is_said_and_the_next_line_is_still_heard(
        self, host: WebHost, line: str
    ) -> None:
        good = json.dumps({"expect": 0, "lines": ["{}"]})
        refused, done, _ = follow(host, f"{line}\n{good}\n")
        assert (refused["ok"], done["ok"]) == (False, True)
        assert refused["error"]["what"]


class TestExpect:
    """--expect N: the caller knows how many records are there, so a repetition is noticed."""

    def test_a_repeated_append_adds_nothing_twice(self, host: WebHost) -> None:
        append(host, lines({"n": 1}), "--expect", "0")
        first = append(host, lines({"n": 2}, {"n": 3}), "--expect", "1")
        again = append(host, lines({"n": 2}, {"n": 3}), "--expect", "1")
        assert (first.code, first.json["changed"]) == (0, True)
        assert (again.code, again.json["changed"], again.json["count"]) == (0, False, 3)
        assert records(host) == [{"n": 1}, {"n": 2}, {"n": 3}]

    def test_an_append_that_was_cut_in_the_middle_is_completed(self, host: WebHost) -> None:
        append(host, lines({"n": 1}, {"n": 2}))
        assert append(host, lines({"n": 2}, {"n": 3}), "--expect", "1").json["appended"] == 1
        assert records(host) == [{"n": 1}, {"n": 2}, {"n": 3}]

    @pytest.mark.parametrize(
        ("expect", "sent"),
        [("0", {"n": 9}), ("1", {"n": 9}), ("3", {"n": 3}), ("0", {"n": 1, "x": 1})],
        ids=["other from the start", "other at the end", "some are missing", "almost the same"],
    )
    def test_another_laptops_records_are_not_written_over(
        self, host: WebHost, expect: str, sent: Any
    ) -> None:
        append(host, lines({"n": 1}, {"n": 2}))
        ran = append(host, lines(sent), "--expect", expect)
        assert (ran.code, ran.json["count"]) == (3, 2)
        assert "another laptop" in ran.error["what"]
        assert records(host) == [{"n": 1}, {"n": 2}]

    def test_of_two_laptops_at_once_one_goes_on(self, host: WebHost) -> None:
        append(host, lines({"n": 1}))
        argv = [str(host.tools / "journal"), "append", "run1", "--expect", "1", "--json"]
        both = [
            subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) for _ in "ab"
        ]
        for name, process in zip("ab", both, strict=True):
            assert process.stdin is not None
            process.stdin.write(lines({"laptop": name}))
        for process in both:
            process.communicate(timeout=30)
        assert sorted(process.returncode for process in both) == [0, 3]
        assert len(records(host)) == 2


class TestAfterAPowerLoss:
    @pytest.mark.parametrize("torn", [b'{"n": 2', b'{"n": 2}', b"\0\0\0\0", b"{"])
    def test_a_torn_last_line_is_passed_over_and_then_cut_off(self, host: WebHost, torn: bytes) -> None:
        append(host, lines({"n": 1}))
        with file_of(host).open("ab") as file:
            file.write(torn)
        assert records(host) == [{"n": 1}]
        assert append(host, lines({"n": 2}, {"n": 3}), "--expect", "1").code == 0
        assert records(host) == [{"n": 1}, {"n": 2}, {"n": 3}]

    def test_damage_before_the_last_line_is_not_hidden(self, host: WebHost) -> None:
        append(host, lines({"n": 1}))
        with file_of(host).open("ab") as file:
            file.write(b"damaged\n" + lines({"n": 2}).encode())
        for ran in (host.run("journal", "read", "run1"), append(host, lines({"n": 3}))):
            assert ran.code == 3
            assert "line 2" in ran.error["what"]


class TestFullDisk:
    """A limit on the file's size makes write(2) fall short and fail just as a full disk does."""

    @pytest.mark.parametrize("room", [0, 5], ids=["no room", "room for a part"])
    def test_nothing_is_added_and_what_was_there_stays(self, host: WebHost, room: int) -> None:
        append(host, lines({"n": 1}))
        before = file_of(host).read_bytes()
        size = len(before) + room
        ran = append(
            host,
            lines({"n": 2}, {"n": 3}),
            limit=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
        )
        assert ran.code == 3
        assert "make room" in ran.error["next"]
        assert file_of(host).read_bytes() == before
        assert append(host, lines({"n": 2}), "--expect", "1").code == 0


class TestList:
    def test_names_every_run_with_both_ends_of_it_newest_first(self, host: WebHost) -> None:
        append(host, lines({"n": 1}, {"n": 2}, {"n": 3}), run_id="a")
        append(host, lines({"n": 4}), run_id="b")
        os.utime(file_of(host, "b"), (1, 1))
        assert host.run("journal", "list").json["runs"] == [
            {"run_id": "a", "first": {"n": 1}, "last": {"n": 3}, "count": 3},
            {"run_id": "b", "first": {"n": 4}, "last": {"n": 4}, "count": 1},
        ]

    def test_of_a_fresh_host_is_empty(self, host: WebHost) -> None:
        assert host.run("journal", "list").json["runs"] == []


def test_reading_an_unknown_run_is_refused(host: WebHost) -> None:
    ran = host.run("journal", "read", "run9")
    assert ran.code == 2
    assert "run9" in ran.error["what"]


@pytest.mark.parametrize("run_id", ["../x", ".hidden"])
def test_an_id_that_could_leave_its_directory_is_refused(host: WebHost, run_id: str) -> None:
    assert host.run("journal", "read", "--", run_id, as_json=False).code == 2


def test_a_damaged_journal_is_named_and_hides_no_other(host: WebHost) -> None:
    append(host, lines({"n": 1}, {"n": 2}), run_id="good")
    append(host, lines({"n": 1}), run_id="bad")
    file_of(host, "bad").write_text("no JSON\n")
    found = host.run("journal", "list", "--records").json
    assert [(run["run_id"], run["records"]) for run in found["runs"]] == [("good", [{"n": 1}, {"n": 2}])]
    assert [each["run_id"] for each in found["damaged"]] == ["bad"]
    assert "line 1" in found["damaged"][0]["error"]
    assert "records" not in host.run("journal", "list").json["runs"][0]
    assert "damaged: " in host.run("journal", "list", as_json=False).out


def test_only_journals_of_runs_that_are_over_are_pruned(host: WebHost) -> None:
    end = {"kind": "end", "verdict": "done"}
    for age, (run_id, last) in enumerate(
        {
            "newest": end,
            "held": {**end, "verdict": "held"},
            "open": {"kind": "intent"},
            "locked": end,
            "undone": {**end, "verdict": "reverted"},
            "over": end,
        }.items()
    ):
        append(host, lines({"kind": "begin"}, last), run_id=run_id)
        os.utime(file_of(host, run_id), (10**9 - age, 10**9 - age))
    names = {path.stem for path in file_of(host).parent.iterdir()}

    assert journals.prune(host.hostlib_config, 1, spare="locked") == ["undone", "over"]

    assert {path.stem for path in file_of(host).parent.iterdir()} == names - {"undone", "over"}


def test_the_end_of_a_run_s_connection_prunes(host: WebHost) -> None:
    end = lines({"kind": "end", "verdict": "done"})
    for number in range(journals.KEEP + 2):
        file = file_of(host, f"run-{number}")
        file.parent.mkdir(exist_ok=True)
        file.write_text(end)
        os.utime(file, (10**9 + number, 10**9 + number))

    follow(host, lines({"expect": 0, "lines": ['{"n":1}']}))

    left = {path.stem for path in file_of(host).parent.iterdir()}
    assert left == {"run1", *(f"run-{number}" for number in range(3, journals.KEEP + 2))}
