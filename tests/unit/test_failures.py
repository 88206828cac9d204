"""What this computer or the way to a host can do to an operation: each is provoked, and told in words."""

from __future__ import annotations

import json
import pwd
import subprocess
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from invoke.context import Context
from invoke.exceptions import Exit

from deploytools import executor, operation, pastrun, plan, provisioning, sandbox, survey
from deploytools.commands import Command
from deploytools.errors import DeployError, Interrupted, OperationFailed, Unreachable, UsageError
from deploytools.executor import OnceExecutor, ProjectConfig
from deploytools.fleet import Fleet, Unreached
from deploytools.releasing import _disk_troubles
from deploytools.releasing.export import _archive
from deploytools.remote import Remote, Result
from deploytools.sandbox import checks, demo, layout, processes, repository
from deploytools.sandbox.layout import Layout
from deploytools.settings import Host
from deploytools.setup.sudo import sudoers
from deploytools.ssh import options, routes
from deploytools.tasks import deploy, look, start
from tests.support.answering import Hosts, Link
from tests.support.checkouts import checkout
from tests.support.values import BASE, settings

Provoke = Callable[[Path, pytest.MonkeyPatch], object]


def fabric_variable(_: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("FABRIC_PORT", "many")
    ProjectConfig().load_shell_env()


def two_windows(_: Path, __: pytest.MonkeyPatch) -> None:
    status = {"maintenance": {"state": "down", "run_id": "run-1"}}
    plan.open_window({"web1": status, "web2": {"maintenance": {"state": "down", "run_id": "run-2"}}})


def no_ssh(place: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("PATH", str(place))
    options._ask(["-G", "web1"], "web1")


def slow_ssh(_: Path, patch: pytest.MonkeyPatch) -> None:
    def late(*_: Any, **__: Any) -> None:
        raise subprocess.TimeoutExpired("ssh", options.PATIENCE)

    patch.setattr(options.subprocess, "run", late)
    options._ask(["-G", "web1"], "web1")


def jump_host_of_another_thread(_: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(routes, "PATIENCE", 0.01)
    shared = routes._Shared(Remote(Host("jump")))
    with shared._lock:
        shared.open()


def jump_hosts_in_a_circle(_: Path, __: pytest.MonkeyPatch) -> None:
    Remote(Host("jump"), behind=("web1",))._gateway("web1", "")


def no_session(_: Path, patch: pytest.MonkeyPatch) -> None:
    remote = Remote(Host("web1"))
    patch.setattr(remote, "open", lambda: None)
    remote._session()


def shell_that_runs_nothing(_: Path, patch: pytest.MonkeyPatch) -> None:
    nobody = SimpleNamespace(pw_name="ann", pw_shell="/usr/sbin/nologin")
    patch.setattr(checks, "account", lambda: nobody)
    checks.login()


def place_that_can_not_be_made(place: Path, _: pytest.MonkeyPatch) -> None:
    (place / "file").write_text("")
    with checks.alone(place / "file" / ".sandbox"):
        pass


def nobodys_account(_: Path, patch: pytest.MonkeyPatch) -> None:
    def unknown(_: int) -> None:
        raise KeyError

    patch.setattr(pwd, "getpwuid", unknown)
    layout.account()


def process_that_can_not_be_ended(place: Path, _: pytest.MonkeyPatch) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    stays = processes.Process(gone.pid, 1, 1)
    now = iter(range(0, 1000, 5))
    processes.stop(Layout(place), find=lambda _: {stays}, clock=lambda: next(now), sleep=lambda _: None)


def repository_that_is_none(place: Path, _: pytest.MonkeyPatch) -> None:
    repository._git(place, "log")


def visitors_of_no_sandbox(place: Path, _: pytest.MonkeyPatch) -> None:
    with demo.visitors(place, place / "out"):
        pass


def no_visitor(place: Path, patch: pytest.MonkeyPatch) -> None:
    (place / ".sandbox").mkdir()
    layout.save(Layout(place / ".sandbox", 1, 2))
    patch.setattr(demo.sys, "executable", "true")
    with demo.visitors(place, place / "out"):
        pass


def visitors_that_tell_nothing(place: Path, _: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(["true"]) as process:
        demo.Crowd(process, place / "out").result()


def command_of_the_demo(place: Path, _: pytest.MonkeyPatch) -> None:
    demo.typed(place, Path("/bin/false"))("status")


def disk_without_room(_: Path, __: pytest.MonkeyPatch) -> None:
    with _disk_troubles("/dev/shm"):  # noqa: S108
        raise OSError(28, "No space left on device", "export")


def damaged_repository(place: Path, _: pytest.MonkeyPatch) -> None:
    _archive(checkout(place / "checkout"), "0" * 40, place)


def export_without_a_place(place: Path, _: pytest.MonkeyPatch) -> None:
    _archive(checkout(place / "checkout"), "HEAD", place / "nowhere")


def answer_that_was_cut(_: Path, __: pytest.MonkeyPatch) -> None:
    _, silent = survey._answers({"web1": Unreached(OSError("no route to host"))})
    raise survey.silence("status", silent, 1)


class WithoutJournals(Link):
    """A host that refuses whatever it is asked, as `journal read` does."""

    def run(self, command: Command, on_line: object = None, dialog: object = None) -> Result:
        error = {"what": "there is no journal of run run-1", "where": "web1", "state": "", "next": ""}
        return Result(2, json.dumps({"ok": False, "error": error}), "", 0.1)


def lock_without_a_journal(_: Path, __: pytest.MonkeyPatch) -> None:
    fleet: Fleet[Any] = Fleet([Host("web1")], lambda host: WithoutJournals(str(host), {}))
    survey.read_journal(fleet, settings(hosts=["web1"]), "run-1")


def run_that_nobody_knows(place: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("XDG_STATE_HOME", str(place))
    fleet: Fleet[Any] = Fleet([Host("web1")], lambda host: WithoutJournals(str(host), {}))
    pastrun.read(fleet, settings(hosts=["web1"]), "run-1", print)


def nobody_to_ask(_: Path, __: pytest.MonkeyPatch) -> None:
    deploy._confirm(BASE, yes=False, json=True)


def set_up_without_a_link(_: Path, __: pytest.MonkeyPatch) -> None:
    trouble = provisioning._trouble(Unreached(OSError("no route to host")), "fab setup", plan_only=True)
    assert trouble is not None
    raise provisioning._failed("fab setup", {"web1": trouble}, ())


def set_up_that_is_interrupted(_: Path, __: pytest.MonkeyPatch) -> None:
    class Stopped(Fleet[Any]):
        def map(self, *_: object, **__: object) -> Any:
            raise KeyboardInterrupt

    fleet = Stopped([Host("web1")], lambda host: Link(str(host), {}))
    provisioning.carry_out(settings(hosts=["ann@web1"]), fleet, "install")


def sandbox_without_a_place(place: Path, _: pytest.MonkeyPatch) -> None:
    (place / ".sandbox").write_text("")
    sandbox._start(Layout(place / ".sandbox", 1, 2), [], None)


def work_in_the_sandbox(place: Path, _: pytest.MonkeyPatch) -> None:
    made = Layout(place / ".sandbox", 1, 2)
    made.repository.mkdir(parents=True)
    repository.make(made.repository)
    layout.save(made)
    (made.repository / "mine.py").write_text("")
    demo.demo(place, lambda *_, **__: "", place, (), throw_away=False)


def capitals_for_sudo(_: Path, __: pytest.MonkeyPatch) -> None:
    sudoers(settings(), "DEPLOY")


def environment_for_nothing(_: Path, __: pytest.MonkeyPatch) -> None:
    OnceExecutor.expand_calls(Any, [SimpleNamespace(name="on")])


def no_open_run(_: Path, __: pytest.MonkeyPatch) -> None:
    survey.open_lock(Hosts({"web1": {"lock": None}}).fleet, settings(hosts=["web1"]))


# What provokes it, the class, what is said, and what to type next.
FAILURES: list[tuple[Provoke, type[DeployError], str, str]] = [
    (fabric_variable, UsageError, "a FABRIC_* variable doesn't fit", "env | grep ^FABRIC_"),
    (two_windows, UsageError, "in maintenance by different runs", "fab maint-up --force RUN_ID"),
    (no_ssh, UsageError, "the program ssh is missing", "apt install openssh-client"),
    (slow_ssh, UsageError, "ssh did not finish reading its configuration", "ssh -G"),
    (jump_host_of_another_thread, Unreachable, "the jump host jump was not connected", "ssh -v jump true"),
    (
        jump_hosts_in_a_circle,
        UsageError,
        "ProxyJump goes round in circles: web1 -> jump -> web1",
        "ssh -G jump",
    ),
    (no_session, Unreachable, "web1 lets us in but starts no session: not connected", "sshd's log on web1"),
    (shell_that_runs_nothing, UsageError, "ann can't run commands over ssh", "an ordinary shell"),
    (place_that_can_not_be_made, UsageError, "the sandbox can't be made: Not a directory", "mend that"),
    (nobodys_account, UsageError, "has no account, so sshd can't let it in", "a user that has an account"),
    (process_that_can_not_be_ended, OperationFailed, "can't be ended", "fab sandbox.down"),
    (repository_that_is_none, OperationFailed, "git log failed in the sandbox's repository", "sandbox.reset"),
    (visitors_of_no_sandbox, OperationFailed, "there is no sandbox any more", "make demo"),
    (no_visitor, OperationFailed, "no visitor came", "said above"),
    (visitors_that_tell_nothing, OperationFailed, "the visitors told nothing", "fab on sandbox status"),
    (command_of_the_demo, OperationFailed, "that ended with exit code 1", "then make demo again"),
    (disk_without_room, OperationFailed, "can't be made: No space left on device", "df -h /dev/shm"),
    (damaged_repository, OperationFailed, "git archive failed: fatal: not a", "fsck"),
    (export_without_a_place, OperationFailed, "the export can't be unpacked: tar", "TMPDIR"),
    (answer_that_was_cut, Unreachable, "status has no answer from 1 of 1 hosts", "fab doctor"),
    (
        lock_without_a_journal,
        UsageError,
        "run run-1 holds the lock, but has no journal",
        "fab unlock --force",
    ),
    (run_that_nobody_knows, UsageError, "there is no run run-1", "fab history"),
    (set_up_that_is_interrupted, Interrupted, "interrupted", "fab setup"),
    (
        sandbox_without_a_place,
        OperationFailed,
        "the sandbox can't be made: [Errno 20] Not a directory",
        "fab sandbox.up",
    ),
    (work_in_the_sandbox, UsageError, "has work of yours in it", "--throw-away"),
    (environment_for_nothing, UsageError, "`on` chooses an environment", "fab on ENVIRONMENT TASK"),
    (no_open_run, UsageError, "no run is open", "fab"),
    (nobody_to_ask, UsageError, "with --json nobody is asked", "add --yes"),
    (set_up_without_a_link, OperationFailed, "no route to host", "fab setup"),
    (capitals_for_sudo, UsageError, "can't be called DEPLOY", "small letters"),
]


@pytest.mark.parametrize(
    ("provoke", "kind", "what", "step"), FAILURES, ids=[each[0].__name__ for each in FAILURES]
)
def test_it_is_told(
    provoke: Provoke,
    kind: type[DeployError],
    what: str,
    step: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(kind) as told:
        provoke(tmp_path, monkeypatch)

    assert what in "\n".join([told.value.what, *told.value.details])
    assert told.value.state
    assert step in str(told.value.next)


@pytest.mark.parametrize(
    ("task", "options", "what"),
    [
        (start.setup, {"purge": True}, "--purge goes with --remove only"),
        (
            start.setup,
            {"remove": True, "install_packages": True},
            "--install-packages doesn't go with --remove",
        ),
        (
            look.resolve,
            {"as_": "perhaps", "reason": "I looked"},
            "'perhaps' is neither applied nor not-applied",
        ),
    ],
)
def test_options_that_make_no_sense_end_a_task_before_it_asks_a_host(
    task: Any, options: dict[str, Any], what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Exit) as ended:
        task.body(Context(), **options)

    assert ended.value.code == 2
    assert f"error: {what}" in capsys.readouterr().err


def test_who_has_no_migrations_is_told_the_key(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "current_settings", lambda _: settings(migrate={"adapter": None}))

    with pytest.raises(Exit):
        look.migrations.body(Context())

    assert "fabric.yaml says of no migrations" in capsys.readouterr().err


def test_who_asks_for_migrations_before_the_first_deploy_is_told_that(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts = Hosts({"web1": {"release": None}})
    monkeypatch.setattr(executor, "current_settings", lambda _: settings(hosts=["web1"]))
    monkeypatch.setattr(operation, "connected", lambda _: nullcontext(hosts.fleet))

    with pytest.raises(Exit) as ended:
        look.migrations.body(Context())

    told = capsys.readouterr().err
    assert ended.value.code == 2
    assert "there is no release on the hosts yet" in told
    assert "fab deploy --with-downtime" in told


def test_status_names_the_hosts_whose_application_has_died(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lives, died = ({"release": "r1", "serving": {"alive": alive}} for alive in (True, False))
    hosts = Hosts({"web1": {**lives, "maintenance": {"state": "up"}}, "web2": died})
    monkeypatch.setattr(executor, "current_settings", lambda _: settings())
    monkeypatch.setattr(operation, "opened", lambda _: nullcontext(hosts.fleet))

    with pytest.raises(Exit) as ended:
        look.status.body(Context(), json=True)

    told = capsys.readouterr().err
    assert ended.value.code == 3
    assert "the application is not running on 1 of 2 hosts" in told
    assert "web2: the application is not running (release r1)" in told
    assert "fab hotswap starts it" in told
