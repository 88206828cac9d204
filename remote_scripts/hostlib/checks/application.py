"""The application: that it can be started, that it lives on, and that a swap can tell when it is done."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from hostlib import files
from hostlib.checks import services
from hostlib.checks.finding import ERROR, WARNING, Finding, Subject, account, allowed, closed_to, judged, me
from hostlib.program import TOOLS
from hostlib.swapping import launch, links, systemd, unixsockets
from hostlib.swapping.generations import Record
from hostlib.swapping.managers import Managers
from hostlib.webserver import web

SHORTEST_QUEUE = 128  # connections; an application that binds its socket itself chooses its own
PATIENCE = 20.0  # seconds for a program that is asked for its configuration
DATABASE_PATIENCE = 90.0
WATCHED = 0.5  # seconds that a connection stays open without a request, to count as kept
LOOKS = 6
FPM_TIMEOUT = "10s"
OLDEST_SYSTEMD = 247  # of Debian 11, as is the oldest Python
PROBE = "/run/deploytools-probe.sock"  # only a name: nothing is made there


def command(subject: Subject) -> Iterator[Finding]:
    """app.command can be run by the application's account."""
    who, words = account(subject.config.user), _words(subject)
    if who is None or not words:
        return
    path = _program(subject, words[0])
    remedy = f"{_installation(words[0])}; or app.command in fabric.yaml"
    if _in_release(words[0]) and (subject.release is None or "app" in subject.expected):
        return  # it comes with the next release
    if path is None:
        yield Finding("command", False, f"app.command: there is no program {words[0]} on this host", remedy)
        return
    closed = closed_to(who, path)
    runs = closed is None and path.is_file() and allowed(who, path, 1)
    yield judged(
        "command",
        runs,
        f"{subject.config.user} can run {path}",
        f"chmod o+x {closed or path}",
        bad=f"app.command: {subject.config.user} can't {'enter' if closed else 'run'} {closed or path}",
    )
    interpreter = _interpreter(path) if os.access(path, os.R_OK) else None
    yield judged(
        "command",
        interpreter is None or interpreter.exists(),
        f"{path} has what it runs on",
        f"install {interpreter}; or mend the first line of {path}",
        bad=f"app.command: {path} is a script for {interpreter}, which is not there",
    )


def _words(subject: Subject) -> list[str]:
    try:
        return shlex.split(str(subject.app.get("command", "")))
    except ValueError:
        return []


def _program(subject: Subject, name: str) -> Path | None:
    """What starts when `name` is the first word of app.command; None where nothing does."""
    if "/" in name:
        place = subject.config.releases / (subject.release or "none") / name
        return place if place.exists() else None
    found = shutil.which(name, path=subject.app.get("env", {}).get("PATH", launch.SEARCH_PATH), mode=os.F_OK)
    return Path(found) if found else None


def _in_release(name: str) -> bool:
    return "/" in name and not name.startswith("/")


def _installation(name: str) -> str:
    package = os.path.basename(name)
    return f"apt install {package}" if package.startswith("php") else f"install {name}"


def _interpreter(path: Path) -> Path | None:
    """What the first line of a script names; None for any other program."""
    with path.open("rb") as file:
        first = file.readline(300)
    words = first[2:].split() if first.startswith(b"#!") else []
    return Path(os.fsdecode(words[0])) if words else None


def manager(subject: Subject) -> Iterator[Finding]:
    """systemd can run the application, where it is to."""
    if subject.app.get("manager") != "systemd":
        return
    found = services.version()
    bad = "app.manager is systemd, and "
    if found is None:
        bad += "systemd doesn't run this host"
    elif found < OLDEST_SYSTEMD:
        bad += f"systemd is {found}: {OLDEST_SYSTEMD} or newer is needed"
    else:
        bad += "privileged is false, so we may not command it"
    yield judged(
        "manager",
        found is not None and found >= OLDEST_SYSTEMD and subject.config.privileged,
        f"systemd is {found}",
        "app: {manager: auto} in fabric.yaml; then fab deploy",
        bad=bad,
    )


def php(subject: Subject) -> Iterator[Finding]:
    """What php-cgi and php-fpm do of their own accord."""
    words = _words(subject)
    name = os.path.basename(words[0]) if words else ""
    if name.startswith("php-cgi"):
        yield from _php_cgi(subject)
    elif name.startswith("php-fpm"):
        yield from _php_fpm(subject, words)


def _php_cgi(subject: Subject) -> Iterator[Finding]:
    env: Mapping[str, str] = subject.app.get("env", {})
    most, children = env.get("PHP_FCGI_MAX_REQUESTS", "0"), env.get("PHP_FCGI_CHILDREN", "0")
    ends = most.isdigit() and int(most) > 0 and not (children.isdigit() and int(children) > 0)
    yield judged(
        "php",
        not ends,
        "php-cgi serves on, however many requests it gets",
        'app: {env: {PHP_FCGI_MAX_REQUESTS: "0"}} in fabric.yaml; then fab deploy',
        bad=f"app.env.PHP_FCGI_MAX_REQUESTS is {most}: php-cgi ends after so many requests",
        level=WARNING,
    )


def _php_fpm(subject: Subject, words: list[str]) -> Iterator[Finding]:
    """As php-fpm itself understands its configuration, told where the application's socket would be."""
    program = _program(subject, words[0])
    if program is None:
        return
    environment = {"PATH": launch.SEARCH_PATH, "APP_SOCKET": PROBE, **subject.app.get("env", {})}
    ran = subprocess.run(
        [str(program), *words[1:], "-tt"],
        env=environment,
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=PATIENCE,
    )
    said = ran.stdout + ran.stderr
    told = re.findall(r"NOTICE:\s+([\w.]+) = (.*)", said)
    if ran.returncode != 0 or not told:
        errors = "; ".join(re.findall(r"(?:ERROR|ALERT): (.*)", said)) or f"exit code {ran.returncode}"
        yield Finding(
            "php",
            False,
            f"{me()} can't ask php-fpm for its configuration: {errors}",
            f"{shlex.join([str(program), *words[1:], '-tt'])}; error_log must be a file that"
            f" {subject.config.user} can write, such as /dev/stderr",
            WARNING,
        )
        return
    settings = dict(told)
    foreground = settings.get("daemonize") == "no" or {"-F", "--nodaemonize"} & set(words)
    yield judged(
        "php",
        bool(foreground),
        "php-fpm stays in the foreground",
        f"app: {{command: {shlex.join([*words, '--nodaemonize'])}}} in fabric.yaml",
        bad="php-fpm goes to the background, and `swap` takes that for its end",
    )
    listens = [value for key, value in told if key == "listen"]
    yield judged(
        "php",
        subject.app.get("listen") == "path" and PROBE in listens,
        "php-fpm listens where it is told to",
        "app: {listen: path} in fabric.yaml, and listen = ${APP_SOCKET} in the pool's configuration",
        bad=f"php-fpm listens at {', '.join(listens)}, not at its generation's own socket, $APP_SOCKET",
    )
    patience = settings.get("process_control_timeout", "0s")
    yield judged(
        "php",
        patience.rstrip("smhd") not in ("", "0"),
        f"php-fpm gives its children {patience} to finish",
        f"process_control_timeout = {FPM_TIMEOUT} in section [global] of its configuration; then fab hotswap",
        bad="process_control_timeout of php-fpm is 0: reloading it cuts the requests in flight",
        level=WARNING,
    )


def records(subject: Subject) -> Iterator[Finding]:
    """A record that can't be read stops every swap."""
    broken = []
    for path in sorted(subject.config.run.glob("app.*.json")):
        try:
            Record(**(files.read_json(path) or {}))
        except FileNotFoundError:
            continue
        except (ValueError, TypeError, OSError) as error:
            broken.append((path, error))
    for path, error in broken:
        yield Finding(
            "generations",
            False,
            f"{path} is no generation's record: {error}",
            f"rm {path}; then ps -u {subject.config.user} -o pid,args, which shows what may be left of it",
        )
    if not broken:
        yield Finding("generations", True, "the generations' records can be read")


def links_lead_there(subject: Subject) -> Iterator[Finding]:
    """What serves can be started again, and its scripts are found."""
    if subject.serving is None:
        return
    found = links.trouble(subject.config)
    for what, remedy in found:
        yield Finding("links", False, what, remedy, WARNING)
    if not found:
        yield Finding("links", True, f"{subject.config.current} leads to what serves")


def alive(subject: Subject) -> Iterator[Finding]:
    record = subject.serving
    if record is None or not os.access("/proc/1/stat", os.R_OK):
        return
    yield judged(
        "application",
        Managers(subject.config).alive(record),
        f"{record} runs",
        "fab hotswap",
        bad=f"the application is not running: {record} has died; why is in {subject.config.log}/app.log",
        level=WARNING,
    )


def queue(subject: Subject) -> Iterator[Finding]:
    """How many requests can wait at the application's socket."""
    record = subject.serving
    if record is None or shutil.which("ss") is None:
        return
    ran = subprocess.run(
        ["ss", "-xlnH", "src", record.socket], capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    rows = [line.split() for line in ran.stdout.splitlines() if record.socket in line.split()]
    lengths = [int(row[3]) for row in rows if len(row) > 4 and row[3].isdigit()]
    if lengths:
        yield judged(
            "queue",
            lengths[0] >= SHORTEST_QUEUE,
            f"{lengths[0]} requests can wait for {record}",
            "a longer backlog in the application's own listen(2) (php-fpm: listen.backlog); then fab hotswap",
            bad=f"only {lengths[0]} requests can wait for {record}; more at a time are answered 500",
            level=WARNING,
        )


def kept_connections(subject: Subject) -> Iterator[Finding]:
    """The application ends a connection with its request: `drain` and `swap` wait for that.

    lighttpd never asks it to keep one. What is open all the while that lighttpd has no request is kept.
    """
    record = subject.serving
    if record is None or not Managers(subject.config).alive(record):
        return
    kept: frozenset[int] | None = None
    for look in range(LOOKS):
        if look:
            time.sleep(WATCHED / (LOOKS - 1))
        seen = unixsockets.connections(record.socket).inodes
        kept = seen if kept is None else kept & seen
        if not kept or _in_lighttpd(subject) != 0:
            kept = frozenset()
            break
    yield judged(
        "connections",
        not kept,
        "the application ends each connection with its request",
        "have it close the connection when FCGI_KEEP_CONN is not set in a request (FastCGI 1.0, 5.1);"
        " then fab deploy",
        bad=f"the application keeps {len(kept or ())} connections open without a request: `drain` and `swap`"
        " wait for them in vain",
        level=WARNING,
    )


def _in_lighttpd(subject: Subject) -> int | None:
    """How many requests lighttpd has for the application; None where it doesn't tell."""
    config = subject.config
    try:
        answer = web.request(config, config.statistics_path, timeout=5)
    except OSError:
        return None
    found = re.search(
        rf"^gw\.backend\.{re.escape(config.application)}\.load: (\d+)$",
        answer.body.decode(errors="replace"),
        re.MULTILINE,
    )
    return int(found[1]) if found else None


def logout(subject: Subject) -> Iterator[Finding]:
    """What is started over ssh lives on when the session ends."""
    if systemd.is_ours_to_use(subject.config):
        return
    if "/session-" not in _read("/proc/self/cgroup") or services.logind("KillUserProcesses") != "yes":
        return
    spared = (services.logind("KillExcludeUsers") or "root").split()
    only = (services.logind("KillOnlyUsers") or me()).split()
    file = "/etc/systemd/logind.conf.d/zz-deploytools.conf"  # the last one counts
    yield judged(
        "logout",
        me() in spared or me() not in only,
        "what is started over ssh lives on",
        f"mkdir -p {os.path.dirname(file)} && printf '[Login]\\nKillUserProcesses=no\\n' > {file} &&"
        " systemctl restart systemd-logind",
        bad="KillUserProcesses=yes in logind.conf: the application is killed when the ssh session ends"
        " that started it",
    )


def database(subject: Subject) -> Iterator[Finding]:
    """The current release's database answers; asked where migrations run."""
    here = subject.expected.get("migrates", any(subject.config.migrations.glob("[!.]*")))
    release = subject.release
    if not here or release is None or not (TOOLS / "migrate").exists():
        return
    try:
        ran = subprocess.run(
            [str(TOOLS / "migrate"), "check", "--release", release, "--json"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=DATABASE_PATIENCE,
        )
        told = json.loads(ran.stdout)
    except (ValueError, subprocess.TimeoutExpired):
        return  # sudo doesn't let us, which is a finding of its own
    state = told.get("state", "unknown")
    message = told.get("message") or told.get("error", {}).get("what", "no answer")
    yield judged(
        "database",
        state != "unknown",
        message,
        f"{TOOLS}/migrate check --release {release} shows it again; its address is from migrate.env in"
        " fabric.yaml, then fab deploy",
        bad=f"where the database stands is not known: {message}",
        level=ERROR,
    )


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
