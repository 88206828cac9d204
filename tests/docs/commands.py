"""The commands that documents show: found in fenced blocks and in code within a line."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
DOCUMENTS = [
    REPOSITORY / "README.md",
    REPOSITORY / "deploytools/templates/fabric.yaml",
    *sorted((REPOSITORY / "docs").rglob("*.md")),
]
_GENERATED = re.compile(r"<!-- generated: .*?<!-- end -->", re.DOTALL)
_FENCED = re.compile(r"^ *```([^\n]*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Command:
    """One command that a document shows; `whole` where it can be typed as it stands there."""

    document: str
    text: str
    whole: bool

    @property
    def words(self) -> list[str]:
        """As a shell reads it, without comments and redirections."""
        return shlex.split(self.text, comments=True)


def shown(program: str) -> Iterator[Command]:
    """All commands of the documents that begin with `program`."""
    for path in DOCUMENTS:
        text = _GENERATED.sub("", path.read_text())
        name = str(path.relative_to(REPOSITORY))
        for block in _FENCED.finditer(text):
            for line in block[2].replace("\\\n", " ").splitlines():
                # Two spaces part a command from what is said of it.
                command = re.split(r" {2,}", line.strip().removeprefix("$ "))[0]
                if re.match(rf"{program}\b", command):
                    yield Command(name, command, whole=True)
        for inline in re.findall(r"`([^`\n]+)`", _FENCED.sub("", text)):
            if re.match(rf"{program} ", inline):
                yield Command(name, inline, whole=False)
