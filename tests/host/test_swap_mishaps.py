"""What can go wrong in and around a swap, each time with visitors on the site.

Afterwards it is clear which generation serves, nobody lost a request that could be saved, no process
or socket is left over, and the message says what happened. A new generation that isn't ready, and two
swaps at once by the same hand, are in test_swap.py.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
from hostlib.swapping import unixsockets

from tests.support.interrupts import calls_of
from tests.support.runtimes import RUNTIMES, STREAMED
from tests.support.swapsite import Site, Visitors
from tests.support.webhost import Reply
from tests.support.webhost import wait_until as wait_up_to

pytestmark = pytest.mark.timeout(600)  # a busy machine is no failure

# lighttpd hands requests and answers on while they still come in; by default it collects them first.
STREAMING = "server.stream-request-body = 2\nserver.stream-response-body = 2"


@pytest.fixture
def make_site() -> Iterator[Callable[..., Site]]:
    with ExitStack() as stack:

        def make(**options: Any) -> Site:
            return stack.enter_context(Site(**options))

        yield make


@pytest.fixture
def site(make_site: Callable[..., Site]) -> Site:
    return make_site()


@pytest.fixture
def in_background() -> Iterator[Callable[..., Future[Any]]]:
    with ThreadPoolExecutor() as pool:
        yield pool.submit


def wait_until(condition: Callable[[], object], *, what: str = "condition") -> None:
    """With patience: what these tests wait for takes as long as a busy machine wants."""
    wait_up_to(condition, timeout=60, what=what)


class Held:
    """A request that the application works on until it is released."""

    def __init__(self, site: Site, in_background: Callable[..., Future[Any]]) -> None:
        self._file = site.host.base / "released"
        began = site.log().count("until begins")
        self._answer = in_background(site.get, f"/until?{self._file}", timeout=60)
        wait_until(lambda: site.log().count("until begins") > began)

    def release(self) -> Reply:
        self._file.touch()
        return self._answer.result()  # type: ignore[no-any-return]


def wait_for_the_flip(site: Site, generation: int) -> None:
    """Until the barrier is behind it, too: the one before is on record as one that drains."""
    wait_until(lambda: [record.state for record in site.records()] == ["draining", "serving"])
    assert site.serving().generation == generation


# -- the new generation --------------------------------------------------------------------------------


def test_one_that_crashes_when_the_public_comes_is_taken_back_at_once(site: Site) -> None:
    """The requests that it has in hand are lost, and those of the moment until it is noticed."""
    site.tune("barrier.py", "BAD_ANSWERS_FOR = 1.0", "BAD_ANSWERS_FOR = 600.0")
    site.tune("barrier.py", "GIVEN_UP, GIVEN_UP_FOR = 503, 4.0", "GIVEN_UP, GIVEN_UP_FOR = 503, 600.0")
    old = site.first()
    site.release("bad", env={"CRASH_BEHIND_WEB": "1"})

    with Visitors(site, count=3) as visitors:
        ran = site.swap("--release", "bad")
        lost = len(visitors.lost)
        before = visitors.generations["1"]
        wait_until(lambda: visitors.generations["1"] > before + 100)

    assert ran.code == 3
    assert ran.error["what"].startswith(
        "generation 2 (release bad) was taken back: behind the web server it was ended by signal 9"
    )
    assert "generation 2 (release bad) was stopped" in ran.error["state"]
    assert len(visitors.lost) == lost, "after it was taken back nobody loses anything"
    assert "2" not in visitors.generations
    assert os.readlink(site.root / "current") == "releases/r1"
    site.assert_only(old)


def test_one_that_crashes_once_it_serves_is_started_again_and_whoever_waits_is_answered(
    site: Site, in_background: Callable[..., Future[Any]]
) -> None:
    site.first()
    assert site.swap().code == 0
    crashed = site.pid()
    stopped = site.processes()
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)  # so that there are requests that wait
    waiting = [in_background(site.get, timeout=60) for _ in range(5)]
    wait_until(lambda: unixsockets.connections(site.serving().socket).queued == 5)
    os.kill(crashed, signal.SIGKILL)
    for pid in set(stopped) - {crashed}:
        os.kill(pid, signal.SIGCONT)

    assert [(one.result().status, one.result().headers["x-generation"]) for one in waiting] == [
        (200, "2")
    ] * 5
    assert site.pid() != crashed
    site.assert_only(site.serving())


def test_one_that_leaks_its_listener_to_a_child_and_is_not_ready_is_stopped_with_the_child(
    site: Site,
) -> None:
    old = site.first()
    running = set(site.processes())
    site.release("bad", env={"LEAK": "600", "STATUS": "500"}, start_timeout=1)

    with Visitors(site, count=3) as visitors:
        ran = site.swap("--release", "bad")

    assert ran.code == 3
    assert visitors.lost == []
    assert set(site.processes()) == running
    site.assert_only(old)


def test_one_that_leaked_its_listener_to_a_child_is_swapped_as_any_other(site: Site) -> None:
    """Requests that come to such a listener when its application is gone would wait for ever."""
    site.first(env={"LEAK": "600"})
    site.release("r2")
    assert len(site.processes()) == 3
    with Visitors(site, count=3) as visitors:
        for release in ("r2", "r1", "r2"):
            assert site.swap("--release", release).code == 0
    assert visitors.lost == []
    assert len(site.processes()) == 2
    site.assert_only(site.serving())


def test_one_that_cannot_be_stopped_is_told_of_and_stopped_by_the_next_swap(site: Site) -> None:
    """As if a process of it hung in the kernel, where no signal reaches it."""
    site.tune("direct.py", "KILL_GRACE = 5.0", "KILL_GRACE = -10.0")
    site.first()
    site.release("bad", env={"IGNORE_TERM": "1", "STATUS": "500"}, start_timeout=1)

    ran = site.swap("--release", "bad")

    assert ran.code == 3
    assert ran.error["state"].startswith(
        "generation 2 (release bad) could not be stopped, which the next swap tries again: "
    )
    assert ran.error["state"].endswith("; nothing else was changed")
    site.tune("direct.py", "KILL_GRACE = -10.0", "KILL_GRACE = 5.0")
    site.tune("direct.py", "TERM_GRACE = 10.0", "TERM_GRACE = 0.1")
    assert site.swap().json["stopped"] == [2, 1]
    site.assert_only(site.serving())


# -- one that binds its socket itself ------------------------------------------------------------------

BINDS_ANYHOW = """
import os, socket, app
from flup.server.fcgi import WSGIServer

class Server(WSGIServer):
    def _setupSocket(self):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(FIRST)
        listener.listen()
        os.rename(FIRST, os.environ["APP_SOCKET"])
        return listener

Server(app.application, bindAddress="unused").run()
"""


def binds(site: Site, release: str, first: str) -> None:
    """A release that binds to the path `first` (an expression), and renames it."""
    tree = site.release(release, listen="path", command="/usr/bin/python3 binds.py")
    (tree / "binds.py").write_text(BINDS_ANYHOW.replace("FIRST", first))


def test_one_whose_connections_cannot_be_seen_never_serves(site: Site) -> None:
    """It would seem idle whatever it has to do, and be ended with its requests in it."""
    old = site.first()
    binds(site, "renames", 'os.environ["APP_SOCKET"] + ".new"')
    ran = site.swap("--release", "renames")
    assert ran.code == 3
    assert "the kernel knows its socket by another path than" in ran.error["what"]
    assert ran.error["state"].startswith("generation 2 (release renames) was stopped")
    site.assert_only(old)


def test_the_socket_that_a_crash_left_is_in_nobodys_way(site: Site) -> None:
    """bind(2) refuses a path that is there, and not every application removes it first."""
    binds(site, "r1", 'os.environ["APP_SOCKET"]')
    assert site.swap("--release", "r1").code == 0
    crashed = site.pid()
    os.kill(crashed, signal.SIGKILL)
    wait_until(lambda: site.get().status == 200)
    assert site.pid() != crashed
    assert site.swap().json["stopped"] == [1]


# -- the old generation --------------------------------------------------------------------------------


def test_a_long_request_in_the_old_one_holds_up_its_end_and_nothing_else(
    site: Site, in_background: Callable[..., Future[Any]]
) -> None:
    site.first(drain_timeout=60)
    held = Held(site, in_background)

    with Visitors(site, count=3) as visitors:
        swap = in_background(site.swap)
        wait_for_the_flip(site, 2)
        wait_until(lambda: visitors.generations["2"] > 100)
        assert not swap.done()
        answer = held.release()
        ran = swap.result()

    assert (answer.status, answer.headers["x-generation"]) == (200, "1")
    assert (ran.code, ran.json["stopped"]) == (0, [1])
    assert visitors.lost == []
    site.assert_only(site.serving())


def test_an_old_one_that_ignores_sigterm_is_ended_once_nobody_is_in_it(site: Site) -> None:
    site.tune("direct.py", "TERM_GRACE = 10.0", "TERM_GRACE = 0.3")
    site.first(env={"IGNORE_TERM": "1"})
    with Visitors(site, count=3) as visitors:
        ran = site.swap()
    assert (ran.code, ran.json["stopped"]) == (0, [1])
    assert visitors.lost == []
    site.assert_only(site.serving())


def test_an_old_one_that_is_stopped_keeps_its_requests_until_it_goes_on(
    site: Site, in_background: Callable[..., Future[Any]]
) -> None:
    site.first(drain_timeout=0.2)
    old = site.processes()
    for pid in old:
        os.kill(pid, signal.SIGSTOP)
    waiting = [in_background(site.get, timeout=60) for _ in range(3)]
    wait_until(lambda: unixsockets.connections(site.serving().socket).queued == 3)

    ran = site.swap()

    assert ran.code == 7
    assert ran.error["what"] == "not stopped: generation 1 (3 connections; not done within 0.2 s)"
    assert ran.error["state"].startswith("generation 2 (release r1) serves")
    with Visitors(site, count=3) as visitors:
        wait_until(lambda: visitors.generations["2"] > 100)
        for pid in old:
            os.kill(pid, signal.SIGCONT)
        assert [answer.result().headers["x-generation"] for answer in waiting] == ["1", "1", "1"]
        assert site.swap("--reap").json["stopped"] == [1]
    assert visitors.lost == []
    site.assert_only(site.serving())


def test_an_old_one_that_is_stopped_and_idle_is_ended_at_once(site: Site) -> None:
    site.tune("direct.py", "TERM_GRACE = 10.0", "TERM_GRACE = 600.0")
    site.first()
    for pid in site.processes():
        os.kill(pid, signal.SIGSTOP)
    ran = site.swap()
    assert (ran.code, ran.json["stopped"]) == (0, [1])
    site.assert_only(site.serving())


@pytest.mark.parametrize("extra", ["", STREAMING], ids=["collected", "streamed"])
def test_a_download_from_the_old_one_is_whole(
    make_site: Callable[..., Site], in_background: Callable[..., Future[Any]], extra: str
) -> None:
    site = make_site(extra=extra)
    old = site.first()
    go_on = site.host.base / "released"
    download = in_background(site.get, f"/stream?{go_on}", timeout=60)
    wait_until(lambda: unixsockets.connections(old.socket).accepted == 1)

    with Visitors(site, count=3) as visitors:
        swap = in_background(site.swap)
        wait_for_the_flip(site, 2)
        go_on.touch()
        answer = download.result()
        assert swap.result().code == 0

    assert (answer.status, answer.headers["x-generation"]) == (200, "1")
    assert answer.body == b"x" * STREAMED
    assert visitors.lost == []
    site.assert_only(site.serving())


@pytest.mark.parametrize(
    ("extra", "answered_by"), [("", "2"), (STREAMING, "1")], ids=["collected", "streamed"]
)
def test_an_upload_that_began_before_the_swap_arrives_whole(
    make_site: Callable[..., Site], in_background: Callable[..., Future[Any]], extra: str, answered_by: str
) -> None:
    """lighttpd connects to the application when it has all of it, or the first part."""
    site = make_site(extra=extra)
    old = site.first()
    body = os.urandom(500_000)
    visitor = http.client.HTTPConnection(*site.address, timeout=60)
    visitor.putrequest("POST", "/echo")
    visitor.putheader("Content-Length", str(2 * len(body)))
    visitor.endheaders(body)
    if extra:
        wait_until(lambda: unixsockets.connections(old.socket).accepted == 1)

    with Visitors(site, count=3) as visitors:
        swap = in_background(site.swap)
        if extra:
            wait_for_the_flip(site, 2)
            assert not swap.done()
        else:
            assert swap.result().code == 0
        visitor.send(body)
        answer = visitor.getresponse()
        assert (answer.status, answer.headers["X-Generation"]) == (200, answered_by)
        assert answer.read() == body + body
        visitor.close()
        assert swap.result().code == 0

    assert visitors.lost == []
    site.assert_only(site.serving())


def test_a_visitor_who_leaves_in_the_middle_of_a_download_holds_nobody_up(
    make_site: Callable[..., Site],
) -> None:
    """With libfcgi: flup may leave its side of such a connection open, see docs/runtimes.md."""
    site = make_site(runtime=RUNTIMES["c"], extra=STREAMING)
    old = site.first()
    go_on = site.host.base / "released"
    visitor = socket.create_connection(site.address)
    visitor.sendall(f"GET /stream?{go_on} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    visitor.recv(100)
    visitor.close()
    go_on.touch()
    wait_until(lambda: unixsockets.connections(old.socket).total == 0, what="the application notices")

    assert site.swap().code == 0
    site.assert_only(site.serving())


def test_what_waits_in_a_full_queue_is_answered_by_the_old_one_and_the_new_one_has_room(
    make_site: Callable[..., Site], in_background: Callable[..., Future[Any]]
) -> None:
    """One php-cgi with a queue of two; what lighttpd can't even queue it answers with 500 by itself."""
    site = make_site(runtime=RUNTIMES["php-cgi"])
    narrow = {"PHP_FCGI_CHILDREN": "0", "PHP_FCGI_BACKLOG": "1"}
    old = site.first(listen="path", env=narrow, drain_timeout=60)
    site.release("wide")
    go_on = site.host.base / "released"
    held = [in_background(site.get, f"/until?{go_on}", timeout=60)]
    wait_until(lambda: unixsockets.connections(old.socket).accepted == 1, what="it works at the first")
    held += [in_background(site.get, f"/until?{go_on}", timeout=60) for _ in range(7)]
    wait_until(lambda: unixsockets.connections(old.socket).queued == 2, what="the queue is full")
    wait_until(lambda: sum(one.done() for one in held) == 5, what="the others are turned away")
    assert {one.result().status for one in held if one.done()} == {500}

    swap = in_background(site.swap, "--release", "wide")
    wait_for_the_flip(site, 2)
    with Visitors(site, count=6) as visitors:
        wait_until(lambda: visitors.generations["2"] > 100)
        go_on.touch()
        answers = [one.result() for one in held]
        assert swap.result().code == 0

    assert sorted(answer.headers.get("x-generation", "") for answer in answers) == [""] * 5 + ["1"] * 3
    assert visitors.lost == []
    site.assert_only(site.serving())


# -- several swaps ---------------------------------------------------------------------------------------


def test_of_many_swaps_at_once_one_at_a_time_is_carried_out_and_the_others_are_sent_away(
    site: Site, in_background: Callable[..., Future[Any]]
) -> None:
    site.first()
    with Visitors(site, count=3) as visitors:
        ran = [swap.result() for swap in [in_background(site.swap) for _ in range(6)]]
    done = [one.json["generation"] for one in ran if one.code == 0]
    refused = [one for one in ran if one.code == 5]
    assert len(done) + len(refused) == 6
    assert len(refused) > 0
    assert {one.error["state"] for one in refused} == {"this one changed nothing"}
    assert sorted(done) == list(range(2, 2 + len(done)))
    assert visitors.lost == []
    assert site.generation() == max(done)
    site.assert_only(site.serving())


# -- what lies around --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target", [None, "app.99.sock", pytest.param("nonsense", marks=pytest.mark.exhaustive)]
)
def test_a_link_that_is_missing_or_leads_nowhere_is_put_right_by_a_swap(
    site: Site, target: str | None
) -> None:
    site.first()
    link = site.host.run_dir / "app.sock"
    link.unlink()
    if target:
        link.symlink_to(target)
    assert site.host.get("/").status == 503

    ran = site.swap()

    assert (ran.code, ran.json["stopped"]) == (0, [1])
    with Visitors(site, count=2) as visitors:
        wait_until(lambda: visitors.answered > 50)
    assert visitors.lost == []
    assert site.generation() == ran.json["generation"]
    site.assert_only(site.serving())


@pytest.mark.parametrize("target", [None, "releases/gone"])
def test_a_current_that_is_missing_or_leads_elsewhere_is_led_to_what_serves(
    site: Site, target: str | None
) -> None:
    site.first()
    (site.root / "current").unlink()
    if target:
        (site.root / "current").symlink_to(target)

    with Visitors(site, count=2) as visitors:
        assert site.swap().code == 0

    assert visitors.lost == []
    assert os.readlink(site.root / "current") == "releases/r1"
    site.assert_only(site.serving())


def site_is_as_before(site: Site, generation: int) -> None:
    assert site.serving().generation == generation
    assert site.generation() == generation
    assert site.generations() == {site.serving().pid}


@pytest.mark.parametrize("listen", ["fd0", pytest.param("path", marks=pytest.mark.exhaustive)])
def test_stale_sockets_are_in_nobodys_way_and_go(site: Site, listen: str) -> None:
    """Of a generation whose record is lost, of one that is to come, and of an unfinished rename."""
    site.first(listen=listen)
    run = site.host.run_dir
    for name in ("app.2.sock", "app.7.sock", ".app.sock.123"):
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(run / name))
    (run / "app.3.d").mkdir()
    (run / ".app.9.json.x").write_text("{")

    with Visitors(site, count=2) as visitors:
        ran = site.swap()
        assert ran.code == 0
        wait_until(lambda: visitors.generations[str(ran.json["generation"])])

    assert visitors.lost == []
    assert set(os.listdir(run)) - {"swap.lock", "generation"} == site.files()
    site.assert_only(site.serving())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory to another account")
@pytest.mark.parametrize(
    ("owner", "mode"),
    [
        (33, 0o755),
        (0, 0o777),
        pytest.param(0, 0o775, marks=pytest.mark.exhaustive),
        pytest.param(0, 0o700, marks=pytest.mark.exhaustive),
    ],
)
def test_a_socket_directory_of_a_wrong_owner_or_mode_is_refused_and_told(
    make_site: Callable[..., Site], owner: int, mode: int
) -> None:
    """Whoever writes there leads visitors where he likes; and the web server has to get in."""
    site = make_site(unprivileged=True)
    old = site.first()
    run = site.host.run_dir
    with Visitors(site, count=2) as visitors:
        os.chown(run, owner, owner)
        run.chmod(mode | 0o001)  # visitors get in until they are counted no more
        wait_until(lambda: visitors.answered > 50)
        refused = [site.swap()] if mode & 0o001 else []
    run.chmod(mode)
    refused.append(site.swap())
    for ran in refused:
        assert (ran.code, ran.error["state"], ran.error["next"]) == (2, "nothing was changed", "fab setup")
        assert ran.error["what"] == f"{run} belongs to uid {owner} and has mode {mode:o}, not uid 0 and 755"
    assert visitors.lost == []

    os.chown(run, 0, 0)
    run.chmod(0o755)
    site_is_as_before(site, old.generation)
    assert site.swap().code == 0
    site.assert_only(site.serving())


# -- a full disk -----------------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_on_a_full_disk_the_site_stays_as_it_is_and_the_message_says_so(
    make_site: Callable[..., Site],
) -> None:
    """With a page more each time, until there is room for a swap."""
    site = make_site()
    with small_disk(site) as leave:
        old = site.first()
        codes = []
        with Visitors(site, count=2) as visitors:
            for pages in range(40):
                leave(pages)
                ran = site.swap()
                codes.append(ran.code)
                if ran.code == 0:
                    break
                assert ran.code == 3, (pages, ran)
                assert "No space left on device" in ran.error["what"], (pages, ran)
                assert ran.error["state"] == "generation 1 (release r1) serves, as before"
                assert ran.error["next"].startswith("make room (df -h; df -i)")
                site_is_as_before(site, old.generation)
                site.assert_only(old)
        assert visitors.lost == []
        assert len(codes) > 2
        leave(1000)
        assert site.swap().code == 0
        site.assert_only(site.serving())


@pytest.mark.parametrize("fails", ["flip", "barrier"])
def test_the_way_back_takes_no_room_so_a_disk_that_fills_up_meanwhile_does_not_stop_it(
    site: Site, fails: str
) -> None:
    """From one of its renames on the disk has room for no name more: `current` and the socket stay a pair."""
    site.first()
    site.release("bad", env={"CRASH_BEHIND_WEB": "1"})
    links = calls_of(lambda under: site.swap(under=under), "symlink")
    flip = next(call.number for call in links if re.search(r'/\.app\.sock\.\d+"', call.line))
    before = site.serving()
    # A swap to another release leads `current` elsewhere, too, right before.
    full = f"inject=symlink:error=ENOSPC:when={flip + 1 + (fails == 'barrier')}+"

    ran = site.swap("--release", "bad", under=["strace", "-qq", "-o", "/dev/null", "-e", full])

    assert (ran.code, "taken back" in ran.error["what"]) == (3, True)
    assert ("No space left" in ran.error["what"]) is (fails == "flip")
    assert os.readlink(site.root / "current") == "releases/r1"
    site_is_as_before(site, before.generation)
    site.assert_only(before)


def test_where_the_way_back_fails_as_well_nobody_is_told_that_it_is_as_before_or_done(site: Site) -> None:
    site.first()
    site.release("bad", env={"CRASH_BEHIND_WEB": "1"})
    renames = calls_of(lambda under: site.swap(under=under), "rename")
    flip = next(call.number for call in renames if re.search(r'/\.app\.sock\.\d+"', call.line))
    broken = f"inject=rename:error=EIO:when={flip + 2}+"

    ran = site.swap("--release", "bad", under=["strace", "-qq", "-o", "/dev/null", "-e", broken])

    assert ran.code == 1
    assert ran.error["state"].endswith(f"(release bad) serves, and {site.root}/current is releases/bad")
    assert site.swap("--release", "r1").code == 0
    site.assert_only(site.serving())


@contextlib.contextmanager
def small_disk(site: Site) -> Iterator[Callable[[int], None]]:
    """Let the site's root be a disk of its own; what is given leaves so many pages of 4096 bytes on it."""
    root = site.root
    filler = root / "filler"
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,mode=755", "tmpfs", str(root)], check=True)
    try:
        for name in ("releases", "shared", "run", "log", "state", "migrations"):
            (root / name).mkdir()

        def leave(pages: int) -> None:
            with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4096))
            os.truncate(filler, max(0, filler.stat().st_size - 4096 * pages))

        yield leave
    finally:
        site.__exit__()
        subprocess.run(["umount", str(root)], check=True)
