"""`doctor` on the application: its command, its processes and connections, its database."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hostlib.swapping.unixsockets import connections

from tests.support.barehost import AlembicProject, bare_host, make_current, put_generation, put_release
from tests.support.examined import failed, the
from tests.support.swapsite import Site
from tests.support.webhost import WebHost, wait_until

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another account")


@pytest.fixture
def host() -> Iterator[WebHost]:
    with bare_host() as bare:
        yield bare


def found(host: WebHost, name: str, **app: Any) -> list[dict[str, Any]]:
    """What `doctor` says under `name` of an application that the laptop would deploy."""
    ran = host.run("doctor", "--expected", stdin=json.dumps({"app": app}))
    return [check for check in failed(ran) if check["name"] == name]


# -- app.command -----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["/usr/bin/env python3", "python3 app.py", "bin/serve"])
def test_a_command_that_can_be_run_is_fine(host: WebHost, command: str) -> None:
    assert found(host, "command", command=command) == []


@pytest.mark.parametrize("command", ["/usr/bin/no-such-program x", "no-such-program"])
def test_a_command_that_is_not_there_is_an_error(host: WebHost, command: str) -> None:
    (check,) = found(host, "command", command=command)
    assert check["message"] == f"app.command: there is no program {command.split(maxsplit=1)[0]} on this host"
    assert check["remedy"].endswith("app.command in fabric.yaml")


def test_php_that_is_not_installed_is_named_by_its_package(host: WebHost) -> None:
    (check,) = found(host, "command", command="/opt/php-cgi")
    assert check["remedy"].startswith("apt install php-cgi")


def test_a_command_of_the_release_is_looked_for_in_the_current_one(host: WebHost) -> None:
    place = put_release(host, "r1", app={"command": "bin/serve"})
    make_current(host, "r1")
    assert "there is no program bin/serve" in the(host.run("doctor"), "command")["message"]
    assert found(host, "command", command="bin/other") == [], "it comes with the next release"
    (place / "bin").mkdir()
    (place / "bin" / "serve").write_text("#!/usr/bin/python3\n")
    (place / "bin" / "serve").chmod(0o755)
    assert "command" not in {check["name"] for check in failed(host.run("doctor"))}


def test_a_command_is_looked_for_on_the_applications_own_path(host: WebHost) -> None:
    (host.base / "serve").write_text("#!/bin/sh\n")
    (host.base / "serve").chmod(0o755)
    assert found(host, "command", command="serve", env={"PATH": str(host.base)}) == []


def test_by_hand_the_command_of_the_current_release_counts(host: WebHost) -> None:
    put_release(host, "r1", app={"command": "no-such-program"})
    make_current(host, "r1")
    assert "no-such-program" in the(host.run("doctor"), "command")["message"]


def test_a_script_without_what_runs_it_is_an_error(host: WebHost) -> None:
    script = host.base / "serve"
    script.write_text("#!/usr/bin/no-such-interpreter -x\n")
    script.chmod(0o755)
    (check,) = found(host, "command", command=str(script))
    assert f"{script} is a script for /usr/bin/no-such-interpreter" in check["message"]


@root_only
@pytest.mark.parametrize(("mode", "around"), [(0o750, 0o755), (0o755, 0o700)])
def test_a_command_that_the_applications_account_may_not_run_is_an_error(
    host: WebHost, mode: int, around: int
) -> None:
    host.config["user"] = "nobody"
    host.write_config()
    directory = host.base / "bin"
    directory.mkdir()
    shutil.copy("/usr/bin/env", directory / "serve")
    (directory / "serve").chmod(mode)
    directory.chmod(around)
    (check,) = found(host, "command", command=str(directory / "serve"))
    assert "nobody can't" in check["message"]
    subprocess.run(["sh", "-c", check["remedy"]], check=True)
    assert found(host, "command", command=str(directory / "serve")) == []


def test_a_manager_that_does_not_run_this_host_is_an_error(host: WebHost) -> None:
    told = [check["message"] for check in found(host, "manager", command="python3", manager="systemd")]
    runs = Path("/run/systemd/system").is_dir()
    assert told == ([] if runs else ["app.manager is systemd, and systemd doesn't run this host"])
    assert found(host, "manager", command="python3", manager="auto") == []


# -- PHP -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "ends"),
    [
        ({}, False),
        ({"PHP_FCGI_MAX_REQUESTS": "0"}, False),
        ({"PHP_FCGI_MAX_REQUESTS": "500"}, True),
        ({"PHP_FCGI_MAX_REQUESTS": "500", "PHP_FCGI_CHILDREN": "4"}, False),
    ],
)
def test_php_cgi_that_ends_after_some_requests_is_told(
    host: WebHost, env: dict[str, str], ends: bool
) -> None:
    told = found(host, "php", command="/usr/bin/php-cgi", env=env)
    assert ["php-cgi ends after so many requests" in check["message"] for check in told] == [True] * ends


FPM = sorted(Path("/usr/sbin").glob("php-fpm*"))


def pool(host: WebHost, *lines: str) -> str:
    """The command of a php-fpm with a pool of its own."""
    configuration = host.base / "fpm.conf"
    head = ["[global]", f"error_log = {host.base}/fpm.log", *(line for line in lines if "control" in line)]
    body = ["[app]", "pm = static", "pm.max_children = 1", f"user = {host.config['user']}"]
    rest = [line for line in lines if "control" not in line]
    configuration.write_text("\n".join([*head, *body, *rest, ""]))
    return f"{FPM[0]} --allow-to-run-as-root --fpm-config {configuration}"


GOOD = ("process_control_timeout = 10s", "listen = ${APP_SOCKET}")


def test_php_fpm_that_is_fit_to_be_swapped_is_fine(host: WebHost) -> None:
    command = f"{pool(host, *GOOD)} --nodaemonize"
    assert found(host, "php", command=command, listen="path") == []


@pytest.mark.parametrize(
    ("lines", "option", "listen", "told", "level"),
    [
        (GOOD, "", "path", "goes to the background", "error"),
        ((GOOD[0], "listen = /run/fpm.sock"), "--nodaemonize", "path", "listens at /run/fpm.sock", "error"),
        (GOOD, "--nodaemonize", "fd0", "not at its generation's own socket", "error"),
        (GOOD[1:], "--nodaemonize", "path", "process_control_timeout of php-fpm is 0", "warning"),
        ((*GOOD, "pm = nonsense"), "--nodaemonize", "path", "can't ask php-fpm", "warning"),
    ],
)
def test_php_fpm_that_is_not_fit_is_told(
    host: WebHost, lines: tuple[str, ...], option: str, listen: str, told: str, level: str
) -> None:
    command = f"{pool(host, *lines)} {option}".strip()
    (check,) = found(host, "php", command=command, listen=listen)
    assert (check["level"], told in check["message"]) == (level, True)


# -- generations -----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["broken", "{}", '{"generation": 1}', "[]"])
def test_a_broken_record_of_a_generation_is_an_error(host: WebHost, text: str) -> None:
    record = host.run_dir / "app.3.json"
    record.write_text(text)
    check = the(host.run("doctor"), "generations")
    assert str(record) in check["message"]
    assert check["remedy"].startswith(f"rm {record}; then ")
    record.unlink()
    assert "generations" not in {one["name"] for one in failed(host.run("doctor"))}


def test_an_application_that_died_stops_no_deploy_and_is_told() -> None:
    with Site() as site:
        record = site.first()
        assert "application" not in {check["name"] for check in failed(site.host.run("doctor"))}
        assert record.pid
        for pid in [record.pid, site.pid()]:  # the supervisor first, or it starts another
            os.kill(pid, 9)
        wait_until(lambda: site.processes() == [], what="it has died")
        check = the(site.host.run("doctor"), "application")
        assert (check["level"], check["remedy"]) == ("warning", "fab hotswap")
        assert "generation 1 (release r1) has died" in check["message"]


@contextmanager
def serving(host: WebHost, backlog: int) -> Iterator[None]:
    """A generation that never answers, with a queue of that length."""
    path = host.run_dir / "app.1.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(backlog)
        (host.run_dir / "app.sock").symlink_to("app.1.sock")
        with open("/proc/self/stat") as file:
            started = int(file.read().rpartition(")")[2].split()[19])
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        put_generation(host, 1, "r1", state="serving", pid=os.getpid(), start_time=started, boot_id=boot)
        yield


@pytest.mark.parametrize(("backlog", "told"), [(5, True), (511, False)])
def test_an_application_with_a_short_queue_is_told(host: WebHost, backlog: int, told: bool) -> None:
    with serving(host, backlog):
        checks = [check for check in failed(host.run("doctor")) if check["name"] == "queue"]
    assert [f"only {backlog} requests can wait" in check["message"] for check in checks] == [True] * told


@contextmanager
def site() -> Iterator[Site]:
    with Site() as made:
        made.first()
        yield made


def test_connections_that_stay_open_without_a_request_are_told() -> None:
    with site() as one, socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
        for client in (first, second):
            client.connect(one.serving().socket)
        wait_until(lambda: connections(one.serving().socket).accepted == 2, what="the application has them")
        check = the(one.host.run("doctor"), "connections")
    assert check["level"] == "warning"
    assert "keeps 2 connections open without a request" in check["message"]


def test_a_request_that_takes_long_is_no_kept_connection() -> None:
    """Here lighttpd has the request, and the application a reason to keep the connection."""
    with site() as one, socket.socket() as visitor:
        visitor.connect(("127.0.0.1", one.host.port))
        visitor.sendall(b"GET /slow?5 HTTP/1.0\r\n\r\n")
        wait_until(lambda: connections(one.serving().socket).accepted == 1, what="the application has it")
        names = {check["name"] for check in failed(one.host.run("doctor"))}
        assert connections(one.serving().socket).accepted == 1, "it was there all the while"
    assert "connections" not in names


# -- the database ----------------------------------------------------------------------------------


def test_a_database_that_does_not_answer_is_an_error_where_migrations_run(host: WebHost) -> None:
    project = AlembicProject(host)
    project.add("a")
    make_current(host, "r1")
    expected = json.dumps({"migrates": True})
    assert "database" not in {
        check["name"] for check in failed(host.run("doctor", "--expected", stdin=expected))
    }
    project.database.unlink(missing_ok=True)
    project.database.mkdir()
    check = the(host.run("doctor", "--expected", stdin=expected), "database")
    assert "unable to open database file" in check["message"]
    for elsewhere in ('{"migrates": false}', "{}"):
        checks = failed(host.run("doctor", "--expected", stdin=elsewhere))
        assert "database" not in {check["name"] for check in checks}


def test_a_release_without_a_python_for_its_migrations_is_an_error(host: WebHost) -> None:
    AlembicProject(host, python="/nowhere/python3").add("a")
    make_current(host, "r1")
    check = the(host.run("doctor", "--expected", stdin='{"migrates": true}'), "database")
    assert "/nowhere/python3" in check["message"]
    assert sys.executable not in check["message"]
