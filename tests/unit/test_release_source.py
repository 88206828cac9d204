"""Which tree a deploy ships, by real git checkouts and plain directories."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from deploytools.errors import UsageError
from deploytools.releasing.source import made_at, resolve, unlike
from deploytools.settings import Settings
from tests.support.checkouts import AUTHOR, checkout, commit, git
from tests.support.values import settings

NOW = datetime(2026, 5, 1, 22, 30, 15, tzinfo=timezone.utc)


def of(path: Path, **source: object) -> Settings:
    return settings(source={"path": str(path), **source})


def test_a_release_is_named_by_time_and_commit(place: Path) -> None:
    source = resolve(of(place), "v1", NOW)

    assert source.id == f"20260501T223015Z-{git(place, 'rev-parse', 'v1')[:8]}"
    assert (source.ref, source.author, source.dirty) == ("v1", AUTHOR, ())


def test_a_second_deploy_of_a_commit_in_one_second_gets_an_id_of_its_own(place: Path, tmp_path: Path) -> None:
    source = resolve(settings(source={"path": str(place)}), None, NOW)
    next_second = f"{NOW + timedelta(seconds=1):%Y%m%dT%H%M%SZ}-{source.id[-8:]}"

    assert unlike(source, {None, "other"}) is source
    assert unlike(source, {source.id}).id == next_second
    assert made_at(next_second) == NOW + timedelta(seconds=1)

    (tmp_path / "plain").mkdir()
    plain = resolve(settings(source={"path": str(tmp_path / "plain")}), None, NOW)
    assert unlike(plain, {plain.id}).id == next_second.partition("-")[0]


def test_head_is_recorded_as_the_branch_that_it_is(place: Path) -> None:
    assert resolve(of(place), None, NOW).ref == "main"

    git(place, "checkout", "--quiet", "--detach")
    assert resolve(of(place), None, NOW).ref == "HEAD"


def test_everything_that_is_not_committed_is_told(place: Path) -> None:
    (place / "index.php").write_text("<?php broken")
    (place / "naïve\nname").write_text("x")
    git(place, "config", "status.showUntrackedFiles", "no")

    assert resolve(of(place), None, NOW).dirty == (" M index.php", '?? "naïve\\nname"')


def test_a_hook_of_git_that_deploys_does_not_lead_us_elsewhere(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = checkout(tmp_path / "other", page="other")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / ".git" / "index"))

    source = resolve(of(place), None, NOW)

    monkeypatch.undo()
    assert source.commit == git(place, "rev-parse", "HEAD")


def test_a_directory_that_is_no_checkout_is_shipped_as_it_is(tmp_path: Path) -> None:
    source = resolve(of(tmp_path), None, NOW)

    assert (source.id, source.commit, source.ref) == ("20260501T223015Z", None, None)
    assert "as it is on this computer" in str(source)


def test_without_a_ref_a_checkout_is_shipped_as_it_is_unless_one_is_typed(place: Path) -> None:
    assert resolve(of(place, ref=None), None, NOW).commit is None
    assert resolve(of(place, ref=None), "v1", NOW).commit == git(place, "rev-parse", "v1")


def test_a_bare_repository_is_a_source_too(place: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "--quiet", "--bare", str(place), "bare.git")

    source = resolve(of(tmp_path / "bare.git"), "v1", NOW)

    assert source.commit == git(place, "rev-parse", "v1")
    assert source.dirty == ()


@pytest.mark.parametrize("trouble", ["git is missing", "git refuses to work there"])
def test_a_checkout_that_git_can_not_be_asked_about_is_never_taken_for_a_plain_directory(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    if trouble == "git is missing":
        monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    else:
        (place / ".git" / "config").write_text("[core\n")

    with pytest.raises(UsageError, match=r"git is not installed|git can't be asked about") as caught:
        resolve(of(place), None, NOW)
    assert caught.value.next


def test_without_git_a_plain_directory_can_be_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if any((above / ".git").exists() for above in tmp_path.parents):
        pytest.fail(f"{tmp_path} lies in a checkout")
    monkeypatch.setenv("PATH", str(tmp_path))

    assert resolve(of(tmp_path), None, NOW).commit is None


@pytest.mark.parametrize("ref", ["nonsense", "--upload-pack=evil", "v1..v2", ""])
def test_a_ref_that_is_no_commit_is_refused(place: Path, ref: str) -> None:
    with pytest.raises(UsageError, match="there is no commit"):
        resolve(of(place), ref or "no such ref", NOW)


def test_a_ref_of_a_plain_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a git checkout"):
        resolve(of(tmp_path), "v1", NOW)


def test_a_checkout_without_a_commit_is_told_to_commit(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")

    with pytest.raises(UsageError, match="nothing is committed yet") as caught:
        resolve(of(tmp_path), None, NOW)
    assert "git commit" in (caught.value.next or "")


def test_a_path_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no directory to deploy"):
        resolve(of(tmp_path / "nowhere"), None, NOW)


def test_what_a_submodule_has_that_is_not_recorded_is_told(place: Path, tmp_path: Path) -> None:
    checkout(tmp_path / "library", code="1")
    git(place, "submodule", "--quiet", "add", str(tmp_path / "library"), "lib")
    commit(place, "a library")
    (place / "lib" / "code").write_text("changed")
    git(place, "config", "submodule.lib.ignore", "all")

    assert resolve(of(place), None, NOW).dirty == (" M lib",)


def test_the_times_of_a_commit_are_recorded_as_they_are(place: Path) -> None:
    source = resolve(of(place), None, NOW)

    assert source.committed_at == git(place, "log", "-1", "--format=%cI")
    local = git(place, "log", "-1", "--format=%cd", "--date=iso-local")
    assert str(source).endswith(f" by {source.author}, {local}")
