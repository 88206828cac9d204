"""What the documents say exists; what exists is documented."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploytools import errors
from deploytools.setup import programs

REPOSITORY = Path(__file__).parents[2]
DOCS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
REFERENCE = (REPOSITORY / "docs" / "reference.md").read_text()
RUNBOOK = (REPOSITORY / "docs" / "runbook.md").read_text()


def subclasses(kind: type[errors.DeployError]) -> Iterator[type[errors.DeployError]]:
    for each in kind.__subclasses__():
        yield each
        yield from subclasses(each)


def test_every_error_has_an_exit_code_that_has_a_meaning() -> None:
    assert {kind.exit_code for kind in subclasses(errors.DeployError)} <= errors.EXIT_CODES.keys()


@pytest.mark.parametrize("code", errors.EXIT_CODES)
def test_every_exit_code_has_a_runbook_entry(code: int) -> None:
    assert re.search(rf"^### {code}: ", RUNBOOK, re.MULTILINE)


@pytest.mark.parametrize("program", programs.names())
def test_every_host_program_is_in_the_reference(program: str) -> None:
    assert re.search(rf"`{program}\b", REFERENCE)


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_every_file_that_a_document_links_to_exists(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
        assert (path.parent / target).exists(), target


def test_the_files_named_as_proof_exist() -> None:
    for named in re.findall(r"`(tests/[\w/.]+)`", (REPOSITORY / "README.md").read_text()):
        assert (REPOSITORY / named).exists(), named
