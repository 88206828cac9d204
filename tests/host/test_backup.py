"""`backup`: what the hook wrote is read to its end; real dumps, whole and cut off."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.barehost import bare_host
from tests.support.databases import Database, programs_of_postgresql
from tests.support.webhost import WebHost


@pytest.fixture(scope="module")
def host() -> Iterator[WebHost]:
    with bare_host() as host:
        yield host


@pytest.fixture(scope="module")
def dumps(
    tmp_path_factory: pytest.TempPathFactory, new_database: Callable[[str], Database]
) -> Callable[[str], Path]:
    """A new whole dump, by its format, of a database with some rows."""
    place = tmp_path_factory.mktemp("dumps")
    pg, maria = new_database("postgresql"), new_database("mariadb")
    pg.query("create table orders as select n, md5(n::text) from generate_series(1, 2000) n")
    maria.query("create table orders as select seq, md5(seq) from seq_1_to_2000")
    with closing(sqlite3.connect(place / "live.sqlite3")) as connection, connection:
        connection.execute("create table orders (n integer, hash text)")
        connection.executemany("insert into orders values (?, ?)", [(n, f"{n:032}") for n in range(2000)])
    bin = programs_of_postgresql()
    pg_dump = f"{bin}/pg_dump -h {pg.host} -U postgres {pg.name}"
    mariadb_dump = f"mariadb-dump --no-defaults --socket={maria.host} --user=root {maria.name}"
    commands = {
        "custom": f"{pg_dump} -Fc -f $file",
        "tar": f"{pg_dump} -Ft -f $file",
        "plain": f"{pg_dump} -f $file",
        "plain.gz": f"{pg_dump} | gzip > $file",
        "custom.gz": f"{pg_dump} -Fc -Z0 | gzip > $file",
        "plain.xz": f"{pg_dump} | xz -0 > $file",
        "custom.zst": f"{pg_dump} -Fc -Z0 | zstd -q > $file",
        "mariadb.zst": f"{mariadb_dump} | zstd -q > $file",
        "all": f"{bin}/pg_dumpall -h {pg.host} -U postgres -f $file",
        "mariadb": f"{mariadb_dump} > $file",
        "mariadb.bz2": f"{mariadb_dump} | bzip2 > $file",
        "sqlite": f'sqlite3 {place}/live.sqlite3 ".backup $file"',
        "sqlite.gz": f'sqlite3 {place}/live.sqlite3 ".backup $file.raw"; gzip < $file.raw > $file',
        "sqlite.dump": f"sqlite3 {place}/live.sqlite3 .dump > $file",
        "directory": f"{pg_dump} -Fd -f $file",
    }

    def dump(format: str) -> Path:
        file = place / format
        shutil.rmtree(file, ignore_errors=True)
        script = commands[format].replace("$file", str(file))
        subprocess.run(["bash", "-eo", "pipefail", "-c", script], check=True, capture_output=True)
        return file

    return dump


def backup(host: WebHost, hook: str) -> tuple[int, dict[str, object]]:
    """What the program says to this hook."""
    argv = [str(host.tools / "backup"), "--run-id=run1", "--release=r1", "--json"]
    ran = subprocess.run(argv, input=hook, capture_output=True, text=True, check=False)
    return ran.returncode, json.loads(ran.stdout)


WHOLE = {
    "custom": "pg_dump custom",
    "tar": "pg_dump tar",
    "plain": "pg_dump",
    "plain.gz": "pg_dump, gzip",
    "custom.gz": "pg_dump custom, gzip",
    "plain.xz": "pg_dump, xz",
    "custom.zst": "pg_dump custom, zstd",
    "mariadb.zst": "mysqldump, zstd",
    "all": "pg_dumpall",
    "mariadb": "mysqldump",
    "mariadb.bz2": "mysqldump, bzip2",
    "sqlite": "SQLite",
    "sqlite.gz": "SQLite, gzip",
    "sqlite.dump": "sqlite3 .dump",
}


@pytest.mark.parametrize("format", WHOLE)
def test_a_whole_dump_is_taken_with_its_path_size_and_digest_and_a_part_of_it_is_refused(
    host: WebHost, dumps: Callable[[str], Path], format: str
) -> None:
    file = dumps(format)
    content = file.read_bytes()

    code, told = backup(host, f"echo {file}")

    assert (code, told["backups"]) == (
        0,
        [
            {
                "path": str(file),
                "bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
                "format": WHOLE[format],
            }
        ],
    )

    end = 3000 if format == "tar" else 300  # of a tar file the last kilobytes are padding
    for part in (content[: len(content) // 2], content[:-end]):
        file.write_bytes(part)
        code, told = backup(host, f"echo {file}")
        assert code == 3, (len(part), told)
        assert str(file) in told["error"]["what"]  # type: ignore[index]
        assert told["error"]["state"] == "the database was not touched"  # type: ignore[index]


def test_a_directory_of_pg_dump_is_read_whole(host: WebHost, dumps: Callable[[str], Path]) -> None:
    place = dumps("directory")
    code, told = backup(host, f"echo {place}")
    assert (code, told["backups"][0]["format"]) == (0, "pg_dump directory")  # type: ignore[index]

    data = max(place.glob("*.dat.gz"), key=lambda path: path.stat().st_size)
    data.write_bytes(data.read_bytes()[:-300])
    assert backup(host, f"echo {place}")[0] == 3


def test_half_a_dump_that_gzip_made_whole_is_refused(
    host: WebHost, dumps: Callable[[str], Path], tmp_path: Path
) -> None:
    """As by `pg_dump | gzip > file` where pg_dump dies: the shell sees gzip's success."""
    for format in ("plain", "mariadb", "custom", "sqlite", "sqlite.dump"):
        file = dumps(format)
        half = tmp_path / f"{format}.gz"
        code, told = backup(host, f"head -c {file.stat().st_size // 2} {file} | gzip > {half}; echo {half}")
        assert code == 3, (format, told)


def test_several_files_are_all_read_and_what_else_the_hook_prints_is_no_path(
    host: WebHost, dumps: Callable[[str], Path], tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    code, told = backup(
        host,
        f"echo dumping; echo {dumps('plain')}; echo $DEPLOYTOOLS_RUN_ID $DEPLOYTOOLS_RELEASE > {notes};"
        f" echo {notes}",
    )
    assert code == 0
    assert [each["format"] for each in told["backups"]] == ["pg_dump", None]  # type: ignore[attr-defined]
    assert "only that it can be read was checked" in str(told["message"])
    assert notes.read_text() == "run1 r1\n"


@pytest.mark.parametrize(
    ("hook", "why"),
    [
        ("exit 7", "hooks.backup ended with exit code 7"),
        ("echo done", "hooks.backup printed no path"),
        (": > {file}; echo {file}", "it is empty"),
        ("gzip < /dev/null > {file}; echo {file}", "it is empty"),
        ("echo {file}.not-there", "No such file"),
        ("echo old > {file}; touch -d '1 hour ago' {file}; echo {file}", "it was there before the hook ran"),
    ],
)
def test_a_hook_that_leaves_nothing_to_restore_has_failed(
    host: WebHost, tmp_path: Path, hook: str, why: str
) -> None:
    code, told = backup(host, hook.format(file=tmp_path / "dump"))

    assert code == 3
    assert why in told["error"]["what"]  # type: ignore[index]
