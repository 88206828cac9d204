"""`doctor`: finds what would stop a deploy, and names the remedy. The machine, rights, and what set-up left.

lighttpd is looked at in test_doctor_webserver, the application in test_doctor_application; sudo, systemd
and what takes a whole machine in tests/fleet.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import stat
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tests.support.barehost import bare_host
from tests.support.examined import failed, only, the
from tests.support.webhost import Ran, WebHost

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount, or become another account")


@pytest.fixture
def host(web_host: WebHost) -> WebHost:
    """As set-up leaves it, with a small application."""
    web_host.serve(1)
    return web_host


def test_a_host_as_setup_leaves_it_passes(host: WebHost) -> None:
    before = time.time()
    ran = host.run("doctor")
    assert (ran.code, failed(ran)) == (0, [])
    assert {"python", "disk", "socket path", "lighttpd", "configuration", "site"} <= {
        check["name"] for check in ran.json["checks"]
    }
    assert before <= ran.json["now"] <= time.time()
    assert "checks passed" in host.run("doctor", as_json=False).out


def test_by_hand_it_says_what_to_do(host: WebHost) -> None:
    (host.maintenance_dir / "maint.lua").unlink()
    (host.maintenance_dir / "maint.html").unlink()
    ran = host.run("doctor", as_json=False)
    assert ran.code == 3
    assert "maint.lua is missing" in ran.err
    assert f"{host.maintenance_dir}/up" in ran.err


def snapshot(*places: Path) -> dict[str, tuple[int, int, int, int, str]]:
    """Every file with its mode, owner, time of change and content."""
    found = {}
    for path in (each for place in places for each in [place, *place.rglob("*")]):
        told = path.lstat()
        content = sha256(path.read_bytes()).hexdigest() if stat.S_ISREG(told.st_mode) else ""
        found[str(path)] = (told.st_mode, told.st_uid, told.st_gid, told.st_ctime_ns, content)
    return found


def processes_with(mark: str) -> list[str]:
    """Every process whose environment has `mark` in it."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # ended meanwhile, or not ours
            if mark.encode() in Path(f"/proc/{name}/environ").read_bytes():
                found.append(name)
    return found


def test_it_changes_nothing(host: WebHost, tmp_path: Path) -> None:
    (host.run_dir / "app.1.json").write_text(json.dumps({"generation": 1}))  # broken, and it stays so
    mark, before = f"doctor-{uuid.uuid4()}", snapshot(host.base)
    for arguments in ((), ("--expected",)):
        assert host.run("doctor", *arguments, stdin="{}", MARK=mark, TMPDIR=str(tmp_path)).code == 3
    assert snapshot(host.base) == before
    assert list(tmp_path.iterdir()) == []
    assert processes_with(mark) == []


# -- the machine -----------------------------------------------------------------------------------


@contextmanager
def mounted(place: Path, *options: str) -> Iterator[None]:
    """A small file system at `place`, for a while."""
    argv = ["mount", "-t", "tmpfs", "-o", ",".join(options), "none", str(place)]
    subprocess.run(argv, check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


@root_only
@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("size=100m",), "and a deploy may need 200"),
        (("size=300m", "nr_inodes=500"), "inodes free, and a deploy may need 2000"),
        (("size=300m", "ro"), "is mounted read-only"),
    ],
)
def test_a_disk_without_room_is_an_error_that_names_the_directory(
    host: WebHost, options: tuple[str, ...], told: str
) -> None:
    with mounted(host.root / "releases", *options):
        found = the(host.run("doctor"), "disk")
    assert (found["level"], told in found["message"]) == ("error", True)
    assert found["message"].startswith(f"{host.root}/releases")
    assert f"{host.root}/releases" in found["remedy"]


@root_only
def test_a_disk_with_room_is_none(host: WebHost) -> None:
    with mounted(host.root / "releases", "size=300m"), mounted(host.root / "log", "size=60m"):
        assert failed(host.run("doctor")) == []


@root_only
def test_a_short_queue_of_the_kernel_is_told(host: WebHost) -> None:
    short = f"echo 128 > /proc/sys/net/core/somaxconn; exec {host.tools}/doctor --json"
    ran = subprocess.run(["unshare", "--net", "sh", "-c", short], capture_output=True, text=True, check=False)
    (found,) = [check for check in json.loads(ran.stdout)["checks"] if check["name"] == "backlog"]
    assert (found["ok"], found["level"]) == (False, "warning")
    assert "net.core.somaxconn is 128" in found["message"]
    assert "sysctl" in found["remedy"]


@root_only
def test_little_memory_is_told(host: WebHost, tmp_path: Path) -> None:
    little = tmp_path / "meminfo"
    little.write_text("MemTotal:  500000 kB\nMemAvailable:  20000 kB\nSwapFree: 0 kB\n")
    command = f"mount --bind {little} /proc/meminfo; exec {host.tools}/doctor --json"
    ran = subprocess.run(
        ["unshare", "--mount", "sh", "-c", command], capture_output=True, text=True, check=False
    )
    (found,) = [check for check in json.loads(ran.stdout)["checks"] if check["name"] == "memory"]
    assert (found["ok"], found["level"]) == (False, "warning")
    assert found["message"].startswith("19 MiB of memory are free")


@root_only
def test_processes_that_the_deploy_user_can_not_see_are_told(host: WebHost) -> None:
    command = (
        "mount -t proc -o hidepid=2 proc /proc &&"
        f" setpriv --reuid=nobody --regid=nogroup --clear-groups {host.tools}/doctor --json; true"
    )
    ran = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "sh", "-c", command],
        capture_output=True,
        text=True,
        check=False,
    )
    (found,) = [check for check in json.loads(ran.stdout)["checks"] if check["name"] == "processes"]
    assert (found["ok"], found["level"]) == (False, "warning")
    assert "hidepid" in found["message"]


def test_a_root_too_deep_for_a_socket_is_an_error() -> None:
    with bare_host() as host:
        host.config["root"] = f"{host.root}/{'d' * 80}"
        host.write_config()
        found = the(host.run("doctor"), "socket path")
        assert "choose a shorter root" in found["remedy"]
        assert "can't have more than 107" in found["message"]


# -- rights ----------------------------------------------------------------------------------------


def test_an_unknown_account_is_an_error(host: WebHost) -> None:
    host.config["user"] = "nobody-of-that-name"
    host.write_config()
    found = only(host, "account")
    assert found["level"] == "error"
    assert found["remedy"].startswith("useradd --system --user-group nobody-of-that-name; or app.user")


def test_missing_directories_are_an_error(host: WebHost) -> None:
    (host.root / "state").rmdir()
    (host.root / "migrations").rmdir()
    messages = [check["message"] for check in failed(host.run("doctor")) if check["name"] == "directories"]
    assert messages == [f"{host.root}/state is missing", f"{host.root}/migrations is missing"]


@root_only
def test_directories_that_the_deploy_user_can_not_write_are_an_error(host: WebHost) -> None:
    messages = {
        check["message"]: check["remedy"]
        for check in failed(host.run("doctor", as_user="nobody"))
        if check["name"] == "directories"
    }
    remedy = messages[f"nobody can't write {host.root}/releases, which is root's"]
    assert remedy == "fab setup; or user: root in fabric.yaml"
    for name in ("releases", "shared", "state"):
        (host.root / name).chmod(0o777)
    assert "directories" not in {check["name"] for check in failed(host.run("doctor", as_user="nobody"))}


def test_a_directory_that_its_owner_can_not_write_is_an_error(host: WebHost) -> None:
    (host.root / "state").chmod(0o555)
    found = only(host, "directories")
    assert found["remedy"] == f"chmod u+wx {host.root}/state"


@root_only
@pytest.mark.parametrize(("place", "level"), [("state", "error"), ("releases", "warning")])
def test_what_somebody_else_put_there_is_told(host: WebHost, place: str, level: str) -> None:
    for name in ("ours", "theirs"):
        (host.root / place / name).mkdir()
    (host.root / place / "theirs" / "file").write_text("")
    os.chown(host.root / place / "theirs", 65534, 65534)
    found = only(host, "owners") if place == "state" else the(host.run("doctor"), "owners")
    assert (found["level"], "theirs is not root's" in found["message"]) == (level, True)
    subprocess.run(["sh", "-c", found["remedy"]], check=True)
    assert "owners" not in {check["name"] for check in failed(host.run("doctor"))}


@root_only
def test_a_directory_that_the_application_can_not_enter_is_an_error(host: WebHost) -> None:
    host.config["user"] = "nobody"
    host.write_config()
    host.root.chmod(0o750)
    found = [check for check in failed(host.run("doctor")) if check["name"] == "directories"]
    assert {check["remedy"] for check in found} == {f"chmod o+x {host.root}"}
    assert f"nobody, which the application runs as, can't enter {host.root}" in found[0]["message"]
    host.root.chmod(0o751)
    assert failed(host.run("doctor")) == []


@root_only
@pytest.mark.parametrize(
    ("owner", "mode", "told", "level"),
    [
        (0, 0o644, "others than the application can read", "warning"),
        (65534, 0o440, "is nobody's, who can change what the application is told", "warning"),
        (0, 0o600, "www-data, which the application runs as, can't read", "error"),
    ],
)
def test_an_environment_file_is_for_the_application_and_nobody_else(
    host: WebHost, owner: int, mode: int, told: str, level: str
) -> None:
    host.config["user"] = "www-data"
    host.write_config()
    host.base.chmod(0o755)
    file = host.root / "shared" / ".env"
    file.write_text("SECRET=tell-nobody")
    os.chown(file, owner, pwd.getpwnam("www-data").pw_gid)
    file.chmod(mode)

    found = the(compared(host, shared=[".env", "var"]), "environment")

    assert (found["level"], told in found["message"], str(file) in found["message"]) == (level, True, True)
    assert "tell-nobody" not in json.dumps(found)
    subprocess.run(["sh", "-c", found["remedy"]], check=True)
    names = {check["name"] for check in failed(compared(host, shared=[".env", "var"]))}
    assert "environment" not in names


def test_where_no_bake_time_is_wanted_nobody_has_to_tell_what_visitors_are_answered(host: WebHost) -> None:
    told = the(compared(host, bake=30), "bake")
    assert (told["level"], told["message"].split(":")[0]) == ("warning", "lighttpd has no access log")
    assert "lighty-enable-mod accesslog" in told["remedy"]
    assert "bake" not in {check["name"] for check in failed(compared(host, bake=0))}


def test_nobody_is_told_to_deploy_while_a_deploy_is_at_it(host: WebHost) -> None:
    (host.run_dir / "app.sock").unlink()
    assert "fab deploy" in the(compared(host), "site")["remedy"]
    assert "site" not in {check["name"] for check in failed(compared(host, deploying=True))}


def set_up_for_root(host: WebHost) -> None:
    """As set-up leaves it where the deploy user and root are two."""
    host.config["privileged"] = True
    host.write_config()


@root_only
def test_what_root_runs_may_be_changed_by_root_only(host: WebHost) -> None:
    set_up_for_root(host)
    program, module = host.tools / "swap", host.tools / "hostlib" / "checks" / "site.py"
    assert [check["name"] for check in failed(host.run("doctor"))] == []
    program.chmod(0o775)
    os.chown(module, 65534, -1)
    found = {check["message"]: check["remedy"] for check in failed(host.run("doctor"))}
    assert found == {
        f"others than root can change {program}: it is root's, mode 775": f"chown root: {program}"
        f" && chmod go-w {program}",
        f"others than root can change {module}: it is nobody's, mode 644": f"chown root: {module}"
        f" && chmod go-w {module}",
    }
    for remedy in found.values():
        subprocess.run(["sh", "-c", remedy], check=True)
    assert failed(host.run("doctor")) == []


# -- what set-up left ------------------------------------------------------------------------------


def compared(host: WebHost, **expected: Any) -> Ran:
    return host.run("doctor", "--expected", stdin=json.dumps(expected))


def test_what_the_laptop_expects_and_finds_is_fine(host: WebHost) -> None:
    program = host.tools / "swap"
    ran = compared(
        host,
        version="0",
        config=host.config,
        files={str(program): sha256(program.read_bytes()).hexdigest()},
        app={"command": "/usr/bin/env"},
        digest="",
    )
    assert failed(ran) == []


def test_a_page_of_the_hosts_own_is_told_where_it_hides_that_of_fabric_yaml(host: WebHost) -> None:
    assert failed(compared(host, page=True)) == []
    (host.maintenance_dir / "maint.html").write_text("<p>mine")
    assert failed(compared(host, page=False)) == []
    found = the(compared(host, page=True), "maintenance page")
    assert found["level"] == "warning"
    assert "was changed by hand" in found["message"]


def test_another_version_than_the_laptops_is_an_error(host: WebHost) -> None:
    found = the(compared(host, version="9.9", digest="something else"), "version")
    assert (found["level"], found["remedy"]) == ("error", "fab setup")
    assert found["message"] == "deploytools is 0 here, and 9.9 on the laptop"


@pytest.mark.parametrize(
    ("key", "value", "level"), [("liveness", ["/alive"], "warning"), ("root", "/srv/elsewhere", "error")]
)
def test_other_settings_than_fabric_yaml_has_are_told_by_name(
    host: WebHost, key: str, value: object, level: str
) -> None:
    found = the(compared(host, config={**host.config, key: value}), "settings")
    assert (found["level"], found["remedy"]) == (level, "fab setup")
    assert f"with {key} " in found["message"]
    assert found["message"].endswith(f"fabric.yaml says {value if key == 'root' else json.dumps(value)}")


def test_files_that_were_changed_since_are_told(host: WebHost) -> None:
    names = ["swap", "drain", "verify", "migrate"]
    files = {str(host.tools / name): sha256((host.tools / name).read_bytes()).hexdigest() for name in names}
    (host.tools / "swap").write_text("#!/bin/sh\n")
    (host.tools / "drain").unlink()
    found = the(compared(host, files=files), "files")
    assert found["message"].endswith(f"would have it: {host.tools}/swap, {host.tools}/drain")
    for name in names:
        (host.tools / name).write_text("")
    assert the(compared(host, files=files), "files")["message"].endswith("verify and 1 more")


def test_settings_that_show_in_no_file_are_told_by_the_digest(host: WebHost) -> None:
    found = the(compared(host, digest="of other directories"), "files")
    assert (found["level"], "has changed since this host was set up" in found["message"]) == ("warning", True)


@pytest.mark.parametrize("content", [None, "no JSON", "{}"])
def test_a_host_that_was_never_set_up_is_told_what_it_still_needs_and_not_what_follows(
    host: WebHost, content: str | None
) -> None:
    (host.tools / "config.json").unlink()
    if content is not None:
        (host.tools / "config.json").write_text(content)
    (host.maintenance_dir / "maint.lua").unlink()
    planned = {**host.config, "user": "nobody-of-that-name"}
    found = {check["name"]: check for check in failed(compared(host, config=planned))}
    assert set(found) == {"set-up", "account"}
    assert found["set-up"]["remedy"] == "fab setup"
    assert ("is not set up on this host" in found["set-up"]["message"]) is (content is None)


def test_by_hand_on_such_a_host_it_says_so(host: WebHost) -> None:
    (host.tools / "config.json").unlink()
    ran = host.run("doctor")
    assert (ran.code, ran.error["next"]) == (2, "fab setup")


@pytest.mark.parametrize("text", ["", "[]", "no JSON"])
def test_an_expectation_that_is_none_is_a_usage_error(host: WebHost, text: str) -> None:
    ran = host.run("doctor", "--expected", stdin=text)
    assert (ran.code, "--expected" in ran.error["what"]) == (2, True)


@pytest.fixture
def shop(host: WebHost) -> Callable[..., None]:
    """Call it for another application on the same host, with what is not its own."""

    def put(**same: Any) -> None:
        tools = host.base / "shop"
        tools.mkdir(exist_ok=True)
        own = {"root": "/srv/shop", "maintenance_dir": "/etc/lighttpd/shop", "url": "http://127.0.0.1:1/"}
        there = {**host.config, "application": "shop", **own, **same}
        (tools / "config.json").write_text(json.dumps(there))

    return put


@pytest.mark.parametrize("key", ["root", "maintenance_dir", "url"])
def test_another_application_with_the_same_place_is_an_error(
    host: WebHost, shop: Callable[..., None], key: str
) -> None:
    shop(**{key: host.config[key]})
    found = only(host, "neighbours")
    assert (found["level"], found["message"].startswith("shop ")) == ("error", True)
    assert host.config[key] in found["message"]


def test_another_application_with_places_and_a_name_of_its_own_is_fine(
    host: WebHost, shop: Callable[..., None]
) -> None:
    shop()
    assert failed(host.run("doctor")) == []
    shop(url=host.config["url"], host_header="shop.example.com")
    assert failed(host.run("doctor")) == []
