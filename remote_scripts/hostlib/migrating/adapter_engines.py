"""What is asked of a database, and set in a migration's session, by its engine. Used by adapters.

A query is passed to `ask`, which returns rows. What is told of a session, as JSON:

    {"id", "user", "application", "client", "since", "state", "transaction", "locks": [...], "ours": bool}

"transaction" says since when one has been open, or null; "locks" names tables with the kind of lock;
"ours" is true of the session of the migration that `settings` names. Times are ISO 8601 in UTC.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

Ask = Callable[[str], Sequence[Sequence[Any]]]
Session = dict[str, Any]

POLL = 0.1  # seconds
MILLISECONDS = {"us": 0.001, "ms": 1.0, "s": 1e3, "min": 6e4, "h": 3.6e6, "": 1.0}
# How often the server looks whether its client is still there, so that an orphan doesn't commit.
CHECK_INTERVAL = 1000  # milliseconds
# File systems that no other machine has at the same time.
LOCAL = {"ext2", "ext3", "ext4", "xfs", "f2fs", "overlay", "tmpfs"}
POSTGRESQL, MYSQL = ("postgresql",), ("mysql", "mariadb")

_UTC = "to_char({} at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')"
# Others' details are null for an ordinary role; who has which lock is everybody's to see. Tables below
# 16384 are the server's own.
_POSTGRESQL_SESSIONS = f"""
    select a.pid, a.usename, coalesce(a.application_name, ''), coalesce(host(a.client_addr), 'local'),
        {_UTC.format("a.backend_start")}, coalesce(a.state, ''), {_UTC.format("a.xact_start")},
        coalesce(string_agg(distinct l.relation::regclass::text || ' ' || l.mode, ', '), '')
    from pg_stat_activity a
    left join pg_locks l on l.pid = a.pid and l.locktype = 'relation' and l.granted and l.relation >= 16384
        and l.database = (select oid from pg_database where datname = current_database())
    where a.datname = current_database() and a.pid <> pg_backend_pid()
        and coalesce(a.backend_type, 'client backend') = 'client backend'
    group by 1, 2, 3, 4, 5, 6, 7 order by 1
"""  # noqa: S608 - only our own words are put in
_MAY_ASK = "select has_function_privilege(to_regprocedure('pg_control_system()'), 'execute')"
# No percent sign: some drivers take it for a parameter.
_MYSQL_SESSIONS = """
    select id, user, host, concat(replace(utc_timestamp() - interval time second, ' ', 'T'), 'Z'), command
    from information_schema.processlist where db = database() and id <> connection_id() order by id
"""
_MYSQL_TRANSACTIONS = """
    select trx_mysql_thread_id, concat(replace(
        utc_timestamp() - interval timestampdiff(second, trx_started, now()) second, ' ', 'T'), 'Z')
    from information_schema.innodb_trx
"""


def take(engine: str, ask: Ask, settings: dict[str, Any]) -> None:
    """Make the session of `ask` the migration's own: by its name, and with `lock_timeout` in effect.

    Raises RuntimeError where the server doesn't take one of it. Nothing was changed then.
    """
    name, timeout = settings["session"], milliseconds(settings.get("lock_timeout") or "0")
    if engine in POSTGRESQL:
        wanted = {
            "application_name": name,
            "lock_timeout": f"{timeout:.0f}",
            "client_connection_check_interval": str(CHECK_INTERVAL),
        }
        ask("select " + ", ".join(f"set_config('{key}', '{value}', false)" for key, value in wanted.items()))
        shown = "(select setting from pg_settings where name = '{}')"
        _compare(wanted, ask("select " + ", ".join(map(shown.format, wanted))))
    elif engine in MYSQL:
        if timeout:
            seconds = max(1, round(timeout / 1000))
            wanted = dict.fromkeys(("lock_wait_timeout", "innodb_lock_wait_timeout"), str(seconds))
            ask("set " + ", ".join(f"@@session.{key} = {value}" for key, value in wanted.items()))
            _compare(wanted, ask("select " + ", ".join(f"@@session.{key}" for key in wanted)))
        # Sessions have no name there; a named lock, which ends with its session, shows which one is ours.
        if ask(f"select get_lock('{name}', 0)")[0][0] != 1:
            raise RuntimeError(f"another session holds the lock {name}: an earlier start of this migration?")


def wait_until_quiet(engine: str, ask: Ask, settings: dict[str, Any]) -> None:
    """Wait until nobody else holds a lock in this database, as long as `lock_timeout` says.

    Raises RuntimeError, which tells who does. With "online" there is always somebody: then it is for the
    session's own lock timeout to end what has to wait.
    """
    if settings.get("online"):
        return
    deadline = time.monotonic() + milliseconds(settings.get("lock_timeout") or "0") / 1000
    while True:
        others = sessions(engine, ask, settings) or []
        blockers = [session for session in others if session["locks"]]
        if not blockers:
            for session in others:
                print("connected, too:", describe(session), flush=True)
            return
        if time.monotonic() >= deadline:
            who = "; ".join(map(describe, blockers))
            raise RuntimeError(f"others hold locks in this database, so nothing was begun: {who}")
        time.sleep(POLL)


def sessions(engine: str, ask: Ask, settings: dict[str, Any]) -> list[Session] | None:
    """Who else is connected to this database; None where its engine can't tell."""
    name = settings["session"]
    if engine in POSTGRESQL:
        ask("select pg_stat_clear_snapshot()")
        keys = ("id", "user", "application", "client", "since", "state", "transaction", "locks")
        found = [dict(zip(keys, row)) for row in ask(_POSTGRESQL_SESSIONS)]  # noqa: B905 - Python 3.9
        return [
            {**session, "locks": _words(session["locks"]), "ours": session["application"] == name}
            for session in found
        ]
    if engine in MYSQL:
        (told,) = ask(f"select is_used_lock('{name}')")
        keys = ("id", "user", "client", "since", "state")
        found = [dict(zip(keys, row)) for row in ask(_MYSQL_SESSIONS)]  # noqa: B905
        open_ = _mysql_transactions(ask)
        return [
            {
                **session,
                "application": "",
                "transaction": open_.get(session["id"]),
                "locks": ["in a transaction"] if session["id"] in open_ else [],
                "ours": session["id"] == told[0],
            }
            for session in found
        ]
    return None


def identity(engine: str, ask: Ask) -> str | None:
    """Which database this is, the same for every host that finds it; None where its engine can't tell.

    To be asked last: where the question fails, a transaction may be of no more use. MariaDB and MySQL aren't
    asked, as the nodes of a cluster are servers of their own.
    """
    try:
        if engine in POSTGRESQL:
            ((allowed,),) = ask(_MAY_ASK)
            if allowed not in (True, "t"):
                return None
            ((server,),) = ask("select system_identifier::text from pg_control_system()")
            ((database,),) = ask("select oid::text from pg_database where datname = current_database()")
            return f"{server}.{database}"
        if engine == "sqlite":
            files = [row[2] for row in ask("pragma database_list") if row[1] == "main"]
            return _of_file(files[0]) if files and files[0] else None
    except Exception:  # noqa: BLE001 - each driver has errors of its own
        return None
    return None


def _of_file(path: str) -> str | None:
    """A file of this host; None where its file system may be another host's, too."""
    found = os.stat(path)
    device = f"{os.major(found.st_dev)}:{os.minor(found.st_dev)}"
    with open("/proc/self/mountinfo") as mounts, open("/proc/sys/kernel/random/boot_id") as boot:
        lines = [line.split() for line in mounts]
        kinds = {words[words.index("-") + 1] for words in lines if words[2] == device}
        if not kinds or not kinds <= LOCAL:
            return None
        # Containers on one machine may share a directory: then they find the same.
        return f"{boot.read().strip()}.{device}.{found.st_ino}"


def milliseconds(duration: str) -> float:
    """A duration as PostgreSQL spells it; a bare number is milliseconds."""
    match = re.fullmatch(r"(\d+)(us|ms|s|min|h|)", duration)
    if match is None:
        raise ValueError(f"{duration!r} is no duration")
    return int(match[1]) * MILLISECONDS[match[2]]


def describe(session: Session) -> str:
    """One session in words."""
    what = session["application"] or session["state"] or "a session"
    since = session["transaction"] or session["since"]
    locks = ", ".join(session["locks"]) or "no lock"
    known = [session["client"], f"id {session['id']}", *([f"since {since}"] if since else [])]
    return f"{what} of {session['user']} ({', '.join(known)}) holds {locks}"


def _compare(wanted: dict[str, str], rows: Sequence[Sequence[Any]]) -> None:
    for (name, value), found in zip(wanted.items(), rows[0]):  # noqa: B905
        if str(found) != value:
            raise RuntimeError(f"{name} is {found} in the migration's session, but should be {value}")


def _mysql_transactions(ask: Ask) -> dict[int, str]:
    """By session, since when it has had a transaction open; only an account with PROCESS may know."""
    try:
        return {row[0]: row[1] for row in ask(_MYSQL_TRANSACTIONS)}
    except Exception:  # noqa: BLE001 - each driver has an error of its own
        return {}


def _words(text: str) -> list[str]:
    return text.split(", ") if text else []
