"""The maintenance switch: puts maint.lua.down or maint.lua.up in place of maint.lua, and proves it.

Order of writes: down writes maint.lua.down, then maint.json, then maint.lua; up writes maint.lua, then
takes maint.json away. Wherever a crash cuts that, maint.lua is whole, the state is told truly (see
maintstate), and the same command again finishes it.
"""

from __future__ import annotations

import calendar
import contextlib
import dataclasses
import os
import secrets
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from hostlib import maintscript, web
from hostlib.files import write_atomic, write_json
from hostlib.locking import exclusive
from hostlib.maintscript import PROOF
from hostlib.maintstate import (
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
)
from hostlib.names import timestamp
from hostlib.program import BUSY, FAILED, IN_MAINTENANCE, Config, Failure, Result

__all__ = ["State", "Window", "bypass_headers", "down", "is_marked", "public_path", "read_state", "up"]

# A script that lighttpd can't run shows visitors a 500. The application's own 500s are over sooner than
# this: an old script is kept for a second at most.
BROKEN_AFTER = 2.0  # seconds
RESTORE_TIMEOUT = 5.0  # seconds to prove that what was there before is back


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
    """Put the site into maintenance and see every worker answer so.

    `until` is in seconds since the epoch. A second time it keeps since and token, and takes the new
    reason, end and run id where they are given. Raises Failure: exit code 5 where another run than
    `force` holds the window; 3 (4 if it was down before) where it can't be proved, with what was there
    put back.
    """
    began = time.monotonic()
    with _turn(config, timeout):
        before = read_state(config)
        new = Window(secrets.token_hex(4), timestamp(), by, reason, _iso(until), run_id)
        window = _claim(before, new, force)
        token = bypass_token(config) or secrets.token_urlsafe(24)
        proof_token = secrets.token_urlsafe(24)
        ends = _epoch(window.until)
        page, note = maintscript.read_page(page_file(config), reason=window.reason, until=ends)
        script = maintscript.down_script(
            page,
            window=window.window,
            bypass=token,
            proof=proof_token,
            liveness=config.liveness,
            ends=ends or 0,
        )
        group = _worker_group(config)
        broken = time.monotonic() + BROKEN_AFTER

        def shows_this_page(answer: web.Answer) -> bool:
            if answer.status == 500 and time.monotonic() > broken:
                raise web.NotProved("lighttpd answers 500", seen=0, workers=0, last=answer)
            return is_marked(answer) and answer.headers.get(PROOF.lower()) == proof_token

        with _put_back_on_failure(config, before):
            _write_secret(lua_file(config, ".down"), script, group)
            write_json(record_file(config), dataclasses.asdict(window))
            _write_secret(lua_file(config), script, group)
            proof = web.prove(
                config,
                shows_this_page,
                path=public_path(config),
                headers={PROOF: proof_token},
                timeout=timeout,
            )
    verb = "still in maintenance" if before.state == "down" else "in maintenance"
    return _told(State("down", window), before, proof, began, [f"{verb}, {proof}", note])


def _claim(before: State, wanted: Window, force: str | None) -> Window:
    """The window to announce: a new one, or the one that is open with what is newly known of it.

    Another run's window is taken over only where `force` names that run.
    """
    held = before.window
    if before.state != "down" or held is None:
        return wanted
    if held.run_id and wanted.run_id and held.run_id not in (wanted.run_id, force):
        raise _held_by_another(held, "down")
    return dataclasses.replace(
        held,
        window=held.window or wanted.window,
        reason=wanted.reason or held.reason,
        until=wanted.until or held.until,
        run_id=wanted.run_id or held.run_id,
    )


@contextlib.contextmanager
def _put_back_on_failure(config: Config, before: State) -> Iterator[None]:
    """If the body fails, the files are what they were, and the Failure tells what that was seen to do."""
    files = [lua_file(config), record_file(config), lua_file(config, ".down")]
    saved = {file: _saved(file) for file in files}
    script = saved[lua_file(config)]
    if script is None or not script[0]:
        # Without a script, or with an empty one, every request is answered 500: no going back to that.
        saved[lua_file(config)] = (maintscript.UP.encode(), 0o644, os.getegid())
    try:
        yield
    except (web.NotProved, OSError) as error:
        if isinstance(error, web.NotProved):
            cause, remedy = _cause(config, error)
            what = f"maintenance was not proved: {error.what}. {cause}"
        else:
            what, remedy = (
                f"{config.maintenance_dir} can't be written: {error.strerror}",
                "make room, or mend that",
            )
        code = IN_MAINTENANCE if before.state == "down" else FAILED
        try:
            _put_back(saved)
            state = _seen_again(config, before)
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
        if content is None:
            file.unlink(missing_ok=True)
        elif _saved(file) != content:  # on a full disk nothing may have been written yet
            data, mode, group = content
            write_atomic(file, data, mode, group=group)


def _seen_again(config: Config, before: State) -> str:
    """Which state the host is in after what was there before was put back."""
    if before.state == "unknown":
        return f"{lua_file(config)} is as before"
    wanted = before.state == "down"
    told = "still in maintenance as before" if wanted else "up as before"
    try:
        web.prove(
            config,
            lambda answer: is_marked(answer) == wanted,
            path=public_path(config),
            timeout=RESTORE_TIMEOUT,
        )
    except Failure as failure:
        return f"the files are as before, and should leave the site {told}; but {failure.what}"
    return f"the site is {told}"


def _cause(config: Config, failure: web.NotProved) -> tuple[str, str]:
    """The probable cause of a proof that failed, and the remedy."""
    pids = web.workers(config)
    answer = failure.last if isinstance(failure.last, web.Answer) else None
    if answer is None:
        return (
            f"No web server answers at {config.url}",
            "systemctl start lighttpd; if it runs, correct webserver.url and run fab setup",
        )
    if answer.status == 500:
        return (
            f"lighttpd can't run {lua_file(config)}",
            "read lighttpd's error log; lighttpd must be 1.4.60 or newer and may read that file",
        )
    if pids and not any(_maps_mod_magnet(pid) for pid in pids):
        return (
            "mod_magnet does not seem to be loaded",
            'install lighttpd-modules-lua, put "mod_magnet" first in server.modules, restart lighttpd',
        )
    return (
        "lighttpd does not run this script, or has not looked at it again",
        f'set magnet.attract-raw-url-to = ("{lua_file(config)}") and server.stat-cache-engine = "disable",'
        " restart lighttpd",
    )


def _maps_mod_magnet(pid: int) -> bool:
    try:
        return "mod_magnet" in Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return False


# -- up --------------------------------------------------------------------------------------------


def up(config: Config, *, run_id: str | None, force: str | None, timeout: float) -> Result:
    """Let requests through again and see every worker do so.

    Raises Failure: exit code 5 where the window belongs to a run that is neither `run_id` nor named by
    `force`; 4 where a worker still shows the page; 3 where the application does not answer.
    """
    began = time.monotonic()
    with _turn(config, timeout):
        before = read_state(config)
        if before.window and before.window.run_id and before.window.run_id not in {run_id, force}:
            raise _held_by_another(before.window, "up")
        try:
            write_atomic(lua_file(config, ".up"), maintscript.UP)
            write_atomic(lua_file(config), maintscript.UP)
        except OSError as error:
            raise Failure(
                f"{config.maintenance_dir} can't be written: {error.strerror or error}",
                state="still in maintenance" if before.state == "down" else "nothing was changed",
                next="mend that, then run the same command again",
                exit_code=IN_MAINTENANCE if before.state == "down" else FAILED,
            ) from error
        try:
            proof = web.prove(
                config,
                lambda answer: not is_marked(answer),
                path=public_path(config),
                timeout=timeout,
            )
        except web.NotProved as failure:
            raise _not_up(config, failure) from failure
        note = _clear(config)
    verb = "still up" if before.state == "up" else "up"
    return _told(State("up"), before, proof, began, [f"{verb}, {proof}", note])


def _clear(config: Config) -> str:
    """Let no secret outlive its window, and keep a maint.lua.down that a hand may copy. Returns a remark."""
    page, note = maintscript.read_page(page_file(config), reason=None, until=None)
    try:
        write_atomic(lua_file(config, ".down"), maintscript.down_script(page, liveness=config.liveness))
        record_file(config).unlink(missing_ok=True)
    except OSError as error:
        return f"{config.maintenance_dir} can't be written ({error.strerror}): mend that, and run up again"
    return note


def _not_up(config: Config, failure: web.NotProved) -> Failure:
    if isinstance(failure.last, web.Answer):
        return Failure(
            f"not every worker lets requests through: {failure.what}",
            state=f"{lua_file(config)} lets requests through, but a worker still shows the maintenance page",
            next='set server.stat-cache-engine = "disable" and restart lighttpd; then run up again',
            exit_code=IN_MAINTENANCE,
            **failure.result,
        )
    return Failure(
        f"the site does not answer: {failure.what}",
        state="maintenance is off, but whether visitors get answers was not seen",
        next="look at the application and at lighttpd's error log; then run up again",
        unchanged=False,
        **failure.result,
    )


def _turn(config: Config, wait: float) -> contextlib.AbstractContextManager[int]:
    """One command at a time. Its own directory, as whoever may read one may also lock it."""
    lock = config.maintenance_dir / "maint.lock"
    lock.mkdir(mode=0o700, exist_ok=True)
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


def _write_secret(file: Path, script: str, group: int | None) -> None:
    write_atomic(file, script, 0o600 if group is None else 0o640, group=group)


# -- telling ---------------------------------------------------------------------------------------


def _held_by_another(window: Window, command: str) -> Failure:
    about = f"by {window.by} since {window.since}" + (f": {window.reason}" if window.reason else "")
    way = f"up --run-id {window.run_id}, or up --force {window.run_id} once that run is known to be over"
    return Failure(
        f"maintenance belongs to run {window.run_id} ({about})",
        state="nothing was changed; the site is in maintenance",
        next=way if command == "up" else f"wait for that run, or end it; then {way}",
        exit_code=BUSY,
        unchanged=True,  # by the run that asks, however often it does
        **dataclasses.asdict(window),
    )


def _told(now: State, before: State, proof: web.Proof, began: float, sentences: Sequence[str]) -> Result:
    return {
        **now.as_result(),
        "changed": before.state != now.state,
        "workers": proof.workers,
        "certain": proof.certain,
        "took": round(time.monotonic() - began, 3),
        "message": "\n".join(sentence for sentence in sentences if sentence),
    }


def _iso(moment: int | None) -> str | None:
    return None if moment is None else timestamp(moment)


def _epoch(iso: str | None) -> int | None:
    if iso is None:
        return None
    return calendar.timegm(time.strptime(iso, "%Y-%m-%dT%H:%M:%SZ"))
