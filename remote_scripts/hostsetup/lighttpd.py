"""lighttpd's configuration: judged as the whole that it would be, before any of it lands; then taken in.

A copy of its directory gets the changes, and lighttpd is asked about that. So a configuration that it refuses
never stands where a restart would read it.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from hostlib.locking import exclusive
from hostlib.program import Config, Failure, drop_to
from hostlib.switch import maintenance
from hostlib.webserver import web

from hostsetup.asking import ask
from hostsetup.bundle import Refused

# What a path is to be: a file's content, a link's target, or nothing at all.
Wanted = Mapping[Path, "bytes | str | None"]

RUN = Path("/run")  # root's, and gone after a restart, as what is in it should be
COPY = "deploytools-"  # what the names of our copies begin with
SEEN_WITHIN = 30.0  # seconds beyond what lighttpd gives requests in flight
DEFAULT_GRACE = 8  # seconds: server.graceful-shutdown-timeout, where the configuration doesn't say


@dataclass(frozen=True)
class Judgement:
    """What lighttpd makes of a configuration.

    Args:
        fine: whether it accepts it; `said` is what it said to that.
        printed: the configuration as lighttpd understands it, without comments; "" where it refuses it.
        restart: why a reload could not take it in; "" where it can.
    """

    fine: bool
    said: str
    printed: str
    restart: str = ""

    @property
    def unknown_keys(self) -> set[str]:
        """What lighttpd takes no notice of, because no module is loaded that knows it."""
        return set(re.findall(r"unknown config-key: (\S+)", self.said))


def judged(configuration: Path, wanted: Wanted) -> tuple[Judgement, Judgement]:
    """What lighttpd makes of the configuration as it is, and of what it would be."""
    with _changed_copy(configuration.parent, wanted) as copy:
        return _judge(configuration, configuration.parent), _judge(
            copy / configuration.name, configuration.parent
        )


def refusal(configuration: Path, now: Judgement, then: Judgement) -> Refused:
    """Why nothing is done, where `then` isn't fine."""
    if not now.fine:
        return Refused(
            f"lighttpd refuses its configuration as it is, before any change of set-up's: {now.said}",
            next=f"mend it until `lighttpd -tt -f {configuration}` is content, then fab setup again",
        )
    remedy = "correct webserver in fabric.yaml, or what it is at odds with on the host"
    if "Duplicate" in then.said:
        remedy = (
            "something else on this host sets the same: give this application a webserver.host_header,"
            " or take that out"
        )
    return Refused(f"lighttpd refuses what its configuration would be: {then.said}", next=remedy)


def in_words(then: Judgement) -> str:
    """What it costs visitors that lighttpd takes it in."""
    if then.restart:
        return (
            f"lighttpd is restarted, because a reload can't take this in ({then.restart}):"
            " what is in flight is cut, and nobody is answered for a moment"
        )
    grace = _grace(then.printed)
    within = f"within {grace} s" if grace else "however long it takes"
    cost = (
        f"lighttpd is reloaded: what is in flight may finish {within} (server.graceful-shutdown-timeout),"
        " and new requests wait for that"
    )
    if grace:
        cost += f"; what takes longer than {grace} s is cut"
    if re.search(r'"server.graceful-restart-bg" => "?(enable|true|1)', then.printed):
        cost += "; and server.graceful-restart-bg is on, with which a reload was seen to cut shorter ones too"
    return cost


def take_in(then: Judgement, config: Config, *, serves: bool) -> str:
    """Have lighttpd take in what has landed, and see that it `serves` the application, or doesn't any more.

    Returns a remark, if there is something to remark. Raises Refused where lighttpd doesn't run after it.
    """
    if not runs():
        return "lighttpd doesn't run, so nothing was reloaded: systemctl start lighttpd"
    _systemctl("restart" if then.restart else "reload")
    deadline = time.monotonic() + (_grace(then.printed) or 0) + SEEN_WITHIN
    while not _is(config, serves):
        if time.monotonic() > deadline:
            if not runs():
                raise Refused(
                    "lighttpd did not survive it: see journalctl -u lighttpd",
                    state="its configuration is what it was before",
                    next="mend what it says there, then fab setup again",
                )
            return (
                "lighttpd was told to take in its new configuration, but was not seen to serve by it at"
                f" {config.url.rstrip('/')}{config.statistics_path}: see fab doctor"
            )
        time.sleep(0.1)
    return ""


def runs() -> bool:
    """Whether systemd has lighttpd running, or about to."""
    return ask("systemctl", "is-active", "lighttpd").stdout.strip() in ("active", "activating", "reloading")


def restart() -> None:
    """Whatever became of it before."""
    with contextlib.suppress(OSError):
        ask("systemctl", "reset-failed", "lighttpd")
        _systemctl("restart")


def _is(config: Config, serves: bool) -> bool:
    """Whether every worker tells of a backend of the application in its statistics, or none does."""
    label = f"gw.backend.{config.application}.".encode()

    def right(answer: web.Answer) -> bool:
        return (answer.status == 200 and label in answer.body) == serves

    with contextlib.suppress(OSError, Failure):
        bypass = maintenance.bypass_headers(config) if serves else {}
        web.prove(config, right, path=config.statistics_path, headers=bypass, timeout=1)
        return True
    return False


def _systemctl(verb: str) -> None:
    done = ask("systemctl", verb, "lighttpd")
    if done.returncode != 0:
        raise OSError(f"systemctl {verb} lighttpd failed: {done.stderr.strip()}")


def _grace(printed: str) -> int:
    """Seconds that requests in flight are given; 0 for no end."""
    found = re.search(r'"server.graceful-shutdown-timeout" => "?(\d+)', printed)
    return int(found[1]) if found else DEFAULT_GRACE


# -- asking ------------------------------------------------------------------------------------------


def sweep() -> None:
    """Take away the copies of set-ups that were killed. That of one at work is locked."""
    for place in RUN.glob(f"{COPY}*/lighttpd"):
        with contextlib.suppress(Failure, OSError), exclusive(place.parent, wait=0):
            shutil.rmtree(place.parent)


@contextlib.contextmanager
def _changed_copy(directory: Path, wanted: Wanted) -> Iterator[Path]:
    """A copy of lighttpd's directory with the changes, in which it finds itself and not the original."""
    place = Path(tempfile.mkdtemp(prefix=COPY, dir=RUN if os.geteuid() == 0 else None))
    with exclusive(place, wait=0):
        try:
            copy = place / "lighttpd"
            copied = ask("cp", "-a", "--", directory, copy)
            if copied.returncode != 0:
                raise OSError(f"{directory} can't be copied: {copied.stderr.strip()}")
            # For its own account to read what it could read there; nobody else learns the name.
            place.chmod(0o711)
            for path, content in wanted.items():
                _put(copy / path.relative_to(directory), content)
            here, there = re.escape(os.fsencode(directory)), bytes(copy)
            for file in [*copy.rglob("*.conf")]:
                if not file.is_symlink() and file.is_file():
                    text = file.read_bytes()
                    file.write_bytes(re.sub(rb'"%s(?=["/])' % here, b'"%s' % there, text))
            yield copy
        finally:
            shutil.rmtree(place)  # under its lock: two set-ups at once don't sweep each other's


def _put(path: Path, content: bytes | str | None) -> None:
    if path.is_symlink() or content is None:
        path.unlink(missing_ok=True)
    if content is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        path.unlink(missing_ok=True)
        path.symlink_to(content)
    else:
        path.write_bytes(content)


def _judge(file: Path, real: Path) -> Judgement:
    """Ask about `file`; what lighttpd says is told as if it were in the directory `real`."""

    def told(text: str) -> str:
        return text.replace(str(file.parent), str(real)).strip()

    tested = _lighttpd("-tt", file)
    said = told(_without_times(tested.stdout + tested.stderr))
    if tested.returncode != 0:
        return Judgement(False, said, "")
    printed = told(_lighttpd("-p", file).stdout)
    # Where and by which process it was read says nothing of what it does.
    printed = re.sub(r"(?m)^\s*var\.(PID|CWD)\s*=.*\n", "", printed)
    return Judgement(True, said, printed, _why_restart(file, printed, told))


def _why_restart(file: Path, printed: str, told: Callable[[str], str]) -> str:
    """A reload reads the configuration as lighttpd's own account, and inside of a chroot it ends lighttpd."""
    if os.geteuid() != 0:
        return ""
    if re.search(r"(?m)^\s*server\.chroot\s*=", printed):
        return "server.chroot is set"
    named = re.search(r'(?m)^\s*server\.username\s*=\s*"([^"]+)"', printed)
    try:
        account = named and pwd.getpwnam(named[1])
    except KeyError:
        return ""  # lighttpd itself has more to say to that
    if not account:
        return ""
    tested = _lighttpd("-tt", file, user=account.pw_name)
    if tested.returncode == 0:
        return ""
    said = told(_without_times(tested.stdout + tested.stderr)).splitlines() or ["it says nothing"]
    return f"{account.pw_name} can't read it: {said[0]}"


def _lighttpd(option: str, file: Path, user: str | None = None) -> subprocess.CompletedProcess[str]:
    return ask(
        "lighttpd",
        option,
        "-f",
        str(file),
        # As systemd starts it: a shell that it runs reads no start-up file of whoever logged in.
        env={"PATH": os.environ.get("PATH", os.defpath)},
        stdin=subprocess.DEVNULL,
        cwd="/",
        preexec_fn=drop_to(user) if user else None,
    )


def _without_times(said: str) -> str:
    """lighttpd's messages without their beginning: 2026-01-01 10:00:00: (configfile.c.1)."""
    return re.sub(r"(?m)^[\d-]+ [\d:]+: \([\w.]+\) ", "", said)
