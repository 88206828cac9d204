"""`fab setup` on real Debian hosts: put there, upgraded under load, taken off again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.fleet import Fleet, Host
from tests.fleet.setuphost import (
    AS_ROOT,
    PAGE,
    REMOVE,
    ROOT,
    TOOLS,
    listing,
    purge,
    serve,
    settings,
    visitors,
)

# Of a host that serves.
UNITS = (".service", "@.service", "@.socket", "@1.service", "@1.socket")
pytestmark = pytest.mark.fleet(2, suites=("bookworm", "trixie"))


@pytest.fixture(scope="module")
def fresh(fleet: Fleet) -> dict[str, list[str]]:
    """What was on the hosts before anything was set up."""
    return {host.name: listing(host) for host in fleet}


@pytest.fixture
def removed(fleet: Fleet, fresh: dict[str, list[str]]) -> None:
    """Hosts without anything of the application, whichever tests ran before."""
    settings(fleet)
    purge(fleet)


@pytest.fixture
def prepared(fleet: Fleet, fresh: dict[str, list[str]]) -> Fleet:
    """Hosts that were set up, as this toolkit or as a newer one has it."""
    settings(fleet)
    fleet.operator.fab(*AS_ROOT)
    return fleet


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A copy of this toolkit with a number of its own and one module more; for PYTHONPATH."""
    source, place = Path(__file__).parents[2], tmp_path_factory.mktemp("newer")
    for name in ("deploytools", "remote_scripts"):
        shutil.copytree(source / name, place / name)
    (place / "remote_scripts/hostlib/newer.py").write_text('"""Something new."""\n')
    with (place / "deploytools/__init__.py").open("a") as package:
        package.write('__version__ = "9.9"\n')
    return str(place)


@pytest.mark.usefixtures("removed")
def test_a_set_up_and_a_removal_beside_another_site_keep_data_and_disturb_nobody(
    fleet: Fleet, fresh: dict[str, list[str]]
) -> None:
    fab = fleet.operator.fab
    other, page = "/etc/lighttpd/conf-enabled/90-other.conf", "/etc/lighttpd/guestbook/maint.html"
    for host in fleet:
        host.run(["install", "-d", "/var/www/other"])
        host.write("/var/www/other/index.html", "the page")
        host.write(other, '$HTTP["host"] == "other" { server.document-root = "/var/www/other" }\n')
        host.run(["systemctl", "reload", "lighttpd"])
    settings(fleet, webserver={"host_header": "guestbook.example.com"})

    with visitors(fleet["web1"], "/", site="other") as seen:
        fab(*AS_ROOT)
        for host in fleet:
            serve(host)
            host.write(page, "<p>mine")
            assert known_to_systemd(host) == {f"deploytools-guestbook{unit}" for unit in UNITS}
        planned = fab("setup", "--as-user", "root", "--remove", "--plan").stdout
        removed = fab(*REMOVE).stdout
    assert set(seen) == {"the page"}, seen
    assert planned.count("stop, which serves: generation 1 (release r1)") == 2
    for host in fleet:
        assert f"{host.name}: kept: {ROOT}/releases, {ROOT}/log (--purge removes data too)" in removed
        assert f"{host.name}: kept: {page}, which is your own" in removed
        assert known_to_systemd(host) == set()
        assert not host.pids("php-cgi")
        assert ROOT not in host.read("/proc/net/unix")
        assert host.get("/index.php", headers={"Host": "guestbook.example.com"}).status == 404
        assert host.read(f"{ROOT}/current/public/index.php") == PAGE
    fab(*REMOVE, "--purge")
    for host in fleet:
        host.run(["rm", "-r", "/var/www/other", other])
        host.run(["systemctl", "reload", "lighttpd"])
    assert {host.name: listing(host) for host in fleet} == fresh


def known_to_systemd(host: Host) -> set[str]:
    """The application's units that are loaded or installed."""
    units = "'deploytools-guestbook*'"
    loaded = host.run(f"systemctl list-units --all --plain --no-legend {units}").stdout
    installed = host.run(f"systemctl list-unit-files --no-legend {units} || true").stdout  # 1 where none is
    return {line.split()[0] for line in (loaded + installed).splitlines()}


@pytest.mark.usefixtures("removed")
def test_a_host_is_set_up_by_root_and_once(fleet: Fleet, fresh: dict[str, list[str]]) -> None:
    fab = fleet.operator.fab
    assert "fab setup --as-user root" in fab("setup", "--yes", code=3).stderr
    planned = fab("setup", "--as-user", "root", "--plan").stdout
    assert planned.count("+deploy ALL=(root) NOPASSWD: NOSETENV: DEPLOYTOOLS_GUESTBOOK") == 2
    assert planned.count("server.graceful-shutdown-timeout") == 2, "what the reload costs"
    assert {host.name: listing(host) for host in fleet} == fresh

    fab(*AS_ROOT)
    once = {host.name: listing(host) for host in fleet}
    assert fab(*AS_ROOT).stdout == "web1: nothing to change\nweb2: nothing to change\n"
    assert {host.name: listing(host) for host in fleet} == once
    assert all(host.run(["systemctl", "is-enabled", "deploytools-guestbook"]).stdout for host in fleet)


@pytest.mark.exhaustive
@pytest.mark.usefixtures("removed")
def test_a_removal_leaves_nothing(fleet: Fleet, fresh: dict[str, list[str]]) -> None:
    fab = fleet.operator.fab
    fab(*AS_ROOT)
    fab(*REMOVE)
    assert {host.name: listing(host) for host in fleet} == fresh
    assert "web1: nothing of guestbook is there" in fab(*REMOVE).stdout
    assert all(host.run(["lighttpd", "-tt", "-f", "/etc/lighttpd/lighttpd.conf"]) for host in fleet)


def test_no_request_is_lost_by_a_reload_an_upgrade_or_a_change_of_settings(
    prepared: Fleet, newer: str
) -> None:
    for host in prepared:
        serve(host)
    one, two = prepared
    with visitors(one, "/index.php") as quick, visitors(two, "/index.php?ms=900") as slow:
        settings(prepared, webserver={"statistics_path": "/counts"})
        changed = prepared.operator.fab(*AS_ROOT).stdout
        settings(prepared)
        upgraded = prepared.operator.fab(*AS_ROOT, PYTHONPATH=newer).stdout
    assert changed.count("reload: lighttpd") == 2
    assert upgraded.count("reload: lighttpd") == 2, "the path of the counters is what it was"
    assert (set(quick), set(slow)) == ({"the page"}, {"the page"}), (quick, slow)
    assert quick["the page"] > 100


@pytest.mark.exhaustive
def test_programs_work_at_every_moment_of_an_upgrade(prepared: Fleet, newer: str) -> None:
    host = prepared["web1"]
    ask = f"{TOOLS}/status --json >>answers 2>>errors || echo $? >>codes"
    host.write("/home/deploy/ask", f"while [ ! -e enough ]; do {ask}; done\n")
    asking = host.start("cd /home/deploy && sh ask", user="deploy")
    try:
        for _ in range(3):
            prepared.operator.fab(*AS_ROOT, "-H", "web1", PYTHONPATH=newer)
            prepared.operator.fab(*AS_ROOT, "-H", "web1")
    finally:
        host.write("/home/deploy/enough", "")
        asking.communicate(timeout=60)
    answers = [json.loads(line) for line in host.read("/home/deploy/answers").splitlines()]
    assert {answer["toolkit"] for answer in answers} == {"9.9", answers[-1]["toolkit"]}
    assert not host.exists("/home/deploy/codes"), host.read("/home/deploy/errors")
    host.run("rm /home/deploy/ask /home/deploy/answers /home/deploy/errors /home/deploy/enough")


def test_an_open_window_outlasts_an_upgrade_and_is_lifted_by_the_new_programs(
    fleet: Fleet, fresh: dict[str, list[str]], newer: str
) -> None:
    fab = fleet.operator.fab
    settings(fleet)
    fab(*AS_ROOT, PYTHONPATH=newer)
    fab("maint-down", "--reason", "upgrade", PYTHONPATH=newer)

    upgraded = fab(*AS_ROOT).stdout

    assert f"change: {TOOLS}/config.json" in upgraded
    assert "reload" not in upgraded, "only a comment of lighttpd's configuration is another one"
    assert not any(host.exists(f"{TOOLS}/current/hostlib/newer.py") for host in fleet)
    assert all(host.get("/").in_maintenance for host in fleet)
    assert "fab maint-up" in fab(*REMOVE, code=4).stderr
    fab("maint-up")
    assert not any(host.get("/").in_maintenance for host in fleet)
