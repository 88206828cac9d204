"""Whether root may work there: what it runs or writes is nobody else's, and nobody else's to change."""

from __future__ import annotations

import json
import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path

from hostsetup.bundle import Bundle, Directory, Refused
from hostsetup.placing import no_account

MOST_LINKS = 40  # as the kernel has it
STAFF = 50  # base-passwd gives it this id on every Debian


def check(bundle: Bundle) -> None:
    """Raise Refused where something stands in the way; changes nothing."""
    accounts(bundle)
    for directory in bundle.directories:
        real_directory(directory)
    belongs_to_theapplication(bundle)
    for link in bundle.links:
        if link.kind == "switch":
            switch_of_another(bundle, link.path)
        if link.path.exists() and not link.path.is_symlink() and not _former(bundle, link.path):
            raise Refused(
                f"{link.path} is there, and is not a link to {link.target}", next=f"move {link.path} away"
            )
    for file in bundle.files:
        if file.path.is_dir():
            raise Refused(f"{file.path} is there, and is a directory", next=f"move {file.path} away")
    if bundle.privileged:
        places(bundle)
        contents(bundle)


def accounts(bundle: Bundle) -> None:
    for name in (bundle.user, bundle.app_user):
        try:
            account = pwd.getpwnam(name)
        except KeyError:
            raise no_account(name) from None
        if bundle.privileged and account.pw_uid == 0 and name == bundle.app_user:
            raise Refused(f"the application can't run as {name}, who is root", next="choose another app.user")


def real_directory(directory: Directory) -> None:
    """No link in place of it, nor on the way to it below what is somebody else's."""
    path, within = directory.path, directory.within or directory.path
    if directory.keep and path.is_dir():
        return  # the operator's own: it may well be a link
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise Refused(f"{path} is there, and is no directory", next=f"move {path} away")
    if any(place.is_symlink() for place in path.parents if within in place.parents):
        raise Refused(f"{path} leads out of {within} by a symbolic link", next="put a directory in its place")


def belongs_to_theapplication(bundle: Bundle) -> None:
    """The places that were chosen in fabric.yaml are no other application's, nor full of other things."""
    tools = bundle.tools
    there = application(tools / "config.json")
    if there not in (None, bundle.application):
        raise Refused(
            f"{tools} belongs to the application {there}",
            next="correct deploy.application, or give this one a tools_dir of its own",
        )
    if there is None and tools.is_dir() and not all(_begun(each) for each in tools.iterdir()):
        raise Refused(
            f"{tools} has other things in it, and no config.json of ours",
            next="give the application a tools_dir of its own",
        )
    there = application(bundle.config.root / ".deploytools")
    if there not in (None, bundle.application):
        raise Refused(
            f"{bundle.config.root} is the root of the application {there}",
            next="correct deploy.application, or give this one a root of its own",
        )


def switch_of_another(bundle: Bundle, path: Path) -> None:
    """Raise Refused where a link leads to a program of another application."""
    if not path.is_symlink():
        return
    there = application(Path(os.path.dirname(os.path.join(path.parent, os.readlink(path)))) / "config.json")
    if there not in (None, bundle.application):
        raise Refused(
            f"{path} belongs to the application {there}",
            next="correct deploy.application, or give this one a webserver.maintenance_dir and a"
            " webserver.host_header of its own",
        )


def places(bundle: Bundle) -> None:
    """Nobody but root can put another directory in the place of one that root works in."""
    kept = [directory.path for directory in bundle.directories if directory.keep]
    ours = [directory.path for directory in bundle.directories if directory.within is None]
    for path in [*ours, *(file.path for file in bundle.files), *(path / "x" for path in kept)]:
        if path.parent in (bundle.config.root, bundle.tools):
            continue  # mended, if need be, before anything is put there
        for step in passed(path):
            if not _roots_alone(step.lstat()):
                raise Refused(
                    f"others than root can change {step}, and with it what root runs or writes in {path}",
                    next=f"chown root {step}; chmod go-w {step}; or choose another place in fabric.yaml",
                )


def _roots_alone(found: os.stat_result) -> bool:
    """Debian's group staff may write below /usr/local on older hosts, which makes it as good as root."""
    others = stat.S_IWOTH if found.st_gid in (0, STAFF) else stat.S_IWOTH | stat.S_IWGRP
    return found.st_uid == 0 and (stat.S_ISLNK(found.st_mode) or not found.st_mode & others)


def passed(path: Path) -> Iterator[Path]:
    """Every directory and link that is passed on the way to `path`, as far as they exist."""
    here, ahead, links = Path("/"), list(reversed(path.parts[1:])), 0
    while ahead:
        yield here
        name = ahead.pop()
        following = here.parent if name == ".." else here / name
        if following.is_symlink():
            links += 1
            if links > MOST_LINKS:
                raise Refused(f"{path} leads in a circle", next="put a directory in its place")
            if ahead:
                yield following
            target = Path(os.readlink(following))
            ahead += reversed(target.parts[1:] if target.is_absolute() else target.parts)
            following = Path("/") if target.is_absolute() else here
        elif not following.is_dir():
            return
        here = following


def contents(bundle: Bundle) -> None:
    """What root takes for its own records was not prepared by the deploy user, before we owned the place."""
    uid = pwd.getpwnam(bundle.user).pw_uid
    if uid in (0, pwd.getpwnam(bundle.app_user).pw_uid):
        return
    for place in (bundle.config.run, bundle.config.migrations):
        for entry in place.iterdir() if place.is_dir() else ():
            if entry.lstat().st_uid == uid:
                raise Refused(
                    f"{entry} belongs to {bundle.user}, but root would take it for its own",
                    next=f"look at it, then move it away or chown -R root: {entry}",
                )


def _former(bundle: Bundle, path: Path) -> bool:
    """A program or config.json of the time before versions had directories of their own."""
    return path.parent == bundle.tools and application(bundle.tools / "config.json") == bundle.application


def _begun(entry: Path) -> bool:
    """What a set-up that was cut short leaves in the directory of the programs."""
    if entry.is_symlink():
        return os.readlink(entry).startswith(("current/", "versions/"))
    return entry.name == "versions"


def application(config: Path) -> str | None:
    """Whose config.json it is; None where there is none."""
    name = _read(config).get("application")
    return name if isinstance(name, str) else None


def _read(config: Path) -> dict[str, object]:
    try:
        found = json.loads(config.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
