"""Who may do what: directories, what root runs, and sudo."""

from __future__ import annotations

import grp
import os
import pwd
import shlex
import shutil
import stat
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hostlib.checks.finding import ERROR, WARNING, Finding, Subject, account, allowed, closed_to, judged, me
from hostlib.program import TOOLS, Config
from hostlib.releasing import releases

SETUP = "fab setup"
PATIENCE = 20.0  # seconds for `sudo`, which may look accounts up in a directory


def application_account(subject: Subject) -> Iterator[Finding]:
    name = subject.config.user
    yield judged(
        "account",
        account(name) is not None,
        f"the application runs as {name}",
        f"useradd --system --user-group {name}; or app.user in fabric.yaml, then fab setup",
        bad=f"there is no account {name} to run the application as",
    )


def directories(subject: Subject) -> Iterator[Finding]:
    """The deploy user's own can be written by it; all others are there."""
    config = subject.config
    for path in (config.releases, config.shared, config.state):
        yield _writable(path)
    for path in (config.root, config.run, config.log, config.migrations, config.maintenance_dir):
        yield judged("directories", path.is_dir(), f"{path} is there", SETUP, bad=f"{path} is missing")


def _writable(path: Path) -> Finding:
    if not path.is_dir():
        return Finding("directories", False, f"{path} is missing", SETUP)
    found = path.stat()
    owner = _name(found.st_uid)
    if os.geteuid() in (0, found.st_uid):
        writable = bool(found.st_mode & stat.S_IWUSR and found.st_mode & stat.S_IXUSR)
        bad = f"{owner} can't write {path}, which is its own"
        return judged("directories", writable, f"{owner} can write {path}", f"chmod u+wx {path}", bad=bad)
    mine = os.access(path, os.W_OK | os.X_OK)
    good, bad = f"{me()} can write {path}", f"{me()} can't write {path}, which is {owner}'s"
    return judged("directories", mine, good, f"{SETUP}; or user: {owner} in fabric.yaml", bad=bad)


def strangers(subject: Subject) -> Iterator[Finding]:
    """What is in the deploy user's directories is its own; somebody else may have deployed before."""
    for place, level in ((subject.config.state, ERROR), (subject.config.releases, WARNING)):
        if not os.access(place, os.R_OK | os.X_OK):
            continue  # a finding of its own
        owner = place.stat().st_uid
        entries = sorted(os.scandir(place), key=lambda entry: entry.name)
        others = [entry.path for entry in entries if entry.stat(follow_symlinks=False).st_uid != owner]
        yield judged(
            "owners",
            not others,
            f"everything in {place} is {_name(owner)}'s",
            f"chown -R --reference={shlex.quote(str(place))} {shlex.join(others)}",
            bad=f"{', '.join(others)} {'is' if len(others) == 1 else 'are'} not {_name(owner)}'s, who has to"
            " change that",
            level=level,
        )


def trusted(subject: Subject) -> Iterator[Finding]:
    """What root runs, or where root writes, is nobody else's to change."""
    config = subject.config
    if not config.privileged:
        return
    places = [config.root, config.run, config.migrations, config.maintenance_dir]
    bad = []
    for path in [*places, TOOLS, *TOOLS.glob("*"), *TOOLS.glob("current/**/*"), *TOOLS.glob("hostlib/**/*")]:
        if path.exists():  # what is missing is a finding of its own
            found = path.stat()
            if found.st_uid != 0 or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                bad.append((path, f"it is {_name(found.st_uid)}'s, mode {found.st_mode & 0o7777:o}"))
    for path, why in bad:
        told = f"others than root can change {path}: {why}"
        yield Finding("trust", False, told, f"chown root: {path} && chmod go-w {path}")
    if not bad:
        yield Finding("trust", True, "only root can change what root runs")


def ways(subject: Subject) -> Iterator[Finding]:
    """The application's account gets to its release, what is shared and its socket."""
    config, who = subject.config, account(subject.config.user)
    if who is None or (not config.privileged and os.geteuid() != 0):
        return
    for path in (config.releases, config.shared, config.run):
        if not path.exists():
            continue
        closed = closed_to(who, path / "x")
        yield judged(
            "directories",
            closed is None,
            f"{config.user} gets to {path}",
            f"chmod o+x {closed}",
            bad=f"{config.user}, which the application runs as, can't enter {closed} on the way to {path}",
        )


def environment_files(subject: Subject) -> Iterator[Finding]:
    """Files in `shared` hold passwords: they are for the application, their owner and root alone."""
    config, who = subject.config, account(subject.config.user)
    names = subject.expected.get("shared") or releases.shared_names(config, subject.release)
    files = [path for path in (config.shared / name for name in names) if path.is_file()]
    if who is None or not files or not config.releases.is_dir():
        return
    deployer = config.releases.stat()
    groups = {0, deployer.st_gid, *os.getgrouplist(who.pw_name, who.pw_gid)}
    for path in files:
        found, place = path.stat(), shlex.quote(str(path))
        readable = allowed(who, path, 4)
        if not readable:
            bad = f"{who.pw_name}, which the application runs as, can't read {path}"
        elif found.st_uid not in (0, deployer.st_uid, who.pw_uid):
            bad = f"{path} is {_name(found.st_uid)}'s, who can change what the application is told"
        else:
            bad = f"others than the application can read {path}: its mode is {found.st_mode & 0o777:o}"
        open_to = found.st_mode & 0o007 or (found.st_mode & 0o070 and found.st_gid not in groups)
        yield judged(
            "environment",
            readable and not open_to and found.st_uid in (0, deployer.st_uid, who.pw_uid),
            f"{path} is the application's to read, and nobody else's",
            f"chown {_name(deployer.st_uid)}:{_group(who.pw_gid)} {place} && chmod 640 {place}",
            bad=bad,
            level=WARNING if readable else ERROR,
        )


def sudo(subject: Subject) -> Iterator[Finding]:
    """The deploy user may run what needs root, without a password and without a terminal.

    Each program is really run, but only to tell its options: what `sudo -l` shows may still take a password.
    Before each deploy one is, and the others are only looked up.
    """
    config = subject.config
    if not config.privileged or not config.sudo or os.geteuid() == 0:
        return
    if shutil.which("sudo") is None:
        yield Finding("sudo", False, "sudo is not installed", "apt install sudo; then fab setup")
        return
    programs = [Path(program) for program in config.sudo]
    with ThreadPoolExecutor(len(programs)) as pool:
        run = programs[:1] if subject.expected.get("quick") else programs
        said = pool.map(lambda program: _refused(program, listed=program not in run), programs)
        told = dict(zip(programs, said))  # noqa: B905 - not in Python 3.9
    refused = {program: said for program, said in told.items() if said}
    names = ", ".join(map(str, refused))
    whys = list(dict.fromkeys(refused.values()))
    yield judged(
        "sudo",
        not refused,
        f"{me()} may run what needs root",
        _remedy(config, whys),
        bad=f"sudo -n doesn't let {me()} run {names}: {'; '.join(whys)}",
    )


def becoming_root(_: Subject) -> Iterator[Finding]:
    """Before set-up: whether the deploy user could do it."""
    if os.geteuid() == 0:
        return
    if shutil.which("sudo") is None:
        yield Finding("sudo", False, "sudo is not installed", "apt install sudo")
        return
    said = _refused(Path("/bin/true"))
    yield judged(
        "sudo",
        said is None,
        f"{me()} may become root",
        "fab setup --as-user root; or as another account that may become root without a password",
        bad=f"{me()} can't set this host up: {said}",
        level=WARNING,
    )


def _refused(program: Path, *, listed: bool = False) -> str | None:
    """Why `sudo -n` doesn't run it, in sudo's words; None where it does. `listed`: look it up only."""
    try:
        ran = subprocess.run(
            ["sudo", "-n", "-l", str(program)] if listed else ["sudo", "-n", str(program), "--help"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired:
        return f"no answer in {PATIENCE:.0f} s"
    if ran.returncode == 0:
        return None
    lines = [line.removeprefix("sudo: ") for line in ran.stderr.strip().splitlines() if line.strip()]
    return lines[-1] if lines else f"exit code {ran.returncode}"


def _remedy(config: Config, whys: list[str]) -> str:
    if any("must have a tty" in why for why in whys):
        line = f"Defaults:{me()} !requiretty"
        return f"echo '{line}' > /etc/sudoers.d/zz-deploytools && chmod 440 /etc/sudoers.d/zz-deploytools"
    file = f"/etc/sudoers.d/deploytools-{config.application}"
    listed = subprocess.run(
        ["sudo", "-n", "-l", config.sudo[0]],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=PATIENCE,
    )
    if listed.returncode == 0:  # it is allowed, but only with a password: the last rule counts
        last = f"/etc/sudoers.d/zzz-deploytools-{config.application}"
        return f"cp -p {file} {last}, which comes after the rule that asks for a password"
    return f"fab setup --as-user root, which writes {file}"


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
