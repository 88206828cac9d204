"""Releases built from real git checkouts and plain directories."""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
from datetime import datetime, timezone
from pathlib import Path

import pytest

from deploytools.errors import OperationFailed, UsageError
from deploytools.releasing import packed, resolve
from deploytools.releasing.contents import MANIFEST
from deploytools.releasing.packing import Archive
from deploytools.settings import Settings
from tests.support.values import settings

NOW = datetime(2026, 5, 1, 22, 30, 15, tzinfo=timezone.utc)


def git(path: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=Ann", "-c", "user.email=ann@example.com", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", "-C", path, *identity, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    path = tmp_path / "checkout"
    path.mkdir()
    git(path, "init", "-q", "-b", "main")
    (path / "index.php").write_text("<?php\n")
    (path / "run").write_text("#!/bin/sh\n")
    (path / "run").chmod(0o755)
    (path / "link").symlink_to("index.php")
    (path / "odd name\n").write_text("odd")
    git(path, "add", "-A")
    git(path, "commit", "-q", "-m", "first")
    git(path, "tag", "v1")
    return path


def of(path: Path, **source: object) -> Settings:
    return settings(source={"path": str(path), **source})


def members(archive: Archive) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(archive.path) as tar:
        return {entry.name.removeprefix("./"): entry for entry in tar}


def content(archive: Archive, name: str) -> bytes:
    with tarfile.open(archive.path) as tar:
        file = tar.extractfile(f"./{name}")
        assert file is not None
        return file.read()


def test_a_release_is_named_by_time_and_commit(checkout: Path) -> None:
    source = resolve(of(checkout), "v1", NOW)

    assert source.id == f"20260501T223015Z-{git(checkout, 'rev-parse', 'v1')[:8]}"
    assert source.author == "Ann <ann@example.com>"
    assert source.dirty == ()


def test_what_is_not_committed_is_told_and_not_shipped(checkout: Path) -> None:
    (checkout / "index.php").write_text("<?php broken")
    (checkout / "secret").write_text("x")

    source = resolve(of(checkout), None, NOW)

    assert {line.split()[-1] for line in source.dirty} == {"index.php", "secret"}
    with packed(source, of(checkout), "ann", NOW) as archive:
        assert "secret" not in members(archive)
        assert content(archive, "index.php") == b"<?php\n"


def test_the_archive_keeps_programs_links_and_odd_names_and_drops_git(checkout: Path) -> None:
    source = resolve(of(checkout), None, NOW)

    with packed(source, of(checkout), "ann", NOW) as archive:
        found = members(archive)
    assert set(found) == {".", ".deploytools.json", "index.php", "run", "link", "odd name\n"}
    assert found["run"].mode == 0o755
    assert found["index.php"].mode == 0o644
    assert found["link"].linkname == "index.php"
    assert {entry.uid for entry in found.values()} == {0}


def test_the_description_travels_with_the_release(checkout: Path) -> None:
    config = of(checkout)
    source = resolve(config, "v1", NOW)

    with packed(source, config, "ann", NOW) as archive:
        described = json.loads(content(archive, MANIFEST))
    assert described["id"] == source.id
    assert described["ref"] == "v1"
    assert described["operator"] == "ann"
    assert described["app"]["command"] == "/usr/bin/php-cgi"
    assert described["health"] == {"path": "/", "status": 200, "contains": None, "smoke": []}
    assert described["migrate"]["adapter"] == "alembic"


def test_equal_trees_give_equal_archives_and_equal_digests(checkout: Path) -> None:
    config = of(checkout)
    source = resolve(config, None, NOW)

    with (
        packed(source, config, "ann", NOW) as one,
        packed(source, config, "ann", NOW) as other,
    ):
        assert one.digest == other.digest


def test_the_build_runs_in_the_export_and_not_in_the_checkout(checkout: Path) -> None:
    config = of(checkout, build="mkdir -p out && echo built > out/page")

    with packed(resolve(config, None, NOW), config, "ann", NOW) as archive:
        assert content(archive, "out/page") == b"built\n"
    assert not (checkout / "out").exists()


def test_a_build_that_fails_says_what_it_printed(checkout: Path) -> None:
    config = of(checkout, build="echo no compiler >&2; exit 9")

    with (
        pytest.raises(OperationFailed, match="exit code 9") as caught,
        packed(resolve(config, None, NOW), config, "ann", NOW),
    ):
        pass
    assert caught.value.details == ("no compiler",)
    assert caught.value.state == "no host was touched"


def test_excluded_paths_stay_at_home(checkout: Path) -> None:
    config = of(checkout, exclude=["run", "odd*"])

    with packed(resolve(config, None, NOW), config, "ann", NOW) as archive:
        assert not {"run", "odd name\n"} & set(members(archive))


def test_a_directory_that_is_no_checkout_is_shipped_as_it_is(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    (plain / "empty").mkdir(parents=True)
    (plain / "page").write_text("x")
    config = of(plain, exclude=["*.log"])
    (plain / "debug.log").write_text("x")
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(tmp_path)}
    os.environ.update(environment)

    source = resolve(config, None, NOW)

    assert source.id == "20260501T223015Z"
    with packed(source, config, "ann", NOW) as archive:
        assert {"empty", "page"} <= set(members(archive))
        assert "debug.log" not in members(archive)


@pytest.mark.parametrize("ref", ["nonsense", "--upload-pack=evil", "v1..v2", ""])
def test_a_ref_that_is_no_commit_is_refused(checkout: Path, ref: str) -> None:
    with pytest.raises(UsageError, match="there is no commit"):
        resolve(of(checkout), ref or "no such ref", NOW)


def test_a_checkout_without_a_commit_is_told_to_commit(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")

    with pytest.raises(UsageError, match="nothing is committed yet") as caught:
        resolve(of(tmp_path), None, NOW)
    assert "git commit" in (caught.value.next or "")


def test_a_path_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no directory to deploy"):
        resolve(of(tmp_path / "nowhere"), None, NOW)
