"""A clean copy of a commit or of a directory."""

from __future__ import annotations

import os
import shutil
from datetime import datetime, timezone
from pathlib import Path

import pytest

from deploytools.errors import OperationFailed, UsageError
from deploytools.releasing.export import export, refuse_pointers
from deploytools.releasing.selection import Rules, select
from deploytools.releasing.source import resolve
from tests.support.checkouts import checkout, commit, git
from tests.support.values import settings

NOW = datetime(2026, 5, 1, 22, 30, 15, tzinfo=timezone.utc)
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 12345\n"

ALL = Rules()


def exported(path: Path, rules: Rules = ALL, *, ref: str | None = "HEAD", whole: bool = False) -> Path:
    """The tree that an export of `path` makes."""
    config = settings(source={"path": str(path), "ref": ref})
    tree = path.parent / f"tree{len(os.listdir(path.parent))}"
    tree.mkdir()
    assert export(resolve(config, None, NOW), tree, rules, whole=whole) == []
    return tree


def found(tree: Path) -> set[str]:
    return {path.relative_to(tree).as_posix() for path in tree.rglob("*")}


def test_a_commit_is_exported_whole_and_without_git(place: Path) -> None:
    (place / "index.php").write_text("<?php not committed")
    (place / "new").write_text("not committed")

    tree = exported(place)

    assert found(tree) == {"run", "link", "index.php", "odd name\n", "-dash", "\udcffbytes ü"}
    assert (tree / "index.php").read_text() == "<?php\n"
    assert os.access(tree / "run", os.X_OK)
    assert not os.access(tree / "index.php", os.X_OK)
    assert os.readlink(tree / "link") == "index.php"


def test_a_directory_below_the_top_of_a_checkout_is_exported_alone(place: Path) -> None:
    commit(
        place, "more", **{"app/page": "x", ".gitattributes": "/app/hidden export-ignore\n", "app/hidden": "x"}
    )

    assert found(exported(place / "app")) == {"page"}


def test_what_the_commit_says_of_exports_counts_and_what_this_laptop_says_does_not(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(place, "attributes", **{
        ".gitattributes": "tests export-ignore\nversion export-subst\n",
        "tests/a": "x",
        "version": "$Format:%H$",
    })  # fmt: skip
    (tmp_path / "attributes").write_text("index.php export-ignore\n* text\n")
    (tmp_path / "config").write_text(
        f"[core]\nautocrlf = true\nattributesFile = {tmp_path / 'attributes'}\n[tar]\numask = 0777\n"
    )
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "config"))

    tree = exported(place)

    assert (tree / "index.php").read_bytes() == b"<?php\n"
    assert not (tree / "tests").exists()
    assert (tree / "version").read_text() == git(place, "rev-parse", "HEAD")


def test_attributes_that_no_other_laptop_has_are_refused_unless_they_change_nothing(place: Path) -> None:
    kept = place / ".git/info/attributes"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("# x export-ignore\n*.png diff=exif\nexport-ignore merge=union context=x\n")
    assert "index.php" in found(exported(place))

    refused = ("*.php export-ignore", "*.x diff=a -text", "* text=auto", "[attr]own export-ignore")
    kept.write_text("\n".join(("*.png diff=exif", *refused)))
    with pytest.raises(UsageError, match="this computer's alone") as caught:
        exported(place)
    assert caught.value.details == refused
    assert str(kept) in caught.value.what


def test_a_directory_that_the_commit_does_not_have_is_not_shipped_as_nothing(place: Path) -> None:
    commit(place, "ignore", **{".gitignore": "dist\n"})
    (place / "dist").mkdir()
    (place / "dist" / "page").write_text("built")

    with pytest.raises(UsageError, match="has nothing in dist") as caught:
        exported(place / "dist")
    assert "source.ref: null" in (caught.value.next or "")
    assert found(exported(place / "dist", ref=None)) == {"page"}


def test_submodules_are_exported_at_the_commit_that_is_recorded(place: Path, tmp_path: Path) -> None:
    inner = checkout(tmp_path / "inner", deep="deep")
    library = checkout(tmp_path / "library", code="1")
    git(library, "submodule", "--quiet", "add", str(inner), "inner")
    commit(library, "with another in it")
    git(place, "submodule", "--quiet", "add", str(library), "my lib")
    git(place, "submodule", "--quiet", "update", "--init", "--recursive")
    commit(place, "with a library")
    commit(place / "my lib", "somebody is at work here", code="2")
    tree = tmp_path / "tree"
    tree.mkdir()

    told = export(resolve(settings(source={"path": str(place)}), None, NOW), tree, ALL, whole=False)

    assert told == [
        f"submodule {name}: shipped at {git(where, 'rev-parse', 'HEAD')[:8]}, the commit recorded for it"
        for name, where in (("my lib", library), ("my lib/inner", inner))
    ]
    assert (tree / "my lib" / "code").read_text() == "1"
    assert (tree / "my lib" / "inner" / "deep").read_text() == "deep"
    assert not [name for name in found(tree) if name.endswith("/.git")]


def test_a_submodule_that_is_not_checked_out_is_refused_unless_it_is_excluded(
    place: Path, tmp_path: Path
) -> None:
    checkout(tmp_path / "library", code="1")
    git(place, "submodule", "--quiet", "add", str(tmp_path / "library"), "lib")
    commit(place, "with a library")
    git(place, "submodule", "--quiet", "deinit", "--force", "lib")

    with pytest.raises(UsageError, match="the submodule lib is not here at") as caught:
        exported(place)
    assert "submodule update --init --recursive" in (caught.value.next or "")
    assert found(exported(place, Rules(exclude=("/lib",)))) >= {"index.php"}


def test_a_directory_is_copied_as_it_is_but_for_git(place: Path) -> None:
    (place / "empty").mkdir()
    (place / "notes.log").write_text("not committed")
    os.utime(place / "run", ns=(1, 1_700_000_000_123_456_789))

    tree = exported(place, Rules(exclude=("*.log",)), ref=None)

    assert found(tree) == {"run", "link", "index.php", "odd name\n", "-dash", "\udcffbytes ü", "empty"}
    assert (tree / "run").stat().st_mtime_ns == 1_700_000_000_123_456_789
    assert os.access(tree / "run", os.X_OK)
    assert (exported(place, Rules(exclude=("*.log",)), ref=None, whole=True) / "notes.log").exists()


def test_what_is_no_file_is_refused_before_anybody_waits_for_it(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    os.mkfifo(tmp_path / "plain" / "pipe")

    with pytest.raises(UsageError, match="pipe is neither a file"):
        exported(tmp_path / "plain")
    assert found(exported(tmp_path / "plain", Rules(exclude=("pipe",)))) == set()


def test_a_pointer_of_lfs_is_refused_by_its_path(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "logo.png").write_text(POINTER)
    (tree / "about.md").write_text(f"A pointer looks like this:\n{POINTER}")
    (tree / "large").write_text(POINTER + "x" * 1024)

    with pytest.raises(UsageError, match="only the pointer that Git LFS keeps") as caught:
        refuse_pointers(tree, select(tree, Rules()))
    assert caught.value.details == ("logo.png",)
    assert "git lfs pull" in (caught.value.next or "")
    refuse_pointers(tree, select(tree, Rules(exclude=("logo.png",))))


def test_a_file_that_lfs_knows_is_exported_by_its_filter(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")  # Debian's git-lfs is at work for the whole machine
    commit(place, "lfs", **{".gitattributes": "*.png filter=lfs\n", "logo.png": POINTER})
    git(place, "config", "filter.lfs.smudge", "sed -n '1s/.*/pixels/p'")

    assert (exported(place) / "logo.png").read_text() == "pixels\n"


def test_with_git_lfs_its_files_are_shipped_and_without_them_nothing_is(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program itself: a laptop that has what it keeps, and one that only ever got the pointers."""
    if shutil.which("git-lfs") is None:
        pytest.skip("git-lfs is not installed")
    git(place, "lfs", "install", "--local")
    git(place, "lfs", "track", "*.png")
    commit(place, "a picture", **{"logo.png": b"pixels" * 1000})
    assert git(place, "show", "HEAD:logo.png").startswith("version https://git-lfs")
    assert (exported(place) / "logo.png").read_bytes() == b"pixels" * 1000

    monkeypatch.setenv("GIT_LFS_SKIP_SMUDGE", "1")
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(place), str(clone))
    git(clone, "remote", "remove", "origin")
    tree = exported(clone)
    with pytest.raises(UsageError, match="only the pointer that Git LFS keeps") as caught:
        refuse_pointers(tree, select(tree, Rules()))
    assert caught.value.details == ("logo.png",)

    monkeypatch.delenv("GIT_LFS_SKIP_SMUDGE")
    git(clone, "lfs", "install", "--local")
    with pytest.raises(OperationFailed, match=r"git archive failed: .*logo\.png"):
        exported(clone)


def test_a_name_that_leaves_the_tree_stops_the_export(place: Path, tmp_path: Path) -> None:
    blob = git(place, "rev-parse", "HEAD:index.php")
    inner = _tree(place, "100644 evil\0", blob)
    commit_id = git(place, "commit-tree", "-m", "evil", _tree(place, "40000 ..\0", inner))
    git(place, "update-ref", "refs/heads/evil", commit_id)

    with pytest.raises(OperationFailed):
        exported(place, ref="evil")
    assert not (tmp_path / "evil").exists()


def test_a_disk_that_takes_nothing_is_told_with_the_place(place: Path) -> None:
    tree = place.parent / "full"
    tree.mkdir()
    (tree / "index.php" / "in the way").mkdir(parents=True)  # tar can't write there either

    config = settings(source={"path": str(place)})
    with pytest.raises(OperationFailed, match="can't be unpacked") as caught:
        export(resolve(config, None, NOW), tree, Rules(), whole=False)
    assert "TMPDIR" in (caught.value.next or "")
    assert caught.value.state == "no host was touched"


def _tree(place: Path, about: str, digest: str) -> str:
    """Write a tree object that git itself would refuse to make."""
    import subprocess

    done = subprocess.run(
        ["git", "-C", place, "hash-object", "-t", "tree", "-w", "--literally", "--stdin"],
        input=about.encode() + bytes.fromhex(digest),
        capture_output=True,
        check=True,
    )
    return done.stdout.decode().strip()
