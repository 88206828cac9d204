"""log/app.log: what the generations print, and the lines of it that explain a failure."""

from __future__ import annotations

import os
import pwd

from hostlib.program import Config

LINES = 20
TAIL = 16384  # bytes


class NewLines:
    """What is written to the log from now on; other generations may have a part in it."""

    def __init__(self, config: Config) -> None:
        self.path = config.log / "app.log"
        self._began = self._size()

    def last(self) -> list[str]:
        """At most the last 20 lines."""
        if self._size() <= self._began:
            return []
        with self.path.open("rb") as file:
            file.seek(max(self._began, self._size() - TAIL))
            return file.read().decode(errors="replace").splitlines()[-LINES:]

    def _size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0


def opened(config: Config, account: pwd.struct_passwd) -> int:
    """A descriptor to append to the log by; the caller closes it.

    The log is owned by the application, which may want to open /dev/stderr anew, and for the group of
    log/ to read: that is the deploy user's.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
    descriptor = os.open(config.log / "app.log", flags, 0o640)
    if os.geteuid() == 0:
        os.fchown(descriptor, account.pw_uid, config.log.stat().st_gid)
    return descriptor
