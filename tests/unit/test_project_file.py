from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploytools.errors import SettingsError
from deploytools.project_file import check
from tests.support.fabproject import DEPLOY, ONCE, Project

# Each of these made `fab` end in a traceback, and what is said instead.
BROKEN: dict[str | bytes, str] = {
    "deploy: [": "line 1, column 10",
    "deploy:\n\thosts: [a]": "line 2, column 1",
    "a: b: c": "mapping values are not allowed here, line 1, column 5",
    "deploy: *x": "found undefined alias",
    "deploy: !!python/object:os.system {}": "could not determine a constructor",
    "{[a]: b, {c: d}: e}": "unhashable",
    "deploy: 2024-13-40": "month must be in 1..12",
    "a: " + "9" * 5000: "can't be used",
    "x: \x01": "unacceptable character",
    b"x: \xff": "it is not UTF-8 at byte 3",
    "[" * 500: "nested too deeply",
    "- a": "should be a mapping of sections",
    "just text": "should be a mapping of sections",
    "42": "should be a mapping of sections",
    "on: true": "True: a key should be text; put it in quotes",
    "deploy: {app: {env: {8080: x}}}": "deploy.app.env.8080: a key should be text",
    "deploy: &a {app: *a}": "deploy.app: is an anchor that contains itself",
    "run: 5": "run: should be a mapping",
    "run:": "run: should be a mapping",
    "tasks: []": "tasks: should be a mapping",
    "run: {echo: {a: b}}": "run.echo: should be a single value",
    "deploytools: 1": "deploytools: should be a mapping",
    "tasks: {executor_class: deploytools.executor.Once}": "write deploytools.executor.OnceExecutor",
    "tasks: {executor_class: OnceExecutor}": "there is no OnceExecutor",
    "tasks: {executor_class: [a]}": "tasks.executor_class: there is no",
}


@pytest.mark.parametrize(("content", "said"), BROKEN.items(), ids=range(len(BROKEN)))
def test_what_fabric_can_not_load_is_refused_with_a_message(
    tmp_path: Path, content: str | bytes, said: str
) -> None:
    (tmp_path / "fabric.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())

    with pytest.raises(SettingsError) as caught:
        check(tmp_path)

    message = "\n".join([caught.value.what, *caught.value.details])
    assert said in message
    assert caught.value.where == str(tmp_path / "fabric.yaml")
    assert len(message) < 500


@pytest.mark.parametrize("content", ["", "# nothing", "deploy: 5", ONCE + DEPLOY, "theirs: {a: 1}\nport: 22"])
def test_what_fabric_can_load_is_left_to_it(tmp_path: Path, content: str) -> None:
    (tmp_path / "fabric.yaml").write_text(content)

    check(tmp_path)


def test_a_project_without_a_file_is_left_alone(tmp_path: Path) -> None:
    check(tmp_path)


def test_the_first_of_fabrics_names_counts(tmp_path: Path) -> None:
    (tmp_path / "fabric.json").write_text("{")
    with pytest.raises(SettingsError, match=r"fabric\.json can't be used"):
        check(tmp_path)

    (tmp_path / "fabric.yml").write_text("a: b")
    check(tmp_path)


def test_a_file_that_can_not_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "fabric.yaml").mkdir()

    with pytest.raises(SettingsError, match="Is a directory"):
        check(tmp_path)


@given(content=st.binary() | st.text(alphabet=" \n:-[]{}&*!|>'\"%@`#,?ab1\t").map(str.encode))
def test_any_bytes_are_taken_or_refused_with_a_message(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    directory = tmp_path_factory.getbasetemp()
    (directory / "fabric.yaml").write_bytes(content)

    try:
        check(directory)
    except SettingsError as error:
        refusal = error
    else:
        return
    assert refusal.exit_code == 2


class TestFab:
    """The same by the real `fab`, whose fabfile calls `check_project_file` before Fabric reads the file."""

    @pytest.mark.parametrize(
        ("content", "task"),
        [("deploy: [", "--list"), (b"\xff", "show"), ("- a", "show"), ("run: 5", "show"),
         ("on: true", "show"), ("deploy: &a {app: *a}", "show")],
    )  # fmt: skip
    def test_a_broken_file_is_a_message_and_no_traceback(
        self, tmp_path: Path, content: str | bytes, task: str
    ) -> None:
        message = Project(tmp_path, content).refused(task)

        assert f"where: {tmp_path}/fabric.yaml" in message

    @pytest.mark.parametrize(
        "deploy",
        ["5", "[a]", "2024-01-01", "!!binary aGk=", "{1: 2}", "{app: 1, hooks: [], environments: 7}",
         "{application: .nan, hosts: [.inf, ~, 0x1, [a], {b: c}], app: 1, migrate: x, hooks: []}"],
    )  # fmt: skip
    def test_nor_is_a_senseless_section_deploy(self, tmp_path: Path, deploy: str) -> None:
        message = Project(tmp_path, f"{ONCE}deploy: {deploy}\n").refused("show")

        assert "deploy" in message

    def test_below_the_project_it_is_the_same_file(self, tmp_path: Path) -> None:
        assert "line 1" in Project(tmp_path, "a: [").refused("show", below="deep")
