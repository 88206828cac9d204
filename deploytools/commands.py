"""Step -> argv: the only place that spells remote commands; and what their answers mean. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deploytools import __version__
from deploytools.plan import Plan, Step
from deploytools.saga import Mark, Progress, State, down_before
from deploytools.settings import Settings

# What we wait beyond a host program's own time-out before we call its outcome unknown.
SLACK = 30.0
# What `migrate arm`, `disarm` and `outcome --renounce` may take (seconds): they wait for each other (WAIT in
# hostlib.migrating.migration_runs), and for a database that gives no answer.
RUNNER = 360.0
# A migration may take as long as it takes; this only bounds one following of its log.
FOLLOW = 24 * 3600.0
# The steps whose programs are started before their turn: of the switch alone, of a rollback, for which there
# is haste, and of a window, in which visitors wait from the first of them to the last.
SWITCH = ("lock", "maintenance-on", "maintenance-off", "unlock")
ROLLBACK = ("lock", "swap", "unlock")
WINDOW = ("maintenance-on", "drain", "migrate", "swap", "verify", "maintenance-off")
# What argparse says of options and sub-commands that a program of another version doesn't know, or misses.
_UNKNOWN_WORDS = re.compile(
    "(?<=: error: ).*(?:(?:unrecognized arguments|invalid choice|the following arguments are required): .*"
    "|expected (?:one|at least one) argument)"
)
# What begins the command of a hook of the operator's own.
HOOK = "env"
# Every account of a host can read a command line, and there may be a password in a hook.
FROM_STDIN = 'eval "$(cat)"'
# The program could do that itself, but would be started twice for it.
AS_ROOT = 'if [ "$(id -u)" = 0 ] || ! [ -x "$1" ]; then exec "$@"; else exec sudo -n "$@"; fi'


@dataclass(frozen=True)
class Command:
    """One command on a host.

    Args:
        argv: program and arguments; whoever sends it quotes each of them.
        stdin: what the command reads, if anything.
        timeout: seconds after which we stop waiting for it. The command itself is not ended by that.
        repeatable: True where running it again under the same run id is asking, so that it may be
            sent again while the first one still runs. The operator's own hooks promise no such thing.
        ahead: what starts the command before its turn: it does nothing until it is told to on its standard
            input, and never does where that ends first. None where it has no such way.
    """

    argv: tuple[str, ...]
    stdin: bytes | None = None
    timeout: float = 60.0
    repeatable: bool = True
    ahead: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Ship:
    """The release itself, given to the host program that takes it in."""

    command: Command


@dataclass(frozen=True)
class Answer:
    """What a host program said.

    Args:
        mark: ok or failed, with the program's JSON as value.
        error: what, where, state, next; empty where it went well.
        exit_code: the program's own, with the meaning of docs/reference.md.
        by_code: True where only the exit code says that nothing was changed. That is said of this one
            call: where an earlier call for the same step may have happened, it says nothing of the step.
    """

    mark: Mark
    error: Mapping[str, str]
    exit_code: int
    by_code: bool = False


def program(settings: Settings, name: str, *arguments: str) -> tuple[str, ...]:
    """The argv of a host program that answers in JSON."""
    return (f"{settings.tools_dir}/{name}", *arguments, "--json")


def switch(settings: Settings, name: str, *arguments: str) -> tuple[str, ...]:
    """The argv of the maintenance switch, `up` or `down`."""
    return (f"{settings.webserver.maintenance_dir}/{name}", *arguments, "--json")


def expectation(settings: Settings, *, app: bool, migrates: bool) -> dict[str, Any]:
    """What `doctor --expected` compares a host with.

    With `app` also how the application will be started, where otherwise the current release's way counts;
    of its environment only what decides how that goes, because the rest may be secret. `migrates` is for
    the host where migrations run: there the database has to answer.
    """
    told: dict[str, Any] = {
        "version": __version__,
        "migrates": migrates,
        "bake": settings.rolling.bake,
        "shared": list(settings.shared),
    }
    if app:
        public = {name: value for name, value in settings.app.env.items() if name.startswith(("PATH", "PHP"))}
        told["app"] = {
            "command": settings.app.command,
            "listen": settings.app.listen,
            "manager": settings.app.manager,
            "env": public,
        }
    return told


def do(  # noqa: PLR0911, PLR0912 - one case per step is the table itself
    plan: Plan, step: Step, progress: Progress, settings: Settings, host: str | None = None
) -> list[Command | Ship]:
    """Given a step of a plan, return what carries it out on a host: on `host`, where that matters."""
    match step.name:
        case "compare":
            return [Command(program(settings, "status", *_as_planned(plan, host)))]
        case "lock":
            return [_can_wait(_acquire(plan, settings))]
        case "preflight":
            told = expectation(settings, app=plan.operation == "deploy", migrates=False)
            told.update(deploying=plan.operation == "deploy", quick=True)
            return [Command(program(settings, "doctor", "--expected"), stdin=json.dumps(told).encode())]
        case "stage":
            return _stage(plan, settings)
        case "check-migrations":
            expect = ("known" if plan.window else "online") if plan.has("migrate") else "current"
            check = program(settings, "migrate", "check", "--release", _release(plan), "--expect", expect)
            return [Command(check, timeout=120)]
        case "same-database":
            looked = progress.value("check-migrations", plan.lock_host)
            same_as = f"--same-as={','.join(looked.get('current', ()))}"
            which = _options(database=looked.get("database"))
            check = program(settings, "migrate", "check", "--release", _release(plan), same_as, *which)
            return [Command(check, timeout=120)]
        case "arm":
            return [Command(_migrate("arm", plan, progress, settings), timeout=RUNNER)]
        case "maintenance-on":
            options = _options(
                reason=plan.reason,
                until=plan.until,
                by=plan.by,
                run_id=plan.run_id if plan.window else None,
                force=plan.force,
            )
            count = ["--count"] if plan.has("drain") else []
            return [_can_wait(switch(settings, "down", *options, *count), as_root=settings.privileged)]
        case "quiesce":
            return _hook(plan, settings.hooks.quiesce)
        case "drain":
            wait = settings.app.drain_timeout
            drain = program(settings, "drain", "--timeout", str(wait))
            return [_can_wait(drain, as_root=settings.privileged, timeout=wait + SLACK)]
        case "backup":
            return _backup(plan, settings)
        case "migrate":
            online = () if plan.window else ("--online",)
            if online and progress.value("check-migrations", plan.lock_host).get("state") == "current":
                return []
            migrate = _migrate("run", plan, progress, settings, *online)
            return [_can_wait(migrate, as_root=settings.privileged, timeout=FOLLOW)]
        case "swap":
            options = _options(release=plan.release, run_id=plan.run_id)
            leave = ["--leave"] if plan.has("retire") else []
            bake = goes_on_for(plan, step, settings)
            watched = [f"--bake={bake:g}"] if bake else []
            swap = program(settings, "swap", *options, *leave, *watched)
            return [_can_wait(swap, as_root=settings.privileged, timeout=_swap_timeout(settings) + bake)]
        case "swap-back":
            options = _options(run_id=plan.run_id)
            back = program(settings, "swap", "--back", *options)
            return [Command(back, timeout=_swap_timeout(settings))]
        case "verify":
            options = _options(schema=_revision(plan, progress, host))
            verify = program(settings, "verify", "--release", _release(plan), *options)
            return [_can_wait(verify, as_root=settings.privileged, timeout=120)]
        case "maintenance-off":
            whose = {"run_id": plan.run_id} if plan.window else {"force": plan.force}
            options = _options(by=plan.by, **whose)
            return [_can_wait(switch(settings, "up", *options), as_root=settings.privileged)]
        case "retire":
            return [Command(program(settings, "swap", "--reap"), timeout=_swap_timeout(settings))]
        case "resume-workers":
            return _hook(plan, settings.hooks.resume)
        case "prune":
            keep = ("--keep", str(settings.keep_releases), *_options(deployed=plan.release))
            return [Command(program(settings, "release", "prune", *keep), timeout=600)]
        case "unlock":
            return [_can_wait(program(settings, "lock", "release", "--run-id", plan.run_id))]
    raise ValueError(step.name)


def known(step: Step, progress: Progress, host: str) -> Answer | None:
    """Given a step, return its answer for a host where that needs no question any more; None elsewhere.

    Where nothing was in flight when maintenance was proved, nothing has come in since.
    """
    if step.name == "drain" and progress.value("maintenance-on", host).get("in_flight") == 0:
        said = "nothing was in flight when maintenance was proved"
        return Answer(Mark(State.OK, {"in_flight": 0, "took": 0.0, "message": said}), {}, 0)
    return None


def ahead(plan: Plan, host: str, settings: Settings, progress: Progress | None = None) -> list[Command]:
    """Given how far a plan has come, return the programs on `host` to be started before their turn.

    The switch comes first; while it waits, it tells where the host stands.
    """
    progress = progress or Progress()
    names = WINDOW if plan.window else ROLLBACK if plan.operation == "rollback" else SWITCH
    steps = [step for step in plan.steps if step.name in names and host in plan.hosts_of(step)]
    left = [step for step in steps if not progress.done(step, host)]
    left.sort(key=lambda step: not step.name.startswith("maintenance"))
    found = [item for step in left for item in do(plan, step, progress, settings, host)]
    if host == plan.lock_host:
        found.append(journal(plan, settings, [], 0)[0])
    return [item for item in found if isinstance(item, Command) and item.ahead]


def goes_on_for(plan: Plan, step: Step, settings: Settings) -> float:
    """For how long a step's program is meant to go on, in seconds, and so stands in its next call's way."""
    watches = step.name == "swap" and plan.operation == "deploy" and not plan.window
    return settings.rolling.bake if watches else 0.0


def in_window(plan: Plan, step: Step) -> bool:
    """Whether visitors wait in this step, so that everything should be ready when it begins."""
    return plan.window and step.name in WINDOW


def greeting(line: bytes | None) -> dict[str, Any] | None:
    """Given what a switch says while it waits, return where its host stands; None for anything else."""
    try:
        told = json.loads(line or b"")
        return told if told["waiting"] else None
    except (ValueError, KeyError, TypeError):
        return None


def undo(  # noqa: PLR0911 - as in `do`
    plan: Plan, step: Step, progress: Progress, host: str, settings: Settings
) -> list[Command | Ship]:
    """Given a step that was attempted on `host`, return what compensates it; nothing where nothing has to."""
    # As the swap told: the plan is older than the lock, and another run may have come in between.
    previous = progress.value("swap", host).get("previous_release") or plan.previous(host)
    if step.name == "maintenance-on" and host in down_before(plan, progress):
        return []  # a host that was down stays down
    match step.name:
        case "lock":
            return [Command(program(settings, "lock", "release", "--run-id", plan.run_id))]
        case "stage":
            return [Command(program(settings, "release", "discard", _release(plan), "--failed"))]
        case "arm":
            return [Command(program(settings, "migrate", "disarm", plan.run_id), timeout=RUNNER)]
        case "maintenance-on":
            options = _options(by=plan.by, run_id=plan.run_id if plan.window else None)
            return [_can_wait(switch(settings, "up", *options), as_root=settings.privileged)]
        case "quiesce":
            return _hook(plan, settings.hooks.resume)
        case "migrate":
            return [Command(program(settings, "migrate", "back", plan.run_id), timeout=FOLLOW)]
        case "swap":
            # A run id of its own, or the swap would take itself for the one it undoes.
            options = _options(release=previous, run_id=f"{plan.run_id}-back") if previous else ["--off"]
            return [Command(program(settings, "swap", *options), timeout=_swap_timeout(settings))]
    raise ValueError(step.name)


def journal(
    plan: Plan,
    settings: Settings,
    lines: Sequence[str],
    expect: int,
    phase: str = "",
    *,
    locked: bool = False,
) -> tuple[Command, bytes]:
    """The program that keeps the journal of a run, and the line that makes it add `lines` after `expect`.

    The line is a sign of life, too, and says in which `phase` the run is. With `locked` it is refused
    where the run has its lock no more.
    """
    told = {"expect": expect, "lines": list(lines), "phase": phase, "locked": locked}
    words = json.dumps(told).encode()
    follow = program(settings, "journal", "follow", plan.run_id)
    return Command(follow, timeout=30, ahead=follow), words


@dataclass(frozen=True)
class Refusal:
    """Why the journal was not written; `superseded` where that isn't ours to do any more.

    Another laptop has written there meanwhile, or somebody has freed the run's lock.
    """

    what: str
    superseded: bool = False


def refusal(answer: bytes) -> Refusal | None:
    """Given the answer to such a line, return why the journal was not written; None where it was."""
    try:
        told = json.loads(answer)
        return None if told["ok"] else Refusal(str(told["error"]["what"]), "count" in told or "freed" in told)
    except (ValueError, KeyError, TypeError):
        return Refusal(answer.decode(errors="replace")[-500:] or "no answer")


def renounce(plan: Plan, settings: Settings) -> Command:
    """What asks how the migration of a run ended and, where it never began, sees to it that it never will."""
    return Command(program(settings, "migrate", "outcome", plan.run_id, "--renounce"), timeout=RUNNER)


def read(argv: tuple[str, ...], exit_code: int, stdout: str, stderr: str) -> Answer:
    """Given how a host program ended and what it printed, return what that means.

    Exit codes 2, 3, 5 and 6 promise that the host is as it was before this call, unless the answer's
    "unchanged", which speaks of the whole step, says otherwise; 7 is done with a rest.
    """
    if argv[0] == HOOK:
        return _of_hook(exit_code, stdout, stderr)
    name = argv[0].rsplit("/", 1)[-1]
    try:
        value = json.loads(stdout.strip().rsplit("\n", 1)[-1])
        if not isinstance(value, dict) or value.get("waiting"):  # it died while it waited, or right after
            raise ValueError
    except ValueError:
        if exit_code == 0 and "/" not in argv[0]:  # none of ours: set-up has apt-get run by sh
            return Answer(Mark(State.OK, {"output": stdout[-2000:]}), {}, 0)
        if exit_code == 2 and (unknown := _UNKNOWN_WORDS.search(stderr)):
            return Answer(Mark(State.FAILED, {"unchanged": True}), _older(name, unknown[0]), 2, by_code=True)
        return Answer(Mark(State.FAILED), _no_answer(name, exit_code, stdout + stderr), exit_code)
    value.pop("exit_code", None)
    error = value.pop("error", {})
    if value.get("applied") == []:  # a migration that found nothing to do
        value["unchanged"] = True
    if exit_code == 0 or (exit_code == 7 and name != "migrate"):
        return Answer(Mark(State.OK, value), error, exit_code)
    by_code = name != "migrate" and exit_code in (2, 3, 5, 6) and "unchanged" not in value
    if by_code:
        value["unchanged"] = True
    return Answer(Mark(State.FAILED, value), error, exit_code, by_code)


def _of_hook(exit_code: int, stdout: str, stderr: str) -> Answer:
    """A hook promises nothing by what it prints, or by which code it fails with."""
    if exit_code == 0:
        return Answer(Mark(State.OK, {"output": stdout[-2000:]}), {}, 0)
    last = (stdout + stderr).strip()[-2000:] or "it printed nothing"
    what, next = f"the hook ended with exit code {exit_code}: {last}", "mend it: deploy.hooks in fabric.yaml"
    return Answer(Mark(State.FAILED), {"what": what, "next": next}, 3)


def _older(name: str, said: str) -> dict[str, str]:
    return {
        "what": f"{name} on the host is not of deploytools {__version__}, as this computer is: {said}",
        "state": "nothing was changed",
        "next": "fab setup",
    }


def _no_answer(name: str, exit_code: int, output: str) -> dict[str, str]:
    last = output.strip()[-2000:] or "it printed nothing"
    if exit_code == 127 and re.search(rf"\b{name}: (No such file or directory|not found)$", last):
        return {
            "what": f"{name} is not installed: the host is not set up",
            "next": "fab setup --as-user root",
        }
    if exit_code in (126, 127):
        return {"what": f"{name} can't be run: {last}", "next": "fab setup"}
    if "sudo:" in output:
        return {"what": f"{name} may not use sudo: {last}", "next": "fab setup"}
    return {"what": f"{name} ended with exit code {exit_code}: {last}", "next": "fab status"}


def _can_wait(argv: tuple[str, ...], *, as_root: bool = False, timeout: float = Command.timeout) -> Command:
    """A command for a host program that has --when-told. It goes on as root before it waits."""
    waiting = (*argv, "--when-told")
    ahead = ("sh", "-c", AS_ROOT, "sh", *waiting) if as_root else waiting
    return Command(argv, timeout=timeout, ahead=ahead)


def _acquire(plan: Plan, settings: Settings) -> tuple[str, ...]:
    options = _options(
        run_id=plan.run_id,
        by=plan.by,
        laptop=plan.laptop,
        operation=plan.operation,
        release=plan.release,
        reason=plan.reason,
    )
    more = ["--or-go-on"] if plan.repeatable else []
    return program(settings, "lock", "acquire", *options, "--journal", *more)


def _as_planned(plan: Plan, host: str | None) -> list[str]:
    planned = next(target for target in plan.targets if target.host == (host or plan.targets[0].host))
    found = {"release": planned.release, "down": planned.down, "run_id": planned.window}
    return _options(planned=json.dumps(found), holder=plan.run_id)


def _stage(plan: Plan, settings: Settings) -> list[Command | Ship]:
    shared = [argument for name in settings.shared for argument in ("--shared", name)]
    arguments = ("stage", _release(plan), "--sha256", plan.digest or "", *shared)
    return [Ship(Command(program(settings, "release", *arguments), timeout=600))]


def _migrate(what: str, plan: Plan, progress: Progress, settings: Settings, *options: str) -> tuple[str, ...]:
    target = ",".join(progress.value("check-migrations", plan.lock_host).get("target", ()))
    order = ("--release", _release(plan), "--target", target)
    return program(settings, "migrate", what, plan.run_id, *order, *options)


def _revision(plan: Plan, progress: Progress, host: str | None) -> str | None:
    """Where the database has to be as `host` finds it; None where it can't tell, or nothing is migrated."""
    target = progress.value("check-migrations", plan.lock_host).get("target", ())
    finds_it = host in (None, plan.lock_host) or progress.value("same-database", str(host)).get("same")
    return ",".join(target) if target and finds_it else None


def _hook(plan: Plan, command: str | None, timeout: float = 600) -> list[Command | Ship]:
    if not command:
        return []
    variables = [f"DEPLOYTOOLS_RUN_ID={plan.run_id}", f"DEPLOYTOOLS_RELEASE={plan.release or ''}"]
    argv = (HOOK, *variables, "sh", "-c", FROM_STDIN)
    return [Command(argv, stdin=command.encode(), timeout=timeout, repeatable=False)]


def _backup(plan: Plan, settings: Settings) -> list[Command | Ship]:
    hook = settings.hooks.backup
    if not hook:
        return []
    argv = program(settings, "backup", *_options(run_id=plan.run_id, release=plan.release))
    return [Command(argv, stdin=hook.encode(), timeout=FOLLOW, repeatable=False)]


def _options(**options: str | None) -> list[str]:
    """`run_id="x"` -> `--run-id=x`, in one word so that a value may begin with a dash."""
    return [f"--{name.replace('_', '-')}={value}" for name, value in options.items() if value is not None]


def _release(plan: Plan) -> str:
    if plan.release is None:
        raise ValueError(f"{plan.operation} has no release")
    return plan.release


def _swap_timeout(settings: Settings) -> float:
    return settings.app.start_timeout + settings.app.drain_timeout + SLACK
