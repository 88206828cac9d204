"""What `fab setup` shows of its work. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from deploytools import __version__
from deploytools.hostnames import names
from deploytools.report.text import shown
from deploytools.settings import Settings
from deploytools.setup.command import Work


def alike(works: Mapping[str, Work]) -> list[tuple[str, Work]]:
    """Hosts on which set-up changes the same, as one name each, in their order: a hundred are read as one."""
    groups: list[tuple[list[str], Work]] = []
    for host, work in works.items():
        same = next((hosts for hosts, other in groups if other == work), None)
        if same is None:
            groups.append(([host], work))
        else:
            same.append(host)
    return [(names(hosts, list(works)), work) for hosts, work in groups]


def setup_text(host: str, work: Work, settings: Settings, *, diffs: bool, removal: bool = False) -> str:
    """What set-up changes on a host: our own programs as a number, all else by name; with `diffs` in full.

    Programs on a host that had none have no diff: they are what this toolkit ships.
    """
    if not work.changes:
        nothing = f"nothing of {settings.application} is there" if removal else "nothing to change"
        return shown("\n".join([f"{host}: {nothing}", *(f"  {note}" for note in work.notes)]))
    lines, programs = [], 0
    for change in work.changes:
        programs += change["program"]
        told = diffs and change["diff"] if change["program"] else True
        if told:
            lines.append(f"  {change['what']}: {change['path']}")
            lines += [f"    {line}" for line in change["diff"].splitlines() if diffs]
    if programs:
        lines.insert(0, f"  deploytools {__version__}: {programs} files in {settings.tools_dir}")
    return shown("\n".join([f"{host}:", *lines, *(f"  note: {note}" for note in work.notes)]))
