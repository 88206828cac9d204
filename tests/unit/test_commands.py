from __future__ import annotations

import json
import subprocess
from dataclasses import replace

import pytest
from hostlib.migrating import adapters, migration_runs

from deploytools import __version__, commands
from deploytools import plan as plans
from deploytools.commands import Command, Ship
from deploytools.plan import Plan, Step, Target
from deploytools.saga import Mark, Progress, State
from deploytools.setup.command import packages_command
from tests.support.values import BASE, settings

TOOLS = "/usr/local/lib/deploytools/guestbook"
HOOKS = {"quiesce": "stop-workers", "resume": "start-workers", "backup": "dump"}
SETTINGS = settings(hooks=HOOKS, shared=[".env", "var"])
WINDOW = replace(
    plans.downtime_plan(BASE, SETTINGS),
    reason="a 'new' column; rm -rf /",
    until="2026-05-01T23:00:00+00:00",
    digest="abc",
)


def argv(step: Step, progress: Progress | None = None) -> tuple[str, ...]:
    command = commands.do(WINDOW, step, progress or Progress(), SETTINGS)[-1]
    assert isinstance(command, Command)
    return command.argv


def test_every_step_of_every_plan_has_its_command() -> None:
    checked = Progress().with_mark(
        "check-migrations", "web1", Mark(State.OK, {"target": ["0002"]}), undo=False
    )

    for plan in (WINDOW, plans.rolling_plan(BASE, SETTINGS), plans.hotswap_plan(BASE, SETTINGS, back=True)):
        for step in plan.steps:
            assert commands.do(plan, step, checked, SETTINGS)
            if step.undo:
                assert commands.undo(plan, step, Progress(), "web1", SETTINGS)


def test_maintenance_is_switched_in_its_own_directory_in_the_name_of_the_run() -> None:
    assert argv(plans.MAINTENANCE_ON) == (
        "/etc/lighttpd/down",
        "--reason=a 'new' column; rm -rf /",
        "--until=2026-05-01T23:00:00+00:00",
        "--by=ann",
        "--run-id=run-1",
        "--count",
        "--json",
    )


def test_a_host_needs_no_drain_only_where_nothing_was_in_flight_when_it_went_down() -> None:
    for count, needed in ((0, False), (2, True), (None, True)):
        mark = Mark(State.OK, {"in_flight": count})
        progress = Progress(marks={("maintenance-on", "web1"): mark})
        assert (commands.known(plans.DRAIN, progress, "web1") is None) is needed
        assert (commands.known(plans.DRAIN, progress.forget_failures(), "web1")) is None, "it may be up again"
    assert commands.known(plans.VERIFY, Progress(), "web1") is None


def test_the_laptop_is_more_patient_with_a_migration_runner_than_the_host_itself() -> None:
    host = migration_runs.WAIT + 3 * adapters.PATIENCE + commands.SLACK
    (arm,) = commands.do(WINDOW, plans.ARM, Progress(), SETTINGS)
    (disarm,) = commands.undo(WINDOW, plans.ARM, Progress(), "web1", SETTINGS)
    asked = (arm, disarm, commands.renounce(WINDOW, SETTINGS))
    assert [item.timeout for item in asked if isinstance(item, Command) and item.timeout < host] == []


def test_the_switch_and_what_keeps_the_lock_and_the_journal_can_be_started_before_their_turn() -> None:
    plan = plans.maintenance_plan(BASE, down=True)

    switch, acquire, release, journal = commands.ahead(plan, "web1", SETTINGS)
    (elsewhere,) = commands.ahead(plan, "web2", SETTINGS)

    assert switch == elsewhere == commands.do(plan, plans.MAINTENANCE_ON, Progress(), SETTINGS)[0]
    assert switch.argv[0] == "/etc/lighttpd/down"
    assert acquire == commands.do(plan, plans.LOCK, Progress(), SETTINGS)[0]
    assert release == commands.do(plan, plans.UNLOCK, Progress(), SETTINGS)[0]
    assert journal.argv == journal.ahead == commands.journal(plan, SETTINGS, ["{}"], 3)[0].argv


def test_each_host_is_compared_with_what_it_was_when_the_plan_was_made() -> None:
    targets = (Target("web1", "r1"), Target("web2", "r0", down=True, window="run-0"))
    found = []
    for host in ("web1", "web2"):
        (command,) = commands.do(replace(WINDOW, targets=targets), plans.COMPARE, Progress(), SETTINGS, host)
        assert isinstance(command, Command)
        assert command.argv[0] == f"{TOOLS}/status"
        found.append(json.loads(command.argv[1].removeprefix("--planned=")))
        assert command.argv[2] == "--holder=run-1", "who may have the lock there"

    assert found == [
        {"release": "r1", "down": False, "run_id": None},
        {"release": "r0", "down": True, "run_id": "run-0"},
    ]


def test_a_host_is_watched_after_its_swap_in_a_deploy_without_a_window_alone() -> None:
    watching = settings(rolling={"bake": "90s"})
    rolling, window = plans.rolling_plan(BASE, watching), plans.downtime_plan(BASE, watching)
    back = replace(plans.rollback_plan(BASE, watching), operation="rollback")

    def swap(plan: Plan) -> Command:
        (step,) = (step for step in plan.steps if step.name == "swap")
        (command,) = commands.do(plan, step, Progress(), watching)
        assert isinstance(command, Command)
        return command

    assert "--bake=90" in swap(rolling).argv
    assert swap(rolling).timeout == swap(window).timeout + 90
    assert not any("bake" in word for plan in (window, back) for word in swap(plan).argv)


def test_for_a_rollback_the_lock_and_the_swaps_are_started_before_their_turn() -> None:
    plan = plans.rollback_plan(replace(WINDOW, operation="rollback", window=False), SETTINGS)

    def words(host: str) -> list[str]:
        return [item.argv[0].rsplit("/", 1)[1] for item in commands.ahead(plan, host, SETTINGS)]

    assert (words("web1"), words("web2")) == (["lock", "swap", "lock", "journal"], ["swap"])


def test_all_that_visitors_wait_for_is_started_before_the_window() -> None:
    checked = Progress().with_mark(
        "check-migrations", "web1", Mark(State.OK, {"target": ["0002"]}), undo=False
    )

    def words(host: str, progress: Progress) -> list[str]:
        return [item.argv[0].rsplit("/", 1)[1] for item in commands.ahead(WINDOW, host, SETTINGS, progress)]

    assert words("web1", checked) == ["down", "up", "drain", "migrate", "swap", "verify", "journal"]
    assert words("web2", checked) == ["down", "up", "drain", "swap", "verify"]
    resumed = checked
    for name in ("maintenance-on", "drain", "swap"):
        resumed = resumed.with_mark(name, "web2", Mark(State.OK), undo=False)
    assert words("web2", resumed) == ["up", "verify"]
    in_turn = commands.do(WINDOW, plans.MIGRATE, checked, SETTINGS)
    assert in_turn[0] in commands.ahead(WINDOW, "web1", SETTINGS, checked)


def test_the_way_back_uses_the_program_that_waits_to_end_the_window() -> None:
    (back,) = commands.undo(WINDOW, plans.MAINTENANCE_ON, Progress(), "web1", SETTINGS)

    assert [back] == commands.do(WINDOW, plans.MAINTENANCE_OFF, Progress(), SETTINGS)


def test_without_a_lock_the_journal_is_started_all_the_same() -> None:
    plan = plans.maintenance_plan(replace(BASE, force="run-0"), down=False)

    assert [command.argv[0] for command in commands.ahead(plan, "web1", SETTINGS)] == [
        "/etc/lighttpd/up",
        f"{TOOLS}/journal",
    ]


def test_a_program_that_waits_is_root_already_where_it_has_to_be() -> None:
    plan = plans.maintenance_plan(BASE, down=True)

    switch, acquire, *_ = commands.ahead(plan, "web1", SETTINGS)
    (in_sandbox, *_) = commands.ahead(plan, "web1", replace(SETTINGS, privileged=False))

    assert switch.ahead == ("sh", "-c", commands.AS_ROOT, "sh", *switch.argv, "--when-told")
    assert acquire.ahead == (*acquire.argv, "--when-told")
    assert in_sandbox.ahead == (*in_sandbox.argv, "--when-told")


@pytest.mark.parametrize(
    "line", [None, b"", b"not JSON", b"[]", b'{"ok": false, "error": {}}', b'{"waiting": false}']
)
def test_only_a_switch_that_waits_tells_where_its_host_stands(line: bytes | None) -> None:
    assert commands.greeting(line) is None
    assert commands.greeting(b'{"waiting": true, "release": "r1"}') == {"waiting": True, "release": "r1"}


def test_maintenance_by_hand_names_no_run() -> None:
    by_hand = plans.maintenance_plan(BASE, down=True)

    (command,) = commands.do(by_hand, plans.MAINTENANCE_ON, Progress(), SETTINGS)
    assert isinstance(command, Command)
    assert not [argument for argument in command.argv if "run-id" in argument]


def test_a_value_that_begins_with_a_dash_stays_a_value() -> None:
    dashed = replace(WINDOW, reason="--force")

    (command,) = commands.do(dashed, plans.MAINTENANCE_ON, Progress(), SETTINGS)
    assert isinstance(command, Command)
    assert "--reason=--force" in command.argv


def test_a_deploy_is_checked_with_the_way_it_will_start_the_application_but_not_its_secrets() -> None:
    env = {"PHP_FCGI_CHILDREN": "4", "PASSWORD": "secret"}
    shop = settings(app={"command": "/usr/bin/php-cgi", "env": env})
    deploy = plans.rolling_plan(BASE, shop)

    (command,) = commands.do(deploy, plans.PREFLIGHT, Progress(), shop)
    (hotswap,) = commands.do(replace(deploy, operation="hotswap"), plans.PREFLIGHT, Progress(), shop)
    assert isinstance(command, Command)
    assert isinstance(hotswap, Command)
    assert command.argv == (f"{TOOLS}/doctor", "--expected", "--json")
    told = json.loads(command.stdin or b"")
    assert told["version"] == __version__
    assert told["app"]["env"] == {"PHP_FCGI_CHILDREN": "4"}
    assert "app" not in json.loads(hotswap.stdin or b""), "the current release's own way counts"


def test_staging_names_the_digest_of_what_is_shipped() -> None:
    (ship,) = commands.do(WINDOW, plans.STAGE, Progress(), SETTINGS)

    assert isinstance(ship, Ship)
    assert ship.command.argv == (
        f"{TOOLS}/release", "stage", "r2", "--sha256", "abc", "--shared", ".env", "--shared", "var", "--json",
    )  # fmt: skip


def test_the_migration_goes_to_the_revision_that_was_looked_up_before() -> None:
    checked = Progress().with_mark(
        "check-migrations", "web1", Mark(State.OK, {"target": ["a", "b"]}), undo=False
    )

    for step, word in ((plans.ARM, "arm"), (plans.MIGRATE, "run")):
        assert argv(step, checked) == (
            f"{TOOLS}/migrate", word, "run-1", "--release", "r2", "--target", "a,b", "--json",
        )  # fmt: skip


@pytest.mark.parametrize(("ship", "expected"), [(True, "online"), (False, "current")])
def test_without_a_window_a_deploy_insists_on_what_is_safe_online_and_a_rollback_on_nothing_pending(
    ship: bool, expected: str
) -> None:
    plan = plans.rolling_plan(BASE, SETTINGS) if ship else plans.rollback_plan(BASE, SETTINGS)

    (command,) = commands.do(plan, plans.CHECK_MIGRATIONS, Progress(), SETTINGS)

    assert isinstance(command, Command)
    assert command.argv[-3:] == ("--expect", expected, "--json")


def test_without_a_window_the_migration_runs_only_where_some_is_pending_and_says_online() -> None:
    def found(state: str) -> list[Command | Ship]:
        looked = Mark(State.OK, {"state": state, "target": ["a"]})
        progress = Progress().with_mark("check-migrations", "web1", looked, undo=False)
        return commands.do(plans.rolling_plan(BASE, SETTINGS), plans.MIGRATE_ONLINE, progress, SETTINGS)

    assert found("current") == []
    (command,) = found("pending")
    assert isinstance(command, Command)
    assert command.argv[1:] == ("run", "run-1", "--release", "r2", "--target", "a", "--online", "--json")


def test_a_swap_is_undone_by_a_swap_to_the_release_before_under_another_run_id() -> None:
    assert commands.undo(WINDOW, plans.SWAP, Progress(), "web2", SETTINGS)[0].argv == (  # type: ignore[union-attr]
        f"{TOOLS}/swap", "--release=r1", "--run-id=run-1-back", "--json",
    )  # fmt: skip


def test_on_a_host_that_served_nothing_a_swap_is_undone_by_serving_nothing_again() -> None:
    first = replace(WINDOW, targets=(Target("web1"),))

    assert commands.undo(first, plans.SWAP, Progress(), "web1", SETTINGS)[0].argv == (  # type: ignore[union-attr]
        f"{TOOLS}/swap", "--off", "--json",
    )  # fmt: skip


def test_the_revision_is_verified_on_every_host_that_can_tell_it() -> None:
    checked = Mark(State.OK, {"current": ["0001"], "target": ["0002"], "database": "db-1"})
    progress = Progress().with_mark("check-migrations", "web1", checked, undo=False)
    (same,) = commands.do(WINDOW, plans.SAME_DATABASE, progress, SETTINGS, "web2")
    assert isinstance(same, Command)
    assert same.argv[1:] == ("check", "--release", "r2", "--same-as=0001", "--database=db-1", "--json")

    def verify(host: str, told: bool | None) -> tuple[str, ...]:
        known = progress.with_mark("same-database", host, Mark(State.OK, {"same": told}), undo=False)
        (command,) = commands.do(WINDOW, plans.VERIFY, known, SETTINGS, host)
        assert isinstance(command, Command)
        assert command in commands.ahead(WINDOW, host, SETTINGS, known)
        return command.argv[1:]

    asked, unasked = ("--release", "r2", "--schema=0002", "--json"), ("--release", "r2", "--json")
    assert verify("web2", True) == asked
    assert verify("web2", None) == unasked
    assert verify("web1", None) == asked, "the migration host has told it before"


def test_a_hook_is_on_no_command_line_and_knows_run_and_release() -> None:
    told = 'pw="it\'s"; echo "$pw" $DEPLOYTOOLS_RUN_ID $DEPLOYTOOLS_RELEASE; [ -t 0 ] || cat; exit 3 # ü'
    (command,) = commands.do(WINDOW, plans.QUIESCE, Progress(), settings(hooks={"quiesce": told}))
    assert isinstance(command, Command)
    ran = subprocess.run(command.argv, input=command.stdin, capture_output=True, check=False)

    assert "pw=" not in " ".join(command.argv)
    assert (ran.returncode, ran.stdout) == (3, b"it's run-1 r2\n")


def read(exit_code: int, value: object, name: str = "swap") -> commands.Answer:
    return commands.read((f"{TOOLS}/{name}",), exit_code, json.dumps(value), "")


def test_an_answer_is_the_last_line_that_a_program_printed() -> None:
    answer = commands.read(("x",), 0, 'noise\n{"ok": true, "message": "done"}\n', "")

    assert answer.mark == Mark(State.OK, {"ok": True, "message": "done"})


@pytest.mark.parametrize("exit_code", [2, 3, 5, 6])
def test_a_failure_with_these_codes_promises_that_the_host_is_as_it_was(exit_code: int) -> None:
    answer = read(exit_code, {"ok": False, "error": {"what": "not ready"}})

    assert answer.mark == Mark(State.FAILED, {"ok": False, "unchanged": True})
    assert answer.error == {"what": "not ready"}


def test_a_program_that_knows_better_than_its_exit_code_is_believed() -> None:
    answer = read(3, {"ok": False, "unchanged": False, "error": {"what": "up, but silent"}}, name="up")

    assert answer.mark.value["unchanged"] is False
    assert not answer.by_code


@pytest.mark.parametrize("exit_code", [1, 4])
def test_a_failure_with_any_other_code_promises_nothing(exit_code: int) -> None:
    assert "unchanged" not in read(exit_code, {"ok": False, "error": {"what": "?"}}).mark.value


def test_a_failed_migration_says_itself_whether_anything_changed() -> None:
    answer = read(3, {"ok": False, "unchanged": False, "error": {"what": "?"}}, name="migrate")

    assert answer.mark.value["unchanged"] is False


def test_done_with_a_rest_is_done_and_keeps_its_message() -> None:
    answer = read(7, {"ok": False, "error": {"what": "generation 3 still has a request"}})

    assert answer.mark.state is State.OK
    assert answer.exit_code == 7
    assert "generation 3" in answer.error["what"]


@pytest.mark.parametrize(
    ("exit_code", "stderr", "said"),
    [
        (127, "sh: swap: not found", "swap is not installed: the host is not set up"),
        (127, "bash: line 1: /opt/tools/swap: No such file or directory", "swap is not installed"),
        (126, "bash: /opt/tools/swap: /usr/bin/python3: bad interpreter", "bad interpreter"),
        (1, "sudo: a password is required", "may not use sudo"),
        (1, "Traceback ...", "ended with exit code 1"),
    ],
)
def test_a_program_that_does_not_answer_in_json_is_explained(exit_code: int, stderr: str, said: str) -> None:
    answer = commands.read((f"{TOOLS}/swap",), exit_code, "", stderr)

    assert answer.mark == Mark(State.FAILED)
    assert said in answer.error["what"]
    assert answer.error["next"]


@pytest.mark.parametrize(
    "said",
    [
        "unrecognized arguments: --when-told",
        "argument command: invalid choice: 'arm' (choose from 'run', 'check')",
        "argument {acquire,release}: invalid choice: 'serve' (choose from 'acquire', 'release')",
        "the following arguments are required: --journal",
        "argument --back: expected one argument",
    ],
)
def test_a_host_of_another_version_is_told_with_its_remedy(said: str) -> None:
    stderr = f"usage: down [-h] [--reason TEXT]\n            [--json]\ndown: error: {said}\n"
    answer = commands.read(("/etc/lighttpd/down",), 2, "", stderr)

    assert answer.mark == Mark(State.FAILED, {"unchanged": True})
    assert answer.by_code
    assert f"down on the host is not of deploytools {__version__}" in answer.error["what"]
    assert said in answer.error["what"]
    assert answer.error["next"] == "fab setup"


def test_a_value_that_a_host_refuses_is_no_matter_of_versions() -> None:
    stderr = "usage: down [-h]\ndown: error: argument --until: '9:00' has passed already\n"
    answer = commands.read(("/etc/lighttpd/down",), 2, "", stderr)

    assert "has passed already" in answer.error["what"]
    assert answer.error["next"] == "fab status"


def test_a_program_that_died_after_it_was_told_to_begin_is_explained() -> None:
    answer = commands.read((f"{TOOLS}/lock",), 1, '{"waiting": true}\n', "Traceback: it is broken\n")

    assert answer.mark == Mark(State.FAILED)
    assert "it is broken" in answer.error["what"]


def test_a_hook_that_prints_what_it_likes_and_ends_well_is_ok() -> None:
    assert commands.read(("env",), 0, "stopped 3 workers\n", "").mark == Mark(
        State.OK, {"output": "stopped 3 workers\n"}
    )


def test_what_is_no_program_of_ours_is_done_where_it_ends_well_and_ours_is_where_it_answers() -> None:
    argv = packages_command(("lighttpd",)).argv

    assert commands.read(argv, 0, "Setting up lighttpd\n", "").mark.state is State.OK
    assert commands.read((f"{TOOLS}/swap",), 0, "", "").mark == Mark(State.FAILED)


HOOK = ("env", "DEPLOYTOOLS_RUN_ID=run-1", "sh", "-c", "stop-workers")


@pytest.mark.parametrize(
    ("exit_code", "stdout", "stderr"),
    [
        (2, "", "usage: notify [-h]\nnotify: error: unrecognized arguments: --all\n"),
        (3, '{"error": {}, "unchanged": true}', ""),
        (5, '{"lock": "mine"}', ""),
        (6, "", "curl: (6) Could not resolve host"),
        (7, '{"queue": 3}', "curl: (7) Failed to connect"),
        (127, "", "sh: 1: stop-workers: not found"),
        (1, "", "sudo: a password is required"),
    ],
)
def test_a_hook_that_fails_may_have_done_half_of_its_work_whatever_it_says(
    exit_code: int, stdout: str, stderr: str
) -> None:
    answer = commands.read(HOOK, exit_code, stdout, stderr)

    assert (answer.mark, answer.exit_code, answer.by_code) == (Mark(State.FAILED), 3, False)
    assert answer.error["what"].startswith(f"the hook ended with exit code {exit_code}: ")
    assert (stdout + stderr).strip() in answer.error["what"]
    assert "deploy.hooks" in answer.error["next"]


def test_what_a_hook_prints_is_no_answer_of_ours() -> None:
    printed = '{"unchanged": true, "applied": []}\n'

    assert commands.read(HOOK, 0, printed, "").mark == Mark(State.OK, {"output": printed})


def test_a_dead_runs_window_is_taken_over_by_its_name_and_lifted_by_our_own() -> None:
    taking = replace(WINDOW, force="run-0")

    (down,) = commands.do(taking, plans.MAINTENANCE_ON, Progress(), SETTINGS)
    (up,) = commands.do(taking, plans.MAINTENANCE_OFF, Progress(), SETTINGS)

    assert isinstance(down, Command)
    assert isinstance(up, Command)
    assert {"--run-id=run-1", "--force=run-0"} <= set(down.argv)
    assert up.argv == ("/etc/lighttpd/up", "--by=ann", "--run-id=run-1", "--json")


def test_the_switch_alone_goes_on_without_a_lock_where_there_is_no_room_for_it() -> None:
    switch = plans.maintenance_plan(replace(BASE, operation="maint-down"), down=True)

    for plan, goes_on in ((switch, True), (WINDOW, False)):
        (lock,) = commands.do(plan, plans.LOCK, Progress(), SETTINGS)
        assert isinstance(lock, Command)
        assert ("--or-go-on" in lock.argv) == goes_on


def test_who_lifts_a_window_is_told_since_somebody_elses_is_not_lifted() -> None:
    plan = plans.maintenance_plan(replace(BASE, operation="maint-up", force="bob"), down=False)

    (up,) = commands.do(plan, plans.MAINTENANCE_OFF, Progress(), SETTINGS)
    (back,) = commands.undo(plan, plans.MAINTENANCE_ON, Progress(), "web1", SETTINGS)

    assert isinstance(up, Command)
    assert isinstance(back, Command)
    assert up.argv == ("/etc/lighttpd/up", "--by=ann", "--force=bob", "--json")
    assert back.argv == ("/etc/lighttpd/up", "--by=ann", "--json")


@pytest.mark.parametrize(
    ("answer", "what", "superseded"),
    [
        (b'{"ok": false, "error": {"what": "disk full"}}', "disk full", False),
        (b'{"ok": false, "error": {"what": "28 records, not 14"}, "count": 28}', "28 records, not 14", True),
        (b"Traceback", "Traceback", False),
        (b"", "no answer", False),
    ],
)
def test_why_the_journal_was_not_written_is_told(answer: bytes, what: str, superseded: bool) -> None:
    assert commands.refusal(answer) == commands.Refusal(what, superseded)
    assert commands.refusal(b'{"ok": true}') is None


@pytest.mark.parametrize(("changed", "lifted"), [(True, True), (False, False)])
def test_a_host_that_came_up_before_the_lock_was_taken_is_brought_up_again(
    changed: bool, lifted: bool
) -> None:
    looked = replace(BASE, operation="maint-down", targets=(Target("web1", "r1", down=True),))
    plan = plans.maintenance_plan(looked, down=True)
    marks = {("maintenance-on", "web1"): Mark(State.OK, {"changed": changed})}

    undone = commands.undo(plan, plans.MAINTENANCE_ON, Progress(marks=marks), "web1", SETTINGS)

    assert bool(undone) is lifted


def test_a_swap_goes_back_to_what_the_host_served_when_it_began_and_not_to_what_the_plan_had_seen() -> None:
    marks = {("swap", "web1"): Mark(State.OK, {"previous_release": "of-a-run-in-between"})}

    (back,) = commands.undo(WINDOW, plans.SWAP, Progress(marks=marks), "web1", SETTINGS)

    assert isinstance(back, Command)
    assert "--release=of-a-run-in-between" in back.argv
