"""Hosts that answer every command alike, for tests of what is asked and what is made of the answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from deploytools.commands import Command
from deploytools.fleet import Fleet
from deploytools.remote import Result
from deploytools.settings import Host


@dataclass
class Link:
    """A host that answers every command alike, and keeps what it was asked."""

    name: str
    answer: Any
    sent: int = 0
    asked: list[Command] = field(default_factory=list)

    def open(self) -> None:
        if isinstance(self.answer, Exception):
            raise self.answer

    def close(self) -> None: ...

    def run(self, command: Command, on_line: object = None, dialog: object = None) -> Result:
        self.sent += 1
        self.asked.append(command)
        return Result(0, json.dumps({"ok": True, **self.answer}), "", 0.1)


class Hosts:
    def __init__(self, answers: Mapping[str, Any]) -> None:
        self.links = {name: Link(name, answer) for name, answer in answers.items()}
        self.fleet: Fleet[Any] = Fleet([Host(name) for name in answers], lambda host: self.links[str(host)])

    def asked(self, name: str) -> list[list[str]]:
        """The arguments of each command that went to a host."""
        return [list(command.argv[1:]) for command in self.links[name].asked]
