"""`release`: takes in, discards, lists and prunes the releases of a host."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.barehost import bare_host, make_current, put_generation, put_release
from tests.support.webhost import Ran, WebHost, wait_until

Member = tarfile.TarInfo


@pytest.fixture
def host() -> Iterator[WebHost]:
    with bare_host() as host:
        yield host


def pack(host: WebHost, release: str, *members: tuple[Member, bytes], described: object = None) -> Path:
    """An archive with the manifest of `release` and `members`, where the laptop puts it."""
    path = host.root / "releases" / f".upload-{release}.tar.gz"
    manifest = json.dumps(described or {"id": release, "ref": "main", "digest": "d"}).encode()
    with tarfile.open(path, "w:gz") as archive:
        for member, content in [plain("./.deploytools.json", manifest), *members]:
            archive.addfile(member, io.BytesIO(content))
    return path


def plain(name: str, content: bytes = b"x", mode: int = 0o600) -> tuple[Member, bytes]:
    member = Member(name)
    member.size, member.mode = len(content), mode
    return member, content


def special(name: str, kind: bytes, target: str = "") -> tuple[Member, bytes]:
    member = Member(name)
    member.type, member.linkname = kind, target
    return member, b""


def link(name: str, target: str) -> tuple[Member, bytes]:
    return special(name, tarfile.SYMTYPE, target)


def directory(name: str, mode: int = 0o700) -> tuple[Member, bytes]:
    member, content = special(name, tarfile.DIRTYPE)
    member.mode = mode
    return member, content


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def stage(host: WebHost, release: str, archive: Path, *options: str, sha256: str | None = None) -> Ran:
    sha256 = sha256 or digest(archive)
    return host.run("release", "stage", release, "--archive", str(archive), "--sha256", sha256, *options)


def on_disk(host: WebHost) -> set[str]:
    return {path.name for path in (host.root / "releases").iterdir()}


class TestStage:
    def test_puts_a_release_in_place_and_takes_its_archive_away(self, host: WebHost) -> None:
        archive = pack(host, "r1", directory("bin"), plain("bin/run", b"#!", 0o700), link("go", "bin/run"))
        ran = stage(host, "r1", archive)
        assert (ran.code, ran.json["changed"]) == (0, True)
        assert on_disk(host) == {"r1"}
        assert (host.root / "releases" / "r1" / "go").read_bytes() == b"#!"

    def test_makes_everything_readable_for_the_application_and_nothing_more(self, host: WebHost) -> None:
        archive = pack(host, "r1", directory("d", 0o777), plain("d/f", mode=0o600), plain("d/x", mode=0o4700))
        assert stage(host, "r1", archive).code == 0
        place = host.root / "releases" / "r1"
        modes = {name: (place / name).stat().st_mode & 0o7777 for name in (".", "d", "d/f", "d/x")}
        assert modes == {".": 0o755, "d": 0o755, "d/f": 0o644, "d/x": 0o755}

    def test_keeps_the_environments_in_the_manifest_to_its_owner_and_root(self, host: WebHost) -> None:
        assert stage(host, "r1", pack(host, "r1")).code == 0
        manifest = host.root / "releases" / "r1" / ".deploytools.json"
        assert manifest.stat().st_mode & 0o7777 == 0o600

    def test_a_second_time_is_harmless(self, host: WebHost) -> None:
        archive = pack(host, "r1")
        sha256 = digest(archive)
        stage(host, "r1", archive)
        again = stage(host, "r1", pack(host, "r1"), sha256=sha256)
        assert (again.code, again.json["changed"]) == (0, False)
        assert on_disk(host) == {"r1"}

    def test_a_second_time_needs_no_archive(self, host: WebHost) -> None:
        archive = pack(host, "r1")
        sha256 = digest(archive)
        stage(host, "r1", archive)
        assert stage(host, "r1", archive, sha256=sha256).code == 0

    def test_another_archive_under_the_same_id_is_refused(self, host: WebHost) -> None:
        stage(host, "r1", pack(host, "r1"))
        ran = stage(host, "r1", pack(host, "r1", plain("other")))
        assert ran.code == 3
        assert "another release r1" in ran.error["what"]
        assert not (host.root / "releases" / "r1" / "other").exists()

    def test_a_damaged_archive_is_refused(self, host: WebHost) -> None:
        ran = stage(host, "r1", pack(host, "r1"), sha256="0" * 64)
        assert ran.code == 3
        assert "damaged" in ran.error["what"]
        assert on_disk(host) == {".upload-r1.tar.gz"}

    def test_what_is_no_archive_is_refused(self, host: WebHost) -> None:
        archive = host.base / "not.tar.gz"
        archive.write_text("hello")
        ran = stage(host, "r1", archive)
        assert (ran.code, on_disk(host)) == (3, set())
        assert "no tar.gz" in ran.error["what"]

    def test_a_cut_archive_is_refused(self, host: WebHost) -> None:
        archive = pack(host, "r1", plain("noise", os.urandom(100_000)))
        archive.write_bytes(archive.read_bytes()[:50_000])
        assert stage(host, "r1", archive).code == 3
        assert on_disk(host) == {archive.name}

    @pytest.mark.parametrize(
        "described", [{"id": "r2"}, ["r1"], "r1"], ids=["another release's", "a list", "a string"]
    )
    def test_an_archive_without_its_own_manifest_is_refused(self, host: WebHost, described: object) -> None:
        ran = stage(host, "r1", pack(host, "r1", described=described))
        assert ran.code in (2, 3)
        assert ".deploytools.json" in ran.error["what"]
        assert on_disk(host) == {".upload-r1.tar.gz"}

    @pytest.mark.parametrize(
        "members",
        [
            [plain("../outside")],
            [plain("a/../../outside")],
            [plain("/deploytools-outside")],
            [link("out", "/etc/passwd")],
            [link("out", "../../shared")],
            [link("a/out", "../../shared")],
            [link("up", "sub"), directory("sub"), plain("up/file")],
            [directory("sub"), link("sub/up", ".."), link("out", "sub/up/..")],
            [special("hard", tarfile.LNKTYPE, "../../../etc/passwd")],
            [special("hard", tarfile.LNKTYPE, "/etc/passwd")],
            [link("soft", "sub"), special("hard", tarfile.LNKTYPE, "soft")],
            [special("disk", tarfile.BLKTYPE)],
            [special("null", tarfile.CHRTYPE)],
            [special("pipe", tarfile.FIFOTYPE)],
        ],
        ids=lambda members: f"{members[-1][0].name}-{members[-1][0].linkname or 'member'}".replace("/", "|"),
    )
    def test_a_hostile_archive_is_refused_whole(
        self, host: WebHost, members: list[tuple[Member, bytes]]
    ) -> None:
        before = sorted(path for path in host.base.rglob("*") if "__pycache__" not in path.parts)
        archive = pack(host, "r1", plain("first"), *members)
        ran = stage(host, "r1", archive)
        assert ran.code == 3
        assert "refused" in ran.error["what"]
        archive.unlink()
        after = sorted(path for path in host.base.rglob("*") if "__pycache__" not in path.parts)
        assert after == before
        assert not Path("/deploytools-outside").exists()

    def test_an_archive_that_unpacks_to_more_than_the_disk_has_is_refused(self, host: WebHost) -> None:
        hole = host.base / "hole"
        with hole.open("wb") as file:
            file.truncate(shutil.disk_usage(host.base).free + (1 << 30))
        archive = host.base / "big.tar.gz"
        argv = ["tar", "-C", str(host.base), "--sparse", "-czf", str(archive), "hole"]
        subprocess.run(argv, check=True)
        ran = stage(host, "r1", archive)
        assert (ran.code, on_disk(host)) == (3, set())
        assert "free" in ran.error["what"]

    def test_a_killed_one_leaves_no_release_by_that_name_and_the_next_one_succeeds(
        self, host: WebHost
    ) -> None:
        archive = pack(host, "r1", plain("first"), plain("large", bytes(32 << 20)))
        sha256 = digest(archive)
        arguments = ("stage", "r1", "--archive", str(archive), "--sha256", sha256)
        process = host.start("release", *arguments)
        incoming = host.root / "releases" / ".incoming-r1"
        wait_until(lambda: incoming.exists() or process.poll() is not None)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert not (host.root / "releases" / "r1").exists()
        assert host.run("release", *arguments).code == 0
        assert on_disk(host) == {"r1"}
        assert (host.root / "releases" / "r1" / "large").stat().st_size == 32 << 20

    def test_two_at_once_make_one_release(self, host: WebHost) -> None:
        archive = pack(host, "r1", plain("large", bytes(8 << 20)))
        arguments = ("stage", "r1", "--archive", str(archive), "--sha256", digest(archive))
        both = [host.start("release", *arguments) for _ in range(2)]
        answers = [json.loads(process.communicate()[0]) for process in both]
        assert sorted(answer["changed"] for answer in answers) == [False, True]

    @pytest.mark.parametrize("release", ["../r1", ".hidden", "-r", "r" * 90])
    def test_a_name_that_could_leave_the_directory_is_refused(self, host: WebHost, release: str) -> None:
        ran = host.run("release", "stage", "--archive", "/x", "--sha256", "0" * 64, "--", release)
        assert ran.code == 2
        assert "Traceback" not in ran.err


class TestSharedPaths:
    def test_a_directory_is_created_once_and_linked_relatively(self, host: WebHost) -> None:
        assert stage(host, "r1", pack(host, "r1"), "--shared", "var").code == 0
        assert stage(host, "r2", pack(host, "r2"), "--shared", "var").code == 0
        assert os.readlink(host.root / "releases" / "r1" / "var") == "../../shared/var"
        (host.root / "releases" / "r1" / "var" / "kept").write_text("x")
        assert (host.root / "releases" / "r2" / "var" / "kept").exists()

    def test_a_new_directory_can_be_written_by_the_group_of_shared(self, host: WebHost) -> None:
        (host.root / "shared").chmod(0o2775)
        stage(host, "r1", pack(host, "r1"), "--shared", "var")
        assert (host.root / "shared" / "var").stat().st_mode & 0o7777 == 0o2775

    def test_a_missing_file_is_not_invented_but_named(self, host: WebHost) -> None:
        ran = stage(host, "r1", pack(host, "r1"), "--shared", ".env", "--shared", "conf/site.ini")
        assert (ran.code, ran.json["missing"]) == (0, [".env", "conf/site.ini"])
        assert not (host.root / "shared" / ".env").exists()
        (host.root / "shared" / ".env").write_text("A=1")
        (host.root / "shared" / "conf" / "site.ini").write_text("b")
        assert (host.root / "releases" / "r1" / ".env").read_text() == "A=1"
        assert (host.root / "releases" / "r1" / "conf" / "site.ini").read_text() == "b"

    def test_a_slash_at_the_end_says_that_it_is_a_directory(self, host: WebHost) -> None:
        assert stage(host, "r1", pack(host, "r1"), "--shared", "cache.d/").json["missing"] == []
        assert (host.root / "releases" / "r1" / "cache.d").is_dir()

    @pytest.mark.parametrize(
        "members",
        [[directory("var")], [directory("var"), plain("var/.gitkeep")]],
        ids=["empty", "with a placeholder"],
    )
    def test_an_empty_directory_of_the_release_gives_way(
        self, host: WebHost, members: list[tuple[Member, bytes]]
    ) -> None:
        assert stage(host, "r1", pack(host, "r1", *members), "--shared", "var").code == 0
        assert (host.root / "releases" / "r1" / "var").is_symlink()

    def test_an_identical_file_of_the_release_gives_way(self, host: WebHost) -> None:
        (host.root / "shared" / ".env").write_text("same")
        assert stage(host, "r1", pack(host, "r1", plain(".env", b"same")), "--shared", ".env").code == 0
        assert (host.root / "releases" / "r1" / ".env").is_symlink()

    @pytest.mark.parametrize(
        ("name", "members"),
        [
            (".env", [plain(".env", b"its own")]),
            ("var", [directory("var"), plain("var/data")]),
            ("var", [directory("real"), link("var", "real")]),
            ("conf/x.ini", [directory("real"), link("conf", "real")]),
            ("conf/x.ini", [plain("conf")]),
        ],
        ids=["file", "directory", "link", "link above", "file above"],
    )
    def test_what_the_release_has_of_its_own_is_not_hidden(
        self, host: WebHost, name: str, members: list[tuple[Member, bytes]]
    ) -> None:
        ran = stage(host, "r1", pack(host, "r1", *members), "--shared", name)
        assert ran.code == 3
        assert "the release has" in ran.error["what"]
        assert on_disk(host) == {".upload-r1.tar.gz"}

    @pytest.mark.parametrize(
        "names", [["/etc"], ["../x"], ["a/../../x"], ["."], ["var", "var/log"], ["var", "var/"]]
    )
    def test_names_that_leave_the_release_or_overlap_are_refused(
        self, host: WebHost, names: list[str]
    ) -> None:
        options = [option for name in names for option in ("--shared", name)]
        assert stage(host, "r1", pack(host, "r1"), *options).code == 2


class TestDiscard:
    def test_removes_a_release_and_what_was_uploaded_for_it(self, host: WebHost) -> None:
        put_release(host, "r1")
        (host.root / "releases" / ".upload-r1.tar.gz").touch()
        ran = host.run("release", "discard", "r1")
        assert (ran.code, ran.json["changed"], on_disk(host)) == (0, True, set())

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
        stage(host, "r1", pack(host, "r1"))
        put_generation(host, 1, "r1")
        assert host.run("release", "discard", "r1", "--failed").json["changed"]
        assert [row["state"] for row in host.run("release", "list").json["releases"]] == ["failed"]
        (host.run_dir / "app.1.json").unlink()
        assert host.run("release", "discard", "r1", "--failed").code == 0
        assert on_disk(host) == set()


class TestList:
    def test_tells_what_each_release_is_and_what_it_is_used_for(self, host: WebHost) -> None:
        stage(host, "r1", pack(host, "r1"))
        make_current(host, "r1")
        stage(host, "r2", pack(host, "r2"))
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
        stage(host, "r1", pack(host, "r1"))
        make_current(host, "r1")
        stage(host, "given-up", pack(host, "given-up"))
        stage(host, "r2", pack(host, "r2"))
        (host.root / "current").unlink()
        make_current(host, "r2")
        assert host.run("release", "list").json["previous"] == "r1"

    def test_a_release_that_failed_is_nobodys_previous_one(self, host: WebHost) -> None:
        stage(host, "r1", pack(host, "r1"))
        for release, fails in (("bad", True), ("r2", False)):
            make_current(host, "r1" if fails else "bad")
            stage(host, release, pack(host, release))
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
            stage(host, release, pack(host, release))
            os.utime(host.root / "releases" / release / ".deploytools.staged.json", (told, told))
        listed = host.run("release", "list").json["releases"]
        assert [row["id"] for row in listed] == ["second", "first"]

    def test_of_a_fresh_host_is_empty(self, host: WebHost) -> None:
        listed = host.run("release", "list").json
        assert (listed["releases"], listed["current"], listed["previous"]) == ([], None, None)


class TestPrune:
    @pytest.fixture
    def add(self, host: WebHost) -> Callable[[str], None]:
        def add(release: str) -> None:
            assert stage(host, release, pack(host, release)).code == 0

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

    def test_clears_what_dead_programs_left_but_no_upload_that_may_still_grow(self, host: WebHost) -> None:
        releases = host.root / "releases"
        for name in (".incoming-r1", ".discarded-r2"):
            (releases / name / "deep").mkdir(parents=True)
        for name in (".upload-old.tar.gz", ".upload-new.tar.gz"):
            (releases / name).touch()
        os.utime(releases / ".upload-old.tar.gz", (0, 0))
        assert host.run("release", "prune", "--keep", "1").code == 0
        assert on_disk(host) == {".upload-new.tar.gz"}

    @pytest.mark.parametrize("keep", ["0", "-1", "many"])
    def test_keeping_none_is_refused(self, host: WebHost, keep: str) -> None:
        assert host.run("release", "prune", f"--keep={keep}").code == 2
