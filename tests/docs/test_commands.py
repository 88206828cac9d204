"""Every command that a document shows is one that exists, with options that it has."""

from __future__ import annotations

import re

import fabric.main
import pytest
from invoke.exceptions import ParseError
from invoke.parser import Parser, ParserContext

from deploytools.tasks import ns
from tests.docs import walk
from tests.docs.commands import REPOSITORY, Command, shown

HOWTO = sorted((REPOSITORY / "docs/howto").glob("*.md"))

FAB = sorted({*shown("fab"), *shown("python -m deploytools")}, key=lambda each: (each.document, each.text))
PLACEHOLDERS = {"TASK", "...", "..", "…"}


def parser() -> Parser:
    """What `fab` reads its arguments with, where the fabfile has our tasks alone."""
    program = fabric.main.program
    core = ParserContext(args=[*program.core_args(), *program.task_args()])
    return Parser(contexts=ns.to_contexts(), initial=core)


@pytest.mark.parametrize("command", FAB, ids=lambda each: f"{each.document}: {each.text}")
def test_fab_understands_it(command: Command) -> None:
    words = command.words[1 if command.words[0] == "fab" else 3 :]
    for end in ("|", ";", "&&"):
        words = words[: words.index(end)] if end in words else words
    try:
        read = parser().parse_argv([word for word in words if word not in PLACEHOLDERS])
    except ParseError as error:
        # A sentence may name a task without what it needs.
        if command.whole or "did not receive required positional arguments" not in str(error):
            pytest.fail(str(error))
    else:
        assert not read.remainder or "--" in words


@pytest.mark.parametrize("command", sorted({each.text for each in shown("make")}))
def test_make_knows_it(command: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))

    assert {word for word in command.split()[1:2] if word.isalpha()} <= targets


@pytest.mark.parametrize("document", ["tutorial.md", *(f"howto/{path.name}" for path in HOWTO)])
def test_what_a_guide_has_typed_is_run_by_a_test_or_says_why_not(document: str) -> None:
    for block in walk.blocks(document):
        if block.language in walk.TYPED:
            assert block.marks.keys() & walk.MARKS, block.text


def test_the_walks_go_through_every_guide_that_has_something_to_type() -> None:
    test = (REPOSITORY / "tests/fleet/test_documents.py").read_text()
    for document in ("tutorial.md", *(f"howto/{path.name}" for path in HOWTO)):
        if any("run on" in block.marks for block in walk.blocks(document)):
            assert f'through("{document}"' in test, document
