"""Every test here runs the real `fab` in a project of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.fabproject import DEPLOY, ONCE, REPOSITORY, Project
from tests.support.sshd import Sshd


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


class TestOurTasks:
    def test_one_runs_once_over_all_hosts(self, project: Project) -> None:
        (shown,) = project.printed("show")

        assert shown["hosts"] == ["web1", "web2", "web3"]

    def test_dash_h_limits_the_hosts_and_it_still_runs_once(self, project: Project) -> None:
        (shown,) = project.printed("-H", "deploy@web2:2222,web1", "show")

        assert shown["hosts"] == ["web1", "web2"]

    def test_dash_h_may_follow_the_task(self, project: Project) -> None:
        (shown,) = project.printed("show", "-H", "web1, web3")

        assert shown["hosts"] == ["web1", "web3"]

    def test_what_comes_before_and_after_a_task_runs_once_too(self, project: Project) -> None:
        printed = project.printed("-H", "web1,web2", "framed")

        assert [line["task"] for line in printed] == ["theirs", "framed", "show"]

    def test_a_host_that_is_not_in_the_file_is_refused(self, project: Project) -> None:
        message = project.refused("-H", "web1,web9", "show")

        assert "-H names no host of deploy.hosts: web9" in message
        assert "deploy@web2:2222" in message

    @pytest.mark.parametrize("empty", ["", " , "])
    def test_a_dash_h_that_names_nothing_does_not_mean_every_host(self, project: Project, empty: str) -> None:
        assert "-H names no host" in project.refused("-H", empty, "show")

    def test_a_command_after_two_dashes_is_not_silently_left_out(self, project: Project) -> None:
        assert "can't be combined with the task show" in project.refused("-H", "web1", "show", "--", "true")

    def test_the_project_is_found_from_below(self, project: Project) -> None:
        (shown,) = project.printed("show", below="deep")

        assert shown["root"] == str(project.directory)

    def test_one_that_needs_no_settings_runs_without_any(self, tmp_path: Path) -> None:
        assert Project(tmp_path, None).printed("idle") == [{"task": "idle"}]


class TestOtherPeoplesTasks:
    def test_they_run_once_per_host_as_fabric_has_it(self, project: Project) -> None:
        printed = project.printed("-H", "web1,web2", "theirs", "show", "theirs")

        assert [(line["task"], line.get("host")) for line in printed] == [
            ("theirs", "web1"),
            ("theirs", "web2"),
            ("show", None),
            ("theirs", "web1"),
            ("theirs", "web2"),
        ]

    def test_they_and_commands_reach_hosts(self, project: Project) -> None:
        with Sshd(project.directory / "sshd") as sshd:
            config = project.directory / "ssh_config"
            config.write_text(sshd.config("web1"))

            assert project.printed("-S", str(config), "-H", "web1", "uptime") == [
                {"task": "uptime", "said": "up"}
            ]
            assert project.fab("-S", str(config), "-H", "web1", "--", "echo", "over").stdout == "over\n"
            (project.directory / "home" / ".fabric.yaml").write_text(ONCE)
            assert project.fab("-S", str(config), "-H", "web1", "--", "echo", "over").stdout == "over\n"


class TestFabricsOwnExecutor:
    @pytest.fixture
    def project(self, tmp_path: Path) -> Project:
        return Project(tmp_path, DEPLOY.replace("HTTP_PROXY: there", "A: b"))

    def test_with_dash_h_it_is_refused_before_anything_happens(self, project: Project) -> None:
        message = project.refused("-H", "web1,web2", "show")

        assert "started for web1 alone" in message
        assert "nothing was done" in message
        assert "tasks: {executor_class: deploytools.executor.OnceExecutor}" in message

    def test_without_dash_h_it_does_as_well(self, project: Project) -> None:
        (shown,) = project.printed("on", "staging", "show")

        assert shown["hosts"] == ["stage1"]
        assert shown["root"] == str(project.directory)


class TestEnvironments:
    def test_the_one_picked_counts_for_the_tasks_that_follow(self, project: Project) -> None:
        printed = project.printed("show", "on", "staging", "show", "show")

        assert [line["hosts"] for line in printed] == [["web1", "web2", "web3"], ["stage1"], ["stage1"]]
        assert [line["environment"] for line in printed] == [None, "staging", "staging"]

    def test_dash_h_limits_the_hosts_of_the_one_picked(self, project: Project) -> None:
        assert "web1" in project.refused("-H", "web1", "on", "staging", "show")

    def test_an_unknown_one_stops_before_the_tasks_that_follow(self, project: Project) -> None:
        message = project.refused("on", "stagin", "show")

        assert "did you mean staging?" in message
        assert "known environments: staging, sandbox" in message


class TestVariables:
    def test_one_overrides_a_key_that_the_file_does_not_have(self, project: Project) -> None:
        (shown,) = project.printed("show", FABRIC_DEPLOY_APP_START_TIMEOUT="1m")

        assert shown["start_timeout"] == 60

    def test_the_word_false_is_false(self, project: Project) -> None:
        (shown,) = project.printed("show", FABRIC_DEPLOY_PRIVILEGED="false")

        assert shown["privileged"] is False

    def test_bad_ones_are_named(self, project: Project) -> None:
        message = project.refused(
            "show",
            FABRIC_DEPLOY_APP_START_TIMEOUT="soon",
            FABRIC_DEPLOY_APP_COMMAND="php 'cgi",
            FABRIC_DEPLOY_HOSTS="web1",
            FABRIC_DEPLOY_ROOTS="/srv",
        )

        assert "FABRIC_DEPLOY_APP_START_TIMEOUT: should be a duration" in message
        assert "FABRIC_DEPLOY_APP_COMMAND: should be a command" in message
        assert "FABRIC_DEPLOY_HOSTS: deploy.hosts is a list" in message
        assert (
            "FABRIC_DEPLOY_ROOTS: overrides no key of fabric.yaml; did you mean FABRIC_DEPLOY_ROOT?"
            in message
        )

    def test_a_bad_one_of_fabrics_own_is_no_traceback_either(self, project: Project) -> None:
        assert "FABRIC_" in project.refused("show", FABRIC_PORT="abc")

    def test_fabrics_own_still_work(self, project: Project) -> None:
        done = project.fab("show", FABRIC_RUN_ECHO="1", FABRIC_PORT="2022")

        assert done.returncode == 0

    def test_variables_of_the_application_may_differ_in_case_only(self, project: Project) -> None:
        (shown,) = project.printed("show")

        assert shown["env"] == {"http_proxy": "here", "HTTP_PROXY": "there"}


class TestMissingSettings:
    def test_without_a_file_it_says_which_one_it_looked_for(self, tmp_path: Path) -> None:
        message = Project(tmp_path, None).refused("show")

        assert f"{tmp_path}/fabric.yaml, which doesn't exist" in message
        assert "python -m deploytools init" in message

    @pytest.mark.parametrize("text", [ONCE, ONCE + "deploy:\n"])
    def test_without_the_section_it_names_the_file(self, tmp_path: Path, text: str) -> None:
        message = Project(tmp_path, text).refused("show")

        assert "there is no section `deploy`" in message
        assert f"{tmp_path}/fabric.yaml\n" in message

    def test_everything_that_is_wrong_with_it_is_listed(self, tmp_path: Path) -> None:
        message = Project(tmp_path, ONCE + "deploy: {application: X, hosts: [], keep: 1}\n").refused("show")

        for path in ("deploy.application", "deploy.hosts", "deploy.app", "deploy.keep"):
            assert f"    {path}: " in message


def test_listing_the_tasks_waits_for_nothing_that_it_does_not_use() -> None:
    program = "import sys, deploytools.tasks; print({'pydantic', 'rich', 'jinja2'} & {*sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )

    assert done.stdout == "set()\n"
