"""Does what a document tells a reader to do: its fenced blocks, in their order, on real hosts.

What becomes of a block stands in a comment above it, which readers of the page don't see:

    run on: laptop          a shell in the project's directory; what asks `go ahead?` gets a yes
    run on: web1            a shell as root on that host
    packages on: web1       nobody installs here: what it would install has to be on the host already
    file: NAME              the block is a file of the project
    merge into: fabric.yaml the block is a part of that file
    not run: WHY            left out, and why
    before this: WHAT       the test does something first that a page can't tell
"""

from __future__ import annotations

import os
import pty
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from invoke.util import yaml

from tests.docs.commands import REPOSITORY
from tests.fleet import Fleet, Host

_BLOCK = re.compile(r"((?:^<!-- [^\n]* -->\n)*)^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# Languages of what a reader types or writes; blocks without one show something.
TYPED = {"sh", "ini", "python"}
MARKS = {"run on", "packages on", "file", "merge into", "not run"}


@dataclass(frozen=True)
class Block:
    """A fenced block and what is said of it in the comments above it, by what stands before the colon."""

    language: str
    text: str
    marks: dict[str, str]


def blocks(document: str) -> Iterator[Block]:
    """The blocks of a document below docs/."""
    for marks, language, text in _BLOCK.findall((REPOSITORY / "docs" / document).read_text()):
        said = re.findall(r"<!-- ([a-z ]+): (.*) -->", marks)
        yield Block(language, text, dict(said))


class Walk:
    """Somebody who reads documents and types what they say.

    Args:
        hosts: the hosts of a fleet by the names that the documents have for them.
        directory: where their project is, or is going to be.
    """

    def __init__(self, fleet: Fleet, hosts: Mapping[str, Host], directory: Path) -> None:
        self.hosts, self.directory, self.said = dict(hosts), directory, ""
        home = directory.parent / f"{directory.name}-home"
        programs = home / "bin"
        programs.mkdir(parents=True)
        addresses = {f"{name}.example.com": host.address for name, host in hosts.items()}
        names = "".join(f"Host {name}\n  HostName {address}\n" for name, address in addresses.items())
        (home / "ssh_config").write_text(f"{names}\n{fleet.ssh_config.read_text()}")
        ssh = ["/usr/bin/ssh", "-n", "-F", str(home / "ssh_config")]
        (programs / "ssh").write_text(f'#!/bin/sh\nexec {shlex.join(ssh)} "$@"\n')
        (programs / "ssh").chmod(0o755)
        (home / ".curlrc").write_text(
            "".join(f'connect-to = "{name}:80:{at}:80"\n' for name, at in addresses.items())
            + "silent\nshow-error\n"
        )
        (home / ".gitconfig").write_text("[user]\n  name = Ann\n  email = ann@example.com\n")
        self.environ = {
            **os.environ,
            "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "CURL_HOME": str(home),
            "GIT_CONFIG_GLOBAL": str(home / ".gitconfig"),
            "XDG_STATE_HOME": str(home / "state"),
            "FABRIC_DEPLOY_SSH_CONFIG": str(home / "ssh_config"),
        }

    def through(self, document: str, before: Mapping[str, Callable[[], object]] | None = None) -> list[str]:
        """Do all that a document says; returns what each of its blocks on the laptop printed."""
        printed = []
        for block in blocks(document):
            if wanted := block.marks.get("before this"):
                (before or {})[wanted]()
            if place := block.marks.get("run on"):
                printed += [self.type(block.text)] if place == "laptop" else []
                if place != "laptop":
                    self.hosts[place].run(["bash", "-euc", block.text])
            if place := block.marks.get("packages on"):
                self._has(self.hosts[place], block.text)
            if name := block.marks.get("file"):
                (self.directory / name).write_text(block.text)
            if name := block.marks.get("merge into"):
                self._merge(self.directory / name, yaml.safe_load(block.text))
        return printed

    def type(self, lines: str) -> str:
        """Type lines in the project's directory; returns what they printed."""
        ours, its = pty.openpty()
        os.write(ours, b"y\n" * 8)
        where = self.directory if self.directory.exists() else self.directory.parent
        try:
            ran = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", lines],
                cwd=where,
                env=self.environ,
                stdin=its,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=300,
                check=False,
            )
        finally:
            os.close(its)
            os.close(ours)
        assert ran.returncode == 0, f"{lines}\n{ran.stdout}"
        return ran.stdout

    def _has(self, host: Host, text: str) -> None:
        for line in text.splitlines():
            if line.startswith("apt-get install "):
                host.run(["dpkg-query", "--show", *line.split()[2:]])

    def _merge(self, path: Path, more: dict[str, Any]) -> None:
        # JSON is YAML; the comments are for readers.
        path.write_text(yaml.safe_dump(_merged(yaml.safe_load(path.read_text()), more)))


def _merged(base: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    inner = {key for key in base.keys() & more.keys() if isinstance(more[key], dict)}
    return {**base, **more, **{key: _merged(base[key], more[key]) for key in inner if more[key]}}
