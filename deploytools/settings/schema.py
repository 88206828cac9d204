"""The schema of `deploy:` in fabric.yaml, a frozen dataclass per section.

The text below a key is what docs/reference.md says of it: `make docs` copies it there.
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
    Color,
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
    """The directory to deploy, relative to the project; a git checkout is shipped as committed."""
    ref: Ref | None = "HEAD"
    """The branch, tag or commit that is deployed without `--ref`. Null: the directory as it is."""
    patches: Annotated[tuple[LocalPath, ...], empty_list] = ()
    """Unified diffs, as `git diff` writes them, applied to the export in this order and without fuzz."""
    build: Script | None = None
    """Runs on this computer, in a clean export with the patches applied. What it prints is also kept."""
    exclude: Annotated[tuple[ExcludePattern, ...], empty_list] = ()
    """What is not shipped, in the patterns of a `.gitignore`: `/tests`, `*.map`. The build still sees it."""


@dataclass(frozen=True, kw_only=True, config=REFUSE_UNKNOWN)
class App:
    """`start_timeout`, `drain_timeout` and `soak_time` are seconds."""

    command: CommandLine
    """Starts the application, in the release's directory and without a shell."""
    protocol: Literal["fastcgi"] = "fastcgi"
    """What the application speaks."""
    listen: Literal["fd0", "path"] = "fd0"
    """Whether its socket is file descriptor 0, or it binds `$APP_SOCKET` itself."""
    env: Env = field(default_factory=dict)
    """Variables of its environment."""
    user: Account = "www-data"
    """The account that the application and its migrations run as; never root where `privileged` is true."""
    start_timeout: Duration = 30.0
    """How long a new process may take until it is healthy."""
    drain_timeout: Duration = 30.0
    """How long the old process may take to finish its requests; past that it is kept, never killed."""
    soak_time: DurationOrZero = 0.0
    """How long the old process stays warm after a swap, for `fab hotswap --back`."""
    manager: Literal["auto", "systemd", "direct"] = "auto"
    """Who starts the application and starts it again when it crashes: systemd, or a small supervisor of ours
    (`direct`). `auto` is systemd where it runs and `privileged` is true."""


@dataclass(frozen=True, kw_only=True, config=REFUSE_UNKNOWN)
class Health:
    path: UrlPathQuery = "/"
    """Asked to find out whether the application works; may have a query."""
    status: Status = 200
    """The HTTP status that a healthy application answers, from 200 to 499."""
    contains: PageText | None = None
    """What the page has to contain as well."""
    smoke: Annotated[tuple[UrlPathQuery, ...], empty_list] = ()
    """Further pages that are asked for on every host through the maintenance bypass, before a window lets the
    public in; each has to answer below 400."""


@dataclass(frozen=True, kw_only=True, config=REFUSE_UNKNOWN)
class Webserver:
    kind: Literal["lighttpd"] = "lighttpd"
    """The web server in front of the application."""
    config: HostPath = "/etc/lighttpd/lighttpd.conf"
    """Its main configuration file."""
    maintenance_dir: HostPath = "/etc/lighttpd"
    """Holds `down`, `up` and the files of the maintenance switch. With `host_header` it is
    `/etc/lighttpd/{application}` if you don't say otherwise: several sites on a host each have a switch of
    their own."""
    url: Url = "http://127.0.0.1/"
    """How a host reaches its own site."""
    public_url: Url | None = None
    """How visitors reach the site: asked four times a second, from this computer, while `deploy`, `hotswap`
    or `rollback` is at work, to measure what they get. Null: `url`, if that is no loopback address; otherwise
    it isn't measured."""
    host_header: HostHeader | None = None
    """The site's name, for a host with several sites."""
    aliases: Annotated[tuple[HostHeader, ...], empty_list] = ()
    """Further names of the site; maintenance is proved for each of them."""
    unproved: Annotated[tuple[Listener, ...], empty_list] = ()
    """Addresses that lighttpd listens on, such as `0.0.0.0:8443`, which no proof covers: where a client
    certificate is wanted, say."""
    document_root: SharedPath | None = None
    """A directory of the release, such as `public`, that lighttpd serves files from; scripts in it (`.php`),
    and `index.php` for what is no file, go to the application. Null: every request goes to the
    application."""
    user: Account = "www-data"
    """The account of lighttpd's workers, who connect to the application."""
    liveness: Annotated[tuple[UrlPath, ...], empty_list] = ()
    """Paths that answer 200 in maintenance too, for a load balancer."""
    statistics_path: UrlPath = "/server-statistics"
    """Where lighttpd's counters are, for requests from the host itself only."""


@dataclass(frozen=True, kw_only=True, config=REFUSE_UNKNOWN)
class Page:
    """The maintenance page: `file` is all of it; the others change the one that we ship."""

    file: LocalPath | None = None
    """A page of your own, relative to the project, instead of the one that we ship."""
    lang: Literal["en", "de", "fr", "es"] = "en"
    """The language of our page."""
    title: PageText | None = None
    """Its headline; null: the language's own."""
    message: PageText | None = None
    """What stands below the headline; null: the language's own."""
    contact: PageText | None = None
    """Where to turn in a hurry: an address of mail or of a page, which become links, or any text."""
    color: Color = "#f2a541"
    """The colour of button and picture, as `"#rrggbb"`; what is written on it becomes black or white."""
    logo: LocalPath | None = None
    """A picture instead of the sunrise, relative to the project: SVG, PNG, WebP, JPEG, GIF; at most 32 kB."""


@dataclass(frozen=True, kw_only=True, config=REFUSE_UNKNOWN)
class Pending:
    """A command whose exit code tells whether migrations are pending; any other code is an error."""

    cmd: CommandLine
    """Adapter `command`, instead of `status`: tells by its exit code whether migrations are pending, but not
    which."""
    none: ExitCode = 0
    """Its exit code where none are."""
    some: ExitCode = 1
    """Its exit code where some are; any other code is an error."""


@dataclass(frozen=True, kw_only=True, config=REFUSE_UNKNOWN)
class Migrate:
    """`lock_timeout` is spelt as PostgreSQL does; what follows it belongs to the adapter `command`."""

    adapter: Literal["alembic", "django", "command"] | None = None
    """The tool that migrates the database; null where there is no database."""
    host: HostName | None = None
    """One of `hosts`, where migrations run and the lock and the journals are; the first host where null."""
    python: ReleasePath = "/usr/bin/python3"
    """The interpreter that has the adapter's tool; may begin with `{release}`, the release's directory."""
    cwd: ReleasePath = "{release}"
    """Where the tool runs; may begin with `{release}`."""
    env: Env = field(default_factory=dict)
    """Variables of the migration's environment. Adapter `django`: `DJANGO_SETTINGS_MODULE` is needed here."""
    engine: Literal["postgresql", "mysql", "mariadb", "sqlite", "other"] = "other"
    """The database. Alembic and Django know it themselves; for `command` it decides what can be told."""
    lock_timeout: LockTimeout = "5s"
    """How long a migration may wait for a lock before it fails, and before it for others to let theirs go.
    MySQL and MariaDB: whole seconds."""
    status: CommandLine | None = None
    """Adapter `command`: prints a line `[X] NAME` for each applied and `[ ] NAME` for each pending migration,
    in their order, as `dbmate status` does."""
    pending: Pending | None = None
    current: CommandLine | None = None
    """Adapter `command`: prints the schema's revisions, one a line. Needed along with `pending`; beside
    `status` it shows revisions that the release doesn't have: a database ahead of the code. In an empty
    database it prints nothing and succeeds."""
    apply: CommandLine | None = None
    """Adapter `command`, needed: runs what is pending."""
    rollback: CommandLine | None = None
    """Adapter `command`: takes the last migration back. Run by nothing but `fab deploy --abort` of a window
    whose migration is done and whose visitors were not let in; see "Taking a migration back"."""
    transactional: Flag | None = None
    """Adapter `command`: true where the tool rolls a failed migration back whole, as dbmate does on
    PostgreSQL and SQLite; then a failure that left the revision as it was is undone, otherwise it holds the
    site in maintenance."""
    files: SharedPath | None = None
    """Adapter `command`: the directory of the release that has the migrations, each in a file by its name;
    their labels are looked for there."""
    squawk: Flag | None = None
    """Adapter `command` with `engine: postgresql` and `files`: whether squawk has a veto on what is labelled
    online-safe. Null: where it is installed on this computer; true: a deploy without downtime is refused
    where it isn't."""


@dataclass(frozen=True, kw_only=True, config=REFUSE_UNKNOWN)
class Hooks:
    """Shell commands: `notify` runs on the laptop, the others on every host."""

    quiesce: Script | None = None
    """Runs on every host once it is in maintenance, to stop workers."""
    resume: Script | None = None
    """Runs on every host at the end, and when a window is backed out of, to start them again."""
    backup: Script | None = None
    """Runs before the migration, on the host where it runs, and prints the path of what it wrote; see
    "Backups". A failure ends the window before the database is touched."""
    notify: Script | None = None
    """Runs on this computer when a run has ended, to tell others of it; gets it as JSON on standard input."""


@dataclass(frozen=True, kw_only=True, config=REFUSE_UNKNOWN)
class Window:
    """`expected` is seconds."""

    expected: Duration = 300.0
    """How long a window usually takes, where `--until` doesn't say."""


@dataclass(frozen=True, kw_only=True, config=REFUSE_UNKNOWN)
class Rolling:
    """`bake` is seconds."""

    bake: DurationOrZero = 0.0
    """How long a deploy without downtime watches each host after its swap, before the old process ends and
    the next hosts have their turn: the health check, crashes, and the share of 5xx answers beside the time
    before, where lighttpd has an access log. Where that gets worse, the host goes back at once, and so does
    the whole deploy."""


@dataclass(frozen=True, kw_only=True, config=REFUSE_UNKNOWN)
class Fleet:
    """`connect_timeout` is seconds, `parallel` a number of hosts."""

    connect_timeout: Duration = 10.0
    """How long connecting to a host may take."""
    parallel: Parallel = 100
    """How many hosts are worked on at the same time, from 1 to 1000."""


@dataclass(frozen=True, kw_only=True, config=REFUSE_UNKNOWN)
class Deploy:
    """The section `deploy:` of fabric.yaml, with the chosen environment merged in."""

    application: Application
    """Names directories, sockets and configuration on the hosts: small letters, digits and dashes, at most
    31."""
    hosts: Hosts
    """Each is `[user@]host[:port]`, or a mapping of `host`, `user` and `port`; what it leaves open is for
    ssh_config to say."""
    root: HostPath = "/srv/{application}"
    """Holds the releases, what they share, sockets, logs and state."""
    tools_dir: HostPath = "/usr/local/lib/deploytools/{application}"
    """Holds the host programs and their `config.json`."""
    ssh_config: LocalPath | None = None
    """Read instead of `~/.ssh/config` and the system-wide file, as `ssh -F` does; relative to the project."""
    privileged: Flag = True
    """Whether the host programs become root through sudo; false where one user owns everything, as in the
    sandbox."""
    keep_releases: Releases = 5
    """How many releases stay on a host after a deploy, from 1 to 1000. The current one, the previous one and
    any that a process runs on always stay; one that failed never counts, and goes."""
    source: Annotated[Source, empty_section] = field(default_factory=Source)
    shared: Annotated[tuple[SharedPath, ...], empty_list, AfterValidator(_apart)] = ()
    """Files and directories below the release that are kept across releases and linked into each."""
    app: App
    health: Annotated[Health, empty_section] = field(default_factory=Health)
    webserver: Annotated[Webserver, empty_section] = field(default_factory=Webserver)
    page: Annotated[Page, empty_section] = field(default_factory=Page)
    migrate: Migrate | None = None
    hooks: Annotated[Hooks, empty_section] = field(default_factory=Hooks)
    window: Annotated[Window, empty_section] = field(default_factory=Window)
    rolling: Annotated[Rolling, empty_section] = field(default_factory=Rolling)
    fleet: Annotated[Fleet, empty_section] = field(default_factory=Fleet)
