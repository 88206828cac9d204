"""From what is to be shipped to what is sent to hosts, by real git checkouts and plain directories."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from deploytools.errors import OperationFailed, UsageError
from deploytools.releasing import Parcel, Shipped, exported, packed
from deploytools.releasing.contents import MANIFEST
from deploytools.settings import Settings
from tests.support.checkouts import commit, git
from tests.support.shipping import content, members
from tests.support.values import settings

NOW = datetime(2026, 5, 1, 22, 30, 15, tzinfo=timezone.utc)
FIX = "--- a/vendor/lib.js\n+++ b/vendor/lib.js\n@@ -1 +1 @@\n-theirs\n+ours\n"


def of(path: Path, *, shared: tuple[str, ...] = (), **source: object) -> Settings:
    return settings(source={"path": str(path), **source}, shared=list(shared))


def told(config: Settings) -> tuple[str, ...]:
    with exported(config, None, NOW) as export:
        return export.told


@contextmanager
def parcelled(config: Settings, said: list[str] | None = None, now: datetime = NOW) -> Iterator[Parcel]:
    say = [].append if said is None else said.append
    with (
        exported(config, None, now) as export,
        packed(export, config, "ann", logs=config.source.path.parent / "builds", say=say) as (_, parcel),
    ):
        yield parcel


def shipped(config: Settings) -> dict[str, bytes]:
    with parcelled(config) as parcel:
        return members(parcel)


def described(config: Settings, now: datetime = NOW) -> dict[str, object]:
    with parcelled(config, now=now) as parcel:
        return dict(json.loads(content(parcel, MANIFEST)))


def again(config: Settings, earlier: Shipped, now: datetime) -> tuple[str, str]:
    """The id and the digest of what Bob's deploy makes after an earlier one."""
    with (
        exported(config, git(config.source.path, "rev-parse", "HEAD"), now) as export,
        packed(export, config, "bob", logs=config.project, say=[].append, earlier=earlier) as (
            release,
            parcel,
        ),
    ):
        return release, parcel.digest


def test_the_same_once_more_is_the_release_that_other_hosts_have_and_anything_else_is_not(
    place: Path,
) -> None:
    with exported(of(place), None, NOW) as export, parcelled(of(place)) as parcel:
        earlier = Shipped(export.source.id, parcel.digest, "ann", export.source.ref)
    later = NOW + timedelta(days=1)

    assert again(of(place), earlier, later) == (earlier.release, earlier.digest)

    other = replace(of(place), health=replace(of(place).health, path="/health"))
    release, digest = again(other, earlier, later)
    assert release == f"{later:%Y%m%dT%H%M%SZ}-{release[-8:]}"
    assert digest != earlier.digest


def test_what_is_not_committed_is_told_and_not_shipped(place: Path) -> None:
    (place / "index.php").write_text("<?php broken")
    (place / "secret").write_text("x")

    assert told(of(place)) == (
        "not committed, so not shipped:  M index.php",
        "not committed, so not shipped: ?? secret",
    )
    with parcelled(of(place)) as parcel:
        assert content(parcel, "index.php") == b"<?php\n"
    assert "secret" not in shipped(of(place))


def test_what_goes_wrong_while_the_export_is_in_use_is_no_trouble_of_the_release(place: Path) -> None:
    """Hosts may have been touched by then; `| head` may have closed standard output."""
    with pytest.raises(BrokenPipeError), exported(of(place), None, NOW):
        raise BrokenPipeError(32, "Broken pipe")


def test_the_plan_says_what_is_shipped(place: Path, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    with exported(of(place), "v1", NOW) as export:
        assert export.lines == [
            f"source   v1 of {place}: {git(place, 'rev-parse', 'v1')[:8]} by Ann <ann@example.com>,"
            f" {git(place, 'log', '-1', '--format=%ci')}"
        ]
    with exported(of(tmp_path / "plain"), None, NOW) as export:
        assert "as it is on this computer, not from git" in export.lines[0]


def test_programs_links_and_odd_names_are_kept_and_git_is_dropped(place: Path) -> None:
    found = shipped(of(place))

    names = {"index.php", "run", "link", "odd name\n", "-dash", "\udcffbytes ü"}
    assert set(found) == {".deploytools.json", *names}
    assert (found["run"][:1], found["index.php"][:1], found["link"]) == (b"x", b"f", b"l index.php")


@pytest.mark.parametrize("ref", ["HEAD", None])
def test_equal_trees_have_equal_digests_at_other_times_in_other_places_by_other_umasks(
    place: Path, tmp_path: Path, ref: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    shutil.copytree(place, tmp_path / "other", symlinks=True)
    for path in (tmp_path / "other").rglob("*"):
        os.utime(path, (1, 1), follow_symlinks=False)
    build = "mkdir -p out && date > /dev/null && echo $SOURCE_DATE_EPOCH > out/page && chmod 0600 out/page"
    one = described(of(place, ref=ref, build=build))

    before = os.umask(0o077)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "elsewhere"))
    try:
        other = described(of(tmp_path / "other", ref=ref, build=build), NOW.replace(year=2030))
    finally:
        os.umask(before)

    assert one["digest"] == other["digest"]
    assert one["created_at"] != other["created_at"]


def test_the_build_runs_in_the_export_and_what_it_makes_is_shipped(place: Path) -> None:
    config = of(place, build="mkdir -p out && echo built > out/page; echo working")
    said: list[str] = []

    with parcelled(config, said) as parcel:
        assert content(parcel, "out/page") == b"built\n"
    assert not (place / "out").exists()
    assert said[0].endswith(".log")
    assert said[1:] == ["build | working"]


def test_patches_are_applied_before_the_build_and_recorded(place: Path, tmp_path: Path) -> None:
    commit(place, "a library", **{"vendor/lib.js": "theirs\n", "fix.diff": FIX})
    config = of(
        place, patches=[str(place / "fix.diff")], build="cp vendor/lib.js built.js", exclude=["*.diff"]
    )

    with parcelled(config) as parcel:
        assert content(parcel, "vendor/lib.js") == content(parcel, "built.js") == b"ours\n"
        recorded = json.loads(content(parcel, MANIFEST))["patches"]
    assert [patch["name"] for patch in recorded] == ["fix.diff"]
    assert "fix.diff" not in shipped(config)
    assert (place / "vendor" / "lib.js").read_text() == "theirs\n"


def test_a_patch_that_no_longer_applies_stops_before_anything_is_built(place: Path) -> None:
    commit(place, "a newer library", **{"vendor/lib.js": "theirs, newer\n", "fix.diff": FIX})
    config = of(place, patches=[str(place / "fix.diff")], build="touch /nonexistent/built")

    with pytest.raises(UsageError, match="doesn't apply") as caught, parcelled(config):
        pass
    assert caught.value.details == ("vendor/lib.js: hunk 1, at line 1, doesn't fit",)


def test_what_is_excluded_is_there_for_the_build_and_not_in_the_release(place: Path) -> None:
    config = of(place, exclude=["run", "odd*", "made"], build="cp run copy; mkdir made; touch made/x")

    found = shipped(config)

    assert "copy" in found
    assert not {"run", "odd name\n", "made", "made/x"} & set(found)


@pytest.mark.parametrize("build", [None, "echo PASSWORD=y > .env; touch built"])
def test_what_is_kept_on_the_hosts_is_never_in_a_release(tmp_path: Path, build: str | None) -> None:
    plain = tmp_path / "plain"
    (plain / "var").mkdir(parents=True)
    (plain / "log").mkdir()
    (plain / "log" / ".gitkeep").touch()
    (plain / ".env").write_text("PASSWORD=x")
    (plain / "var" / "data.db").write_text("x")
    (plain / "page").write_text("x")
    config = of(plain, shared=(".env", "var", "log"), build=build)

    assert set(shipped(config)) - {"built"} == {"page", MANIFEST}
    assert tuple(sorted(told(config))) == (
        "kept on the hosts (`shared`), so not shipped: .env",
        "kept on the hosts (`shared`), so not shipped: var",
    )


def test_what_looks_like_a_secret_is_told_before_and_after_the_build(place: Path) -> None:
    commit(place, "oh", **{"config/id_rsa": "x"})
    said: list[str] = []

    with parcelled(of(place, build="touch config/.env"), said):
        pass
    assert [line.rpartition(": ")[2] for line in told(of(place))] == ["'config/id_rsa'"]
    assert [line.rpartition(": ")[2] for line in said[1:]] == ["'config/.env'"]


def test_a_link_that_leaves_the_tree_is_refused_before_and_after_the_build(place: Path) -> None:
    with pytest.raises(UsageError) as caught, parcelled(of(place, build="ln -s /etc/passwd built")):
        pass
    assert caught.value.details == (
        "'built': it is a symbolic link to '/etc/passwd', which leaves the release",
    )

    (place / "bad").symlink_to("../..")
    commit(place, "bad")
    with pytest.raises(UsageError), exported(of(place), None, NOW):
        pass


def test_a_bare_repository_is_shipped(place: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "--quiet", "--bare", str(place), "bare.git")

    assert "index.php" in shipped(of(tmp_path / "bare.git"))


def test_a_plain_directory_keeps_its_empty_directories(tmp_path: Path) -> None:
    (tmp_path / "plain" / "empty").mkdir(parents=True)
    (tmp_path / "plain" / "debug.log").write_text("x")

    assert set(shipped(of(tmp_path / "plain", exclude=["*.log"]))) == {"empty", MANIFEST}


def test_a_file_that_can_not_be_read_is_told_by_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "gone").write_text("x")

    def fail(source: str, target: Path) -> None:
        raise PermissionError(13, "Permission denied", source)

    monkeypatch.setattr("shutil.copyfile", fail)  # root may read everything
    with (
        pytest.raises(OperationFailed, match="Permission denied") as caught,
        exported(of(tmp_path / "plain"), None, NOW),
    ):
        pass
    assert caught.value.where == str(tmp_path / "plain" / "gone")


def test_a_pattern_that_is_none_is_told_by_its_key(place: Path) -> None:
    with pytest.raises(UsageError) as caught, exported(of(place, exclude=["!"]), None, NOW):
        pass
    assert caught.value.where == "deploy.source.exclude"


def test_nothing_of_it_stays_on_this_computer(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))

    with parcelled(of(place, build="mkdir -m 0500 locked")):
        assert os.listdir(tmp_path / "temporary")
    assert os.listdir(tmp_path / "temporary") == []
