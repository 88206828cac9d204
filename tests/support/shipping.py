"""A release on its way to a host of the tests: the laptop's own half, over pipes instead of ssh."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from deploytools.releasing import contents, packing, selection, transfer
from deploytools.releasing.packing import Parcel
from deploytools.ssh.channel import Ended
from tests.support.webhost import Ran, WebHost

# What a tree is made from: content of files by name, None for a directory, a link's target as ("to", TARGET).
Tree = dict[str, "bytes | tuple[str, str] | None"]


class Cut(Exception):
    """The link went, as a test had it."""


class Pipes:
    """What transfer.send talks through; counts, and is cut after `limit` bytes."""

    def __init__(self, process: subprocess.Popen[bytes], limit: int | None = None) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.process, self.stdin, self.stdout = process, process.stdin, process.stdout
        self.limit = limit
        self.sent, self.said = 0, b""

    def send(self, data: bytes) -> None:
        if self.limit is not None and self.sent + len(data) > self.limit:
            self.stdin.write(data[: self.limit - self.sent])
            self.stdin.flush()
            raise Cut
        try:
            self.stdin.write(data)
            self.stdin.flush()
        except BrokenPipeError as error:
            raise Ended from error
        self.sent += len(data)

    def read_line(self) -> bytes:
        line = self.stdout.readline()
        self.said += line
        if not line:
            raise Ended
        return line


def put(tree: Path, content: Tree) -> Path:
    """Make a tree, with a manifest unless it has one."""
    tree.mkdir(parents=True, exist_ok=True)
    for name, what in content.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if what is None:
            path.mkdir(exist_ok=True)
        elif isinstance(what, tuple):
            path.symlink_to(what[1])
        else:
            path.write_bytes(what)
            if what.startswith(b"#!"):
                path.chmod(0o755)
    return tree


def manifest(release: str, **more: object) -> bytes:
    return json.dumps({"id": release, "ref": "main", "digest": "d", **more}).encode()


def parcel(host: WebHost, release: str, content: Tree | None = None) -> Parcel:
    """Pack a tree of this content; it stays as long as the test's host."""
    wanted = dict(content or {})
    described = wanted.pop(contents.MANIFEST, manifest(release))
    assert isinstance(described, bytes)
    return pack(put(Path(tempfile.mkdtemp(prefix="laptop", dir=host.base)), wanted), described)


def pack(tree: Path, described: bytes | None = None) -> Parcel:
    """All that is in a tree, and a manifest, as the laptop packs it."""
    items = list(selection.select(tree, selection.Rules()).items)
    if described is not None:
        (tree / contents.MANIFEST).write_bytes(described)
        items.append(selection.Item(contents.MANIFEST, selection.FILE, len(described)))
    return packing.pack(tree, contents.entries(tree, items), "2026-05-01T10:00:00+00:00")


def ship(
    host: WebHost,
    release: str,
    shipped: Parcel | None,
    *options: str,
    sha256: str | None = None,
    limit: int | None = None,
    meanwhile: Callable[[int, int], None] = lambda sent, size: None,
) -> tuple[Ran, int]:
    """Run `release stage` on `host` and give it what it asks for; return how it ended and what was sent."""
    digest = sha256 or (shipped.digest if shipped else "0" * 64)
    argv = [str(host.tools / "release"), "stage", release, "--sha256", digest, *options, "--json"]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        pipes = Pipes(process, limit)
        with contextlib.suppress(Ended, Cut):
            transfer.send(pipes, shipped, meanwhile)  # type: ignore[arg-type]
        out, err = process.communicate()
    printed = (pipes.said + out).decode()
    last = printed.strip().rsplit("\n", 1)[-1]
    return Ran(process.returncode, printed, err.decode(), json.loads(last) if last else {}), pipes.sent


def stage(host: WebHost, release: str, content: Tree | None = None, *options: str) -> Ran:
    """A tree of this content as a release of the host's."""
    return ship(host, release, parcel(host, release, content), *options)[0]


def members(shipped: Parcel) -> dict[str, bytes]:
    """What a listing says of every name in it: `d`, `f SIZE SHA256`, `x ...`, `l TARGET`."""
    found = {}
    for block in shipped.blocks[1:]:
        directory, *entries = block.split(b"\0")
        prefix = "" if directory == b"." else f"{os.fsdecode(directory)}/"
        pairs = zip(entries[::2], entries[1::2], strict=True)
        found.update({prefix + os.fsdecode(name): what for name, what in pairs})
    return found


def content(shipped: Parcel, name: str) -> bytes:
    """What is in a file of it."""
    digest = members(shipped)[name].split(b" ")[2].decode()
    return Path(os.fsdecode(next(one.path for one in shipped.contents if one.digest == digest))).read_bytes()
