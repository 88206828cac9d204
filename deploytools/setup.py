"""What `fab setup` puts on a host: directories, programs, configuration. Pure but for reading our own files.

The host's half is remote_scripts/install.py, which compares, checks and replaces; it travels with the bundle.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deploytools import __version__
from deploytools.commands import Command
from deploytools.settings import Settings

# Programs that need root, by what they do: see docs/design.md, "A web host".
PRIVILEGED = ("swap", "drain", "verify", "migrate")
BOOTSTRAP = "import json,sys;b=json.load(sys.stdin);exec(b['program'],{'__name__':'install','BUNDLE':b})"


def remote_scripts() -> Path:
    """The host programs: inside the package where it is installed, beside it in a checkout."""
    inside = Path(__file__).parent / "remote_scripts"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "remote_scripts"


def install_command(settings: Settings, user: str, *, plan_only: bool) -> Command:
    """The command that sets up a host for `user`, or says what it would change (`plan_only`)."""
    bundle = {
        **host_side(settings, user),
        "plan_only": plan_only,
        "program": (remote_scripts() / "install.py").read_text(),
    }
    python = ("/usr/bin/python3", "-c", BOOTSTRAP)
    elevate = 'if [ "$(id -u)" = 0 ]; then exec "$@"; else exec sudo -n "$@"; fi'
    argv = ("sh", "-c", elevate, "sh", *python) if settings.privileged else python
    return Command(argv, stdin=json.dumps(bundle).encode(), timeout=120)


def host_side(settings: Settings, user: str) -> dict[str, Any]:
    """Everything that belongs to the application on a host, as data for the installer.

    `user` is the deploy user there.
    """
    parts = _parts(settings, user)
    config = {**parts.pop("config"), "digest": digest(settings, user)}
    owner = "root" if settings.privileged else user
    parts["files"].append(_file(f"{settings.tools_dir}/config.json", _json(config), owner, 0o644))
    return parts


def digest(settings: Settings, user: str) -> str:
    """The `digest` in config.json on a host that this toolkit set up with these settings: SHA-256.

    A host with another one was set up by another toolkit, or fabric.yaml has changed since. What is the
    operator's own once it is there (`keep`) has no part in it.
    """
    parts = _parts(settings, user)
    files = [{**entry, "content": ""} if entry["keep"] else entry for entry in parts["files"]]
    return hashlib.sha256(_json({**parts, "files": files})).hexdigest()


def _parts(settings: Settings, user: str) -> dict[str, Any]:
    """`host_side`, but with `config` instead of config.json, which has the digest of all this in it."""
    root, tools = settings.root, settings.tools_dir
    owner = "root" if settings.privileged else user
    available = Path(settings.webserver.config).parent / "conf-available"
    snippet = f"50-deploytools-{settings.application}.conf"
    directories = [
        *(_entry(path, owner, 0o755) for path in (root, tools, *_own_switch(settings))),
        *(_entry(f"{tools}/{package}", owner, 0o755) for package in _packages()),
        *(_entry(f"{root}/{name}", owner, 0o755) for name in ("run", "migrations")),
        {**_entry(f"{root}/log", owner, 0o755), "group_of": user},  # whose group may read the app's log
        *(_entry(f"{root}/{name}", user, 0o755) for name in ("releases", "state")),
        # Its group passes to what `release stage` makes in it later, for the app to write to.
        {**_entry(f"{root}/shared", user, 0o2775), "group_of": settings.app.user},
    ]
    for entry in _shared_directories(settings):
        directories.append({**_entry(entry, settings.app.user, 0o750), "within": f"{root}/shared"})
    files = [
        *_programs(tools, owner),
        _file(f"{settings.webserver.maintenance_dir}/maint.lua", UP, owner, 0o644, keep=True),
        _file(
            f"{settings.webserver.maintenance_dir}/maint.html",
            (remote_scripts() / "maint.html").read_bytes(),
            owner,
            0o644,
            keep=True,
        ),
        _file(
            str(available / snippet), lighttpd_snippet(settings).encode(), owner, 0o644, configuration=True
        ),
    ]
    if settings.privileged and user != "root":
        path = f"/etc/sudoers.d/deploytools-{settings.application}"
        files.append(_file(path, sudoers(settings, user).encode(), owner, 0o440))
    links = [
        {
            "path": f"{settings.webserver.maintenance_dir}/{name}",
            "target": f"{tools}/{name}",
            "configuration": False,
            "application": settings.application,
        }
        for name in ("down", "up")
    ]
    links.append(
        {
            "path": str(available.parent / "conf-enabled" / snippet),
            "target": f"../conf-available/{snippet}",
            "configuration": True,
        }
    )
    return {
        "directories": directories,
        "files": files,
        "links": links,
        "where_systemd_runs": _at_boot(settings) if settings.privileged else {},
        "hostlib": f"{tools}/hostlib",
        "lighttpd": settings.webserver.config,
        "reload": settings.privileged,
        "config": host_config(settings),
    }


UP = b"-- The site is up. /etc/lighttpd/down replaces this file; an empty one would answer 500.\n"


def host_config(settings: Settings) -> dict[str, Any]:
    """config.json: what the host programs need to know and the deploy user must not decide."""
    return {
        "version": __version__,
        "application": settings.application,
        "root": settings.root,
        "user": settings.app.user,
        "privileged": settings.privileged,
        "maintenance_dir": settings.webserver.maintenance_dir,
        "url": settings.webserver.url,
        "host_header": settings.webserver.host_header,
        "aliases": list(settings.webserver.aliases),
        "unproved": list(settings.webserver.unproved),
        "liveness": list(settings.webserver.liveness),
        "statistics_path": settings.webserver.statistics_path,
        "document_root": settings.webserver.document_root,
        "lighttpd_config": settings.webserver.config,
    }


def lighttpd_snippet(settings: Settings) -> str:
    """lighttpd's part: mod_magnet first, the maintenance script for every request, the app's socket."""
    site = f'magnet.attract-raw-url-to = ( "{settings.webserver.maintenance_dir}/maint.lua" )\n'
    site += _scripts(settings) if settings.webserver.document_root else _everything(settings)
    # Each site has its counters to itself, for this host alone.
    statistics = f'status.statistics-url := "{settings.webserver.statistics_path}"\n'
    site += f'$HTTP["remote-ip"] =~ "^(127\\.0\\.0\\.1|::1)$" {{\n{_indented(statistics)}}}\n'
    if settings.webserver.host_header:
        site = f"{_condition(settings)} {{\n{_indented(site)}}}\n"
    return f"""# {settings.application}: `fab setup` of deploytools {__version__} wrote this; edits are lost.
# mod_magnet comes first, so that nothing answers before the maintenance switch.
server.modules := ( "mod_magnet" ) + server.modules + ( "mod_rewrite", "mod_status", "mod_fastcgi" )
# "simple" would notice a flipped switch up to a second late.
server.stat-cache-engine := "disable"
{site}"""


def _condition(settings: Settings) -> str:
    """That a request is for one of the site's names, whatever the port."""
    names = [name.lower() for name in (settings.webserver.host_header, *settings.webserver.aliases) if name]
    if len(names) == 1:
        return f'$HTTP["host"] == "{names[0]}"'
    either = "|".join(re.escape(name) for name in names)
    return f'$HTTP["host"] =~ "^({either})(:[0-9]+)?$"'


def _indented(text: str) -> str:
    return "".join(f"  {line}\n" for line in text.splitlines())


def _everything(settings: Settings) -> str:
    """Every request goes to the app, which finds the path in PATH_INFO (WSGI, Perl, C)."""
    return f"""fastcgi.server += ( "/" => ( "{settings.application}" => (
  "socket"              => "{settings.root}/run/app.sock",
  "check-local"         => "disable",
  "fix-root-scriptname" => "enable",
) ) )
"""


def _scripts(settings: Settings) -> str:
    """Files are lighttpd's; scripts, and whatever is no file, are the app's (PHP).

    php-cgi finds a script by its path below `current`, which is why `swap` changes `current` first.
    """
    return f"""server.document-root := "{settings.root}/current/{settings.webserver.document_root}"
index-file.names := ( "index.php", "index.html" )
url.rewrite-if-not-file := ( "" => "/index.php${{url.path}}${{qsa}}" )
fastcgi.server += ( ".php" => ( "{settings.application}" => (
  "socket"      => "{settings.root}/run/app.sock",
  "check-local" => "disable",
) ) )
"""


def sudoers(settings: Settings, user: str) -> str:
    """The only programs that the deploy user may run as root."""
    programs = [f"{settings.webserver.maintenance_dir}/{name}" for name in ("down", "up")]
    programs += [f"{settings.tools_dir}/{name}" for name in PRIVILEGED]
    return (
        f"# {settings.application}: written by deploytools {__version__} (`fab setup`).\n"
        f"{user} ALL=(root) NOPASSWD: {', '.join(programs)}\n"
    )


def boot_unit(settings: Settings) -> str:
    """What starts the current release after a reboot; set-up enables it, but doesn't start it."""
    return f"""# {settings.application}: `fab setup` of deploytools {__version__} wrote this; edits are lost.
[Unit]
Description={settings.application}: start the current release after a reboot
After=lighttpd.service remote-fs.target postgresql.service mariadb.service
RequiresMountsFor={settings.root}
ConditionPathExists={settings.root}/current
StartLimitIntervalSec=15min
StartLimitBurst=5

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={settings.tools_dir}/swap
# 7: it serves, but something of before could not be stopped.
SuccessExitStatus=7
Restart=on-failure
RestartSec=10
# `swap` alone ends generations: stopping this unit must not end the one that serves.
KillMode=process

[Install]
WantedBy=multi-user.target
"""


def _at_boot(settings: Settings) -> dict[str, list[dict[str, Any]]]:
    """The boot unit, and the link by which `systemctl enable` would enable it."""
    units, name = "/etc/systemd/system", f"deploytools-{settings.application}.service"
    wants = f"{units}/multi-user.target.wants"
    return {
        "directories": [_entry(wants, "root", 0o755)],
        "files": [_file(f"{units}/{name}", boot_unit(settings).encode(), "root", 0o644)],
        "links": [{"path": f"{wants}/{name}", "target": f"{units}/{name}", "configuration": False}],
    }


def _own_switch(settings: Settings) -> list[str]:
    """The maintenance directory, where it isn't lighttpd's own."""
    directory = settings.webserver.maintenance_dir
    return [] if directory == str(Path(settings.webserver.config).parent) else [directory]


def _shared_directories(settings: Settings) -> list[str]:
    """`shared` entries without a suffix and not hidden are directories that the application writes to."""
    names = [name for name in settings.shared if "." not in name.rsplit("/", 1)[-1]]
    return [f"{settings.root}/shared/{name}" for name in names]


def _programs(tools: str, owner: str) -> Iterator[dict[str, Any]]:
    """The programs are the files without a suffix; what they share is in hostlib."""
    source = remote_scripts()
    for path in sorted(source.iterdir()):
        if path.is_file() and not path.suffix and not path.name.startswith("."):
            yield _file(f"{tools}/{path.name}", path.read_bytes(), owner, 0o755)
    for package in _packages():
        for path in sorted((source / package).glob("*.py")):
            yield _file(f"{tools}/{package}/{path.name}", path.read_bytes(), owner, 0o644)


def _packages() -> list[str]:
    """hostlib and the packages in it, as paths below the programs' directory; a parent comes first."""
    source = remote_scripts()
    return sorted(str(file.parent.relative_to(source)) for file in source.glob("hostlib/**/__init__.py"))


def _file(
    path: str,
    content: bytes,
    owner: str,
    mode: int,
    *,
    keep: bool = False,
    configuration: bool = False,
) -> dict[str, Any]:
    """`keep`: made if absent, never changed. `configuration`: a change needs a check and a reload."""
    encoded = base64.b64encode(content).decode()
    return {**_entry(path, owner, mode), "content": encoded, "keep": keep, "configuration": configuration}


def _entry(path: str, owner: str, mode: int) -> dict[str, Any]:
    return {"path": path, "owner": owner, "mode": mode}


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()
