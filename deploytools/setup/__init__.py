"""What `fab setup` puts on a host: directories, programs, configuration.

Pure but for reading our own files, and those that fabric.yaml names for the maintenance page.

The host's half is remote_scripts/hostsetup, which compares, checks, replaces and removes; `command` sends it
there with what it puts in place. `lighttpd`, `sudo` and `systemd` are what the host's own services get.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from deploytools import __version__
from deploytools.settings import Settings
from deploytools.setup import lighttpd, page, programs, sudo, systemd
from deploytools.setup.entries import Entry, directory, file, link


def host_side(settings: Settings, user: str) -> dict[str, Any]:
    """Everything that belongs to the application on a host, as data for the installer.

    `user` is the deploy user there. Raises UsageError where that name, or a file of `page`, can't be used.
    """
    parts = _parts(settings, user)
    mark = _digest(parts)
    config = {**parts.pop("config"), "digest": mark}
    parts["programs"].append(file("config.json", _json(config), _owner(settings, user)))
    return {**parts, "version": f"{__version__}-{mark[:12]}", "config": config}


def digest(settings: Settings, user: str) -> str:
    """The `digest` in config.json on a host that this toolkit set up with these settings: SHA-256.

    A host with another one was set up by another toolkit, or fabric.yaml has changed since. What is the
    operator's own once it is there (`keep`) has no part in it.
    """
    return _digest(_parts(settings, user))


def _digest(parts: dict[str, Any]) -> str:
    files = [{**entry, "content": ""} if entry.get("keep") else entry for entry in parts["files"]]
    return hashlib.sha256(_json({**parts, "files": files})).hexdigest()


def _parts(settings: Settings, user: str) -> dict[str, Any]:
    """`host_side`, but without the digest of all this."""
    owner = _owner(settings, user)
    shown = page.rendered(settings.page)
    files, links = _files(settings, user, shown), _links(settings)
    booting = systemd.where_systemd_runs(settings) if settings.privileged else {}
    ours = [entry for entry in files if not entry.get("keep") and entry.get("kind") != "root"]
    own = {
        "files": [entry["path"] for entry in [*ours, *booting.get("files", ())]],
        "links": {entry["path"]: entry["target"] for entry in [*links, *booting.get("links", ())]},
    }
    return {
        "application": settings.application,
        "privileged": settings.privileged,
        "user": user,
        "app_user": settings.app.user,
        "tools": settings.tools_dir,
        "lighttpd": settings.webserver.config,
        # What a later version finds that has no place in it any more, it takes away.
        "programs": [*programs.installed(owner, shown), file("installed.json", _json(own), owner)],
        "directories": _directories(settings, user),
        "files": files,
        "links": links,
        "where_systemd_runs": booting,
        "config": host_config(settings),
    }


def host_config(settings: Settings) -> dict[str, Any]:
    """config.json: what the host programs need to know and the deploy user must not decide."""
    return {
        "version": __version__,
        "application": settings.application,
        "root": settings.root,
        "user": settings.app.user,
        "privileged": settings.privileged,
        "sudo": sudo.programs(settings) if settings.privileged else [],
        "maintenance_dir": settings.webserver.maintenance_dir,
        "url": settings.webserver.url,
        "host_header": settings.webserver.host_header,
        "aliases": list(settings.webserver.aliases),
        "unproved": list(settings.webserver.unproved),
        "liveness": list(settings.webserver.liveness),
        "statistics_path": settings.webserver.statistics_path,
        "document_root": settings.webserver.document_root,
        "lighttpd_config": settings.webserver.config,
        "webserver_user": settings.webserver.user,
    }


def _owner(settings: Settings, user: str) -> str:
    """Who owns what nobody but set-up may change."""
    return "root" if settings.privileged else user


def _directories(settings: Settings, user: str) -> list[Entry]:
    root, tools, owner = settings.root, settings.tools_dir, _owner(settings, user)
    configuration = Path(settings.webserver.config).parent
    directories = [
        *(directory(path, owner) for path in (tools, f"{tools}/versions", root, *_own_switch(settings))),
        directory(f"{root}/run", owner),
        directory(f"{root}/log", owner, group_of=user),  # whose group may read the app's log
        # Whoever can read a directory can hold its flock, for which deploys wait: no other account can.
        directory(f"{root}/migrations", owner, 0o751, group_of=user),
        *(directory(f"{root}/{name}", user, 0o711) for name in ("releases", "state")),
        # Its group passes to what `release stage` makes in it later, for the app to write to.
        directory(f"{root}/shared", user, 0o2775, group_of=settings.app.user),
        *(
            directory(path, owner, keep=True)
            for path in (str(configuration / "conf-available"), str(configuration / "conf-enabled"))
        ),
    ]
    # `shared` entries without a suffix and not hidden are directories that the application writes to.
    names = [name for name in settings.shared if "." not in name.rsplit("/", 1)[-1]]
    return directories + [
        directory(f"{root}/shared/{name}", settings.app.user, 0o750, within=f"{root}/shared")
        for name in names
    ]


def _own_switch(settings: Settings) -> list[str]:
    """The maintenance directory, where it isn't lighttpd's own."""
    place = settings.webserver.maintenance_dir
    return [] if place == str(Path(settings.webserver.config).parent) else [place]


def _files(settings: Settings, user: str, shown: bytes) -> list[Entry]:
    owner, switch = _owner(settings, user), settings.webserver.maintenance_dir
    whose = _json({"application": settings.application})
    files = [
        # The installer has the script that lets requests through: it is the one that `up` puts there.
        file(f"{switch}/maint.lua", b"", owner, keep=True, kind="switch"),
        file(f"{switch}/maint.html", shown, owner, keep=True, kind="page"),
        file(_available(settings), lighttpd.snippet(settings).encode(), owner, kind="lighttpd"),
        # Whose data it is, also when everything else has been taken off the host.
        file(f"{settings.root}/.deploytools", whose, owner, kind="root"),
    ]
    if settings.privileged and user != "root":
        path = f"/etc/sudoers.d/deploytools-{settings.application}"
        files.append(file(path, sudo.sudoers(settings, user).encode(), owner, 0o440, kind="sudoers"))
    return files


def _links(settings: Settings) -> list[Entry]:
    switch, tools, available = settings.webserver.maintenance_dir, settings.tools_dir, _available(settings)
    name = Path(available).name
    return [
        *(link(f"{tools}/{each}", f"current/{each}", kind="program") for each in programs.names()),
        link(f"{tools}/config.json", "current/config.json", kind="program"),
        *(link(f"{switch}/{each}", f"{tools}/{each}", kind="switch") for each in ("down", "up")),
        link(
            str(Path(settings.webserver.config).parent / "conf-enabled" / name),
            f"../conf-available/{name}",
            kind="lighttpd",
        ),
    ]


def _available(settings: Settings) -> str:
    """Where lighttpd's part stands, Debian's way."""
    name = f"50-deploytools-{settings.application}.conf"
    return str(Path(settings.webserver.config).parent / "conf-available" / name)


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()
