"""The sandbox's sample application: its repository, its migrations, its answers, what visitors see of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from deploytools.sandbox import repository, traffic
from tests.support.sandboxes import Guestbook, Project, project, wait_until

CHECKOUT = Path(__file__).resolve().parents[2]
COUNT = "SELECT count(*) FROM entries"
RELEASES = ("v1", "v2", "v3")


@pytest.fixture(scope="module")
def site() -> Iterator[Project]:
    with project() as made:
        made.up()
        yield made


@pytest.fixture
def book(site: Project) -> Iterator[Guestbook]:
    """The sample application without a database; nothing of it runs."""
    shutil.rmtree(site.layout.application)
    site.install()
    with closing(Guestbook(site)) as guestbook:
        yield guestbook


def git(directory: Path, *arguments: str) -> str:
    return subprocess.check_output(["git", "-C", str(directory), *arguments], text=True).strip()


class TestTheRepository:
    def test_is_the_same_whoever_makes_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        made = tmp_path / "made"
        made.mkdir()
        repository.make(made)

        hook = tmp_path / "template/hooks/post-checkout"
        hook.parent.mkdir(parents=True)
        hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/hook-ran\n")
        hook.chmod(0o755)
        settings = tmp_path / "gitconfig"
        settings.write_text(
            "[user]\nname = Somebody\n[core]\nautocrlf = true\n[commit]\ngpgsign = true\n"
            f"[init]\ndefaultBranch = trunk\ntemplateDir = {tmp_path}/template\n"
        )
        for name, value in {
            "GIT_CONFIG_GLOBAL": str(settings),
            "GIT_AUTHOR_NAME": "Somebody",
            "GIT_COMMITTER_DATE": "2001-01-01T00:00:00Z",
            "GIT_DIR": str(tmp_path / "elsewhere"),
            "TZ": "Asia/Tokyo",
        }.items():
            monkeypatch.setenv(name, value)
        other = tmp_path / "other"
        other.mkdir()
        before = os.umask(0o077)
        try:
            repository.make(other)
        finally:
            os.umask(before)
        monkeypatch.undo()

        assert git(other, "for-each-ref") == git(made, "for-each-ref")
        assert git(other, "ls-files", "-s") == git(made, "ls-files", "-s")
        assert git(other, "symbolic-ref", "HEAD") == "refs/heads/main"
        assert git(other, "status", "--porcelain") == ""
        assert not (tmp_path / "hook-ran").exists()

    def test_has_a_ref_for_everything_to_try(self, tmp_path: Path) -> None:
        repository.make(tmp_path)
        parents = {
            "v1": "main",
            "v2^": "v1",
            "v3^": "v2",
            "broken-migration^": "v3",
            "slow-migration^": "v3",
            "broken-app^": "v3",
            "sick-app^": "v3",
        }
        for ref, same in parents.items():
            assert git(tmp_path, "rev-parse", ref) == git(tmp_path, "rev-parse", same), ref

    def test_changes_only_what_a_variant_is_about(self, tmp_path: Path) -> None:
        repository.make(tmp_path)
        changes = {
            "v2": ["entries.py", "migrations/versions/0002_visitors.py"],
            "v3": ["page.html"],
            "broken-migration": ["migrations/versions/0003_unique_messages.py"],
            "slow-migration": ["migrations/versions/0003_moods.py"],
            "broken-app": ["page.html"],
            "sick-app": ["entries.py"],
        }
        for ref, files in changes.items():
            assert git(tmp_path, "diff", "--name-only", f"{ref}^", ref).splitlines() == files

    def test_knows_when_somebody_worked_in_it(self, tmp_path: Path) -> None:
        repository.make(tmp_path)
        assert not repository.changed(tmp_path)
        (tmp_path / "page.html").write_text("mine\n")
        assert repository.changed(tmp_path)
        me = ["-c", "user.name=Me", "-c", "user.email=me@example.com"]
        git(tmp_path, *me, "commit", "-q", "-a", "-m", "mine")
        assert repository.changed(tmp_path)

    def test_travels_in_a_wheel(self, tmp_path: Path) -> None:
        wheels, unpacked, made, here = (tmp_path / name for name in ("wheels", "unpacked", "made", "here"))
        build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(wheels)]
        subprocess.run(build, cwd=CHECKOUT, check=True, capture_output=True, timeout=100)
        with zipfile.ZipFile(next(wheels.iterdir())) as wheel:
            wheel.extractall(unpacked)
        code = (
            "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
            "from deploytools.sandbox import repository\n"
            "assert repository.SOURCES.is_relative_to(sys.argv[1]), repository.SOURCES\n"
            "repository.make(Path(sys.argv[2]))"
        )
        for directory in (made, here):
            directory.mkdir()
        argv = [sys.executable, "-c", code, str(unpacked), str(made)]
        subprocess.run(argv, cwd=tmp_path, check=True, timeout=60)
        repository.make(here)
        assert git(made, "for-each-ref") == git(here, "for-each-ref")


def dump(book: Guestbook) -> list[str]:
    """The database, as SQL."""
    database = sqlite3.connect(book.root / "shared/var/guestbook.db")
    try:
        return list(database.iterdump())
    finally:
        database.close()


def entries(book: Guestbook, query: str) -> list[tuple[object, ...]]:
    """What a query of the database finds."""
    database = sqlite3.connect(book.root / "shared/var/guestbook.db")
    try:
        return database.execute(query).fetchall()
    finally:
        database.close()


def revision(book: Guestbook, ref: str) -> str:
    return book.alembic(ref, "current").stdout.split()[0]


class TestMigrations:
    def test_go_forward_and_back_and_keep_every_entry(self, book: Guestbook) -> None:
        book.alembic("v1", "upgrade", "head").check_returncode()
        assert revision(book, "v1") == "0001"
        before = entries(book, "SELECT id, name, message, signed_at FROM entries ORDER BY id")
        assert len(before) == 3
        book.alembic("v2", "upgrade", "head").check_returncode()
        assert revision(book, "v2") == "0002"
        after = "FROM entries JOIN visitors ON visitors.id = visitor_id ORDER BY entries.id"
        assert entries(book, f"SELECT entries.id, name, message, signed_at {after}") == before
        assert entries(book, f"SELECT name, number, signed {after}") == [
            ("Ada", 1, 2),
            ("Charles", 1, 1),
            ("Ada", 2, 2),
        ]
        book.alembic("v2", "downgrade", "0001").check_returncode()
        assert entries(book, "SELECT id, name, message, signed_at FROM entries ORDER BY id") == before

    def test_that_fail_half_way_leave_nothing_of_it(self, book: Guestbook) -> None:
        book.alembic("v2", "upgrade", "head").check_returncode()
        before = dump(book)
        failed = book.alembic("broken-migration", "upgrade", "head")
        assert failed.returncode != 0
        assert "UNIQUE constraint failed: entries.message" in failed.stderr
        assert dump(book) == before
        assert revision(book, "v2") == "0002"

    def test_that_fail_keep_the_ones_before_them(self, book: Guestbook) -> None:
        assert book.alembic("broken-migration", "upgrade", "head").returncode != 0
        assert revision(book, "v2") == "0002"

    def test_that_are_killed_leave_nothing_of_it(self, book: Guestbook) -> None:
        """And take about ten seconds if nobody does, which is not waited for here."""
        book.alembic("v2", "upgrade", "head").check_returncode()
        before = dump(book)
        argv = [sys.executable, "-m", "alembic", "upgrade", "head"]
        release = book.release("slow-migration")
        with subprocess.Popen(argv, cwd=release, stdout=subprocess.PIPE, text=True) as migration:
            assert migration.stdout is not None
            first, second = (migration.stdout.readline() for _ in range(2))
            began = time.monotonic()
            third = migration.stdout.readline()
            pause = time.monotonic() - began
            migration.kill()
        assert [first, second, third] == [f"moods: {number} of 20 batches\n" for number in (1, 2, 3)]
        assert 8 <= 20 * pause <= 40
        assert dump(book) == before

    def test_do_not_keep_visitors_from_reading(self, book: Guestbook) -> None:
        book.alembic("v3", "upgrade", "head").check_returncode()
        book.serve("v3", 1)
        argv = [sys.executable, "-m", "alembic", "upgrade", "head"]
        release = book.release("slow-migration")
        with subprocess.Popen(argv, cwd=release, stdout=subprocess.PIPE, text=True) as migration:
            assert migration.stdout is not None
            migration.stdout.readline()
            status, headers, _ = book.project.request()
            migration.kill()
        assert (status, headers["X-Schema"]) == (200, "0002")


class TestAnAnswer:
    def test_names_release_generation_and_schema(self, book: Guestbook) -> None:
        book.alembic("v1", "upgrade", "head").check_returncode()
        book.serve("v1", 7)
        for path in ("/", "/health", "/slow?s=0", "/nowhere"):
            _, headers, _ = book.project.request(path)
            told = [headers[f"X-{name}"] for name in ("Release", "Generation", "Schema", "Schema-Expected")]
            assert told == ["v1", "7", "0001", "0001"], path

    def test_shows_what_was_signed_and_no_html_of_others(self, book: Guestbook) -> None:
        for ref in RELEASES:
            book.alembic(ref, "upgrade", "head").check_returncode()
            book.serve(ref, RELEASES.index(ref))
            status, headers, _ = book.project.request(
                "/sign", f"name=%3Cb%3E{ref}&message=a+%26+%3Ci%3E{ref}"
            )
            assert (status, headers["Location"]) == (303, "/")
            status, _, page = book.project.request()
            assert status == 200
            assert f"&lt;b&gt;{ref}" in page
            assert f"a &amp; &lt;i&gt;{ref}" in page
            assert f"<i>{ref}" not in page

    @pytest.mark.parametrize(
        "form", ["name=Ada", "message=hi", "name=+&message=hi", f"name=A&message={'m' * 501}", "%"]
    )
    def test_to_a_form_that_makes_no_sense_is_400(self, book: Guestbook, form: str) -> None:
        book.alembic("v1", "upgrade", "head").check_returncode()
        book.serve("v1", 1)
        assert book.project.request("/sign", form)[0] == 400

    def test_looks_different_from_v3_on(self, book: Guestbook) -> None:
        book.alembic("v3", "upgrade", "head").check_returncode()
        pages = {}
        for generation, ref in enumerate(("v2", "v3")):
            book.serve(ref, generation)
            pages[ref] = book.project.request()[2]
        assert "<h1>Guestbook</h1>" in pages["v2"]
        assert "<h1>Our guestbook</h1>" in pages["v3"]

    def test_can_be_slow(self, book: Guestbook) -> None:
        book.alembic("v1", "upgrade", "head").check_returncode()
        book.serve("v1", 1)
        began = time.monotonic()
        assert book.project.request("/slow?s=0.5")[0] == 200
        assert 0.5 <= time.monotonic() - began < 3


class TestHealth:
    def test_is_500_before_the_first_migration_and_200_after_it(self, book: Guestbook) -> None:
        process = book.serve("v1", 1)
        assert [book.project.request(path)[0] for path in ("/health", "/", "/health")] == [500, 500, 500]
        assert process.poll() is None
        book.alembic("v1", "upgrade", "head").check_returncode()
        assert [book.project.request(path)[0] for path in ("/health", "/")] == [200, 200]

    def test_is_500_on_another_schema_than_the_codes(self, book: Guestbook) -> None:
        book.alembic("v1", "upgrade", "head").check_returncode()
        book.serve("v1", 1)
        assert book.project.request("/health")[0] == 200
        book.alembic("v2", "upgrade", "head").check_returncode()
        status, headers, _ = book.project.request("/health")
        assert (status, headers["X-Schema"], headers["X-Schema-Expected"]) == (500, "0002", "0001")
        status, headers, _ = book.project.request("/")  # the code can't live with it
        assert (status, headers["X-Schema"], headers["X-Schema-Expected"]) == (500, "0002", "0001")

    def test_is_500_on_a_schema_that_is_not_there_yet(self, book: Guestbook) -> None:
        book.alembic("v1", "upgrade", "head").check_returncode()
        book.serve("v2", 1)
        assert book.project.request("/health")[0] == 500

    def test_of_the_sick_app_is_500_though_it_runs(self, book: Guestbook) -> None:
        book.alembic("v3", "upgrade", "head").check_returncode()
        process = book.serve("sick-app", 1)
        assert book.project.request("/health")[0] == 500
        assert process.poll() is None

    def test_sees_a_database_that_was_put_back_from_a_backup(self, book: Guestbook) -> None:
        database = book.root / "shared/var/guestbook.db"
        book.alembic("v1", "upgrade", "head").check_returncode()
        backup = sqlite3.connect(database.with_name("backup.db"))
        live = sqlite3.connect(database)
        live.backup(backup)
        live.close()
        backup.close()
        book.serve("v1", 1)
        book.project.request("/sign", "name=Late&message=lost+again")
        os.replace(database.with_name("backup.db"), database)
        for leftover in ("guestbook.db-wal", "guestbook.db-shm"):
            database.with_name(leftover).unlink(missing_ok=True)
        status, _, page = book.project.request()
        assert status == 200
        assert "lost again" not in page


def test_the_broken_app_ends_at_start_up_and_says_why(book: Guestbook) -> None:
    process = book.serve("broken-app", 1)
    assert process.wait(10) == 1
    assert "page.html can't be used" in book.log.read_text()


def test_a_signal_ends_the_application_with_a_request_in_it(book: Guestbook) -> None:
    """It knows nothing of graceful shutdown, and so proves that whoever swaps it drains it first."""
    book.alembic("v1", "upgrade", "head").check_returncode()
    process = book.serve("v1", 1)
    url = f"http://127.0.0.1:{book.project.http_port}/slow?s=20"
    with subprocess.Popen(
        ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", url], stdout=subprocess.PIPE
    ) as slow:
        wait_until(lambda: _sleeps(process.pid), "the request is in the application's hands")
        process.send_signal(signal.SIGTERM)
        process.wait(1)
        assert slow.communicate(timeout=10)[0] == b"500"


def _sleeps(pid: int) -> bool:
    """Whether a thread of the process waits for time to pass. One that is only connected to may not have read
    the request yet; lighttpd tries again then, and gives the application up for a while."""
    return any("nanosleep" in wait.read_text() for wait in Path(f"/proc/{pid}/task").glob("*/wchan"))


class TestVisitors:
    def command(self, book: Guestbook, out: Path, *options: str) -> list[str]:
        url = f"http://127.0.0.1:{book.project.http_port}/"
        return [
            sys.executable,
            "-m",
            "deploytools.sandbox.traffic",
            "--url",
            url,
            "--out",
            str(out),
            *options,
        ]

    def test_see_a_window_as_it_was(self, book: Guestbook, tmp_path: Path) -> None:
        """Maintenance by hand, and the schema and the code changed in it."""
        book.alembic("v1", "upgrade", "head").check_returncode()
        book.serve("v1", 1)
        maintenance = book.project.layout.lighttpd / "maint.lua"
        page = maintenance.with_name("new.lua")
        out, records = tmp_path / "out.json", tmp_path / "records"
        argv = self.command(book, out, "--clients", "4", "--rate", "200", "--records", str(records))
        with subprocess.Popen(argv, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True) as crowd:
            assert crowd.stdout is not None
            assert crowd.stdout.readline() == "sending\n"
            wait_until(lambda: "I was here." in book.project.request()[2], "a visitor signed")
            page.write_text(
                'lighty.r.resp_header["X-Maintenance-Mode"] = "1"\n'
                'lighty.r.resp_body.set("down")\nreturn 503\n'
            )
            down = time.time()
            os.replace(page, maintenance)
            book.alembic("v2", "upgrade", "head").check_returncode()
            book.serve("v2", 2)
            page.write_text("-- up\n")
            os.replace(page, maintenance)
            wait_until(lambda: book.project.request()[1]["X-Release"] == "v2", "the site is back")
            up = time.time()
            signed = entries(book, COUNT)
            wait_until(lambda: entries(book, COUNT) > signed, "visitors are back")
            crowd.send_signal(signal.SIGTERM)
            assert crowd.wait(30) == 0
        result = json.loads(out.read_text())
        assert result["lost"] == 0, result["examples"]
        assert result["mismatches"] == 0
        assert list(result["releases"]) == ["v1", "v2"]
        assert result["classes"]["maintenance"] > 10
        assert result["downtime"]["over"]
        assert abs(result["downtime"]["seconds"] - (up - down)) < 0.5
        assert len(records.read_text().splitlines()) == result["sent"]

    def test_do_not_go_before_there_were_enough_of_them(self, book: Guestbook, tmp_path: Path) -> None:
        book.alembic("v1", "upgrade", "head").check_returncode()
        book.serve("v1", 1)
        out = tmp_path / "out.json"
        argv = self.command(book, out, "--at-least", "1500", "--seconds", "60")
        with subprocess.Popen(argv, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True) as crowd:
            assert crowd.stdout is not None
            assert crowd.stdout.readline() == "sending\n"
            crowd.send_signal(signal.SIGTERM)
            assert crowd.wait(60) == 0
        result = json.loads(out.read_text())
        assert result["sent"] >= 1500
        assert result["seconds"] < 50
        assert result["classes"][traffic.APP] == result["sent"]

    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("--seconds", "0"),
            ("--seconds", "nan"),
            ("--clients", "1.5"),
            ("--rate", "fast"),
            ("--url", "ftp://127.0.0.1/"),
        ],
    )
    def test_are_not_sent_on_nonsense(self, tmp_path: Path, option: str, value: str) -> None:
        argv = [sys.executable, "-m", "deploytools.sandbox.traffic", "--url", "http://127.0.0.1/"]
        argv += ["--out", str(tmp_path / "out.json"), option, value]
        ran = subprocess.run(argv, cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=30)
        assert ran.returncode == 2
        assert option in ran.stderr
        assert "Traceback" not in ran.stderr
