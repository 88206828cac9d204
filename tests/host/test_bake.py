"""The bake time of a swap: what is watched, and what ends it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hostlib.program import Config, Failure
from hostlib.releasing.manifest import Health
from hostlib.swapping import bake
from hostlib.swapping.generations import Life
from hostlib.webserver import accesslog, lighttpd
from hostlib.webserver.accesslog import AccessLog, Answers

from tests.support.swapsite import Site
from tests.support.webhost import wait_until

NOON = 1_700_049_600  # 15 November 2023


def line(seconds: int = 0, status: int = 200, site: str = "-", request: str = "GET / HTTP/1.1") -> str:
    """As lighttpd writes it; the time is that of Paris."""
    when = f"15/Nov/2023:13:{seconds // 60:02}:{seconds % 60:02} +0100"
    return f'10.0.0.1 {site} - [{when}] "{request}" {status} 186 "-" "a \\"browser\\""\n'


def config(**changes: Any) -> Config:
    told = {
        "version": "1",
        "application": "guestbook",
        "root": "/srv/guestbook",
        "user": "www-data",
        "privileged": False,
        "maintenance_dir": "/etc/lighttpd",
        "url": "http://127.0.0.1/",
        "host_header": None,
        "liveness": [],
        "statistics_path": "/server-statistics",
    }
    return Config.of({**told, **changes})


@pytest.mark.parametrize(
    ("after", "before", "expected"),
    [
        (Answers(1000, 2), Answers(1000, 0), False),  # fewer than three say nothing
        (Answers(4, 3), Answers(0, 0), True),
        (Answers(1000, 10), Answers(1000, 0), False),  # one in a hundred is the margin
        (Answers(1000, 11), Answers(1000, 0), True),
        (Answers(100, 11), Answers(1000, 50), False),  # twice what it was, and the margin
        (Answers(100, 12), Answers(1000, 50), True),
        (Answers(0, 0), Answers(1000, 1000), False),
        (Answers(100, 75), Answers(1000, 500), False),  # half of what was good
        (Answers(100, 76), Answers(1000, 500), True),
    ],
)
def test_it_is_worse_when_the_share_of_errors_is_beyond_chance(
    after: Answers, before: Answers, expected: bool
) -> None:
    assert bake.worse(after, before) is expected


def test_our_own_health_checks_do_not_hide_what_the_few_visitors_of_a_quiet_site_get() -> None:
    """Ten minutes at one check a second, of which the first isn't counted, and six aren't in the log yet."""
    ours = [1000.0 + second for second in range(600)]
    logged = Answers(total=599 - 6 + 5, bad=5)

    assert bake.of_visitors(logged, ours, 1000.0, 1600.0) == Answers(5, 5)
    assert not bake.worse(logged, Answers(500, 0))
    assert bake.worse(bake.of_visitors(logged, ours, 1000.0, 1600.0), Answers(500, 0))


def test_the_log_tells_the_time_before_and_what_comes_after(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    path.write_text(line(0, 500) + line(10) + line(20, 503) + "what nobody understands\n")
    log = AccessLog(path, config())
    with path.open("a") as file:
        file.write(line(25, 500) + line(31, 404, request=r"GET /\" 500 HTTP/1.1") + line(32, 502)[:30])
        file.flush()
        assert log.before(NOON + 5, NOON + 30) == Answers(2, 1)
        assert log.after(NOON + 30) == Answers(1, 0)
        file.write(line(32, 502)[30:])
    assert log.after(NOON + 30) == Answers(1, 1)
    log.close()


def test_errors_that_come_once_the_clock_was_set_back_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "access.log"
    path.write_text(line(550) * 9)
    log, now = AccessLog(path, config()), [NOON + 600.0]

    def visitors_come(*_: object, **__: object) -> None:
        now[0] = NOON + 5.0
        with path.open("a") as file:
            file.write(line(7, 500) * 9)

    monkeypatch.setattr(AccessLog, "of", lambda _: log)
    monkeypatch.setattr(bake.web, "prove", visitors_come)
    quiet = config(maintenance_dir=str(tmp_path))
    with pytest.raises(Failure, match="9 of 9 answers were 5xx"):
        bake.watch(quiet, Health("/", 200, None), lambda: Life(1), 0, started=0, clock=lambda: now[0])


@pytest.mark.parametrize("way", ["renamed", "copied and truncated"])
def test_a_log_that_is_rotated_meanwhile_is_followed(way: str, tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    path.write_text(line(0) * 100)
    log = AccessLog(path, config())
    if way == "renamed":
        with path.open("a") as file:
            file.write(line(31, 500))
        path.rename(tmp_path / "access.log.1")
        path.write_text(line(32, 500))
        assert log.after(NOON + 30) == Answers(2, 2)
    else:
        path.write_text(line(32, 500))
        assert log.after(NOON + 30) == Answers(1, 1)
    log.close()


@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.timeout(20)
def test_what_the_web_servers_account_has_put_in_its_place_is_neither_waited_for_nor_read(
    kind: str, tmp_path: Path
) -> None:
    """The directory of the log is that account's, as by default the application's; who reads it is root."""
    path = tmp_path / "access.log"
    path.write_text(line())
    log = AccessLog(path, config())
    path.unlink()
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    for look in (lambda: AccessLog(path, config()), lambda: log.after(0)):
        with pytest.raises(OSError, match="it is no file"):
            look()
    log.close()


def test_more_than_one_look_takes_in_is_there_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accesslog, "LARGEST", 1000)
    path = tmp_path / "access.log"
    path.write_text("")
    log = AccessLog(path, config())
    path.write_text(line(1, 500) * 20 + "x" * 3000 + "\n" + line(2, 500))
    path.rename(tmp_path / "access.log.1")
    path.write_text(line(3, 500))
    assert sum(log.after(NOON).total for _ in range(9)) == 22
    log.close()


def test_of_a_log_of_several_sites_only_ours_counts(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    path.write_text("")
    log = AccessLog(path, config(host_header="shop.example.com", aliases=["www.example.com"]))
    sites = ("shop.example.com", "www.example.com:8080", "other.example.com", "-")
    path.write_text("".join(line(1, 500, site) for site in sites))
    assert log.after(NOON) == Answers(3, 3)
    log.close()


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("", "lighttpd has no access log"),
        ('accesslog.filename = "|/usr/bin/cronolog"', "to a program"),
        ('accesslog.use-syslog = "enable"', "to syslog"),
        ('accesslog.filename = "/a"\naccesslog.format = "%r %s"', "not the usual one: %r %s"),
        ('accesslog.filename = "/a"\naccesslog.format = "%h %l %u %t \\"%r\\" %>s %b"', "/a"),
        ('accesslog.filename = "/a"', "/a"),
    ],
)
def test_where_the_log_is_and_why_there_is_none(setting: str, said: str) -> None:
    found = accesslog.place(lighttpd.Configuration(list(lighttpd.parse(setting))), config())
    assert said in str(found)
    assert isinstance(found, Path) is (said == "/a")


@pytest.fixture
def make_site() -> Iterator[Callable[..., Site]]:
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(Site(**options))


@contextmanager
def asking(site: Site, path: str) -> Iterator[None]:
    """A visitor who asks for a page again and again."""
    over = threading.Event()

    def ask() -> None:
        while not over.wait(0.02):
            site.get(path)

    visitor = threading.Thread(target=ask)
    visitor.start()
    try:
        yield
    finally:
        over.set()
        visitor.join()


@pytest.mark.timeout(300)
def test_a_release_whose_visitors_get_errors_that_its_health_check_does_not_see_is_taken_back(
    make_site: Callable[..., Site], tmp_path: Path
) -> None:
    log = tmp_path / "access.log"
    site = make_site(extra=f'server.modules += ("mod_accesslog")\naccesslog.filename = "{log}"')
    site.first()
    old = site.pid()
    site.release("sick", env={"SICK": "/page"})
    site.release("well")
    with asking(site, "/page"):
        wait_until(lambda: log.stat().st_size > 1000, timeout=60, what="an access log")
        taken_back = site.swap("--release", "sick", "--bake", "200")
        assert (site.generation(), site.pid()) == (1, old)
        good = site.swap("--release", "well", "--bake", "1")

    assert taken_back.code == 3
    assert "were 5xx" in taken_back.error["what"]
    assert "generation 2 (release sick) was taken back: since it serves" in taken_back.error["what"]
    assert (good.code, good.json["baked"]["seconds"], good.json["generation"]) == (0, 1, 3)
    assert good.json["baked"]["before"]["total"] > 0
    assert "watched for 1 s: none of " in good.json["message"]


@pytest.mark.timeout(300)
def test_a_crash_in_the_bake_time_is_the_end_of_it_and_without_an_access_log_it_says_so(
    make_site: Callable[..., Site],
) -> None:
    site = make_site()
    site.first()
    site.release("r2")
    result: dict[str, Any] = {}
    swap = threading.Thread(target=lambda: result.update(ran=site.swap("--release", "r2", "--bake", "50")))
    swap.start()
    wait_until(lambda: site.serving().generation == 2, timeout=60, what="the new generation")
    os.kill(site.pid(), signal.SIGKILL)
    swap.join()

    assert result["ran"].code == 3
    assert "behind the web server it was ended by signal 9" in result["ran"].error["what"]
    assert site.generation() == 1
    assert (
        "but for the answers that visitors got: lighttpd has no access log"
        in (site.swap("--release", "r2", "--bake", "1").json["message"])
    )
