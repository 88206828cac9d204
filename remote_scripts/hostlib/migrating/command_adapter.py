"""Answers for any tool that is a command: `status`, or `pending` and `current`, and `apply` of the settings.

    check      where is the database, and what is pending?
    upgrade    run `apply`, where something is pending
    rollback   run `rollback` until the database is at the revision "back_to"

`status` prints a line "[X] NAME" for each applied migration and "[ ] NAME" for each pending one, in their
order, as dbmate does. `current` prints the revisions of the database, one a line; beside `status` it shows
what the release doesn't know: a revision is known by a name that begins with it, as 20250102_orders.sql
with 20250102. `pending` says by its exit code whether anything is pending, but not what.

A migration is safe online by the line "-- online-safe" in its file, which stands in `files` of the release
under its name, with or without .sql. "vetoes" is what squawk had against each such file, where it was asked.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from adapter_engines import POSTGRESQL, Ask, identity, sessions, wait_until_quiet
from adapter_process import Adapter, Answer, labelled, serve, settings

END = "\x1e"  # what psql is told to say behind the rows of an answer
LISTED = re.compile(r"\[([ xX])\]\s+(\S.*?)\s*")
# As deploytools.squawk has it.
LABEL = re.compile(r"^--[ \t]*online-safe\b", re.MULTILINE)


@dataclass(frozen=True)
class Found:
    """Where the database is; `target` is empty where nobody can tell what the release needs."""

    current: tuple[str, ...]
    target: tuple[str, ...]
    pending: tuple[Answer, ...]
    strangers: tuple[str, ...] = ()


def check(answer: Answer) -> None:
    """Look at the database without changing it."""
    found = _look()
    answer.update(
        current=found.current,
        target=found.target,
        pending=found.pending,
        strangers=found.strangers,
        transactional=_transactional(),
        sessions=None,
        database=None,
    )
    if _can_ask():
        with _client() as ask:
            answer["sessions"] = sessions("postgresql", ask, settings())
            answer["database"] = identity("postgresql", ask)


def upgrade(answer: Answer) -> None:
    """Run what is pending."""
    answer["transactional"] = _transactional()
    before = _look()
    if not before.pending:
        answer["applied"] = []
        return
    _wait_until_quiet()
    _change("apply", answer)
    answer["applied"] = _applied(before, _look())


def rollback(answer: Answer) -> None:
    """Take back one migration after the other."""
    answer["transactional"] = _transactional()
    wanted, now = sorted(settings()["back_to"]), _look()
    _wait_until_quiet()
    while sorted(now.current) != wanted:
        before = now.current
        _change("rollback", answer)
        now = _look()
        if sorted(now.current) == sorted(before):
            raise RuntimeError("`rollback` ended well, but took nothing back")
        answer["transactional"] = False  # what one call has taken back stays so when the next one fails
    answer["applied"] = []


def _change(name: str, answer: Answer) -> None:
    """Run the command `name` of the settings, which changes the database."""
    sys.stdout.flush()
    ran = subprocess.run(_argv(name), stdin=subprocess.DEVNULL, check=False)
    if ran.returncode != 0:
        # Killed, it may have left the server at work.
        answer["connection_lost"] = ran.returncode < 0
        raise RuntimeError(f"`{name}` ended with {_ending(ran.returncode)}")


def _wait_until_quiet() -> None:
    if _can_ask():
        with _client() as ask:
            wait_until_quiet("postgresql", ask, settings())


def _applied(before: Found, after: Found) -> list[str]:
    """What was applied; never empty, which would say that nothing was done."""
    left = {step["revision"] for step in after.pending}
    named = [step["revision"] for step in before.pending if step["revision"] not in {"", *left}]
    return named or sorted({*after.current} - {*before.current}) or list(after.current) or ["unknown"]


def _look() -> Found:
    told = settings()
    if told.get("status"):
        return _listed(_output("status"), _lines("current") if told.get("current") else None)
    current = tuple(_lines("current"))
    pending = told["pending"]
    ran = _run("pending", shlex.split(pending["cmd"]))
    if ran.returncode == pending["none"]:
        return Found(current, current, ())
    if ran.returncode == pending["some"]:
        something = {"revision": "", "message": "something, says `pending`"}
        return Found(
            current, (), ({**something, "online": False, "why": "`pending` doesn't tell what it is"},)
        )
    raise RuntimeError(
        f"`pending` ended with {_ending(ran.returncode)}: {_last_line(ran.stdout + ran.stderr)}"
    )


def _listed(output: str, revisions: Sequence[str] | None) -> Found:
    """Given what `status` and `current` printed, return where the database is."""
    lines = [match for match in map(LISTED.fullmatch, output.splitlines()) if match]
    if not lines:
        raise RuntimeError('`status` printed no line like "[X] NAME" or "[ ] NAME"')
    names = [match[2] for match in lines]
    pending = [match[2] for match in lines if match[1] == " "]
    # The last one up to the first gap, and whatever was applied beyond it: other sets have other names.
    gap = names.index(pending[0]) if pending else len(names)
    current = names[:gap][-1:] + [name for name in names[gap:] if name not in pending]
    strangers = [revision for revision in revisions or () if not any(_is(name, revision) for name in names)]
    return Found(
        current=(*current, *strangers),
        target=(names[-1],),
        pending=tuple({"revision": name, "message": "", **_label(name)} for name in pending),
        strangers=tuple(strangers),
    )


def _label(name: str) -> Answer:
    """Whether the migration `name` is safe online: by its author's word, and squawk has no veto."""
    told = settings()
    if not told.get("files"):
        return {
            "online": False,
            "why": "without migrate.files nobody knows the file that its label would be in",
        }
    directory, file = Path(told["directory"], told["files"]), Path(name).name
    paths = [path for path in (directory / file, directory / f"{file}.sql") if path.is_file()]
    if len(paths) != 1:
        return {"online": False, "why": f"there is no file {file} or {file}.sql in {directory}"}
    found = labelled(LABEL.search(paths[0].read_text(errors="replace")) is not None, "a line -- online-safe")
    if not found["online"]:
        return found
    # Linted are the labelled ones, so one that isn't there was overlooked.
    vetoes = (told.get("vetoes") or {}).get(paths[0].name, ["it was not shown to squawk"])
    if vetoes and (told.get("vetoes") is not None or told.get("squawk")):
        return {"online": False, "why": f"squawk: {'; '.join(vetoes)}"}
    return found


def _is(name: str, revision: str) -> bool:
    return name == revision or (name.startswith(revision) and not name[len(revision)].isalnum())


def _can_ask() -> bool:
    """With PostgreSQL's own client and an address we can ask who else is there."""
    return settings().get("engine") in POSTGRESQL and shutil.which("psql") is not None and bool(_address())


def _address() -> dict[str, str]:
    """Where the database is, in the variables of PostgreSQL's client; empty where nobody says so."""
    url = urllib.parse.urlsplit(os.environ.get("DATABASE_URL", ""))
    if url.scheme not in ("postgres", "postgresql"):
        return {
            name: os.environ[name] for name in ("PGDATABASE", "PGHOST", "PGSERVICE") if name in os.environ
        }
    query = dict(urllib.parse.parse_qsl(url.query))
    found = {
        "PGHOST": url.hostname or query.get("host") or query.get("socket"),
        "PGPORT": str(url.port) if url.port else query.get("port"),
        "PGUSER": url.username or query.get("user"),
        "PGPASSWORD": url.password or query.get("password"),
        "PGDATABASE": url.path.lstrip("/") or query.get("dbname"),
        "PGSSLMODE": query.get("sslmode"),
    }
    return {name: urllib.parse.unquote(value) for name, value in found.items() if value}


@contextlib.contextmanager
def _client() -> Iterator[Ask]:
    """What asks the database, by one psql for all that is asked in the block; its rows are of strings."""
    argv = ("psql", "-XAtq", "-F", "\x1f", "-v", "ON_ERROR_STOP=1")
    env = {**os.environ, **_address(), "PGAPPNAME": "deploytools-check"}
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=env) as psql:
        to, come, said = psql.stdin, psql.stdout, psql.stderr
        assert to is not None
        assert come is not None
        assert said is not None

        def ask(query: str) -> list[list[str]]:
            rows = []
            with contextlib.suppress(BrokenPipeError):  # it has ended, and says why
                to.write(f"{query};\n\\echo {END}\n")
                to.flush()
            for line in come:
                if line.rstrip("\n") == END:
                    return rows
                rows.append(line.rstrip("\n").split("\x1f"))
            with contextlib.suppress(BrokenPipeError):
                to.close()
            why = said.read()
            raise RuntimeError(f"psql ended with {_ending(psql.wait())}: {_last_line(why)}")

        yield ask


def _transactional() -> bool:
    return settings().get("transactional") is True


def _lines(name: str) -> list[str]:
    return [line.strip() for line in _output(name).splitlines() if line.strip()]


def _output(name: str) -> str:
    ran = _run(name, _argv(name))
    if ran.returncode != 0:
        raise RuntimeError(
            f"`{name}` ended with {_ending(ran.returncode)}: {_last_line(ran.stdout + ran.stderr)}"
        )
    return ran.stdout


def _run(name: str, argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    except OSError as error:
        raise RuntimeError(f"`{name}` can't be run: {error}") from error


def _argv(name: str) -> list[str]:
    return shlex.split(str(settings()[name]))


def _ending(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _last_line(said: str) -> str:
    return said.strip().rsplit("\n", 1)[-1] or "it printed nothing"


if __name__ == "__main__":
    serve(Adapter(lambda: None, {"check": check, "upgrade": upgrade, "rollback": rollback}))
