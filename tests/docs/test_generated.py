"""What the documents say of keys, tasks and exit codes is what the code says."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploytools.errors import EXIT_CODES
from deploytools.settings.keys import dotted, keys
from docs import generated

REPOSITORY = Path(__file__).parents[2]
REFERENCE = (REPOSITORY / "docs/reference.md").read_text()


@pytest.mark.parametrize("path", sorted((REPOSITORY / "docs").rglob("*.md")), ids=lambda path: path.name)
def test_what_is_generated_is_up_to_date(path: Path) -> None:
    text = path.read_text()

    assert generated.renewed(text) == text, "make docs"


def test_every_key_has_a_row_with_a_sentence() -> None:
    for key in keys().values():
        if not key.is_section:
            (row,) = [line for line in REFERENCE.splitlines() if line.startswith(f"| `{dotted(key.path)}` |")]
            assert row.endswith(". |"), row


def test_every_exit_code_has_a_row() -> None:
    assert all(f"\n| {code} | " in REFERENCE for code in EXIT_CODES)


@pytest.mark.parametrize("task", generated.ns.task_names)
def test_every_task_has_a_part_that_tells_its_options(task: str) -> None:
    part = REFERENCE.partition(f"\n### {task}\n")[2].partition("\n### ")[0]
    for argument in generated.ns[task].get_arguments():
        assert task == "on" or f"| `--{argument.names[0].rstrip('_')}" in part


@pytest.mark.parametrize("task", generated.ns.task_names)
def test_a_task_takes_one_line_of_the_list(task: str) -> None:
    longest = max(len(f"{name} ({', '.join(aliases)})") for name, aliases in generated.ns.task_names.items())
    (said, *_) = (generated.ns[task].__doc__ or "").splitlines()

    assert said.endswith(".")
    assert 2 + longest + 3 + len(said) <= 80
