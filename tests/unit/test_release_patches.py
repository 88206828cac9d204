"""Local fixes to what others wrote: applied exactly, or not at all."""

from __future__ import annotations

import difflib
import os
from datetime import datetime, timezone
from pathlib import Path

import pytest

from deploytools.errors import UsageError
from deploytools.releasing import patches
from deploytools.releasing.patches import Patch
from deploytools.releasing.source import resolve
from tests.support.checkouts import checkout, commit
from tests.support.values import settings

NOW = datetime(2026, 5, 1, 22, 30, 15, tzinfo=timezone.utc)
# A file of somebody else's, which decides by the browser where ours should go one way always.
THEIRS = [
    "// bridge 1.2",
    "function attach(name) {",
    "    var wanted = 'bridge=' + name;",
    "    var old = isOldBrowser();",
    "    if (old) {",
    "        attachTo(allObjects(), wanted);",
    "    }",
    *(f"    // {number}" for number in range(20)),
    "    else {",
    "        attachTo(allEmbeds(), wanted);",
    "    }",
    "    return true;",
    "}",
]
OURS = [line for line in THEIRS if "old" not in line and "else" not in line and "Embeds" not in line]
OURS = [line for line in OURS if line != "    }"]


def diff(name: str, before: list[str], after: list[str], end: str = "\n") -> bytes:
    """As `diff -u` writes it, with the times behind the names."""
    made = difflib.unified_diff(
        [line + end for line in before],
        [line + end for line in after],
        f"a/{name}",
        f"b/{name}",
        "2008-02-11 06:44:57.000000000 -0800",
        "2008-05-13 18:17:25.000000000 -0700",
    )
    return "".join(made).encode()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "tree" / "vendor").mkdir(parents=True)
    write(tmp_path / "tree", THEIRS)
    return tmp_path / "tree"


def write(tree: Path, lines: list[str], end: str = "\n") -> None:
    (tree / "vendor" / "bridge.js").write_bytes("".join(line + end for line in lines).encode())


def apply(tree: Path, *contents: bytes) -> list[str]:
    return patches.apply(tree, [Patch(f"{number}.diff", content) for number, content in enumerate(contents)])


def refused(tree: Path, *contents: bytes) -> UsageError:
    with pytest.raises(UsageError) as caught:
        apply(tree, *contents)
    assert caught.value.state == "nothing was changed"
    return caught.value


def test_a_fix_to_a_file_of_somebody_else_is_carried(tree: Path) -> None:
    (tree / "vendor" / "bridge.js").chmod(0o755)

    assert apply(tree, diff("vendor/bridge.js", THEIRS, OURS)) == []

    assert (tree / "vendor" / "bridge.js").read_text().splitlines() == OURS
    assert os.access(tree / "vendor" / "bridge.js", os.X_OK)
    assert os.listdir(tree / "vendor") == ["bridge.js"]


def test_a_new_version_that_moves_the_lines_is_patched_and_that_is_told(tree: Path) -> None:
    write(tree, [*THEIRS[:15], "// new", *THEIRS[15:]])

    told = apply(tree, diff("vendor/bridge.js", THEIRS, OURS))

    assert told == ["0.diff: vendor/bridge.js: hunk 2 applies at line 23, offset 1 line"]
    assert [
        line for line in (tree / "vendor" / "bridge.js").read_text().splitlines() if line != "// new"
    ] == OURS


def test_a_patch_that_no_longer_applies_is_refused_by_file_and_hunk(tree: Path) -> None:
    changed = [line.replace("return true", "return wanted") for line in THEIRS]
    write(tree, changed)

    error = refused(tree, diff("vendor/bridge.js", THEIRS, OURS))

    assert error.where == "deploy.source.patches: 0.diff"
    assert error.details == ("vendor/bridge.js: hunk 2, at line 25, doesn't fit",)


@pytest.mark.parametrize("what", ["a line around it", "only white space", "line ends"])
def test_there_is_no_fuzz(tree: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree.parent / "config").write_text("[apply]\nignoreWhitespace = change\nwhitespace = fix\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tree.parent / "config"))
    if what == "line ends":
        write(tree, THEIRS, end="\r\n")
    else:
        theirs = "bridge 1.3" if what == "a line around it" else "bridge  1.2"
        write(tree, [line.replace("bridge 1.2", theirs) for line in THEIRS])

    error = refused(tree, diff("vendor/bridge.js", THEIRS, OURS))

    assert "vendor/bridge.js: hunk 1, at line 1, doesn't fit" in error.details


def test_files_with_windows_line_ends_are_patched_by_patches_that_have_them(tree: Path) -> None:
    write(tree, THEIRS, end="\r\n")

    apply(tree, diff("vendor/bridge.js", THEIRS, OURS, end="\r\n"))

    assert (tree / "vendor" / "bridge.js").read_bytes().split(b"\r\n")[:-1] == [o.encode() for o in OURS]


def test_patches_apply_in_their_order_each_to_what_the_one_before_left(tree: Path) -> None:
    third = [line.replace("wanted", "name") for line in OURS]
    first, second = diff("vendor/bridge.js", THEIRS, OURS), diff("vendor/bridge.js", OURS, third)

    apply(tree, first, second)

    assert (tree / "vendor" / "bridge.js").read_text().splitlines() == third
    write(tree, THEIRS)
    assert refused(tree, second, first).where == "deploy.source.patches: 0.diff"


def test_a_fix_that_upstream_has_taken_is_told_as_such(tree: Path) -> None:
    write(tree, OURS)

    error = refused(tree, diff("vendor/bridge.js", THEIRS, OURS))

    assert "in the source already" in error.what


@pytest.mark.parametrize(
    ("patch", "said"),
    [
        (b"--- a/gone.js\n+++ b/gone.js\n@@ -1 +1 @@\n-a\n+b\n", "gone.js: No such file or directory"),
        (b"--- a/../out\n+++ b/../out\n@@ -1 +1 @@\n-x\n+y\n", "invalid path '../out'"),
        (b"--- a/link/out\n+++ b/link/out\n@@ -1 +1 @@\n-x\n+y\n", "beyond a symbolic link"),
        (b"--- /dev/null\n+++ b/.git/hooks/x\n@@ -0,0 +1 @@\n+y\n", "invalid path '.git/hooks/x'"),
        (b"--- a/vendor/bridge.js\n+++ b/vendor/bridge.js\n@@ -1,9 +1,9 @@\n-a\n", "corrupt patch at line"),
        (b"", "No valid patches in input"),
    ],
)
def test_what_is_no_patch_for_this_tree_is_refused_with_the_reason(
    tree: Path, patch: bytes, said: str
) -> None:
    (tree.parent / "out").write_text("x\n")
    (tree / "link").symlink_to("..")

    error = refused(tree, patch)

    assert any(said in line for line in error.details), error.details
    assert (tree.parent / "out").read_text() == "x\n"


def test_a_repository_around_the_export_does_not_matter(tmp_path: Path) -> None:
    outer = checkout(tmp_path / "outer", page="x")
    tree = outer / "tmp" / "tree"
    (tree / "vendor").mkdir(parents=True)
    write(tree, THEIRS)

    apply(tree, diff("vendor/bridge.js", THEIRS, OURS))

    assert (tree / "vendor" / "bridge.js").read_text().splitlines() == OURS


def test_a_patch_of_the_repository_is_taken_from_the_commit_that_is_shipped(tmp_path: Path) -> None:
    place = checkout(tmp_path / "checkout", **{"app/page": "x", "patches/fix.diff": "as committed"})
    (place / "patches" / "fix.diff").write_text("at work on it")
    (place / "patches" / "new.diff").write_text("not committed")
    (tmp_path / "own.diff").write_text("from elsewhere")
    source = resolve(settings(source={"path": str(place / "app")}), None, NOW)

    committed, own = patches.read(source, [place / "patches" / "fix.diff", tmp_path / "own.diff"], tmp_path)

    assert (committed.name, committed.content) == ("patches/fix.diff", b"as committed")
    assert (own.name, own.content) == ("own.diff", b"from elsewhere")
    with pytest.raises(UsageError, match="is not in main") as caught:
        patches.read(source, [place / "patches" / "new.diff"], tmp_path)
    assert "commit it" in (caught.value.next or "")
    commit(place, "a newer one")
    assert patches.read(source, [place / "patches" / "fix.diff"], tmp_path)[0].content == b"as committed"


def test_a_patch_for_a_plain_directory_is_read_from_the_disk(tmp_path: Path) -> None:
    (tmp_path / "fix.diff").write_text("x")
    source = resolve(settings(source={"path": str(tmp_path), "ref": None}), None, NOW)

    assert patches.read(source, [tmp_path / "fix.diff"], tmp_path)[0].content == b"x"
    with pytest.raises(UsageError, match="can't be read: No such file") as caught:
        patches.read(source, [tmp_path / "fix.diff", tmp_path / "gone.diff"], tmp_path)
    assert caught.value.where == f"deploy.source.patches[1]: {tmp_path / 'gone.diff'}"
