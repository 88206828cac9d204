"""Set-up of a whole fleet: every host says what would change before any host is changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deploytools.commands import Answer, Command
from deploytools.engine import run
from deploytools.errors import (
    DeployError,
    InMaintenance,
    Interrupted,
    LockHeld,
    OperationFailed,
    Unfinished,
    Unreachable,
    UsageError,
)
from deploytools.fleet import Failed, Fleet, Lost, Ok, Outcome
from deploytools.remote import Remote
from deploytools.settings import Settings
from deploytools.setup.command import Action, Work, packages_command, setup_command
from deploytools.ssh import options

_KINDS: Mapping[int, type[DeployError]] = {
    kind.exit_code: kind for kind in (UsageError, InMaintenance, LockHeld, Unreachable, Unfinished)
}


@dataclass(frozen=True)
class Trouble:
    """Why a host wasn't set up: what, the state that leaves, what to type next; an exit code of ours."""

    what: str
    state: str
    next: str
    exit_code: int


class PackagesMissing(OperationFailed):
    """Debian packages are missing; `by_host` says which, where it is not all there."""

    def __init__(self, by_host: Mapping[str, tuple[str, ...]]) -> None:
        self.by_host = by_host
        every = " ".join(dict.fromkeys(name for names in by_host.values() for name in names))
        super().__init__(
            f"Debian packages are missing on {len(by_host)} host{'s' * (len(by_host) > 1)}",
            state="nothing was changed",
            next=f"apt-get install {every} (as root, there); or let it be done: fab setup --install-packages",
            details=[f"{host}: {' '.join(names)}" for host, names in by_host.items()],
        )


def plan(settings: Settings, fleet: Fleet, action: Action, *, purge: bool = False) -> dict[str, Work]:
    """Ask every host what would change there; changes nothing.

    Raises PackagesMissing, or the error of its exit code where a host refuses. The lock host is asked about
    a removal too where -H leaves it out, because it is the one that knows who deploys.
    """
    hosts = [str(host) for host in settings.hosts]
    asked = [*hosts, *({str(settings.lock_host)} - set(hosts))] if action == "remove" else hosts
    works = _each(settings, fleet, action, asked, plan_only=True, purge=purge)
    return {host: works[host] for host in hosts}


def carry_out(settings: Settings, fleet: Fleet, action: Action, *, purge: bool = False) -> dict[str, Work]:
    """Do it on every host, and return what was done. Raises as `plan` does, or Interrupted."""
    hosts = [str(host) for host in settings.hosts]
    return _each(settings, fleet, action, hosts, plan_only=False, purge=purge)


def set_up(settings: Settings, fleet: Fleet) -> dict[str, Work]:
    """Put the host side in place everywhere. Raises as `carry_out` does."""
    return carry_out(settings, fleet, "install")


def install_packages(fleet: Fleet, missing: Mapping[str, tuple[str, ...]]) -> None:
    """Have Debian's packages installed. Raises OperationFailed with what apt-get said."""
    outcomes = fleet.map(
        lambda remote: run(remote, packages_command(missing[remote.name])), hosts=list(missing)
    )
    troubles = {
        host: found for host, found in _troubles(outcomes, "fab setup", plan_only=False).items() if found
    }
    if troubles:
        raise _failed("apt-get", troubles, [host for host in missing if host not in troubles])


def _each(
    settings: Settings, fleet: Fleet, action: Action, hosts: Sequence[str], *, plan_only: bool, purge: bool
) -> dict[str, Work]:
    users = _deploy_users(settings)

    def work(remote: Remote) -> Answer:
        user = users.get(remote.name) or next(iter(users.values()))
        return run(remote, _command(settings, user, action, plan_only, purge))

    try:
        outcomes = fleet.map(work, hosts=hosts)
    except KeyboardInterrupt:
        raise Interrupted(
            "interrupted",
            state="nothing was changed" if plan_only else "what has begun on a host goes on to its end there",
            next=_again(action),
        ) from None
    missing = {
        host: tuple(outcome.value.mark.value["missing"].split())
        for host, outcome in outcomes.items()
        if isinstance(outcome, Ok) and outcome.value.mark.value.get("missing")
    }
    troubles = _troubles(outcomes, _again(action), plan_only=plan_only)
    if missing and set(missing) == set(troubles):
        raise PackagesMissing(missing)
    if troubles:
        done = [] if plan_only else [host for host in hosts if host not in troubles]
        raise _failed(_again(action), troubles, done)
    return {
        host: Work(outcome.value.mark.value["changes"], outcome.value.mark.value["notes"])
        for host, outcome in outcomes.items()
        if isinstance(outcome, Ok)
    }


def _deploy_users(settings: Settings) -> dict[str, str]:
    """The deploy user by host, as ssh would log in there. Raises UsageError where ssh can't be asked."""
    return {
        str(host): options.resolve(host.host, host.user, host.port, config=settings.ssh_config).user
        for host in settings.hosts
    }


def _command(settings: Settings, user: str, action: Action, plan_only: bool, purge: bool) -> Command:
    return setup_command(settings, user, action, plan_only=plan_only, purge=purge)


def _again(action: Action) -> str:
    return "fab setup" if action == "install" else "fab setup --remove"


def _troubles(outcomes: Mapping[str, Outcome[Answer]], again: str, *, plan_only: bool) -> dict[str, Trouble]:
    found = {host: _trouble(outcome, again, plan_only) for host, outcome in outcomes.items()}
    return {host: trouble for host, trouble in found.items() if trouble}


def _trouble(outcome: Outcome[Answer], again: str, plan_only: bool) -> Trouble | None:
    """Why a host didn't do it; None where it did."""
    if isinstance(outcome, Ok):
        error, code = outcome.value.error, outcome.value.exit_code
        if not error:
            return None
        what = error.get("what", "it failed")
        if "sudo:" in what:
            said = what.rpartition("sudo:")[2].strip()
            return Trouble(
                f"set-up needs root there, but sudo says: {said}",
                "nothing was changed",
                f"{again} --as-user root, or log in as one whom sudo asks for no password",
                OperationFailed.exit_code,
            )
        return Trouble(what, error.get("state", ""), error.get("next", ""), code)
    state = "nothing was changed"
    if not plan_only and isinstance(outcome, Failed | Lost):
        state = "not known; what has begun there goes on to its end"
    error_ = outcome.error
    told = (
        error_ if isinstance(error_, DeployError) else OperationFailed(str(error_), state=state, next=again)
    )
    return Trouble(told.what, state, told.next or "", told.exit_code)


def _failed(again: str, troubles: Mapping[str, Trouble], done: Sequence[str]) -> DeployError:
    """One error for all of them, of the kind of the worst one that they have in common."""
    codes = {trouble.exit_code for trouble in troubles.values()}
    kind = _KINDS.get(max(codes), OperationFailed) if len(codes) == 1 else OperationFailed
    details = []
    for host, trouble in troubles.items():
        details.append(f"{host}: {trouble.what}")
        more = {"state": trouble.state, "next": trouble.next}
        details += [f"  {word}: {text}" for word, text in more.items() if text]
    return kind(
        f"{again} failed on {len(troubles)} of {len(troubles) + len(done)} hosts",
        state=f"done on {', '.join(done)}" if done else "as said above, host by host",
        next=next((trouble.next for trouble in troubles.values() if trouble.next), again),
        details=details,
    )
