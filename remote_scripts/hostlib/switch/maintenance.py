"""The maintenance switch: puts a script in place of maint.lua, which mod_magnet runs, and proves it.

Order of writes: down writes maint.json, then maint.lua; up writes maint.lua, then takes maint.json away.
Wherever a crash cuts that, maint.lua is whole, the state is told truly (see maintstate), and the same
command again finishes it. maint.lua.up and maint.lua.down lie ready for a hand that copies them, and for
a disk without room: putting one of them in place by link and rename takes none.
"""

from __future__ import annotations

import calendar
import contextlib
import dataclasses
import errno
import os
import shlex
import stat
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from hostlib.files import link_over, write_atomic, write_json
from hostlib.locking import exclusive
from hostlib.names import local, span, timestamp
from hostlib.program import BUSY, FAILED, HERE, IN_MAINTENANCE, Config, Failure, Result
from hostlib.switch import maintpage, maintproof, maintscript
from hostlib.switch.maintstate import (
    NOBODYS,
    State,
    Window,
    bypass_headers,
    bypass_token,
    is_marked,
    lua_file,
    page_file,
    public_path,
    read_state,
    record_file,
    script_in,
)
from hostlib.webserver import web

__all__ = [
    "State",
    "Window",
    "bypass_headers",
    "down",
    "is_marked",
    "one_at_a_time",
    "public_path",
    "read_state",
    "standing",
    "up",
]

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def rehearse(config: Config) -> None:
    """Do in vain what `down` and `up` begin with, so that in their turn all that is loaded late is there."""
    with contextlib.suppress(Failure, OSError, ValueError):
        script = _anybodys_script(config, ends=_epoch(timestamp()) or 0)
        maintscript.proof_of(script), maintscript.window_of(script), maintscript.bypass_of(script)
    web.rehearse(config)


def standing(config: Config) -> Result:
    """What a switch tells while it waits to be told. Raises OSError."""
    return {"maintenance": read_state(config).as_result(), "release": config.release}


# -- down ------------------------------------------------------------------------------------------


def down(
    config: Config,
    *,
    by: str,
    reason: str | None,
    until: int | None,
    run_id: str | None,
    timeout: float,
    force: str | None = None,
) -> Result:
    """Put the site into maintenance and see every worker answer so, on every address.

    `until` is in seconds since the epoch. A second time it keeps since and token, and takes the new
    reason, end and run id where they are given; somebody else's window it leaves as it is. Raises
    Failure: exit code 5 where another run than `force` holds the window; 3 (4 if it was down before)
    where it can't be proved, with what was there put back.
    """
    began = time.monotonic()
    with one_at_a_time(config, timeout):
        before = read_state(config)
        new = Window(_random(4), timestamp(), by, reason, _iso(until), run_id)
        window, whose = _claim(before, new, force)
        token, told = bypass_token(config) or _random(16), _random(8)
        ends = _epoch(window.until)
        page, note = maintpage.read_page(page_file(config), HERE / "maint.html", drop=config.privileged)
        script = maintscript.down_script(
            page,
            application=config.application,
            reason=window.reason,
            window=window.window,
            bypass=token,
            proof=told,
            liveness=config.liveness,
            since=_epoch(window.since) or 0,
            ends=ends or 0,
        )
        group = _worker_group(config)
        with _put_back_on_failure(config, before):
            try:
                write_json(record_file(config), dataclasses.asdict(window))
                write_atomic(lua_file(config), script, 0o600 if group is None else 0o640, group=group)
                full = ""
            except OSError as error:
                if error.errno not in NO_ROOM or not _may_go_without(before, new):
                    raise
                script, full = _without_room(config, before, error)
            proof = maintproof.down(config, maintscript.proof_of(script), timeout)
        now = read_state(config)
        spare = "" if full else _lay_ready(config)
    verb = "still in maintenance" if before.state == "down" else "in maintenance"
    unproved = f"not asked: {', '.join(config.unproved)}" if config.unproved else ""
    return _told(now, before, proof, began, [f"{verb}, {proof}", unproved, whose, note, full, spare])


def _claim(before: State, wanted: Window, force: str | None) -> tuple[Window, str]:
    """The window to announce, and a remark: a new one, or the one that is open with what is newly known.

    Another run's window is taken over only where `force` names that run.
    """
    held = before.window
    if before.state != "down" or held is None:
        return wanted, ""
    if held.run_id and wanted.run_id and held.run_id not in (wanted.run_id, force):
        raise _held_by_another(held, "down")
    named = dataclasses.replace(held, window=held.window or wanted.window)
    if not wanted.run_id and held.by not in (wanted.by, NOBODYS):
        return named, f"it was so before {_about(held)}; that window stays as it is"
    if held.by == NOBODYS:
        named = dataclasses.replace(named, by=wanted.by)
    return dataclasses.replace(
        named,
        reason=wanted.reason or held.reason,
        until=wanted.until or held.until,
        run_id=wanted.run_id or held.run_id,
    ), ""


# -- a disk without room ---------------------------------------------------------------------------


def _may_go_without(before: State, wanted: Window) -> bool:
    """Whether a window may do without a record and a bypass of its own: a run's may not, if it is new."""
    held = before.window if before.state == "down" else None
    return wanted.run_id is None or (held is not None and held.run_id == wanted.run_id)


def _without_room(config: Config, before: State, error: OSError) -> tuple[str, str]:
    """Put the site into maintenance without writing; returns the script that does it, and a remark."""
    remedy = f"{config.maintenance_dir} has no room ({error.strerror}): make some, then run down again"
    if before.state == "down":
        return script_in(lua_file(config)), f"visitors see the page of before, as {remedy}"
    ready = lua_file(config, ".down")
    if not ready.exists() or not maintscript.is_down(script_in(ready)):
        raise error
    link_over(lua_file(config), ready)
    record_file(config).unlink(missing_ok=True)
    return script_in(ready), f"there is no bypass, and nothing is told of the window, as {remedy}"


def _lay_ready(config: Config) -> str:
    """Have a script that a hand may copy, or that goes in place on a full disk; returns a remark.

    It belongs to nobody's window and lets nobody through.
    """
    script = _anybodys_script(config)
    try:
        _write_if_new(lua_file(config, ".up"), maintscript.UP)
        _write_if_new(lua_file(config, ".down"), script)
        _tidy(config)
    except OSError as error:
        return f"{config.maintenance_dir} can't be written ({error.strerror}): mend that, and run it again"
    return ""


def _anybodys_script(config: Config, ends: int = 0) -> str:
    page, _ = maintpage.read_page(page_file(config), HERE / "maint.html", drop=config.privileged)
    return maintscript.down_script(
        page, application=config.application, liveness=config.liveness, since=ends, ends=ends
    )


def _write_if_new(file: Path, script: str) -> None:
    if _saved(file) is None or _saved(file)[0] != script.encode():
        write_atomic(file, script)


def _tidy(config: Config) -> None:
    """Take away what a command that was killed had begun to write: a token may be in it."""
    for pattern in (".maint.lua*", ".maint.json*"):
        for left_over in config.maintenance_dir.glob(pattern):
            left_over.unlink(missing_ok=True)


# -- when it can't be proved -----------------------------------------------------------------------


@contextlib.contextmanager
def _put_back_on_failure(config: Config, before: State) -> Iterator[None]:
    """If the body fails, the files are what they were, and the Failure tells what that was seen to do."""
    saved = {file: _saved(file) for file in (lua_file(config), record_file(config))}
    script = saved[lua_file(config)]
    if script is None or not script[0]:
        # Without a script, or with an empty one, every request is answered 500: no going back to that.
        saved[lua_file(config)] = (maintscript.UP.encode(), 0o644, os.getegid())
    try:
        yield
    except (Failure, OSError) as error:
        if isinstance(error, web.NotProved):
            cause, remedy = maintproof.cause(config, error)
            what = f"maintenance was not proved: {error.what}. {cause}"
        elif isinstance(error, Failure):  # who listens can't be told any more, say
            what, remedy = f"maintenance was not proved: {error.what}", error.next
        else:
            what, remedy = (
                f"{config.maintenance_dir} can't be written: {error.strerror}",
                "make room, or mend that",
            )
        code = IN_MAINTENANCE if before.state == "down" else FAILED
        try:
            _put_back(saved)
            state = maintproof.as_before(config, before)
        except OSError as again:
            code = IN_MAINTENANCE  # it may be: FAILED would promise that the host is as it was
            state = f"{lua_file(config)} could not be put back ({again.strerror})"
            remedy = f"{remedy}; then {config.maintenance_dir}/up"
        raise Failure(
            what,
            state=state,
            next=remedy,
            exit_code=code,
            **getattr(error, "result", {}),
        ) from error


def _put_back(saved: Mapping[Path, tuple[bytes, int, int] | None]) -> None:
    for file, content in saved.items():
        if _saved(file) == content:
            continue  # on a disk that is full or can only be read, nothing may have been written yet
        if content is None:
            file.unlink()
        else:
            data, mode, group = content
            write_atomic(file, data, mode, group=group)


# -- up --------------------------------------------------------------------------------------------


def up(
    config: Config, *, names: Collection[str], run_id: str | None, force: str | None, timeout: float
) -> Result:
    """Let requests through again and see every worker do so, on every address.

    `names` are those that the caller goes by. Raises Failure: exit code 5 where the window belongs to a
    run that is neither `run_id` nor named by `force`, or to somebody who is neither; 4 where a worker
    still shows the page; 3 where the application does not answer.
    """
    began = time.monotonic()
    with one_at_a_time(config, timeout):
        before = read_state(config)
        if before.state == "down" and not _may_lift(before.window, names, run_id, force):
            raise _held_by_another(before.window, "up")
        try:
            full = _open(config)
        except OSError as error:
            raise Failure(
                f"{config.maintenance_dir} can't be written: {error.strerror or error}",
                state="still in maintenance" if before.state == "down" else "nothing was changed",
                next="mend that, then run the same command again",
                exit_code=IN_MAINTENANCE if before.state == "down" else FAILED,
            ) from error
        try:
            proof = maintproof.up(config, began + timeout - time.monotonic())
        except Failure as failure:
            raise _not_up(config, failure) from failure
        notes = [_forget(config), full or _lay_ready(config)]
    verb = "still up" if before.state == "up" else "up"
    lasted = _lasted(before.window) if before.state == "down" else None
    # A run measures its own downtime, to more than the second that `since` is told by.
    after = f", after {span(lasted)} in maintenance" if lasted is not None and run_id is None else ""
    told = _told(State("up"), before, proof, began, [f"{verb}, {proof}{after}", *dict.fromkeys(notes)])
    return {**told, "lasted": lasted}


def _lasted(window: Window | None) -> int | None:
    """For how many seconds a window has been open, by this host's own clock."""
    try:
        since = _epoch(window.since) if window else None
    except ValueError:
        return None  # damaged by hand
    return None if since is None else max(0, int(time.time()) - since)


def _may_lift(window: Window | None, names: Collection[str], run_id: str | None, force: str | None) -> bool:
    """A run's window is its own; anybody else's is theirs. `force` names the one or the other."""
    if window is None:
        return True
    if window.run_id:
        return window.run_id in (run_id, force)
    return window.by in (*names, NOBODYS, force)


def _open(config: Config) -> str:
    """Put the up script in place, if it isn't; returns a remark. Raises OSError."""
    ready = lua_file(config, ".up")
    there = _saved(lua_file(config))
    if there and there[:2] == (maintscript.UP.encode(), 0o644):
        return ""  # so that a directory that can't be written is no reason to say that the site is down
    try:
        write_atomic(lua_file(config), maintscript.UP)
    except OSError as error:
        if error.errno not in NO_ROOM or not ready.exists() or not maintscript.is_up(script_in(ready)):
            raise
        link_over(lua_file(config), ready)
        return f"{config.maintenance_dir} has no room ({error.strerror}): make some"
    return ""


def _forget(config: Config) -> str:
    """Take the record of the window away; returns a remark."""
    try:
        if record_file(config).exists():  # to remove nothing is an error where the disk can only be read
            record_file(config).unlink()
    except OSError as error:
        return f"{config.maintenance_dir} can't be written ({error.strerror}): mend that, and run it again"
    return ""


def _not_up(config: Config, failure: Failure) -> Failure:
    proof = failure if isinstance(failure, web.NotProved) else None
    if proof and isinstance(proof.last, web.Answer):
        return Failure(
            f"not every worker lets requests through: {failure.what}",
            state=f"{lua_file(config)} lets requests through, but a worker still shows the maintenance page",
            next='set server.stat-cache-engine = "disable" and restart lighttpd; then run up again',
            exit_code=IN_MAINTENANCE,
            **failure.result,
        )
    look = failure.next or "look at the application and at lighttpd's error log"
    if proof and proof.point and not proof.point.is_home:
        _, look = maintproof.cause(config, proof)
    return Failure(
        f"the site does not answer: {failure.what}" if proof else f"nothing was proved: {failure.what}",
        state="maintenance is off, but whether visitors get answers was not seen",
        next=f"{look}; then run up again",
        unchanged=False,
        **failure.result,
    )


def one_at_a_time(config: Config, wait: float) -> contextlib.AbstractContextManager[int]:
    """While it is held no other command changes the switch; Failure (exit code 5) after `wait` seconds.

    Its own directory, as whoever may read one may also lock it.
    """
    lock = config.maintenance_dir / "maint.lock"
    try:
        lock.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        if error.errno in NO_ROOM:
            return exclusive(config.maintenance_dir, wait=wait)
        raise Failure(
            f"{lock} can't be made: {error.strerror}",
            state="nothing was changed",
            next="mend that; fab setup",
        ) from error
    return exclusive(lock, wait=wait)


# -- files -----------------------------------------------------------------------------------------


def _saved(file: Path) -> tuple[bytes, int, int] | None:
    try:
        about = file.stat()
        return file.read_bytes(), stat.S_IMODE(about.st_mode), about.st_gid
    except FileNotFoundError:
        return None


def _worker_group(config: Config) -> int | None:
    """The group that must be able to read maint.lua; None where we are no root and can't choose.

    Raises Failure where nothing answers at config.url, since nothing could be proved then.
    """
    if os.geteuid() != 0:
        return None
    for pid in web.workers(config):
        with contextlib.suppress(OSError):
            return Path(f"/proc/{pid}").stat().st_gid
    raise Failure(
        f"no process on this host listens at {config.url}",
        state="nothing was changed",
        next="systemctl start lighttpd; if it runs, correct webserver.url and run fab setup",
    )


# -- telling ---------------------------------------------------------------------------------------


def _about(window: Window) -> str:
    return f"by {window.by} since {local(window.since)}" + (f": {window.reason}" if window.reason else "")


def _held_by_another(window: Window, command: str) -> Failure:
    if window.run_id:
        what = f"maintenance belongs to run {window.run_id} ({_about(window)})"
        way = f"up --run-id {window.run_id}, or up --force {window.run_id} once that run is known to be over"
    else:
        what = f"maintenance was put on {_about(window)}"
        way = f"ask {window.by}; then up --force {shlex.quote(window.by)}"
    return Failure(
        what,
        state="nothing was changed; the site is in maintenance",
        next=way if command == "up" else f"wait for that run, or end it; then {way}",
        exit_code=BUSY,
        unchanged=True,  # by the run that asks, however often it does
        **dataclasses.asdict(window),
    )


def _told(now: State, before: State, proof: web.Proof, began: float, remarks: Sequence[str]) -> Result:
    elsewhere = f"left alone, as another site's: {', '.join(proof.elsewhere)}" if proof.elsewhere else ""
    return {
        **now.as_result(),
        "changed": before.state != now.state,
        "workers": proof.workers,
        "certain": proof.certain,
        "addresses": list(proof.addresses),
        "elsewhere": list(proof.elsewhere),
        "took": round(time.monotonic() - began, 3),
        "message": "\n".join(remark for remark in [*remarks, elsewhere] if remark),
    }


def _random(size: int) -> str:
    """`size` bytes that nobody can guess, as hexadecimal digits."""
    return os.urandom(size).hex()


def _iso(moment: int | None) -> str | None:
    return None if moment is None else timestamp(moment)


def _epoch(iso: str | None) -> int | None:
    if iso is None:
        return None
    return calendar.timegm(time.strptime(iso, "%Y-%m-%dT%H:%M:%SZ"))
