"""Notes which errors of the catalogue (docs/messages.md) the tests have provoked. At the end of a whole suite
those that are left are named, and with --messages it fails.
`pytest --messages PATH` tells what a part leaves out.

An error that is made in the tests' own process is known by the place that made it; one of a program that they
ran, by what it printed: all of what it says has to fit, not only its first words.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from deploytools.errors import DeployError

if TYPE_CHECKING:
    from docs.raised import Message

REPOSITORY = Path(__file__).parents[1]
PARTS = ("what", "state", "next")

# Errors of programs of their own of which nothing stands in the code, so that what they print doesn't tell
# which it was: by file and function, and the test that provokes each.
UNPROVOKED: dict[tuple[str, str], str] = {
    ("deploytools/command_line.py", "refusing.parsed"): "tests/unit/test_command_line.py::"
    "test_what_nobody_knows_on_a_command_line_is_a_usage_error",
    ("deploytools/conclusion.py", "_reverted"): "tests/integration/test_failures.py::"
    "test_two_deploys_at_once_and_the_second_is_told_who_is_at_it",
    ("remote_scripts/doctor", "doctor"): "tests/host/test_doctor.py::test_missing_directories_are_an_error",
    ("remote_scripts/hostlib/migrating/migration_following.py", "_failed"): "tests/host/test_migrate.py::"
    "test_with_transactional_ddl_proves_that_nothing_changed",
    ("remote_scripts/migrate", "check"): "tests/host/test_migrate.py::test_current_refuses_what_is_pending",
    ("remote_scripts/status", "schema"): "tests/host/test_status.py::"
    "test_a_schema_that_nobody_can_tell_is_a_problem",
}
# So many letters have to be a message's own: what is filled in altogether fits whatever is said.
FEW = 12

Place = tuple[str, int]
Said = tuple[str, str, str]
# As a person reads an error: laptop (error: ...) or host (PROGRAM: ...).
_PRINTED = re.compile(
    r"^(?P<by>[\w.-]+): (?P<what>.*(?:\n(?!  (?:where|state|next):).*)*?)"
    r"(?:\n  where: .*)?(?:\n    .*)*\n  state: (?P<state>.*)\n  next: +(?P<next>.*)",
    re.MULTILINE,
)


class Recorder:
    """The plugin: one in each process of the suite; the one that started the others has the last word."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.places: set[Place] = set()
        self.said: set[Said] = set()
        self.told: set[str] = set()
        self.skipped = 0

    def pytest_configure(self) -> None:
        sys.path.insert(0, str(REPOSITORY / "remote_scripts"))
        from hostlib.program import Failure
        from hostsetup.bundle import Refused

        from tests.support.webhost import Ran

        for root in (DeployError, Failure, Refused):
            root.__init__ = self._noting(root.__init__)  # type: ignore[method-assign]
        communicate, ran = subprocess.Popen.communicate, Ran.__init__

        def noting(process: Any, *given: Any, **named: Any) -> tuple[Any, Any]:
            both = communicate(process, *given, **named)
            self._hear(*both)
            return both

        def noting_lines(made: Ran, code: int, out: str, err: str, answer: dict[str, Any]) -> None:
            ran(made, code, out, err, answer)
            self._hear(out, err)

        subprocess.Popen.communicate = noting  # type: ignore[method-assign]
        Ran.__init__ = noting_lines  # type: ignore[method-assign]  # of what was read while it was at work

    def _hear(self, *outputs: str | bytes | None) -> None:
        for output in outputs:
            self.said |= set(errors(output))
            self.told |= set(findings(output))

    def _noting(self, make: Callable[..., None]) -> Callable[..., None]:
        def made(error: Exception, *given: Any, **named: Any) -> None:
            make(error, *given, **named)
            frame = sys._getframe(1)
            self.places.add(place(frame.f_code.co_filename, frame.f_lineno))
            while frame.f_code.co_name == "__init__" and frame.f_back:
                frame = frame.f_back
                self.places.add(place(frame.f_code.co_filename, frame.f_lineno))

        return made

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.skipped += report.skipped

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        told = getattr(node, "workeroutput", {})
        self.places |= set(map(tuple, told.get("places", ())))
        self.said |= set(map(tuple, told.get("said", ())))
        self.told |= set(told.get("told", ()))

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if hasattr(self.config, "workeroutput"):
            noted = {"places": sorted(self.places), "said": sorted(self.said), "told": sorted(self.told)}
            self.config.workeroutput.update(noted)
        elif self._is_whole() and self.config.getoption("messages") and self.missing():
            session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self._is_whole() or self.config.getoption("messages"):
            for message in self.missing():
                told = f"{message.file}:{message.line} {message.function}: {message.parts['what']}"
                terminalreporter.line(f"no test provokes {told}")

    def _is_whole(self) -> bool:
        """Whether all tests ran; where some are skipped, for want of root say, nobody can tell."""
        given = self.config.option
        everyday = "not exhaustive" in given.markexpr
        chosen = self.config.args_source is not pytest.Config.ArgsSource.TESTPATHS or not everyday
        left_out = given.keyword or given.deselect or given.ignore or given.ignore_glob or given.lf
        return not (chosen or left_out or given.stepwise or given.collectonly or self.skipped)

    def missing(self) -> list[Message]:
        from docs.raised import messages

        known = messages()
        provoked = {id(found) for said in self.said if (found := meant(said, known))}
        return [
            each
            for each in known
            if id(each) not in provoked
            and not (says_nothing(each) and (each.file, each.function) in UNPROVOKED)
            and not any((each.file, line) in self.places for line in range(each.line, each.last_line + 1))
            and not any(is_within(text, each) for text in self.told)
        ]


def place(file: str, line: int) -> Place:
    """Where an error was made, as the catalogue has it: host programs run from copies, too."""
    path = Path(file)
    if path.is_relative_to(REPOSITORY):
        return str(path.relative_to(REPOSITORY)), line
    parts = path.parts
    for package in ("hostlib", "hostsetup"):
        if package in parts:
            return str(Path("remote_scripts", *parts[parts.index(package) :])), line
    return f"remote_scripts/{path.name}", line


def errors(output: str | bytes | None) -> Iterator[Said]:
    """What a program printed of errors, for people or for machines."""
    if not output:
        return
    text = output if isinstance(output, str) else output.decode(errors="replace")
    if "next" not in text:
        return
    for found in _PRINTED.finditer(text):
        yield found["what"], found["state"], found["next"]
    for line in text.splitlines():
        if line.startswith("{") and '"error"' in line:
            try:
                error = json.loads(line)["error"]
                yield error["what"], error["state"] or "", error["next"] or ""
            except (ValueError, LookupError, TypeError):
                continue


def findings(output: str | bytes | None) -> Iterator[str]:
    """What a program printed of failures that it went on with, or that are told within another one."""
    if not output:
        return
    text = output if isinstance(output, str) else output.decode(errors="replace")
    for line in text.splitlines():
        if line.startswith("{"):
            with contextlib.suppress(ValueError):
                answer = json.loads(line)
                yield from (each for each in answer.get("problems") or () if isinstance(each, str))
                yield str((answer.get("error") or {}).get("what", ""))
        elif line.startswith("    "):
            yield line.strip()


def says_nothing(message: Message) -> bool:
    """Whether it has no words of its own: it passes on those of a program, a host or a list of findings."""
    return set(message.parts["what"]) <= set("… :|")


def is_within(text: str, message: Message) -> bool:
    """Whether it has the message in it, by enough letters that are the message's own."""
    found = re.search(message.patterns["what"], text)
    own = len(found[0]) - sum(len(filled or "") for filled in found.groups()) if found else 0
    return own >= FEW


def meant(said: Said, messages: Iterable[Message]) -> Message | None:
    """Of the messages that fit, the one with the most letters of its own; None where that isn't clear."""
    own = [(words, each) for each in messages if (words := _own_words(said, each)) is not None]
    most = max((words for words, _ in own), default=0)
    best = [each for words, each in own if words == most]
    return best[0] if len(best) == 1 and most >= FEW else None


def _own_words(said: Said, message: Message) -> int | None:
    """How many letters of what was said are the message's and not filled in; None where it doesn't fit."""
    letters = 0
    for part, text in zip(PARTS, said, strict=True):
        found = re.fullmatch(message.patterns[part], text, re.DOTALL)
        if found is None:
            return None
        letters += len(text) - sum(len(filled or "") for filled in found.groups())
    return letters
