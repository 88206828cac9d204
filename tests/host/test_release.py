"""`release`: takes in, discards, lists and prunes the releases of a host."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hostlib.program import Config, Failure
from hostlib.releasing import releases, staging

from deploytools.releasing.packing import Content, Parcel
from tests.support.barehost import bare_host, make_current, put_generation, put_release
from tests.support.shipping import Tree, parcel, ship, stage
from tests.support.webhost import WebHost, wait_until

# The application's account, where it isn't the deploy user's: it can't write into a release then.
OTHER = "nobody"


@pytest.fixture
def host() -> Iterator[WebHost]:
    with bare_host(user=OTHER) as host:
        yield host


def on_disk(host: WebHost) -> set[str]:
    """The complete releases, and what else is there but the place for what comes in."""
    return {path.name for path in (host.root / "releases").iterdir()} - {".incoming"}


def arrived(host: WebHost) -> set[str]:
    """What is there of content that has no place yet."""
    return {path.name for path in (host.root / "releases/.incoming/content").iterdir()}


def incoming(host: WebHost) -> set[str]:
    return {path.name for path in (host.root / "releases/.incoming").iterdir()} - {"content"}


def listed(*blocks: bytes, head: bytes = b"1 0") -> Parcel:
    """A release as somebody else than our laptop would describe it; each block by its words."""
    whole = (head, *(b"\0".join(block.split(b"|")) for block in blocks))
    return Parcel(hashlib.sha256(b"\0\0".join(whole)).hexdigest(), whole, ())


def a_file(content: bytes = b"x") -> bytes:
    return b"f %d %s" % (len(content), hashlib.sha256(content).hexdigest().encode())


class TestStage:
    def test_a_release_is_what_the_laptop_has(self, host: WebHost) -> None:
        odd = os.fsdecode(b"caf\xe9\n 'quoted' -x")
        content: Tree = {
            "bin/run": b"#!/bin/sh\n",
            "page": b"hello",
            "go": ("to", "bin/run"),
            "sub/up": ("to", "../page"),
            "dangling": ("to", "not/there"),
            "empty": None,
            "nothing": b"",
            odd: b"odd",
            "same": b"hello",
            "large": os.urandom(700_000),
        }
        ran = stage(host, "r1", content)
        assert (ran.code, ran.json["changed"], on_disk(host), incoming(host)) == (0, True, {"r1"}, set())
        place = host.root / "releases/r1"
        assert {name for name in os.listdir(place) if not name.startswith(".deploytools")} == {
            name.split("/")[0] for name in content
        }
        assert (place / "go").read_bytes() == b"#!/bin/sh\n"
        assert os.readlink(place / "sub/up") == "../page"
        assert os.readlink(place / "dangling") == "not/there"
        for name, what in content.items():
            if isinstance(what, bytes):
                assert (place / name).read_bytes() == what
        modes = {name: (place / name).stat().st_mode & 0o7777 for name in (".", "empty", "page", "bin/run")}
        assert modes == {".": 0o755, "empty": 0o755, "page": 0o644, "bin/run": 0o755}
        assert (place / "page").stat().st_mtime == 1777629600, "the commit's time, on every host"
        assert (place / "same").stat().st_ino != (place / "page").stat().st_ino

    def test_keeps_the_environments_in_the_manifest_to_its_owner_and_root(self, host: WebHost) -> None:
        assert stage(host, "r1").code == 0
        for name in (".deploytools.json", ".deploytools.files"):
            assert (host.root / "releases/r1" / name).stat().st_mode & 0o7777 == 0o600

    def test_a_second_time_is_harmless_and_needs_nothing_sent(self, host: WebHost) -> None:
        shipped = parcel(host, "r1", {"a": b"x"})
        ship(host, "r1", shipped)
        again, _ = ship(host, "r1", None, sha256=shipped.digest)
        assert (again.code, again.json["changed"], on_disk(host)) == (0, False, {"r1"})

    def test_what_is_not_here_can_not_be_staged_without_being_sent(self, host: WebHost) -> None:
        ran, _ = ship(host, "r1", None)
        assert (ran.code, on_disk(host)) == (3, set())
        assert "the process that packed it has gone" in ran.error["what"]
        assert "makes the release anew" in ran.error["next"]

    def test_another_release_under_the_same_id_is_refused(self, host: WebHost) -> None:
        stage(host, "r1")
        ran = stage(host, "r1", {"other": b"x"})
        assert ran.code == 3
        assert "another release r1" in ran.error["what"]
        assert not (host.root / "releases/r1/other").exists()

    @pytest.mark.parametrize("release", ["../r1", ".hidden", "-r", "r" * 90])
    def test_a_name_that_could_leave_the_directory_is_refused(self, host: WebHost, release: str) -> None:
        ran = host.run("release", "stage", "--sha256", "0" * 64, "--", release)
        assert ran.code == 2
        assert "Traceback" not in ran.err


def damage(path: Path) -> None:
    """Another content in place, of the same size and time."""
    before = path.stat()
    path.write_bytes(b"?" * before.st_size)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


# As hostlib.releasing.proof has it.
PARTS = 8
TREE: Tree = {f"d{number}/file": b"%d" % number * 5000 for number in range(20)}


class TestOnlyWhatChangedTravels:
    def test_what_was_here_is_linked_and_only_the_rest_is_sent(self, host: WebHost) -> None:
        first, sent = ship(host, "r1", parcel(host, "r1", TREE))
        changed = {**TREE, "d3/file": b"new", "d4/moved": TREE["d4/file"]}
        second, sent_then = ship(host, "r2", parcel(host, "r2", changed))
        assert (first.code, second.code) == (0, 0)
        assert (second.json["linked"], second.json["arrived"]) == (20, 2)
        assert (
            second.json["bytes"] == len(b"new") + (host.root / "releases/r2/.deploytools.json").stat().st_size
        )
        assert sent_then < 2000 < sent
        one, other = (host.root / "releases" / release for release in ("r1", "r2"))
        assert os.path.samefile(one / "d5/file", other / "d5/file")
        assert os.path.samefile(one / "d4/file", other / "d4/moved")
        assert (other / "d3/file").read_bytes() == b"new"
        assert (one / "d3/file").read_bytes() == TREE["d3/file"]

    def test_where_the_application_could_write_into_a_release_files_are_copied(self) -> None:
        with bare_host() as host:  # which runs the application by the deploy user's own account
            stage(host, "r1", TREE)
            ran = stage(host, "r2", TREE)
            assert (ran.json["linked"], ran.json["copied"], ran.json["arrived"]) == (0, 20, 1)
            (host.root / "releases/r1/d1/file").write_bytes(b"by the application")
            assert (host.root / "releases/r2/d1/file").read_bytes() == TREE["d1/file"]

    def test_a_file_that_was_damaged_is_sent_anew_and_told(self, host: WebHost) -> None:
        stage(host, "r1", TREE)
        place = host.root / "releases/r1"
        (place / "d1/file").write_bytes(b"?" * (place / "d1/file").stat().st_size)
        (place / "d2/file").unlink()
        (place / "d3/file").unlink()
        (place / "d3/file").symlink_to("/etc/passwd")
        ran = stage(host, "r2", TREE)
        assert (ran.code, ran.json["arrived"]) == (0, 4)
        assert [line.split(" ")[0] for line in ran.json["details"]] == [
            str(place / f"d{number}/file") for number in (1, 2, 3)
        ]
        for number in (1, 2, 3):
            assert (host.root / f"releases/r2/d{number}/file").read_bytes() == TREE[f"d{number}/file"]

    def test_a_file_whose_mode_a_hand_has_changed_is_no_link_of_the_next_release(self, host: WebHost) -> None:
        stage(host, "r1", TREE)
        (host.root / "releases/r1/d5/file").chmod(0o600)
        ran = stage(host, "r2", TREE)
        assert (ran.json["linked"], ran.json["copied"]) == (19, 1)
        there = host.root / "releases/r2/d5/file"
        assert (there.stat().st_mode & 0o777, there.read_bytes()) == (0o644, TREE["d5/file"])

    def test_damage_that_no_look_shows_is_found_within_eight_deploys_and_mended_by_the_next(
        self, host: WebHost
    ) -> None:
        stage(host, "r1", TREE)
        damage(host.root / "releases/r1/d7/file")
        told: list[str] = []
        for number in range(2, 2 + PARTS):
            stage(host, f"r{number}", TREE)
            ran = host.run("release", "prune", "--keep", "2", "--deployed", f"r{number}")
            told += ran.json.get("details", ())
            if told:
                break
        assert [line.split(" ")[0] for line in told] == [str(host.root / f"releases/r{number}/d7/file")]
        assert "sends it anew" in told[0]
        mended = stage(host, "mended", TREE)
        assert (mended.json["linked"], mended.json["arrived"]) == (19, 2)
        assert (host.root / "releases/mended/d7/file").read_bytes() == TREE["d7/file"]

    def test_what_is_read_by_turns_is_a_part_of_a_release(self, host: WebHost) -> None:
        stage(host, "r1", TREE)
        for name in TREE:
            damage(host.root / "releases/r1" / name)
        ran = host.run("release", "prune", "--keep", "1", "--deployed", "r1")
        assert 0 < len(ran.json["details"]) < 10

    def test_an_executable_bit_that_changed_costs_no_content_and_changes_no_earlier_release(
        self, host: WebHost
    ) -> None:
        stage(host, "r1", {"run": b"#!/bin/sh\n"})
        plain = parcel(host, "r2", {"run": b"#!/bin/sh\n"})
        blocks = tuple(block.replace(b"run\0x ", b"run\0f ") for block in plain.blocks)
        whole = hashlib.sha256(b"\0\0".join(blocks)).hexdigest()
        ran, _ = ship(host, "r2", replace(plain, blocks=blocks, digest=whole))
        assert (ran.code, ran.json["copied"], ran.json["arrived"]) == (0, 1, 1)
        modes = [(host.root / "releases" / name / "run").stat().st_mode & 0o777 for name in ("r1", "r2")]
        assert modes == [0o755, 0o644]

    def test_a_release_that_was_removed_by_hand_is_no_source(self, host: WebHost) -> None:
        stage(host, "r1", TREE)
        make_current(host, "r1")
        stage(host, "r2", {})
        shutil.rmtree(host.root / "releases/r1")
        ran = stage(host, "r3", TREE)
        assert (ran.code, ran.json["arrived"]) == (0, 21)

    def test_what_is_shared_is_no_source(self, host: WebHost) -> None:
        stage(host, "r1", {"var/.keep": b""}, "--shared", "var")
        (host.root / "shared/var/.keep").touch()
        ran = stage(host, "r2", {"var/.keep": b""}, "--shared", "var")
        assert (ran.code, ran.json["linked"]) == (0, 0)


class TestVerify:
    def test_a_release_that_is_as_it_was_staged_is_said_to_be(self, host: WebHost) -> None:
        content: Tree = {"run": b"#!/bin/sh\n", "var/.keep": b"", "page": b"hello"}
        (host.root / "shared/var").mkdir(parents=True)
        stage(host, "r1", content, "--shared", "var")
        make_current(host, "r1")
        ran = host.run("release", "verify")
        assert (ran.code, ran.json["files"]) == (0, 3), "not what is shared, but the manifest"

    def test_what_no_look_shows_is_named_and_the_next_release_has_it_right(self, host: WebHost) -> None:
        stage(host, "r1", TREE)
        stage(host, "r2", TREE)
        place = host.root / "releases/r2"
        for number in range(9):  # of which only a part would be read
            damage(place / f"d{number}/file")
        (place / "d9/file").unlink()
        (place / "d10/file").chmod(0o755)
        ran = host.run("release", "verify", "r2")
        assert ran.code == 3
        assert ran.json["damaged"] == sorted(f"d{number}/file" for number in range(11))
        assert stage(host, "r3", TREE).code == 0
        after = host.run("release", "verify", "r3")
        assert (after.code, after.json["damaged"]) == (0, [])

    def test_of_a_release_that_is_not_here_or_none_at_all(self, host: WebHost) -> None:
        assert host.run("release", "verify").json["release"] is None
        ran = host.run("release", "verify", "r9")
        assert (ran.code, ran.error["what"]) == (2, f"there is no release r9 in {host.root}/releases")


class TestAnUploadThatIsCut:
    def test_goes_on_where_it_was_even_within_a_file(self, host: WebHost) -> None:
        content = {**{f"f{number}": os.urandom(100_000) for number in range(10)}, "g": os.urandom(3_000_000)}
        shipped = parcel(host, "r1", content)
        cut, sent = ship(host, "r1", shipped, limit=2_500_000)
        assert (cut.code, on_disk(host), incoming(host)) == (3, set(), set())
        assert "what arrived is kept" in cut.error["state"]
        again, rest = ship(host, "r2", parcel(host, "r2", content))
        assert again.code == 0
        assert rest < 4_000_000 - sent + 300_000, "no more than the rest, and the frame that was cut"
        for name, what in content.items():
            assert (host.root / "releases/r2" / name).read_bytes() == what
        assert arrived(host) == set(), "all that had arrived is in its place"

    def test_what_of_it_was_damaged_meanwhile_is_asked_for_once_more(self, host: WebHost) -> None:
        content = {"f": os.urandom(400_000), "g": os.urandom(3_000_000)}
        ship(host, "r1", parcel(host, "r1", content), limit=2_500_000)
        for kept in (host.root / "releases/.incoming/content").iterdir():
            kept.write_bytes(bytes(kept.stat().st_size))
        ran, _ = ship(host, "r1", parcel(host, "r1", content))
        assert ran.code == 0
        assert (host.root / "releases/r1/g").read_bytes() == content["g"]

    def test_of_a_killed_one_nothing_is_a_release_and_the_next_one_succeeds(self, host: WebHost) -> None:
        shipped = parcel(host, "r1", {"first": b"x", "large": os.urandom(2_000_000)})
        argv = [str(host.tools / "release"), "stage", "r1", "--sha256", shipped.digest, "--json"]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
            wait_until((host.root / "releases/.incoming/r1").exists)
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        assert on_disk(host) == set()
        assert ship(host, "r1", shipped)[0].code == 0
        assert (on_disk(host), incoming(host)) == ({"r1"}, set())

    def test_one_whose_link_is_silent_gives_up_so_that_nobody_waits_for_it(self, host: WebHost) -> None:
        program = (host.tools / "hostlib/releasing/inlet.py").read_text()
        (host.tools / "hostlib/releasing/inlet.py").write_text(program.replace("= 60.0", "= 0.2"))
        shutil.rmtree(host.tools / "hostlib/releasing/__pycache__")
        argv = [str(host.tools / "release"), "stage", "r1", "--sha256", "0" * 64, "--json"]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert "nothing came for 0.2 s" in json.loads(process.stdout.read())["error"]["what"]

    def test_where_another_account_has_deployed_before_doctor_says_what_is_to_be_changed(
        self, host: WebHost, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(staging.os, "access", lambda path, mode: False)
        config = Config("1", "app", host.root, "nobody", False, host.root, "http://h/", None, (), "/s")
        with pytest.raises(Failure, match=r"Permission denied: .*/releases/\.incoming") as caught:
            staging.stage(config, staging.Order("r1", "0" * 64, ()))
        assert caught.value.next.startswith("fab doctor")

    def test_two_at_once_make_one_release(self, host: WebHost) -> None:
        shipped, answers = parcel(host, "r1", {"large": os.urandom(500_000)}), []

        def meanwhile(sent: int, size: int) -> None:
            if sent == size and not answers:
                answers.append(host.start("release", "stage", "r1", "--sha256", shipped.digest))

        first, _ = ship(host, "r1", shipped, meanwhile=meanwhile)
        second = json.loads(answers[0].communicate()[0])
        assert (first.json["changed"], second["changed"]) == (True, False)

    def test_one_that_is_discarded_meanwhile_does_not_come_back(self, host: WebHost) -> None:
        def meanwhile(sent: int, size: int) -> None:
            host.run("release", "discard", "r1")

        ran, _ = ship(host, "r1", parcel(host, "r1", {"a": b"x"}), meanwhile=meanwhile)
        assert (ran.code, on_disk(host)) == (3, set())


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        "blocks",
        [
            [b".|../outside|" + a_file()],
            [b".|..|d"],
            [b".|.|d"],
            [b".|a/b|" + a_file()],
            [b".|/etc|d"],
            [b"/etc|passwd|" + a_file()],
            [b"..|passwd|" + a_file()],
            [b".|up|l sub|sub|d", b"up|file|" + a_file()],
            [b".|sub|d", b"sub|a|d", b"sub|b|d"],
            [b".|a|d|a|l b"],
            [b".|out|l /etc/passwd"],
            [b".|out|l ../../shared"],
            [b".|a|d", b"a|out|l ../../shared"],
            [b".|sub|d|out|l sub/up/..", b"sub|up|l .."],
            [b".|disk|b 8 1"],
            [b".|file|f -1 " + b"0" * 64],
            [b".|file|f 1 short"],
            [b".|odd"],
            [b".|.deploytools.staged.json|" + a_file()],
        ],
        ids=lambda blocks: b" ".join(blocks).decode()[:40].replace("/", "\\"),
    )
    def test_a_hostile_listing_is_refused_whole(self, host: WebHost, blocks: list[bytes]) -> None:
        (host.root / "releases/.incoming/content").mkdir(parents=True)
        before = sorted(path for path in host.base.rglob("*") if "__pycache__" not in path.parts)
        ran, _ = ship(host, "r1", listed(*blocks))
        assert ran.code == 3
        assert "refused" in ran.error["what"]
        assert sorted(path for path in host.base.rglob("*") if "__pycache__" not in path.parts) == before

    def test_a_listing_of_another_version_is_told_from_a_damaged_one(self, host: WebHost) -> None:
        other, _ = ship(host, "r1", listed(head=b"2 0"))
        damaged, _ = ship(host, "r1", parcel(host, "r1"), sha256="0" * 64)
        assert "fab setup" in other.error["next"]
        assert "damaged" in damaged.error["what"]
        assert on_disk(host) == set()

    def test_content_that_is_not_what_the_listing_has_is_refused(self, host: WebHost) -> None:
        honest = parcel(host, "r1", {"a": b"what it should be"})
        lie = host.base / "lie"
        lie.write_bytes(b"something different")
        contents = tuple(
            Content(one.digest, one.size, os.fsencode(lie) if one.size == 17 else one.path)
            for one in honest.contents
        )
        ran, _ = ship(host, "r1", replace(honest, contents=contents))
        assert (ran.code, on_disk(host)) == (3, set())
        assert hashlib.sha256(b"what it should be").hexdigest() not in arrived(host)
        assert "otherwise than the listing has it" in ran.error["what"]

    @pytest.mark.parametrize("described", [b'{"id": "r2"}', b'["r1"]', b'"r1"', b"{"])
    def test_a_release_without_its_own_manifest_is_refused(self, host: WebHost, described: bytes) -> None:
        ran = stage(host, "r1", {".deploytools.json": described})
        assert ran.code in (2, 3)
        assert ".deploytools.json" in ran.error["what"]
        assert on_disk(host) == set()


class TestAFullDisk:
    @pytest.fixture(params=["size=2m", "nr_inodes=40"])
    def small(self, host: WebHost, request: pytest.FixtureRequest) -> Iterator[WebHost]:
        if os.geteuid() != 0:
            pytest.skip("only root can mount a small disk")
        with mounted(host.root / "releases", request.param):
            yield host

    def test_is_found_before_anything_is_sent(self, small: WebHost) -> None:
        content = {f"f{number}": os.urandom(60_000) for number in range(50)}
        sent_some: list[int] = []
        ran, _ = ship(
            small, "r1", parcel(small, "r1", content), meanwhile=lambda sent, size: sent_some.append(sent)
        )
        assert (ran.code, on_disk(small), sent_some) == (3, set(), [])
        assert "df -i" in ran.error["next"]

    def test_that_fills_up_meanwhile_leaves_nothing_behind(self, host: WebHost) -> None:
        if os.geteuid() != 0:
            pytest.skip("only root can mount a small disk")
        releases = host.root / "releases"
        with mounted(releases, "size=4m"):

            def meanwhile(sent: int, size: int) -> None:
                if not (releases / "log").exists():
                    with (releases / "log").open("wb") as log:
                        log.write(bytes(shutil.disk_usage(releases).free - 500_000))

            content = {"large": os.urandom(3_000_000)}
            ran, _ = ship(host, "r1", parcel(host, "r1", content), meanwhile=meanwhile)
            assert (ran.code, incoming(host), on_disk(host)) == (3, set(), {"log"})
            assert "full" in ran.error["what"]
            assert "nothing was changed" in ran.error["state"]


@contextmanager
def mounted(place: Path, options: str) -> Iterator[None]:
    """A small disk at `place`."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "small", str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


class TestSharedPaths:
    def test_a_directory_is_created_once_and_linked_relatively(self, host: WebHost) -> None:
        assert stage(host, "r1", {}, "--shared", "var").code == 0
        assert stage(host, "r2", {}, "--shared", "var").code == 0
        assert os.readlink(host.root / "releases" / "r1" / "var") == "../../shared/var"
        (host.root / "releases" / "r1" / "var" / "kept").write_text("x")
        assert (host.root / "releases" / "r2" / "var" / "kept").exists()

    def test_a_new_directory_can_be_written_by_the_group_of_shared(self, host: WebHost) -> None:
        (host.root / "shared").chmod(0o2775)
        stage(host, "r1", {}, "--shared", "var")
        assert (host.root / "shared" / "var").stat().st_mode & 0o7777 == 0o2775

    def test_a_missing_file_is_not_invented_but_named(self, host: WebHost) -> None:
        ran = stage(host, "r1", {}, "--shared", ".env", "--shared", "conf/site.ini")
        assert (ran.code, ran.json["missing"]) == (0, [".env", "conf/site.ini"])
        assert not (host.root / "shared" / ".env").exists()
        (host.root / "shared" / ".env").write_text("A=1")
        (host.root / "shared" / "conf" / "site.ini").write_text("b")
        assert (host.root / "releases" / "r1" / ".env").read_text() == "A=1"
        assert (host.root / "releases" / "r1" / "conf" / "site.ini").read_text() == "b"

    def test_a_slash_at_the_end_says_that_it_is_a_directory(self, host: WebHost) -> None:
        assert stage(host, "r1", {}, "--shared", "cache.d/").json["missing"] == []
        assert (host.root / "releases" / "r1" / "cache.d").is_dir()

    @pytest.mark.parametrize(
        "content",
        [{"var": None}, {"var/.gitkeep": b""}],
        ids=["empty", "with a placeholder"],
    )
    def test_an_empty_directory_of_the_release_gives_way(self, host: WebHost, content: Tree) -> None:
        assert stage(host, "r1", content, "--shared", "var").code == 0
        assert (host.root / "releases" / "r1" / "var").is_symlink()

    def test_an_identical_file_of_the_release_gives_way(self, host: WebHost) -> None:
        (host.root / "shared" / ".env").write_text("same")
        assert stage(host, "r1", {".env": b"same"}, "--shared", ".env").code == 0
        assert (host.root / "releases" / "r1" / ".env").is_symlink()

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            (".env", {".env": b"its own"}),
            ("var", {"var/data": b"x"}),
            ("var", {"real": None, "var": ("to", "real")}),
            ("conf/x.ini", {"real": None, "conf": ("to", "real")}),
            ("conf/x.ini", {"conf": b"x"}),
        ],
        ids=["file", "directory", "link", "link above", "file above"],
    )
    def test_what_the_release_has_of_its_own_is_not_hidden(
        self, host: WebHost, name: str, content: Tree
    ) -> None:
        ran = stage(host, "r1", content, "--shared", name)
        assert ran.code == 3
        assert "the release has" in ran.error["what"]
        assert on_disk(host) == set()

    @pytest.mark.parametrize(
        "names", [["/etc"], ["../x"], ["a/../../x"], ["."], ["var", "var/log"], ["var", "var/"]]
    )
    def test_names_that_leave_the_release_or_overlap_are_refused(
        self, host: WebHost, names: list[str]
    ) -> None:
        options = [option for name in names for option in ("--shared", name)]
        assert stage(host, "r1", {}, *options).code == 2


class TestDiscard:
    def test_removes_a_release_and_what_was_begun_of_it(self, host: WebHost) -> None:
        put_release(host, "r1")
        (host.root / "releases" / ".incoming" / "r1").mkdir(parents=True)
        ran = host.run("release", "discard", "r1")
        assert (ran.code, ran.json["changed"], on_disk(host)) == (0, True, set())

    def test_what_is_on_its_way_goes_at_once_so_that_no_part_of_it_becomes_a_release(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whoever takes it in may be at work there, with all of its content arrived."""
        config = Config("1", "app", tmp_path, "nobody", False, tmp_path, "http://h/", None, (), "/s")
        tree = config.releases / ".incoming" / "r1"
        (tree / "a").mkdir(parents=True)
        config.run.mkdir()
        there: list[bool] = []
        real = shutil.rmtree

        def removed(path: Path, *arguments: Any, **options: Any) -> None:
            there.append(tree.exists())
            real(path, *arguments, **options)

        monkeypatch.setattr(releases.shutil, "rmtree", removed)
        releases.discard(config, "r1")
        assert (there[-1], list((config.releases / ".incoming").iterdir())) == (False, [])

    def test_of_an_absent_release_is_harmless(self, host: WebHost) -> None:
        ran = host.run("release", "discard", "r1")
        assert (ran.code, ran.json["changed"]) == (0, False)

    def test_refuses_the_current_release(self, host: WebHost) -> None:
        put_release(host, "r1")
        make_current(host, "r1")
        assert host.run("release", "discard", "r1").code == 3
        assert on_disk(host) == {"r1"}

    def test_refuses_a_release_that_a_generation_runs_on(self, host: WebHost) -> None:
        put_release(host, "r1")
        put_generation(host, 1, "r1")
        assert host.run("release", "discard", "r1").code == 3
        assert on_disk(host) == {"r1"}

    def test_what_failed_and_is_in_use_is_marked_and_what_is_not_goes(self, host: WebHost) -> None:
        stage(host, "r1")
        put_generation(host, 1, "r1")
        assert host.run("release", "discard", "r1", "--failed").json["changed"]
        assert [row["state"] for row in host.run("release", "list").json["releases"]] == ["failed"]
        (host.run_dir / "app.1.json").unlink()
        assert host.run("release", "discard", "r1", "--failed").code == 0
        assert on_disk(host) == set()

    def test_what_was_deployed_before_is_not_taken_away_because_it_failed_once_more(
        self, host: WebHost
    ) -> None:
        stage(host, "r1")
        host.run("release", "prune", "--keep", "5", "--deployed", "r1")
        assert not host.run("release", "discard", "r1", "--failed").json["changed"]
        assert [row["state"] for row in host.run("release", "list").json["releases"]] == ["deployed"]
        assert host.run("release", "discard", "r1").json["changed"]


class TestList:
    def test_tells_what_each_release_is_and_what_it_is_used_for(self, host: WebHost) -> None:
        stage(host, "r1")
        make_current(host, "r1")
        stage(host, "r2")
        put_generation(host, 1, "r1")
        listed = host.run("release", "list").json
        assert [row["id"] for row in listed["releases"]] == ["r2", "r1"]
        assert [row["current"] for row in listed["releases"]] == [False, True]
        assert [row["in_use"] for row in listed["releases"]] == [False, True]
        assert {row["ref"] for row in listed["releases"]} == {"main"}
        assert listed["current"] == "r1"

    def test_the_previous_release_is_the_one_that_served_when_the_current_one_came(
        self, host: WebHost
    ) -> None:
        stage(host, "r1")
        make_current(host, "r1")
        stage(host, "given-up")
        stage(host, "r2")
        (host.root / "current").unlink()
        make_current(host, "r2")
        assert host.run("release", "list").json["previous"] == "r1"

    def test_a_release_that_failed_is_nobodys_previous_one(self, host: WebHost) -> None:
        stage(host, "r1")
        for release, fails in (("bad", True), ("r2", False)):
            make_current(host, "r1" if fails else "bad")
            stage(host, release)
            (host.root / "current").unlink()
        make_current(host, "r2")
        assert host.run("release", "list").json["previous"] == "bad"
        put_generation(host, 1, "bad")
        host.run("release", "discard", "bad", "--failed")
        assert host.run("release", "list").json["previous"] == "r1"

    def test_without_current_what_serves_is_current(self, host: WebHost) -> None:
        put_release(host, "r1")
        put_generation(host, 1, "r1")
        (host.run_dir / "app.sock").symlink_to("app.1.sock")
        assert host.run("release", "list").json["current"] == "r1"

    def test_the_order_is_that_of_staging_whatever_the_clock_says(self, host: WebHost) -> None:
        for release, told in (("first", 2_000_000_000), ("second", 1_000_000_000)):
            stage(host, release)
            os.utime(host.root / "releases" / release / ".deploytools.staged.json", (told, told))
        listed = host.run("release", "list").json["releases"]
        assert [row["id"] for row in listed] == ["second", "first"]

    def test_one_whose_manifest_is_damaged_or_gone_is_told_as_that_and_hides_no_other(
        self, host: WebHost
    ) -> None:
        for release in ("cut", "gone", "whole"):
            stage(host, release)
        (host.root / "releases/cut/.deploytools.json").write_text('{"id": ')
        (host.root / "releases/gone/.deploytools.json").unlink()
        listed = host.run("release", "list").json["releases"]
        states = {row["id"]: row["state"] for row in listed}
        assert states == {"whole": "staged", "gone": "damaged", "cut": "damaged"}

    @pytest.mark.parametrize(
        "told",
        [
            '{"number": "x", "shared": 1, "served": ["a"], "state": {}}',
            "[1]",
            '{"number": 1e999}',
            "[" * 9999,
        ],
        ids=["types", "no object", "no number", "depth"],
    )
    def test_where_what_the_host_noted_is_damaged_everything_goes_on(self, host: WebHost, told: str) -> None:
        stage(host, "noted")
        host.run("release", "prune", "--keep", "9", "--deployed", "noted")
        stage(host, "damaged")
        make_current(host, "damaged")
        (host.root / "releases/damaged/.deploytools.staged.json").write_text(told)
        assert [row["id"] for row in host.run("release", "list").json["releases"]] == ["noted", "damaged"]
        assert stage(host, "next", {"a": b"x"}).code == 0
        ran = host.run("release", "prune", "--keep", "1", "--deployed", "next")
        assert (ran.code, on_disk(host)) == (0, {"damaged", "next"})

    def test_of_a_fresh_host_is_empty(self, host: WebHost) -> None:
        listed = host.run("release", "list").json
        assert (listed["releases"], listed["current"], listed["previous"]) == ([], None, None)


class TestPrune:
    @pytest.fixture
    def add(self, host: WebHost) -> Callable[[str], None]:
        def add(release: str) -> None:
            assert stage(host, release).code == 0

        return add

    def test_keeps_the_newest(self, host: WebHost, add: Callable[[str], None]) -> None:
        for release in ("z-oldest", "m", "a-newest"):
            add(release)
            host.run("release", "prune", "--keep", "9", "--deployed", release)
        ran = host.run("release", "prune", "--keep", "2")
        assert (ran.code, ran.json["removed"]) == (0, ["z-oldest"])
        assert on_disk(host) == {"m", "a-newest"}

    def test_keeps_the_current_the_previous_and_whatever_runs(
        self, host: WebHost, add: Callable[[str], None]
    ) -> None:
        add("runs")
        add("previous")
        make_current(host, "previous")
        add("current")
        (host.root / "current").unlink()
        make_current(host, "current")
        put_generation(host, 1, "runs")
        for release in ("unused", "newest"):
            add(release)
            host.run("release", "prune", "--keep", "9", "--deployed", release)
        assert host.run("release", "prune", "--keep", "1").json["removed"] == ["unused"]
        assert on_disk(host) == {"runs", "previous", "current", "newest"}

    def test_what_failed_or_was_given_up_never_counts_but_what_may_be_under_way_stays(
        self, host: WebHost, add: Callable[[str], None]
    ) -> None:
        for release in ("good-1", "good-2"):
            add(release)
            host.run("release", "prune", "--keep", "9", "--deployed", release)
        for release in ("failed", "given-up", "current"):
            add(release)
        put_generation(host, 1, "failed")
        host.run("release", "discard", "failed", "--failed")
        (host.run_dir / "app.1.json").unlink()
        make_current(host, "current")
        add("under-way")
        ran = host.run("release", "prune", "--keep", "3", "--deployed", "current")
        assert set(ran.json["removed"]) == {"failed", "given-up"}
        assert on_disk(host) == {"good-1", "good-2", "current", "under-way"}

    def test_clears_what_dead_programs_left_but_no_content_that_may_still_be_asked_for(
        self, host: WebHost
    ) -> None:
        releases = host.root / "releases"
        for name in (".incoming/r1", ".discarded-r2", ".incoming-of-before"):
            (releases / name / "deep").mkdir(parents=True)
        for name in (".incoming/stray", ".upload-of-before.tar.gz"):
            (releases / name).touch()
        content = releases / ".incoming" / "content"
        content.mkdir()
        for name in ("old", "new", "from-a-clock-that-was-wrong"):
            (content / name).touch()
        os.utime(content / "old", (0, 0))
        os.utime(content / "from-a-clock-that-was-wrong", (2**33, 2**33))
        assert host.run("release", "prune", "--keep", "1").code == 0
        assert [path.name for path in (releases / ".incoming").iterdir()] == ["content"]
        assert [path.name for path in content.iterdir()] == ["new"]
        assert on_disk(host) == set()

    def test_leaves_alone_what_another_program_takes_in_right_now(self, host: WebHost) -> None:
        def meanwhile(sent: int, size: int) -> None:
            assert host.run("release", "prune", "--keep", "1").code == 0

        ran, _ = ship(host, "r1", parcel(host, "r1", {"a": b"x"}), meanwhile=meanwhile)
        assert (ran.code, on_disk(host)) == (0, {"r1"})

    @pytest.mark.parametrize("keep", ["0", "-1", "many"])
    def test_keeping_none_is_refused(self, host: WebHost, keep: str) -> None:
        assert host.run("release", "prune", f"--keep={keep}").code == 2
