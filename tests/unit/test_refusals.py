"""What is typed or configured wrong is refused in words, with what to type instead; one test for each."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import pytest

from deploytools import moments, operation
from deploytools.errors import UsageError
from deploytools.fleet import Fleet
from deploytools.remote import _shell_line
from deploytools.sandbox import checks, environment
from deploytools.settings import Host
from deploytools.ssh import options
from deploytools.tasks import deploy, task
from tests.support.values import BASE, settings

NOON = datetime(2026, 1, 31, 12, tzinfo=timezone.utc)


def excluded(*names: str) -> None:
    with operation.opened(settings(), names):
        pass


def without_a_terminal() -> None:
    task.confirm(False)


REFUSALS: list[tuple[Callable[[], object], str, str]] = [
    (lambda: moments.parse_until("soon", NOON), "can't read the time 'soon'", "use +30m"),
    (lambda: moments.parse_until("2026-01-31T11:00Z", NOON), "has passed already", "give a later time"),
    (lambda: moments.parse_wait("soon"), "can't read the duration 'soon'", "use 90s"),
    (lambda: Fleet([Host("web1"), Host("web1")], str), "named more than once: web1", "name each host once"),
    (lambda: excluded("web9"), "no such host: web9", "name some of: web1"),
    (lambda: excluded("web1", "web2"), "every host is excluded", "leave a host in"),
    (lambda: operation._as_user(Host("web1"), "-x"), "'-x' is no account's name", "--as-user root"),
    (lambda: _shell_line(("a\0b",)), "can't contain a NUL", "mend that"),
    (lambda: options.parse_hop("a:b"), "ProxyJump names 'a:b'", "mend ProxyJump"),
    (lambda: deploy._batch("many", BASE), "can't read 'many'", "--batch 2"),
    (lambda: environment(Path("/nowhere")), "there is no sandbox here yet", "fab sandbox.up"),
    (lambda: checks.place(Path("/nowhere/at/all")), "there is no such directory", "cd to the project"),
    (without_a_terminal, "there is no terminal to ask on", "add --yes"),
]


@pytest.mark.parametrize(("refused", "what", "step"), REFUSALS, ids=[what for _, what, _ in REFUSALS])
def test_it_is_refused(
    refused: Callable[[], object], what: str, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())

    with pytest.raises(UsageError) as told:
        refused()

    assert what in told.value.what
    assert told.value.state == "nothing was changed"
    assert step in str(told.value.next)


@pytest.mark.parametrize("answer", ["n", "", "no", "yeah"])
def test_any_answer_but_yes_is_a_no(answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal(answer + os.linesep))

    with pytest.raises(UsageError, match="not confirmed"):
        task.confirm(False)
