"""Every way in which an operation can end badly: one tree, one exit code each.

An error says what went wrong, where, what state that leaves, and what to type next.
Each exit code has an entry in docs/runbook.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

# What each exit code means; docs/reference.md has this table, and host programs use the same codes.
EXIT_CODES = {
    0: "done",
    1: "a bug in the toolkit",
    2: "usage or configuration; nothing was touched",
    3: "failed; the site is up on what it ran before, on every host",
    4: "the run holds and needs the operator: the site, or a part of it, is in maintenance,"
    " but for a deploy without a window; or it was undone, and a host isn't as it was",
    5: "somebody else holds the lock, or has put on the maintenance that you would lift",
    6: "a host could not be reached; nothing was changed, or it was undone on all the others",
    7: "the new version serves everywhere, but something is left over that could not be finished",
    130: "interrupted; can be resumed",
    141: "whoever read the output has gone, as in `fab history | head`",
}


class DeployError(Exception):
    """Base of all errors that a person is meant to read.

    Args:
        what: what went wrong, one sentence without a full stop.
        where: a host, a file or a dotted settings path; one of several lines at most.
        state: what the site and the hosts are left in.
        next: the command to type next, or what to mend first.
        details: further lines, for instance one per host.

    Attributes:
        run: the run that ended so, as `fab history --json` has it; None where none had begun.
    """

    exit_code: ClassVar[int] = 3
    # What holds for a whole class, where an error doesn't say it better.
    usual_state: ClassVar[str | None] = None
    usual_next: ClassVar[str | None] = None

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        state: str | None = None,
        next: str | None = None,
        details: Sequence[str] = (),
    ) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.state = state or self.usual_state
        self.next = next or self.usual_next
        self.details = tuple(details)
        self.run: Mapping[str, Any] | None = None


class UsageError(DeployError):
    """Bad input: an argument, a setting, a missing tool on the laptop. Nothing was touched."""

    exit_code = 2
    usual_state = "nothing was changed"
    usual_next = "mend that, then run the same command again"


class SettingsError(UsageError):
    """fabric.yaml or a FABRIC_DEPLOY_* variable is wrong; `details` has a line per problem."""


class OperationFailed(DeployError):
    """It failed, and the site is up on what it ran before."""

    exit_code = 3


class NeedsWindow(OperationFailed):
    """What is pending can't be migrated while the site is up; nothing was changed."""


class InMaintenance(DeployError):
    """The site (or a part of it) is still in maintenance and needs the operator."""

    exit_code = 4


class LockHeld(DeployError):
    """Somebody else is deploying."""

    exit_code = 5


class Unreachable(DeployError):
    """A host could not be reached; nothing was changed."""

    exit_code = 6
    usual_state = "nothing was changed"


class HostKeyRejected(Unreachable):
    """The host's key is unknown or has changed; nothing was sent to it."""


class Unfinished(DeployError):
    """The new version serves everywhere, but something is left over that could not be finished.

    For instance an old generation that still has a request in it past the drain deadline.
    """

    exit_code = 7


class Interrupted(DeployError):
    """Stopped by the operator at a point from which it can be resumed."""

    exit_code = 130
