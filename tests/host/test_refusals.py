"""What a host can do to its programs: each is provoked on a host that is made so, and told in words."""

from __future__ import annotations

import argparse
import errno
import fcntl
import hashlib
import io
import json
import os
import socket
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hostlib import program
from hostlib.locking import exclusive
from hostlib.migrating import adapters, migration_following
from hostlib.program import Config, Failure
from hostlib.releasing import assembly, inlet, listing, manifest, releases, shared, staging
from hostlib.releasing.store import Store
from hostlib.runs import journals
from hostlib.swapping import (
    account,
    barrier,
    direct,
    generations,
    launch,
    managers,
    retiring,
    systemd,
    unixsockets,
)
from hostlib.switch import draining, maintenance, maintstate
from hostlib.webserver import accesslog, elsewhere, lighttpd, listeners, sockdiag, web
from hostsetup import bundle as bundles
from hostsetup import install, remove, trust
from hostsetup import lighttpd as lighttpd_of_set_up
from hostsetup import main as set_up
from hostsetup.bundle import Bundle, Refused

from tests.support.ground import Ground
from tests.support.ports import free_port
from tests.support.webhost import WebHost

Provoke = Callable[[Config, pytest.MonkeyPatch], object]

NOBODY = 65534
APP = manifest.App(("/bin/true",), "fd0", {}, 1.0, 1.0, 0.0, "direct")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A host that is set up and has never served anything."""
    found = Config(
        version="0",
        application="guestbook",
        root=tmp_path / "r",
        user="root",
        privileged=False,
        maintenance_dir=tmp_path / "etc",
        url="http://127.0.0.1:1/",
        host_header=None,
        liveness=(),
        statistics_path="/server-statistics",
        lighttpd_config=tmp_path / "lighttpd.conf",
    )
    for place in (found.run, found.releases, found.shared, found.state, found.migrations, found.log):
        place.mkdir(parents=True)
    found.maintenance_dir.mkdir()
    (found.maintenance_dir / "maint.lua").write_text("-- up\n")
    return found


def release(config: Config, **described: Any) -> Path:
    """A release r1 with this manifest."""
    place = config.releases / "r1"
    place.mkdir()
    (place / ".deploytools.json").write_text(json.dumps(described))
    return place


def record(config: Config, number: int = 1) -> generations.Record:
    return generations.Record(number, "r1", "direct", str(config.run / f"app.{number}.sock"), 0.0)


def nobodys_account(_: Config, __: pytest.MonkeyPatch) -> None:
    adapters.environment("nobody-of-this-name", {})


def senseless_adapter(config: Config, _: pytest.MonkeyPatch) -> None:
    release(config, migrate={"adapter": "voodoo"})
    adapters.of_release(config, "r1")


def nothing_that_takes_it_back(config: Config, _: pytest.MonkeyPatch) -> None:
    release(config)
    (config.migrations / "run1").mkdir()
    (config.migrations / "run1" / "started.json").write_text('{"release": "r1", "before": []}')
    migration_following.back(config, "run1", 1)


def typed_by_hand(_: Config, patch: pytest.MonkeyPatch) -> None:
    patch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    inlet.refuse_terminal()


def frame_of_junk(_: Config, __: pytest.MonkeyPatch) -> None:
    inlet._inflated(b"junk")


def listing_of_junk(_: Config, __: pytest.MonkeyPatch) -> None:
    listing.parse([b"junk"])


def release_that_serves(config: Config, _: pytest.MonkeyPatch) -> None:
    config.current.symlink_to(release(config))
    releases.discard(config, "r1")


def manifest_of_junk(config: Config, _: pytest.MonkeyPatch) -> None:
    (release(config) / ".deploytools.json").write_text("junk")
    releases.described(config.releases / "r1")


def manifest_that_says_nothing(config: Config, _: pytest.MonkeyPatch) -> None:
    release(config)
    manifest.read(config, "r1")


def shared_outside(_: Config, __: pytest.MonkeyPatch) -> None:
    shared.check_names(["../other"])


def shared_twice(_: Config, __: pytest.MonkeyPatch) -> None:
    shared.check_names(["var", "var/cache"])


def shared_over_a_file(config: Config, _: pytest.MonkeyPatch) -> None:
    (release(config) / "notes.txt").write_text("theirs")
    (config.shared / "notes.txt").write_text("ours")
    shared.link(config.releases / "r1", config.releases / "r1", config.shared, ["notes.txt"])


def disk_that_fails(config: Config, _: pytest.MonkeyPatch) -> None:
    with staging._disk_troubles(config.releases / "a" / "content"):
        raise OSError(errno.EIO, "Input/output error")


def disk_that_is_full(config: Config, _: pytest.MonkeyPatch) -> None:
    with staging._disk_troubles(config.releases / "a" / "content"):
        raise OSError(errno.ENOSPC, "No space left on device")


def another_release_of_that_name(config: Config, _: pytest.MonkeyPatch) -> None:
    release(config)
    staging._here(config, staging.Order("r1", "0" * 64, ()))


def disk_that_can_not_be_flushed(config: Config, _: pytest.MonkeyPatch) -> None:
    staging._flush(config.root / "nowhere")


def journal_of_junk(config: Config, _: pytest.MonkeyPatch) -> None:
    journals.append(config, "run1", "junk", None)


def journal_of_nothing(config: Config, _: pytest.MonkeyPatch) -> None:
    journals.append(config, "run1", "\n", None)


def journal_that_is_damaged(config: Config, _: pytest.MonkeyPatch) -> None:
    (config.state / "journal").mkdir()
    (config.state / "journal" / "run1.jsonl").write_text("[]\n")
    journals.read(config, "run1")


def swap_on_a_full_disk(config: Config, _: pytest.MonkeyPatch) -> None:
    with account.errors_explained(config):
        raise OSError(errno.ENOSPC, "No space left on device", str(config.run / "generation"))


def record_of_junk(config: Config, _: pytest.MonkeyPatch) -> None:
    (config.run / "app.1.json").write_text("[]")
    generations.records(config)


def number_of_junk(config: Config, _: pytest.MonkeyPatch) -> None:
    (config.run / "generation").write_text("seven")
    generations.next_number(config)


def socket_that_is_no_link(config: Config, _: pytest.MonkeyPatch) -> None:
    (config.run / "app.sock").write_text("")
    generations.serving_number(config)


def path_of_a_socket_that_is_too_long(config: Config, _: pytest.MonkeyPatch) -> None:
    launch.new_record(replace(config, root=config.root / ("x" * 100)), 1, "r1", "direct", APP)


def variables_that_are_too_long(config: Config, _: pytest.MonkeyPatch) -> None:
    launch.prepare(config, record(config), replace(APP, env={"LONG": "x" * 130_000}))


def web_server_without_an_account(config: Config, _: pytest.MonkeyPatch) -> None:
    launch.webserver_account(replace(config, webserver_user="nobody-of-this-name"))


def generation_that_stays(config: Config, patch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EACCES, "Permission denied")

    for number in (1, 2):
        record(config, number).saved(config)
    patch.setattr(unixsockets, "wait_idle", refuse)
    ended = retiring.Retiring(config, managers.Managers(config), account.Account(config))
    ended.drain_and_stop_all_but(record(config, 2), APP)


def unit_that_is_missing(config: Config, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(systemd, "UNITS", config.root)
    systemd.Systemd(config).start(record(config))


def unit_that_does_not_start(config: Config, patch: pytest.MonkeyPatch) -> None:
    (config.root / "deploytools-guestbook@.service").write_text("")
    patch.setattr(systemd, "UNITS", config.root)
    systemd.Systemd(config).start(record(config))


def unit_that_does_not_stop(config: Config, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(systemd.Systemd, "_is_there", lambda *_: True)
    systemd.Systemd(config).stop(record(config))


def drain_of_a_site_that_is_up(config: Config, _: pytest.MonkeyPatch) -> None:
    draining.drain(config, timeout=1)


def switch_without_a_directory(config: Config, _: pytest.MonkeyPatch) -> None:
    maintenance.one_at_a_time(replace(config, maintenance_dir=config.lighttpd_config / "etc"), 1)


def access_log_without_lighttpd(config: Config, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(lighttpd, "program", lambda: None)
    accesslog.AccessLog.of(config)


def access_log_that_there_is_not(config: Config, _: pytest.MonkeyPatch) -> None:
    config.lighttpd_config.write_text('server.document-root = "/"\n')
    accesslog.AccessLog.of(config)


def access_log_that_can_not_be_read(config: Config, _: pytest.MonkeyPatch) -> None:
    modules, log = 'server.modules = ("mod_accesslog")', 'accesslog.filename = "/nowhere/log"'
    config.lighttpd_config.write_text(f'server.document-root = "/"\n{modules}\n{log}\n')
    accesslog.AccessLog.of(config)


def no_lighttpd(config: Config, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(lighttpd, "program", lambda: None)
    elsewhere._configuration(config)


def lighttpd_that_hangs(config: Config, patch: pytest.MonkeyPatch) -> None:
    def late(*_: object) -> None:
        raise subprocess.TimeoutExpired("lighttpd", 30)

    patch.setattr(lighttpd, "read", late)
    elsewhere._configuration(config)


def configuration_of_junk(config: Config, _: pytest.MonkeyPatch) -> None:
    config.lighttpd_config.write_text("junk {")
    lighttpd.read(lighttpd.program() or "lighttpd", config.lighttpd_config)


def another_program_by_that_name(_: Config, __: pytest.MonkeyPatch) -> None:
    lighttpd.version("/bin/true")


def site_without_an_address(config: Config, _: pytest.MonkeyPatch) -> None:
    listeners.workers(replace(config, url="http://no-such-host.invalid/"))


def another_web_server(config: Config, _: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", free_port())) as listener:
        listeners.workers(replace(config, url=f"http://127.0.0.1:{listener.getsockname()[1]}/"))


def kernel_without_sock_diag(_: Config, patch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> None:
        raise OSError(errno.ENOENT, "No such file or directory")

    patch.setattr(sockdiag, "_ask", unknown)
    sockdiag.tcp_listeners()


def configuration_that_is_missing(config: Config, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(program, "HERE", config.root)
    program.load_config()


def script_that_is_kept_from_us(config: Config, _: pytest.MonkeyPatch) -> None:
    script = config.maintenance_dir / "maint.lua"
    script.chmod(0)
    me = os.geteuid()
    os.seteuid(me or NOBODY)
    try:
        maintstate.bypass_headers(config)
    finally:
        os.seteuid(me)


def content_that_is_damaged_after_it_was_proved(config: Config, _: pytest.MonkeyPatch) -> None:
    digest = hashlib.sha256(b"what it should be").hexdigest()
    what = b"f 17 " + digest.encode()
    block = listing.Block(b"", b".", [listing.File(name, what) for name in (b"one", b"two")])
    store = Store(config.root / "content")
    tree = config.root / "tree"
    tree.mkdir()
    assembled = assembly.Assembly(config, listing.Listing(0, [block]), tree, [], store)
    assembled.begin()
    store.path(digest).write_bytes(b"what it should be")
    assert not assembled.wanted()
    store.path(digest).write_bytes(b"something altered")
    assembled.finish()


def nobody_who_says_go(_: Config, patch: pytest.MonkeyPatch) -> None:
    patch.setattr("sys.stdin", io.StringIO())
    program.wait_until_told(argparse.Namespace(when_told=True, json=True))


def link_out_of_the_release(_: Config, __: pytest.MonkeyPatch) -> None:
    listing.check_link(b"public/passwd", b"../../etc/passwd")


def application_that_crashes_behind_the_web_server(_: Config, __: pytest.MonkeyPatch) -> None:
    lives = iter([generations.Life(7), generations.Life(None, ended="it was killed by SIGSEGV")])
    healthy = barrier.judge(manifest.Health("/", 200, None), lambda: next(lives))
    healthy(web.Answer(500, {}, b"", None))


def application_that_stays_bad(_: Config, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(barrier, "BAD_ANSWERS_FOR", -1.0)
    healthy = barrier.judge(manifest.Health("/", 200, None), lambda: generations.Life(7))
    healthy(web.Answer(404, {}, b"", None))


def process_that_can_not_be_killed(config: Config, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(direct, "KILL_GRACE", 0.0)
    patch.setattr(direct, "_signal", lambda *_: None)
    patch.setattr(direct.Direct, "_members", lambda *_: [SimpleNamespace(pid=7)])
    direct.Direct(config, term_grace=0.0).stop(record(config))


def bundle(place: Path) -> Bundle:
    """What a set-up without root is to put there."""
    return bundles.read(Ground(place).bundle(), systemd=False)


def directory_in_a_circle(place: Path) -> None:
    (place / "srv").symlink_to("srv")
    list(trust.passed(place / "srv" / "guestbook"))


def purge_with_something_mounted(_: Path) -> None:
    remove.nothing_mounted(Path("/proc"))


def file_in_place_of_a_link(place: Path) -> None:
    wanted = bundle(place)
    link = next(link for link in wanted.links if link.path.parent != wanted.tools)
    link.path.write_text("")
    trust.check(wanted)


def directory_in_place_of_a_file(place: Path) -> None:
    wanted = bundle(place)
    Ground(place).snippet.mkdir()
    trust.check(wanted)


def file_in_place_of_a_directory(place: Path) -> None:
    (place / "srv").mkdir()
    (place / "srv/guestbook").write_text("")
    trust.check(bundle(place))


def application_of_root(place: Path) -> None:
    trust.accounts(replace(bundle(place), privileged=True, user="root", app_user="root"))


def set_up_beside_another(place: Path) -> None:
    wanted = bundle(place)
    with exclusive(wanted.lighttpd.parent, wait=0), set_up._alone(wanted, wait=0):
        pass


def removal_under_a_migration(place: Path) -> None:
    config = bundle(place).config
    run = config.migrations / "run1"
    run.mkdir(parents=True)
    (run / "started.json").write_text('{"run_id": "run1"}')
    with (run / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        remove.leave_alone_what_is_in_use(config)


@pytest.mark.parametrize(
    ("provoke", "what", "step"),
    [
        (directory_in_a_circle, "leads in a circle", "put a directory in its place"),
        (purge_with_something_mounted, "something is mounted on /proc", "leave out --purge"),
        (file_in_place_of_a_link, "is there, and is not a link to", "move "),
        (directory_in_place_of_a_file, "is there, and is a directory", "move "),
        (file_in_place_of_a_directory, "srv/guestbook is there, and is no directory", "move "),
        (application_of_root, "the application can't run as root, who is root", "another app.user"),
        (set_up_beside_another, "another set-up is at work on this host", "wait for it"),
        (removal_under_a_migration, "the migration of run run1 is running", "fab migrate --status"),
    ],
)
def test_what_set_up_refuses_is_told(
    provoke: Callable[[Path], None], what: str, step: str, tmp_path: Path
) -> None:
    with pytest.raises(Refused) as told:
        provoke(tmp_path)

    assert what in told.value.what
    assert told.value.state == "nothing was changed"
    assert step in told.value.next


def test_a_sudoers_file_that_visudo_does_not_take_is_told_with_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A visudo of our own, because not every machine that tests has sudo."""
    (tmp_path / "visudo").write_text('#!/bin/sh\necho "$2:1:5: syntax error"; exit 1\n')
    (tmp_path / "visudo").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    with pytest.raises(Refused) as told:
        install.check_sudoers(b"junk (\n")

    assert told.value.what == "visudo refuses the sudoers file: it:1:5: syntax error"
    assert "fabric.yaml" in told.value.next


def test_a_lighttpd_that_dies_of_its_new_configuration_is_told(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """systemd has it running until it is told to reload."""
    told: list[str] = []
    monkeypatch.setattr(lighttpd_of_set_up, "runs", lambda: not told)
    monkeypatch.setattr(lighttpd_of_set_up, "_systemctl", told.append)
    monkeypatch.setattr(lighttpd_of_set_up, "SEEN_WITHIN", 0.0)
    printed = '"server.graceful-shutdown-timeout" => 0'
    then = lighttpd_of_set_up.Judgement(True, "", printed)

    with pytest.raises(Refused) as refused:
        lighttpd_of_set_up.take_in(then, config, serves=True)

    assert told == ["reload"]
    assert "lighttpd did not survive it" in refused.value.what
    assert refused.value.state == "its configuration is what it was before"
    assert refused.value.next.endswith("then fab setup again")


def test_doctor_that_is_told_nonsense_says_so() -> None:
    host = WebHost()
    try:
        ran = host.run("doctor", "--expected", stdin="junk")
    finally:
        host.__exit__()

    assert ran.code == 2
    assert "standard input is not as --expected wants it" in ran.error["what"]


# What provokes it, the exit code, what is said, and what to type next.
REFUSALS: list[tuple[Provoke, int, str, str]] = [
    (nobodys_account, 2, "there is no account nobody-of-this-name", "doctor"),
    (senseless_adapter, 2, "release r1: the migration adapter 'voodoo' is not supported", "mend `migrate`"),
    (nothing_that_takes_it_back, 2, "has no command that takes a migration back", "fab deploy --resume"),
    (typed_by_hand, 2, "is sent by the laptop, not typed", "fab deploy"),
    (frame_of_junk, 3, "a frame can't be unpacked", "deploy again"),
    (listing_of_junk, 3, "no listing of this version", "fab setup"),
    (release_that_serves, 3, "release r1 is in use", "swap to another release first"),
    (manifest_of_junk, 2, ".deploytools.json of r1 can't be read", "deploy again"),
    (manifest_that_says_nothing, 2, "is not usable: ", "release r1 can't be started"),
    (shared_outside, 2, "'../other' can't be shared", "deploy.shared"),
    (shared_twice, 2, "'var/cache' is shared twice", "deploy.shared"),
    (shared_over_a_file, 3, "the release has a file of its own there", "`shared` in fabric.yaml"),
    (disk_that_fails, 3, "can't be put together: [Errno 5]", "deploy again"),
    (disk_that_is_full, 3, "is full: No space left on device", "df -h"),
    (another_release_of_that_name, 3, "there is another release r1 already", "`release discard r1`"),
    (disk_that_can_not_be_flushed, 3, "can't be written to the disk: sync", ""),
    (journal_of_junk, 2, "standard input is no journal: line 1", ""),
    (journal_of_nothing, 2, "there is no record on standard input", ""),
    (journal_that_is_damaged, 3, "is damaged: line 1 is no JSON object", "has a copy"),
    (swap_on_a_full_disk, 3, "No space left on device: ", "make room"),
    (record_of_junk, 3, "is not a generation's record", "then remove"),
    (number_of_junk, 3, "should hold the number of the newest generation", "write a number into"),
    (socket_that_is_no_link, 2, "is no symbolic link", "`swap` then starts"),
    (path_of_a_socket_that_is_too_long, 2, "the path of the socket is longer than", "a shorter deploy.root"),
    (variables_that_are_too_long, 2, "are longer than 120000 bytes", "below `shared`"),
    (web_server_without_an_account, 2, "there is no account nobody-of-this-name", "set webserver.user"),
    (generation_that_stays, 7, "an old generation is left over: [Errno 13]", "swap --reap"),
    (unit_that_is_missing, 2, "this host has no unit deploytools-guestbook@.service", "fab setup"),
    (unit_that_does_not_start, 3, "systemd can't start deploytools-guestbook@1.service", "journalctl -u"),
    (unit_that_does_not_stop, 3, "systemd can't stop generation 1", "systemctl status"),
    (drain_of_a_site_that_is_up, 3, "this host is not in maintenance: new requests", "/down"),
    (switch_without_a_directory, 3, "can't be made: No such file or directory", "fab setup"),
    (access_log_without_lighttpd, 3, "lighttpd is not there to be asked for its access log", ""),
    (access_log_that_there_is_not, 3, "lighttpd has no access log", ""),
    (access_log_that_can_not_be_read, 3, "/nowhere/log can't be read: No such file", ""),
    (no_lighttpd, 3, "there is no lighttpd to ask for its configuration", "apt-get install lighttpd"),
    (lighttpd_that_hangs, 3, "lighttpd does not print its configuration", "lighttpd -p -f"),
    (configuration_of_junk, 3, "lighttpd can't read", "lighttpd -p -f"),
    (another_program_by_that_name, 3, "/bin/true -v doesn't tell its version", "reinstall lighttpd"),
    (site_without_an_address, 2, "this host can't resolve no-such-host.invalid", "webserver.url"),
    (another_web_server, 2, "answers at http://127.0.0.1:", "let webserver.url"),
    (configuration_that_is_missing, 2, "config.json can't be used: ", "fab setup"),
    (nobody_who_says_go, 2, "it was not told to begin", ""),
    (link_out_of_the_release, 3, "is refused: it is a symbolic link to ../../etc/passwd", "source.exclude"),
    (application_that_crashes_behind_the_web_server, 3, "behind the web server it was killed by SIGSEGV", ""),
    (application_that_stays_bad, 3, "the web server answers 404, not", ""),
    (process_that_can_not_be_killed, 3, "does not end on SIGKILL: pid 7", "ps -o pid"),
    (script_that_is_kept_from_us, 3, "can't be read, and with it the bypass token", "use sudo"),
    (content_that_is_damaged_after_it_was_proved, 3, "was damaged just now", ""),
    (kernel_without_sock_diag, 3, "the kernel does not tell who holds a TCP socket", "modprobe tcp_diag"),
]


@pytest.mark.parametrize(
    ("provoke", "code", "what", "step"), REFUSALS, ids=[each[0].__name__ for each in REFUSALS]
)
def test_it_is_told(
    provoke: Provoke, code: int, what: str, step: str, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Failure) as told:
        provoke(config, monkeypatch)

    assert what in told.value.what
    assert told.value.exit_code == code
    assert step in told.value.next


def test_how_an_application_ended_behind_the_web_server_is_waited_for_until_its_manager_knows() -> None:
    lives = iter([generations.Life(7), generations.Life(None), generations.Life(None, ended="it ended")])
    healthy = barrier.judge(manifest.Health("/", 200, None), lambda: next(lives))
    assert not healthy(web.Answer(500, {}, b"", None))
    with pytest.raises(Failure, match="behind the web server it ended"):
        healthy(web.Answer(500, {}, b"", None))
