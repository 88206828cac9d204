"""Takes in a release: what is here already is linked, only the rest travels, and it is whole or not there.

The laptop speaks first, and is told what to send next:

    1. digests of the listing's blocks  ->  {"blocks": those that this host has never seen}
    2. these blocks                     ->  {"contents": those that nobody here has, "from": where some go on}
    3. these contents                   ->  the answer, or 2. once more where one of them arrived damaged

A content's number is that of the first file in the listing that has it, among all different contents.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hostlib.files import sync_directory, write_json
from hostlib.locking import exclusive
from hostlib.names import timestamp
from hostlib.program import Config, Failure, Result
from hostlib.releasing import listing, releases, shared
from hostlib.releasing.assembly import Assembly, Earlier, earlier, full
from hostlib.releasing.inlet import Inlet, refuse_terminal
from hostlib.releasing.store import Store

# How often contents that arrive damaged are asked for.
ATTEMPTS = 3
NOWHERE = "nothing was changed"
NOT_OURS = (errno.EACCES, errno.EPERM)


@dataclass(frozen=True)
class Order:
    """A release to be taken in: the digest of its listing, and the paths to be linked to ROOT/shared."""

    release: str
    sha256: str
    shared: tuple[str, ...]


def stage(config: Config, order: Order, inlet: Inlet | None = None) -> Result:
    """Take in a release.

    Harmless where it is here already with the same content. Raises Failure, with nothing in place but
    what had arrived of its content, where it is cut, damaged, hostile or too large.
    """
    shared.check_names(order.shared)
    incoming, place = config.releases / releases.INCOMING, config.releases / order.release
    tree, content = incoming / order.release, incoming / releases.CONTENT
    os.umask(0o022)
    with _disk_troubles(content):
        incoming.mkdir(mode=0o700, exist_ok=True)
        if not os.access(incoming, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(incoming))
    with exclusive(incoming, wait=releases.WAIT):
        if place.exists():
            return _here(config, order)
        refuse_terminal()
        try:
            with _disk_troubles(content):
                assembly = _take_in(config, order, inlet or Inlet(), _empty(tree), Store(content))
                missing = shared.link(tree, place, config.shared, order.shared)
                _flush(tree)
            with exclusive(config.releases, wait=releases.WAIT):
                if place.exists():
                    return _here(config, order)
                with _disk_troubles(content):
                    _describe(config, order, tree)
                    tree.rename(place)
                sync_directory(config.releases)
        finally:
            shutil.rmtree(tree, ignore_errors=True)
    message = f"release {order.release} is staged: {_told(assembly)}"
    if missing:
        message += f"; still missing in {config.shared}: {', '.join(missing)}"
    about = {"release": order.release, "missing": missing, "message": message}
    return {"changed": True, **about, **assembly.counts()}


def _take_in(config: Config, order: Order, inlet: Inlet, tree: Path, store: Store) -> Assembly:
    """Build the complete release in `tree`."""
    names = releases.names(config)
    serving = releases.current(config)
    names.sort(key=lambda name: name != serving)
    sources = earlier(config, names)
    blocks = _blocks(order, inlet, sources)
    listed = listing.parse(blocks)
    assembly = Assembly(config, listed, tree, sources, store)
    assembly.begin()
    numbers: dict[str, int] = {}
    for file in assembly.files:
        numbers.setdefault(file.digest, len(numbers))
    wanted, attempts = assembly.wanted(), 0
    while wanted:
        attempts += 1
        if attempts > ATTEMPTS:
            raise _damaged("a file arrived otherwise than the listing has it, again and again")
        assembly.check_room(wanted)
        assembly.bytes += sum(size - start for size, start in wanted.values())
        begun = {numbers[digest]: start for digest, (_, start) in wanted.items() if start}
        inlet.say(contents=[numbers[digest] for digest in wanted], **({"from": begun} if begun else {}))
        store.receive(wanted, inlet.parts())
        wanted = assembly.wanted()
    assembly.finish()
    if (releases.described(tree) or {}).get("id") != order.release:
        raise Failure(f"there is no {releases.MANIFEST} of this release in it", state=NOWHERE)
    (tree / releases.MANIFEST).chmod(0o600)  # it has app.env and migrate.env: ours and root's alone
    # It is flushed with all the rest, before the release gets its name.
    (tree / listing.FILES).write_bytes(listing.SEPARATOR.join(blocks))
    (tree / listing.FILES).chmod(0o600)
    return assembly


def _blocks(order: Order, inlet: Inlet, sources: Sequence[Earlier]) -> list[bytes]:
    """The blocks of the listing, of which only those come that no earlier release has."""
    outline = inlet.message()
    size = hashlib.sha256().digest_size
    digests = [outline[start : start + size] for start in range(0, len(outline), size)]
    if not digests:
        raise Failure(
            f"release {order.release} is not here, and the process that packed it has gone",
            state=NOWHERE,
            next="the same fab deploy again (--ref, --with-downtime), which makes the release anew",
        )
    kept = {block for source in sources for block in source.blocks}  # most are the same in all of them
    known = {hashlib.sha256(block).digest(): block for block in kept}
    new = [number for number, digest in enumerate(digests) if digest not in known]
    inlet.say(blocks=new)
    came = inlet.message()
    for block in came.split(listing.SEPARATOR) if new else []:
        known[hashlib.sha256(block).digest()] = block
    blocks = [known.get(digest, b"") for digest in digests]
    if listing.digest(blocks) != order.sha256:
        raise _damaged("the listing's SHA-256 is not what was announced")
    return blocks


def _empty(tree: Path) -> Path:
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir()
    tree.chmod(0o755)
    return tree


@contextlib.contextmanager
def _disk_troubles(content: Path) -> Iterator[None]:
    """Whatever the disk refuses before the release has its name leaves nothing in place."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            what = f"the release can't be put together: {error}"
            remedy = "fab doctor, which names what isn't the deploy user's" if error.errno in NOT_OURS else ""
            raise Failure(what, state=NOWHERE, next=remedy or "deploy again") from error
        # The site needs the room more than the next upload needs a start.
        shutil.rmtree(content, ignore_errors=True)
        raise full(f"the disk of {content.parent.parent} is full: {error.strerror}") from error


def _describe(config: Config, order: Order, tree: Path) -> None:
    """Note what only the host knows of the release."""
    staged = {"sha256": order.sha256, "shared": list(order.shared), "state": releases.STAGED_ONLY}
    came = {
        "staged_at": timestamp(),
        "number": releases.next_number(config),
        "served": releases.current(config),
    }
    write_json(tree / listing.STAGED, {**staged, **came})


def _here(config: Config, order: Order) -> Result:
    staged = releases.staged(config.releases / order.release)
    if (staged.get("sha256"), staged.get("shared")) != (order.sha256, list(order.shared)):
        raise Failure(
            f"there is another release {order.release} already: its content or its shared paths differ",
            state=NOWHERE,
            next=f"deploy again, which makes a new release id, or `release discard {order.release}`",
        )
    message = f"release {order.release} was here already"
    return {"changed": False, "release": order.release, "message": message}


def _flush(tree: Path) -> None:
    """One flush of the file system instead of one for each of thousands of files."""
    flushed = subprocess.run(["sync", "--file-system", str(tree)], check=False, stderr=subprocess.PIPE)
    if flushed.returncode != 0:
        said = flushed.stderr.decode(errors="replace").strip()
        raise Failure(f"the release can't be written to the disk: {said}", state=NOWHERE)


def _damaged(what: str) -> Failure:
    return Failure(f"{what}: it was damaged on the way", state=NOWHERE, next="deploy again")


def _told(assembly: Assembly) -> str:
    here = assembly.linked + assembly.copied
    came = f"{assembly.arrived} of {len(assembly.files)} files came"
    return f"{came} ({assembly.bytes:,} bytes), {here} were here"
