"""Takes everything of the application off the host again, or says what that would be.

Order: lighttpd stops leading visitors to the application, then its processes end, then what they were run by
goes; the programs go last. Data (releases, what they share, logs, journals) stays unless it is to be purged.
Where things are, the host's own config.json says rather than fabric.yaml, which may have changed since.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hostlib.locking import exclusive
from hostlib.migrating import migration_runs
from hostlib.names import local
from hostlib.program import BUSY, IN_MAINTENANCE, UNFINISHED, Config, Failure
from hostlib.runs import deploylock
from hostlib.swapping import generations, unixsockets
from hostlib.swapping.account import count
from hostlib.swapping.generations import Record
from hostlib.swapping.managers import Managers
from hostlib.swapping.swaplock import one_swap_at_a_time
from hostlib.switch import maintenance, maintstate

from hostsetup import bundle as bundles
from hostsetup import install, lighttpd, placing, trust, versions
from hostsetup.asking import ask
from hostsetup.bundle import Bundle, Refused
from hostsetup.comparing import Change
from hostsetup.lighttpd import Judgement

WAIT = 30.0  # seconds for a command of the switch, or of the lock, that is at work
DATA = ("releases", "shared", "log", "state", "migrations")
SCRIPTS = ("maint.lua", "maint.lua.up", "maint.lua.down", "maint.json", "maint.lock")


@dataclass(frozen=True)
class Plan:
    """What is there, by what it is to the host.

    Args:
        config: the application's, as this host has it.
        running: its generations.
        then: the configuration for lighttpd to take in; None where it has to do nothing.
        configuration, units: what lighttpd and systemd have of it; files and links.
        others: files and links that nothing runs by.
        data: directories that go with everything in them.
        programs: what is in the directory of the programs. It goes last: what is left is told by it.
    """

    config: Config
    running: list[Record]
    then: Judgement | None
    configuration: list[Path]
    units: list[Path]
    others: list[Path]
    data: list[Path]
    programs: list[Path]
    changes: list[Change]
    notes: list[str]


def plan(bundle: Bundle) -> Plan:
    """Find out what is there. Raises Refused where the application is not to be taken away now."""
    config, known = _config(bundle)
    mark = config.root / ".deploytools"
    _not_another_applications(bundle, config, mark)
    leave_alone_what_is_in_use(config)
    running = generations.records(config) if config.run.is_dir() else []
    paths = sorted(_put_by_us(bundle))
    programs = _programs(bundle, [path for path in paths if path.parent == bundle.tools])
    configuration = [path for path in paths if path.parent.parent == bundle.lighttpd.parent]
    units = [path for path in paths if path.is_relative_to("/etc/systemd")]
    others = _of_the_switch(bundle, config, mark)
    others += [path for path in paths if path not in {*configuration, *units, *programs, mark}]
    data, notes = _data(bundle, config, mark)
    then, remarks = _for_lighttpd(bundle, configuration)
    page = maintstate.page_file(config)
    if known and page.exists() and page not in others:
        notes.append(f"kept: {page}, which is your own")
    changes = [
        *(Change(str(one), "stop" + (", which serves" if _serves(config, one) else "")) for one in running),
        *([Change("lighttpd", "restart" if then.restart else "reload")] if then else []),
        *(Change(str(path), "remove") for path in [*configuration, *units, *others]),
        *(Change(str(path), "remove" + ", with all in it" * path.is_dir()) for path in data),
        *(Change(str(path), "remove", program=True) for path in programs),
        *(Change(str(path), "remove") for path in _directories(bundle, config) if not any(path.iterdir())),
    ]
    return Plan(
        config, running, then, configuration, units, others, data, programs, changes, [*remarks, *notes]
    )


def apply(bundle: Bundle, wanted: Plan) -> list[str]:
    """Take it away; return remarks. Raises Refused, Failure or OSError; the same again goes on from there."""
    config = wanted.config
    with contextlib.ExitStack() as alone:
        if config.state.is_dir():
            alone.enter_context(exclusive(config.state, wait=WAIT))  # nobody takes the lock meanwhile
        if config.run.is_dir():
            alone.enter_context(one_swap_at_a_time(config))
        others = wanted.others
        if config.maintenance_dir / "down" in others:
            alone.enter_context(maintenance.one_at_a_time(config, WAIT))
            others = [config.maintenance_dir / "maint.lock", *others]  # by now it is there
        leave_alone_what_is_in_use(config)
        _start_no_more(wanted.units)
        remarks, seen = _out_of_lighttpd(bundle, wanted)
        _stop(config, wanted.running, bundle.drain)
        _remove_units(wanted.units)
        for path in others:
            if not seen and path == maintstate.lua_file(config):
                again = "fab setup --remove again takes it away"
                remarks.append(f"kept: {path}, which lighttpd may still ask; {again}")
            else:
                _remove(path)
    for path in [*wanted.data, *wanted.programs]:
        _remove(path)
    _tidy(bundle, config)
    install.pending(bundle).unlink(missing_ok=True)
    cost = lighttpd.in_words(wanted.then) if wanted.then else ""
    return remarks + [note for note in wanted.notes if note != cost]


# -- whether -------------------------------------------------------------------------------------------


def leave_alone_what_is_in_use(config: Config) -> None:
    """Raise Refused while somebody deploys, a migration runs, or visitors are kept out."""
    try:
        held = deploylock.holder(config)
        told = held and (deploylock.describe(held), held["run_id"])
    except (Failure, OSError, ValueError, TypeError, KeyError) as error:
        raise Refused(
            f"who holds the lock can't be read: {error}",
            next=f"look at {config.state}/lock; if no run is open, remove that directory",
        ) from error
    if told:
        raise Refused(
            f"the lock is held by {told[0]}",
            next="wait for that run; if it is dead: fab deploy --resume or --abort, or"
            f" fab unlock --force {told[1]}",
            exit_code=BUSY,
        )
    for started in migration_runs.running(config):
        raise Refused(
            f"the migration of run {started.get('run_id')} is running",
            next="wait for it: fab migrate --status",
            exit_code=BUSY,
        )
    state = maintstate.read_state(config)
    if state.state == "down":
        since = f" since {local(state.window.since)} by {state.window.by}" if state.window else ""
        raise Refused(
            f"the site is in maintenance{since}, and without the application there is no page to show",
            state="nothing was changed; the site is in maintenance",
            next="fab maint-up, then the same command again",
            exit_code=IN_MAINTENANCE,
        )


def nothing_mounted(root: Path) -> None:
    """Raise Refused where a purge would reach into another file system."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mounted = Path(line.split()[4].encode().decode("unicode_escape"))
        if mounted == root or root in mounted.parents:
            raise Refused(
                f"something is mounted on {mounted}", next=f"umount {mounted}, or leave out --purge"
            )


# -- what ----------------------------------------------------------------------------------------------


def _config(bundle: Bundle) -> tuple[Config, bool]:
    """The application's configuration, and whether the host itself has said so."""
    try:
        return bundles.config(json.loads((bundle.tools / "config.json").read_text())), True
    except (OSError, ValueError, KeyError, TypeError):
        return bundle.config, False


def _not_another_applications(bundle: Bundle, config: Config, mark: Path) -> None:
    """Raise Refused where fabric.yaml leads to the programs or the root directory of another application."""
    for place, key, whose in (
        (bundle.tools, "tools_dir", config.application),
        (config.root, "root", trust.application(mark)),
    ):
        if whose not in (None, bundle.application):
            raise Refused(
                f"{place} belongs to the application {whose}",
                next=f"correct deploy.application or deploy.{key} in fabric.yaml",
            )


def _serves(config: Config, record: Record) -> bool:
    return record.generation == generations.serving_number(config)


def _put_by_us(bundle: Bundle) -> Iterator[Path]:
    """Files and links that any version's set-up has put outside of the directory of that version."""
    files, links = versions.records(bundle)
    files |= {file.path for file in bundle.files if not file.keep and file.kind != "root"}
    links.update({link.path: link.target for link in bundle.links})
    for path in files:
        if path.is_file() and not path.is_symlink():
            yield path
        yield from placing.litter(path)
    for path, target in links.items():
        # A link that leads elsewhere is somebody else's. The programs once were files, not links.
        if (
            os.readlink(path) == target
            if path.is_symlink()
            else path.parent == bundle.tools and path.is_file()
        ):
            yield path
        yield from placing.litter(path)


def _programs(bundle: Bundle, links: list[Path]) -> list[Path]:
    """In the order in which they go: config.json says whose they are, and where the rest is."""
    last = [bundle.tools / name for name in ("config.json", "current", "versions")]
    found = [path for path in links if path not in last]
    found += versions.of_before(bundle)
    return found + [path for path in last if path.exists() or path.is_symlink()]


def _of_the_switch(bundle: Bundle, config: Config, mark: Path) -> list[Path]:
    """The files of the switch, and the page, unless the operator has made it their own.

    They are ours where `down` beside them is: it goes after them. The page may also be left of a removal
    without --purge.
    """
    place, down = config.maintenance_dir, config.maintenance_dir / "down"
    page = maintstate.page_file(config)
    if not down.is_symlink():
        left = bundle.purge and page.is_file() and trust.application(mark) == bundle.application
        return [page] if left else []
    if Path(os.readlink(down)).parent != bundle.tools:
        return []
    found = [path for path in (place / name for name in SCRIPTS) if path.exists()]
    found += place.glob(".maint.*")
    shipped = {file.content for file in bundle.of_kind("page")} | versions.pages(bundle)
    if page.is_file() and (bundle.purge or page.read_bytes() in shipped):
        found.append(page)
    return found


def _data(bundle: Bundle, config: Config, mark: Path) -> tuple[list[Path], list[str]]:
    """What goes of the root directory, with everything in it, and what is to be said of the rest.

    Where no `mark` says that it is ours, it isn't touched.
    """
    if trust.application(mark) != bundle.application:
        return [], []
    if bundle.purge:
        nothing_mounted(config.root)
        return [config.root], []
    there = [path for path in (config.root / name for name in DATA) if path.is_dir()]
    kept = [path for path in there if _holds_files(path)]
    going = [path for path in [*there, config.run] if path.is_dir() and path not in kept]
    if not kept:
        return [*going, mark], []
    return going, [f"kept: {', '.join(map(str, kept))} (--purge removes data too)"]


def _holds_files(directory: Path) -> bool:
    return any(path.is_symlink() or not path.is_dir() for path in directory.rglob("*"))


# -- how -----------------------------------------------------------------------------------------------


def _start_no_more(units: list[Path]) -> None:
    """Whatever starts the application after a reboot. The other units still run what is to be stopped."""
    for path in units:
        if path.parent.name.endswith(".wants"):
            ask("systemctl", "stop", path.name)
            path.unlink(missing_ok=True)


def _remove_units(units: list[Path]) -> None:
    for path in units:
        path.unlink(missing_ok=True)
    if units:
        install.systemctl("daemon-reload")


def _for_lighttpd(bundle: Bundle, configuration: list[Path]) -> tuple[Judgement | None, list[str]]:
    """What lighttpd has to take in, if anything, and remarks. Raises Refused where others need what goes."""
    if not (configuration or install.pending(bundle).exists()) or shutil.which("lighttpd") is None:
        return None, []
    now, then = lighttpd.judged(bundle.lighttpd, dict.fromkeys(configuration))
    if not then.fine and now.fine:
        raise lighttpd.refusal(bundle.lighttpd, now, then)
    missed = then.unknown_keys - now.unknown_keys
    if missed:
        raise Refused(
            f"other sites use what only this application's configuration loads: {', '.join(sorted(missed))}",
            next='load that for them: server.modules += ("mod_fastcgi"), say, in a file of conf-enabled',
        )
    if not then.fine:
        return None, [f"lighttpd refuses its configuration, with the application or without: {then.said}"]
    if not bundle.privileged or not Path("/run/systemd/system").is_dir() or not lighttpd.runs():
        return None, []
    return then, [lighttpd.in_words(then)]


def _out_of_lighttpd(bundle: Bundle, wanted: Plan) -> tuple[list[str], bool]:
    """Take the configuration away and have that taken in; return remarks, and whether that was seen."""
    if wanted.then is not None:
        install.pending(bundle).touch(mode=0o600)
    # The link first: the file alone is nothing to lighttpd.
    for path in sorted(wanted.configuration, key=lambda path: not path.is_symlink()):
        path.unlink(missing_ok=True)
    if wanted.then is None:
        return [], True
    remark = lighttpd.take_in(wanted.then, wanted.config, serves=False)
    install.pending(bundle).unlink(missing_ok=True)
    return ([remark], False) if remark else ([], True)


def _stop(config: Config, running: list[Record], patience: float) -> None:
    """End every generation that no request is in; Refused (exit code 7) where one is not done in time."""
    managers = Managers(config)
    kept = []
    for record in running:
        if left := unixsockets.wait_idle(record.socket, patience).total:
            kept.append(f"{record} has {count(left)} after {patience:g} s")
            continue
        try:
            managers.stop(record)
        except Failure as failure:
            kept.append(f"{record}: {failure.what}")
    if kept:
        raise Refused(
            f"not stopped: {'; '.join(kept)}",
            state="visitors don't reach the application any more; its programs are still there",
            next="fab setup --remove again, when those requests are done",
            exit_code=UNFINISHED,
        )
    (config.run / "app.sock").unlink(missing_ok=True)


def _tidy(bundle: Bundle, config: Config) -> None:
    """The link to a release that has gone with the data; directories that nothing is in any more."""
    if config.current.is_symlink() and not config.current.exists():
        config.current.unlink()
    for directory in _directories(bundle, config):
        with contextlib.suppress(OSError):  # it isn't empty
            directory.rmdir()


def _directories(bundle: Bundle, config: Config) -> list[Path]:
    """Those that set-up may have made around everything else, from the inside out."""
    found = [config.root, bundle.tools]
    if config.maintenance_dir != bundle.lighttpd.parent:
        found.append(config.maintenance_dir)
    if bundle.tools.parent.name == "deploytools":
        found.append(bundle.tools.parent)
    return [path for path in found if path.is_dir()]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
