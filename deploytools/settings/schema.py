"""The schema of `deploy:` in fabric.yaml, a frozen dataclass per section.

docs/reference.md explains every key; a test compares the two.
"""

from __future__ import annotations

import re
from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from deploytools.settings.values import (
    Account,
    Application,
    CommandLine,
    Duration,
    DurationOrZero,
    EnvName,
    EnvValue,
    ExcludePattern,
    ExitCode,
    Flag,
    HostHeader,
    HostName,
    HostPath,
    Listener,
    LocalPath,
    LockTimeout,
    Login,
    PageText,
    Parallel,
    Port,
    Ref,
    ReleasePath,
    Releases,
    Script,
    SharedPath,
    Status,
    Url,
    UrlPath,
    UrlPathQuery,
)

# Deferred, since `Deploy` is the only one that is validated by itself: it builds the others into its own.
REFUSE_UNKNOWN = ConfigDict(extra="forbid", defer_build=True)

_ADDRESS = re.compile(r"\[(?P<literal>.*)\](?::(?P<after>.*))?|(?P<host>[^:]*)(?::(?P<port>[^:]*))?")

# `source:` with nothing below it, as it is left when all its lines are comments, means the defaults.
empty_section = BeforeValidator(lambda value: {} if value is None else value)
empty_list = BeforeValidator(lambda value: () if value is None else value)

Env = Annotated[dict[EnvName, EnvValue], empty_section]


@dataclass(frozen=True, config=REFUSE_UNKNOWN)
class Host:
    """A web host. Its name, which messages and journals use and -H selects by, is `host`."""

    host: HostName
    user: Login | None = None
    port: Port | None = None

    def __str__(self) -> str:
        return self.host

    @property
    def address(self) -> str:
        """`user@host:port`, as far as they are given."""
        user = f"{self.user}@" if self.user else ""
        if self.port is None:
            return f"{user}{self.host}"
        return f"{user}[{self.host}]:{self.port}" if ":" in self.host else f"{user}{self.host}:{self.port}"


def split_address(value: object) -> object:
    """`[user@]host[:port]` -> the fields of a Host; what is no text is left for the schema to judge."""
    if not isinstance(value, str):
        return value
    user, at, rest = value.rpartition("@")
    match = _ADDRESS.fullmatch(rest)
    if match is None:  # more than one colon: an IPv6 address without a port, if anything
        host, port = rest, None
    else:
        host, port = (
            (match["literal"], match["after"]) if match["host"] is None else (match["host"], match["port"])
        )
    number = int(port) if port and re.fullmatch("[0-9]{1,5}", port) else port
    return {"host": host, **({"user": user} if at else {}), **({} if port is None else {"port": number})}


def _distinct(hosts: tuple[Host, ...]) -> tuple[Host, ...]:
    if not hosts:
        raise PydanticCustomError("unfit", "should name at least one host")
    names = [host.host.lower() for host in hosts]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise PydanticCustomError(
            "unfit",
            "should name each host once, but has {twice} more than once"
            " (two ports of one machine need two aliases in ssh_config)",
            {"twice": ", ".join(twice)},
        )
    return hosts


Hosts = Annotated[tuple[Annotated[Host, BeforeValidator(split_address)], ...], AfterValidator(_distinct)]


def _apart(entries: tuple[str, ...]) -> tuple[str, ...]:
    for entry in entries:
        others = list(entries)
        others.remove(entry)
        if any(f"{other}/".startswith(f"{entry}/") for other in others):
            raise PydanticCustomError(
                "unfit", "should not have {entry} and something below or equal to it", {"entry": entry}
            )
    return entries


@dataclass(frozen=True, kw_only=True, config=REFUSE_UNKNOWN)
class Source:
    path: LocalPath = Path()
    ref: Ref = "HEAD"
    build: Script | None = None
    exclude: Annotated[tuple[ExcludePattern, ...], empty_list] = ()


@dataclass(frozen=True, kw_only=True, config=REFUSE_UNKNOWN)
class App:
    """`start_timeout`, `drain_timeout` and `soak_time` are seconds."""

    command: CommandLine
    protocol: Literal["fastcgi"] = "fastcgi"
    listen: Literal["fd0", "path"] = "fd0"
    env: Env = field(default_factory=dict)
    user: Account = "www-data"
    start_timeout: Duration = 30.0
    drain_timeout: Duration = 30.0
    soak_time: DurationOrZero = 0.0
    manager: Literal["auto", "systemd", "direct"] = "auto"


@dataclass(frozen=True, kw_only=True, config=REFUSE_UNKNOWN)
class Health:
    path: UrlPathQuery = "/"
    status: Status = 200
    contains: PageText | None = None
    smoke: Annotated[tuple[UrlPathQuery, ...], empty_list] = ()


@dataclass(frozen=True, kw_only=True, config=REFUSE_UNKNOWN)
class Webserver:
    kind: Literal["lighttpd"] = "lighttpd"
    config: HostPath = "/etc/lighttpd/lighttpd.conf"
    maintenance_dir: HostPath = "/etc/lighttpd"
    url: Url = "http://127.0.0.1/"
    host_header: HostHeader | None = None
    aliases: Annotated[tuple[HostHeader, ...], empty_list] = ()
    unproved: Annotated[tuple[Listener, ...], empty_list] = ()
    document_root: SharedPath | None = None
    user: Account = "www-data"
    liveness: Annotated[tuple[UrlPath, ...], empty_list] = ()
    statistics_path: UrlPath = "/server-statistics"


@dataclass(frozen=True, kw_only=True, config=REFUSE_UNKNOWN)
class Pending:
    """A command whose exit code tells whether migrations are pending; any other code is an error."""

    cmd: CommandLine
    none: ExitCode = 0
    some: ExitCode = 1


@dataclass(frozen=True, kw_only=True, config=REFUSE_UNKNOWN)
class Migrate:
    """`lock_timeout` is spelt as PostgreSQL does; what follows it belongs to the adapter `command`."""

    adapter: Literal["alembic", "django", "command"] | None = None
    host: HostName | None = None
    python: ReleasePath = "/usr/bin/python3"
    cwd: ReleasePath = "{release}"
    env: Env = field(default_factory=dict)
    engine: Literal["postgresql", "mysql", "mariadb", "sqlite", "other"] = "other"
    lock_timeout: LockTimeout = "5s"
    status: CommandLine | None = None
    pending: Pending | None = None
    current: CommandLine | None = None
    apply: CommandLine | None = None
    rollback: CommandLine | None = None
    transactional: Flag | None = None
    files: SharedPath | None = None
    squawk: Flag | None = None


@dataclass(frozen=True, kw_only=True, config=REFUSE_UNKNOWN)
class Hooks:
    """Shell commands: `notify` runs on the laptop, the others on every host."""

    quiesce: Script | None = None
    resume: Script | None = None
    backup: Script | None = None
    notify: Script | None = None


@dataclass(frozen=True, kw_only=True, config=REFUSE_UNKNOWN)
class Window:
    """`expected` is seconds."""

    expected: Duration = 300.0


@dataclass(frozen=True, kw_only=True, config=REFUSE_UNKNOWN)
class Fleet:
    """`connect_timeout` is seconds, `parallel` a number of hosts."""

    connect_timeout: Duration = 10.0
    parallel: Parallel = 100


@dataclass(frozen=True, kw_only=True, config=REFUSE_UNKNOWN)
class Deploy:
    """The section `deploy:` of fabric.yaml, with the chosen environment merged in."""

    application: Application
    hosts: Hosts
    root: HostPath = "/srv/{application}"
    tools_dir: HostPath = "/usr/local/lib/deploytools/{application}"
    ssh_config: LocalPath | None = None
    privileged: Flag = True
    keep_releases: Releases = 5
    source: Annotated[Source, empty_section] = field(default_factory=Source)
    shared: Annotated[tuple[SharedPath, ...], empty_list, AfterValidator(_apart)] = ()
    app: App
    health: Annotated[Health, empty_section] = field(default_factory=Health)
    webserver: Annotated[Webserver, empty_section] = field(default_factory=Webserver)
    migrate: Migrate | None = None
    hooks: Annotated[Hooks, empty_section] = field(default_factory=Hooks)
    window: Annotated[Window, empty_section] = field(default_factory=Window)
    fleet: Annotated[Fleet, empty_section] = field(default_factory=Fleet)
