"""Puts the host side in place, or says what that would change.

Order: what nobody uses yet comes first, then the one rename that lets the new programs be called, then what
refers to them; lighttpd's configuration is last, because nothing may refer to a switch that isn't there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hostsetup import comparing, lighttpd, placing, trust, versions
from hostsetup.asking import ask
from hostsetup.bundle import Bundle, File, Link, Refused
from hostsetup.comparing import Change
from hostsetup.lighttpd import Judgement

STATE = "what was changed so far is whole, and does no harm"


@dataclass(frozen=True)
class Plan:
    """What has to change; `then` is what lighttpd has to take in, None where it has to do nothing."""

    changes: list[Change]
    notes: list[str]
    then: Judgement | None


def plan(bundle: Bundle) -> Plan:
    """Find out what has to change. Raises Refused where it can't be done; changes nothing."""
    trust.check(bundle)
    for file in bundle.of_kind("sudoers"):
        check_sudoers(file.content)
    changes = comparing.changes(bundle)
    then, notes = _for_lighttpd(bundle)
    if then is not None:
        changes.append(Change("lighttpd", "restart" if then.restart else "reload"))
    return Plan(changes, notes, then)


def apply(bundle: Bundle, wanted: Plan) -> list[str]:
    """Put it in place; return remarks. Raises Refused or OSError; the same again goes on from there."""
    for directory in bundle.directories:
        placing.make_directory(directory)
    _put(bundle, "root")
    versions.put(bundle)
    last = versions.called(bundle)
    versions.turn(bundle)
    for path in versions.of_before(bundle):
        shutil.rmtree(path)
    for kind in ("program", "switch"):
        _put(bundle, kind)
    _put(bundle, "page")
    _put(bundle, "unit")
    _put(bundle, "sudoers")
    for path in versions.leftovers(bundle):
        if path.parent.parent != bundle.lighttpd.parent:
            path.unlink()
    if bundle.privileged and any("/etc/systemd/" in change.path for change in wanted.changes):
        systemctl("daemon-reload")
    remarks = _land_configuration(bundle, wanted.then)
    if last != bundle.place:
        versions.prune(bundle, last)
    return remarks


def _put(bundle: Bundle, kind: str) -> None:
    for file in bundle.of_kind(kind):
        if any(comparing.of_file(file, versions.pages(bundle))):
            _write(file)
        _sweep(file.path)
    for link in bundle.links:
        if link.kind == kind:
            if any(comparing.of_link(link)):
                placing.make_link(link)
            _sweep(link.path)


def _write(file: File) -> None:
    same = file.path.is_file() and not file.path.is_symlink() and file.path.read_bytes() == file.content
    if same:
        placing.mend(file)
    else:
        placing.write(file)


def _sweep(path: Path) -> None:
    """Take away what a killed set-up left. In the maintenance directory it may be that of `down`, at work."""
    if not path.name.startswith("maint."):
        for litter in placing.litter(path):
            litter.unlink()


# -- sudo and systemd ----------------------------------------------------------------------------------


def check_sudoers(content: bytes) -> None:
    """Raise Refused for what sudo would not read: it takes no command at all while a file of it is wrong."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        checked = ask("visudo", "-cf", file.name)
    if checked.returncode != 0:
        said = f"{checked.stdout.strip()} {checked.stderr.strip()}".strip().replace(file.name, "it")
        raise Refused(f"visudo refuses the sudoers file: {said}", next="correct deploy in fabric.yaml")


def systemctl(*argv: str) -> None:
    done = ask("systemctl", *argv)
    if done.returncode != 0:
        raise OSError(f"systemctl {' '.join(argv)} failed: {done.stderr.strip()}")


# -- lighttpd ------------------------------------------------------------------------------------------


def _configuration(bundle: Bundle) -> dict[Path, File | Link | None]:
    """lighttpd's files as they should be; None for one of an earlier version that has no place any more."""
    entries: list[File | Link] = [
        *bundle.of_kind("lighttpd"),
        *(one for one in bundle.links if one.kind == "lighttpd"),
    ]
    gone = (path for path in versions.leftovers(bundle) if path.parent.parent == bundle.lighttpd.parent)
    return {**{entry.path: entry for entry in entries}, **dict.fromkeys(gone)}


def _for_lighttpd(bundle: Bundle) -> tuple[Judgement | None, list[str]]:
    """What lighttpd has to take in, if anything, and remarks. Raises Refused where it would refuse it."""
    wanted = {
        path: entry.content if isinstance(entry, File) else entry.target if entry else None
        for path, entry in _configuration(bundle).items()
    }
    now, then = lighttpd.judged(bundle.lighttpd, wanted)
    if not then.fine:
        raise lighttpd.refusal(bundle.lighttpd, now, then)
    if f'"{bundle.config.maintenance_dir}/maint.lua"' not in then.printed:
        raise Refused(
            f"{bundle.lighttpd} includes no conf-enabled/*.conf, so lighttpd would not know the application",
            next=f'add to it: include "{bundle.lighttpd.parent}/conf-enabled/*.conf"',
        )
    if not bundle.privileged or (now.printed == then.printed and not pending(bundle).exists()):
        return None, []
    if not _systemd():
        return None, ["systemd doesn't run here: reload lighttpd yourself"]
    if not lighttpd.runs():
        return None, ["lighttpd doesn't run; the configuration is for when it is started"]
    return then, [lighttpd.in_words(then)]


def _land_configuration(bundle: Bundle, then: Judgement | None) -> list[str]:
    before = {path: _saved(path) for path in _configuration(bundle)}
    if then is None:
        _land(bundle)
        return []
    # Where we die from here on, the next run knows that lighttpd has yet to be told.
    pending(bundle).touch(mode=0o600)
    _land(bundle)
    try:
        remark = lighttpd.take_in(then, bundle.config, serves=True)
    except Refused:
        _put_back(before)
        lighttpd.restart()
        raise
    pending(bundle).unlink(missing_ok=True)
    return [remark] if remark else []


def _land(bundle: Bundle) -> None:
    _put(bundle, "lighttpd")
    for path, entry in _configuration(bundle).items():
        if entry is None:
            path.unlink(missing_ok=True)


def pending(bundle: Bundle) -> Path:
    """It says that lighttpd may not have taken in yet what is in place. A reboot takes it away."""
    return lighttpd.RUN / f"deploytools-{bundle.application}.reload"


def _saved(path: Path) -> bytes | str | None:
    with contextlib.suppress(FileNotFoundError):
        return os.readlink(path) if path.is_symlink() else path.read_bytes()
    return None


def _put_back(before: Mapping[Path, bytes | str | None]) -> None:
    for path, content in before.items():
        if content is None:
            path.unlink(missing_ok=True)
        elif isinstance(content, str):
            placing.make_link(Link(path, content))
        else:
            placing.write(File(path, "root", 0o644, content))


def _systemd() -> bool:
    return Path("/run/systemd/system").is_dir()
