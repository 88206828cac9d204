"""What is typed wrong, or stands wrong in the operator's own configuration: one message and exit code 2."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploytools import command_line, guesses
from deploytools.tasks import ns
from tests.support import prepared
from tests.support.prepared import FAB

FABRIC_YAML = "tasks: {executor_class: deploytools.executor.OnceExecutor}\n"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "fabfile.py").write_text("from deploytools.tasks import ns  # noqa: F401\n")
    (tmp_path / "fabric.yaml").write_text(FABRIC_YAML)
    (tmp_path / "home").mkdir()
    return tmp_path


def typed(project: Path, *command: str | Path) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "HOME": str(project / "home")}
    if command[0] == FAB:
        return prepared.run(command, cwd=project, env=environ)
    return subprocess.run(command, cwd=project, env=environ, capture_output=True, text=True, check=False)


# Both come to the same program; `python -m` is tried with one of each kind, and with all in `make test-all`.
BY_PYTHON = (sys.executable, "-m", "deploytools")
FABS = [
    pytest.param((FAB,), id="fab"),
    pytest.param(BY_PYTHON, id="python -m deploytools", marks=pytest.mark.exhaustive),
]


@pytest.mark.parametrize("fab", FABS)
@pytest.mark.parametrize(
    ("words", "said", "next_command"),
    [
        (["nonsense"], "No idea what 'nonsense' is", "fab --list"),
        (["stauts"], "No idea what 'stauts' is", "fab status, or fab --list"),
        (["up"], "No idea what 'up' is", "fab maint-up, or fab sandbox.up, or fab --list"),
        (["deploy", "--nonsense"], "No idea what '--nonsense' is", "fab --help deploy"),
        (["staging", "deploy"], "No idea what 'staging' is", "fab on staging deploy, or fab --list"),
        (["on"], "needs the name of an environment", "fab on ENVIRONMENT TASK, such as"),
        (["deploy", "v3"], "No idea what 'v3' is", "fab deploy --ref v3, or fab --help deploy"),
        (["deploy", "-n"], "No idea what '-n' is", "fab deploy --plan, or fab --help deploy"),
        (
            ["on", "stage", "deploy", "-n"],
            "No idea what '-n' is",
            "fab on stage deploy --plan, or fab --help",
        ),
        (["deploy", "-r", "v3"], "--search-root is an option of Fabric's own", "fab --help deploy;"),
        (["sandbox.up", "--http-port", "x"], "'x' is no number", "a whole number there"),
        (["unlock"], "unlock needs --force", "fab --help unlock"),
        (["migrate.resolve"], "migrate.resolve needs --as, --reason", "fab --help migrate.resolve"),
        (["deploy", "--until"], "needed value and was not given one", "fab --help deploy"),
    ],
)
def test_what_nobody_knows_on_a_command_line_is_a_usage_error(
    project: Path, fab: tuple[str | Path, ...], words: list[str], said: str, next_command: str
) -> None:
    done = typed(project, *fab, *words)

    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert f"next:  {next_command}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("fab", FABS, ids=["fab", "python -m deploytools"])
def test_a_task_tells_of_itself_as_the_reference_does_and_one_of_the_projects_own_as_invoke_does(
    project: Path, fab: tuple[str | Path, ...]
) -> None:
    (project / "fabfile.py").write_text(
        "from invoke import task\nfrom deploytools.tasks import ns\n\n\n"
        '@task\ndef hello(c):\n    """Say so."""\n\n\nns.add_task(hello)\n'
    )

    ours, other = typed(project, *fab, "--help", "restart"), typed(project, *fab, "--help", "hello")

    assert ours.stdout.startswith("fab restart [--back] [--batch N|PCT] [--exclude HOST ...]")
    assert "\n  Also: fab hotswap\n\noptions:\n  --back " in ours.stdout
    assert "Docstring" not in ours.stdout
    assert "Docstring:\n  Say so." in other.stdout


@pytest.mark.parametrize("words", [["init", "--application", "shop"], ["--list"], ["deploy", "--help"]])
def test_output_that_nobody_reads_to_its_end_is_no_traceback(project: Path, words: list[str]) -> None:
    if words[0] == "init":
        (project / "fabric.yaml").unlink()
        (project / "fabfile.py").unlink()
    command = [sys.executable, "-m", "deploytools", *words]
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            command, cwd=project, stdout=writing, stderr=subprocess.PIPE, text=True, check=False
        )
    finally:
        os.close(writing)

    assert done.returncode == 141
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        (".fabric.yaml", "a: [b", "expected ',' or ']'"),
        (".fabric.yml", "- 1", "should be a mapping of sections"),
        (".fabric.json", "{", "can't be used"),
    ],
)
@pytest.mark.parametrize("fab", FABS)
def test_a_broken_configuration_at_home_is_named(
    project: Path, fab: tuple[str | Path, ...], name: str, text: str, said: str
) -> None:
    (project / "home" / name).write_text(text)

    done = typed(project, *fab, "status")

    assert done.returncode == 2
    assert said in done.stderr
    assert str(project / "home" / name) in done.stderr
    assert "Traceback" not in done.stderr


def test_every_task_that_is_named_for_another_word_exists() -> None:
    named = {name.split()[0] for names in guesses.WORDS.values() for name in names}

    assert named <= {*ns.task_names, *ns.collections}
    assert not guesses.WORDS.keys() & ns.task_names.keys()


def test_the_list_of_tasks_has_them_by_what_they_are_for_and_those_of_the_project_first(
    project: Path,
) -> None:
    (project / "fabfile.py").write_text(
        "from deploytools.tasks import ns\nfrom fabric import task\n\n\n"
        '@task\ndef flush(c):\n    "Empty the cache."\n\n\nns.add_task(flush)\n'
    )
    listed = typed(project, FAB, "--list")

    lines = listed.stdout.splitlines()
    headings = [line for line in lines if line.endswith(":")]
    assert headings == [f"{each}:" for each in ("Available tasks", "of this project", *command_line.GROUPS)]
    first, *others = [line.split()[0] for line in lines if line.startswith("  ")]
    assert first == "flush"
    assert others == [name for names in command_line.GROUPS.values() for name in names]
    assert max(map(len, lines)) < 80
    assert "maint-down" not in typed(project, FAB, "--list", "sandbox").stdout


def test_every_task_is_in_one_group() -> None:
    assert sorted(name for names in command_line.GROUPS.values() for name in names) == sorted(ns.task_names)


def test_a_run_may_be_named_without_saying_that_it_is_one() -> None:
    typed = ["on", "sandbox", "report", "20260921T141320Z-5d1e9a", "history"]

    assert command_line.named(typed) == [
        "on",
        "sandbox",
        "report",
        "--run=20260921T141320Z-5d1e9a",
        "history",
    ]
    assert command_line.named(["report", "history"]) == ["report", "history"]


@pytest.mark.parametrize("word", ["maint.up", "maint_up", "sandbox-down", "migrate_status", "hot-swap"])
def test_a_task_may_be_spelled_with_other_dots_and_dashes(project: Path, word: str) -> None:
    meant = {"hot-swap": "hotswap", "sandbox-down": "sandbox.down", "migrate_status": "migrate.status"}

    done = typed(project, FAB, word, "--help")

    assert done.stdout.startswith(f"fab {meant.get(word, 'maint-up')}")


def test_hints_name_what_stands_in_the_place_of_a_mistake() -> None:
    flags = {"--with-downtime", "--ref", "--plan", "--yes"}
    for word, hint in {
        "--downtime": "--with-downtime",
        "--with_downtime": "--with-downtime",
        "--dry-run": "--plan",
        "--reff=v 3": "--ref='v 3'",
        "v 3": "--ref 'v 3'",
        "stauts": "status",
    }.items():
        told = guesses.option("deploy", word, flags, ns.task_names)
        assert told == f"fab deploy {hint}, or fab --help deploy"
    assert guesses.option("status", "web1", {"--json"}, ns.task_names) == "fab --help status"


def test_no_option_of_a_task_has_a_letter_of_its_own() -> None:
    for name in ns.task_names:
        assert all(len(flag) > 1 for argument in ns[name].get_arguments() for flag in argument.names)
