"""What visitors were answered, as lighttpd's access log tells it: how many answers, how many of them 5xx.

lighttpd has no counters of statuses, so without an access log of the usual form nobody can tell. It writes
the log every four seconds, so the last of these may be missing.
"""

from __future__ import annotations

import calendar
import errno
import os
import re
import stat
from pathlib import Path
from typing import BinaryIO, NamedTuple

from hostlib.program import Config, Failure
from hostlib.webserver import lighttpd

LARGEST = 8 << 20  # bytes of the log that are looked at for the time before, and in one look later
LAG = 6.0  # seconds after which an answer is in the log, at the latest
LINE = re.compile(  # client, site (or a dash), user, [when], "request", status; what follows is free
    rb"\S+ (\S+) \S+ \[(\d\d)/(\w{3})/(\d{4}):(\d\d):(\d\d):(\d\d) ([+-])(\d\d)(\d\d)\] "
    rb'"(?:[^"\\]|\\.)*" (\d{3}) '
)
MONTHS = (b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec")


class Answers(NamedTuple):
    """How many answers there were, and how many of them 5xx."""

    total: int = 0
    bad: int = 0

    @property
    def share(self) -> float:
        return self.bad / self.total if self.total else 0.0

    def __str__(self) -> str:
        return f"{self.bad} of {self.total} answers" if self.bad else f"none of {self.total} answers"


def place(configuration: lighttpd.Configuration, config: Config) -> Path | str:
    """The site's access log; where there is none that can be read, why, in words."""
    facts = lighttpd.own_request(config)
    if configuration.effective("accesslog.use-syslog", facts) == "enable":
        return "lighttpd gives its access log to syslog"
    name = configuration.effective("accesslog.filename", facts)
    if not name:
        return "lighttpd has no access log"
    if str(name).startswith("|"):
        return f"lighttpd gives its access log to a program: {name}"
    form = configuration.effective("accesslog.format", facts)
    if form and not _usual(str(form)):
        return f"accesslog.format is not the usual one: {form}"
    return Path(str(name))


class AccessLog:
    """An access log from where it ends when this is made.

    Where several sites write to it, and it tells their names, only the answers of ours count.
    """

    def __init__(self, path: Path, config: Config) -> None:
        self._path = path
        names = (config.host_header, *config.aliases) if config.host_header else ()
        self._names = {name.encode() for name in names if name}
        self._file = _opened(path)
        self._end = self._file.seek(0, os.SEEK_END)
        self._rest = b""

    @classmethod
    def of(cls, config: Config) -> AccessLog:
        """The site's. Raises Failure, with the reason in words, where there is none."""
        program = lighttpd.program()
        if program is None:
            raise Failure("lighttpd is not there to be asked for its access log")
        path = place(lighttpd.read(program, config.lighttpd_config), config)
        if isinstance(path, str):
            raise Failure(path)
        try:
            return cls(path, config)
        except OSError as error:
            raise Failure(f"{path} can't be read: {error.strerror}") from error

    def before(self, since: float, until: float) -> Answers:
        """The answers from `since` to `until`, in seconds since the epoch, that were in it then."""
        start = max(0, self._end - LARGEST)
        self._file.seek(start)
        lines = self._file.read(self._end - start).split(b"\n")
        return self._counted(lines[1 if start else 0 :], since, until)

    def after(self, since: float) -> Answers:
        """The answers from `since` on that were written since the last call. A rotated log is followed."""
        self._file.seek(self._end)
        more = self._file.read(LARGEST)
        data = self._rest + more
        self._end = self._file.tell()
        try:
            now = os.stat(self._path)
            another = now.st_ino != os.fstat(self._file.fileno()).st_ino or now.st_size < self._end
            if another and len(more) < LARGEST:  # else there may be more of the old one
                self._file.close()
                self._file = _opened(self._path)
                data += self._file.read(LARGEST)
                self._end = self._file.tell()
        except FileNotFoundError:
            pass  # between the two steps of a rotation
        *lines, rest = data.split(b"\n")
        self._rest = rest if len(rest) < LARGEST else b""  # no line is that long
        return self._counted(lines, since, float("inf"))

    def close(self) -> None:
        self._file.close()

    def _counted(self, lines: list[bytes], since: float, until: float) -> Answers:
        total = bad = 0
        for line in lines:
            found = LINE.match(line)
            if found is None or not since <= _when(found) < until:
                continue
            site = found[1].partition(b":")[0]
            if self._names and site != b"-" and site not in self._names:
                continue
            total += 1
            bad += found[11].startswith(b"5")
        return Answers(total, bad)


def _opened(path: Path) -> BinaryIO:
    """Root reads it, and the web server's account can put something else there: a pipe without an end, say.

    Raises OSError where it is no file.
    """
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise OSError(errno.EINVAL, "it is no file", str(path))


def _usual(form: str) -> bool:
    """Whether lines of this format are told apart by LINE: lighttpd's own, "common" and "combined"."""
    return re.match(r'%h %[Vvl] %u %t "%r" %>?s ', f"{form} ") is not None


def _when(found: re.Match[bytes]) -> float:
    _, day, month, year, hour, minute, second, sign, hours, minutes, _ = found.groups()
    number = MONTHS.index(month) + 1 if month in MONTHS else 1
    told = (int(year), number, int(day), int(hour), int(minute), int(second), 0, 0, 0)
    ahead = int(hours) * 3600 + int(minutes) * 60
    return calendar.timegm(told) - (ahead if sign == b"+" else -ahead)
