"""Every error that the code can make says what, what state is left, and what to type next."""

from __future__ import annotations

import re

from deploytools.tasks import ns
from docs.raised import messages
from tests import provoked

MESSAGES = messages()


def test_they_are_found() -> None:
    assert len({each.file for each in MESSAGES if each.on_host}) > 20
    assert len({each.file for each in MESSAGES if not each.on_host}) > 20
    assert len(MESSAGES) > 240


def test_each_has_all_its_parts() -> None:
    lacking = [
        f"{each.file}:{each.line} says no {part}"
        for each in MESSAGES
        for part in ("what", "state", "next")
        if each.parts.get(part, "") in ("", "None") or re.search(r"[^.]\.$", each.parts[part])
    ]

    assert not lacking


def test_what_is_said_stands_in_the_code_but_for_what_others_have_said() -> None:
    """Those pass on the words of another program, a host or a list of findings."""
    computed = {f"{each.file}: {each.function}" for each in MESSAGES if provoked.says_nothing(each)}

    assert computed == {
        "deploytools/command_line.py: refusing.parsed",
        "deploytools/conclusion.py: _reverted",
        "deploytools/provisioning.py: _trouble",
        "deploytools/releasing/__init__.py: _selected",
        "deploytools/survey.py: _answers",
        "remote_scripts/doctor: doctor",
        "remote_scripts/hostlib/migrating/migration_following.py: _failed",
        "remote_scripts/hostlib/swapping/account.py: errors_explained",
        "remote_scripts/hostlib/webserver/accesslog.py: AccessLog.of",
        "remote_scripts/migrate: check",
        "remote_scripts/status: schema",
    }


def commands() -> list[tuple[str, str, str]]:
    """What is told to be typed next: where, a task, and the options and words after it."""
    return [
        (f"{each.file}:{each.line}", *found)
        for each in MESSAGES
        for found in re.findall(
            r"\bfab (?!as )(?:on \S+ )?([a-z][a-z.-]*[a-z])([^;|,(]*)", each.parts.get("next", "")
        )
    ]


def test_a_next_command_is_one_that_fab_knows() -> None:
    known = {name: context.flags for context in ns.to_contexts() for name in (context.name, *context.aliases)}
    wrong = [
        (where, task, after)
        for where, task, after in commands()
        if task not in known or set(re.findall(r"(?<=\s)--[a-z-]+", after)) - known[task].keys()
    ]

    assert len(commands()) > 50
    assert not wrong
