"""Set-up of a whole fleet: what a host refuses is told with the command that was typed, and would do."""

from __future__ import annotations

from typing import Any

import pytest

from deploytools import provisioning
from deploytools.errors import OperationFailed
from deploytools.fleet import Fleet
from deploytools.remote import Result
from deploytools.settings import Host
from deploytools.setup.command import Action
from tests.support.values import settings


class WithoutSudo:
    """A host whose sudo wants a password."""

    def __init__(self, host: Host) -> None:
        self.name, self.sent = str(host), 0

    def open(self) -> None: ...

    def close(self) -> None: ...

    def run(self, *_: object) -> Result:
        return Result(1, "", "sudo: a password is required", 0.1)


@pytest.mark.parametrize(
    ("action", "again"),
    [("install", "fab setup --as-user root"), ("remove", "fab setup --remove --as-user root")],
)
def test_who_may_not_become_root_is_told_the_same_command_as_root(action: Action, again: str) -> None:
    fleet: Fleet[Any] = Fleet([Host("web1")], WithoutSudo)

    with pytest.raises(OperationFailed) as caught:
        provisioning.plan(settings(hosts=["ann@web1"]), fleet, action)

    assert (caught.value.next or "").startswith(f"{again}, or log in")
    assert caught.value.details[0] == "web1: set-up needs root there, but sudo says: a password is required"
