"""What of a tree is shipped, and what in it stops a deploy."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from deploytools.errors import UsageError
from deploytools.releasing.selection import Rules, secrets, select, shortened


def names(tree: Path, rules: Rules) -> list[str]:
    return [item.name for item in select(tree, rules).items]


def fill(tree: Path, *files: str) -> None:
    for name in files:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("x")


def test_what_is_shipped_is_sorted_by_bytes_whatever_the_disk_says(tmp_path: Path) -> None:
    fill(tmp_path, "b/2", "b.c", "a", "Z", "é", "\udcff", "-dash", "new\nline")
    (tmp_path / "empty").mkdir()

    found = names(tmp_path, Rules())

    assert found == ["-dash", "Z", "a", "b", "b.c", "b/2", "empty", "new\nline", "é", "\udcff"]


def test_the_right_to_execute_and_the_targets_of_links_are_seen(tmp_path: Path) -> None:
    fill(tmp_path, "run", "page")
    (tmp_path / "run").chmod(0o700)
    (tmp_path / "link").symlink_to("page")

    found = {item.name: (item.kind, item.size, item.target) for item in select(tmp_path, Rules()).items}

    assert found == {"run": ("program", 1, None), "page": ("file", 1, None), "link": ("link", 0, "page")}


def test_patterns_mean_what_they_mean_in_a_gitignore(tmp_path: Path) -> None:
    fill(tmp_path, "tests/a", "app/tests/b", "app/x.map", "app/keep.map", "top", "app/top")

    rules = Rules(exclude=("/tests", "*.map", "!keep.map", "/top"))

    assert names(tmp_path, rules) == ["app", "app/keep.map", "app/tests", "app/tests/b", "app/top"]


def test_what_is_shared_and_what_is_of_git_is_left_out_with_the_reason(tmp_path: Path) -> None:
    fill(tmp_path, ".env", "var/cache/x", "vendor/lib/.git/config", "vendor/lib/code", "notes")

    selected = select(tmp_path, Rules(exclude=("notes",), shared=(".env", "var")))

    assert dict(selected.left_out) == {
        ".env": "shared",
        "var": "shared",
        "vendor/lib/.git": "git",
        "notes": "source.exclude",
    }
    assert [item.name for item in selected.items] == ["vendor", "vendor/lib", "vendor/lib/code"]


@pytest.mark.parametrize("target", ["/etc/passwd", "../outside", "a/../../outside", ".."])
def test_a_link_that_leaves_the_tree_is_refused_by_its_path(tmp_path: Path, target: str) -> None:
    tree = tmp_path / "tree"
    fill(tree, "a/x")
    (tree / "a" / "good").symlink_to("../a/x")
    (tree / "bad\n").symlink_to(target)

    with pytest.raises(UsageError, match="can't be part of a release") as caught:
        select(tree, Rules())
    assert [line.split(":")[0] for line in caught.value.details] == ["'bad\\n'"]
    assert select(tree, Rules(exclude=("bad*",)))


def test_a_link_that_leads_out_through_others_is_refused(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    fill(tree, "a/x")
    (tree / "a" / "up").symlink_to("..")
    (tree / "seems").symlink_to("a/up/../outside")  # by its text this is a/outside

    with pytest.raises(UsageError) as caught:
        select(tree, Rules())
    assert [line.split(":")[0] for line in caught.value.details] == ["'seems'"]


def test_a_link_that_dangles_or_goes_in_circles_inside_is_none_of_our_business(tmp_path: Path) -> None:
    (tmp_path / "later").symlink_to("built/later")
    (tmp_path / "circle").symlink_to("circle")

    assert names(tmp_path, Rules()) == ["circle", "later"]


def test_everything_that_can_not_be_shipped_is_named_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
    fill(tmp_path, ".deploytools.json", "sub/.deploytools.json")
    (tmp_path / "var").symlink_to("sub")

    with pytest.raises(UsageError, match="4 things") as caught:
        select(tmp_path, Rules(shared=("var/log",)))
    assert "\n".join(caught.value.details) == (
        "'.deploytools.json': the name is ours\n"
        "'pipe': it is neither a file, a directory nor a link\n"
        "'socket': it is neither a file, a directory nor a link\n"
        "'var': it is a link, but `shared` has var/log"
    )


def test_what_looks_like_a_secret_is_found_and_what_only_sounds_like_one_is_not(tmp_path: Path) -> None:
    guarded = [".env", ".env.local", "config/id_rsa", "tls/site.key", ".netrc"]
    fill(tmp_path, *guarded, ".env.example", "id_rsa.pub", "environment.py", "cacert.pem")
    (tmp_path / "tls" / "site.pem").write_text("-----BEGIN RSA PRIVATE KEY-----\n")

    found = secrets(tmp_path, select(tmp_path, Rules(shared=(".env",))))

    assert set(found) == {*guarded[1:], "tls/site.pem"}


def test_many_lines_are_told_as_some_and_a_number() -> None:
    assert shortened(["a", "b"]) == ["a", "b"]
    assert shortened(list("abcde"), most=3) == ["a", "b", "c", "... and 2 more"]
