"""The deploy user becomes root for six programs, and by none of them for anything else."""

from __future__ import annotations

import json

import pytest

from tests.fleet import Fleet, Host

pytestmark = pytest.mark.fleet(2, suites=("bookworm", "trixie"))

ROOT, TOOLS = "/srv/guestbook", "/usr/local/lib/deploytools/guestbook"
PROGRAMS = [
    *("/etc/lighttpd/down", "/etc/lighttpd/up"),
    *(f"{TOOLS}/{name}" for name in ("swap", "drain", "verify", "migrate")),
]
LEAKED = "/var/tmp/leaked"  # noqa: S108 - in a host
# What an administrator may have written for the sake of other programs.
LOOSE = "Defaults !env_reset\nDefaults !secure_path\nDefaults setenv\nDefaults umask=0777\n"
# Modules and commands that tell by a file who runs them.
TRAPS = """\
cd /home/deploy; mkdir -p traps; cd traps
for module in argparse json hostlib os sitecustomize usercustomize contextlib; do
  echo "open('/tmp/trap-$module-' + str(__import__('posix').geteuid()), 'w')" > $module.py
done
for command in systemctl systemd-run sync lighttpd tar sh python3 setpriv; do
  printf '#!/bin/sh\\nexec /usr/bin/touch /tmp/trap-%s-$(/usr/bin/id -u)\\n' $command > $command
  chmod +x $command
done
for python in 3.11 3.13; do
  mkdir -p ~/.local/lib/python$python/site-packages
  cp usercustomize.py ~/.local/lib/python$python/site-packages/
done
"""
WAYS = [
    *("", "-E", "PYTHONPATH=/home/deploy/traps", "PYTHONHOME=/home/deploy/traps", "PYTHONINSPECT=1"),
    *("PATH=/home/deploy/traps:/usr/bin:/bin", "LD_PRELOAD=/home/deploy/traps/none.so"),
]


@pytest.fixture(scope="module")
def prepared(fleet: Fleet) -> Fleet:
    fabric_yaml = fleet.operator.directory / "fabric.yaml"
    fabric_yaml.write_text(fabric_yaml.read_text() + "  shared: [var, a/b]\n")
    fleet.operator.fab("setup", "--as-user", "root", "--yes")
    for host in fleet:
        host.write("/etc/sudoers.d/00-loose", LOOSE, mode=0o440)
        host.run(["visudo", "-c"])
        host.run(TRAPS, user="deploy")
    return fleet


def sprung(host: Host) -> list[str]:
    """The traps that somebody ran into as root."""
    return host.run("find /tmp -name 'trap-*-0'").stdout.split()


def test_sudo_runs_the_programs_and_nothing_else(prepared: Fleet) -> None:
    others = ["/bin/true", f"{TOOLS}/status", f"{TOOLS}/current/doctor", f"{TOOLS}/swap/../status"]
    for host in prepared:
        for program in PROGRAMS:
            host.run(["sudo", "-n", program, "--help"], user="deploy")
        for other in others:
            refused = host.run(["sudo", "-n", other, "--help"], user="deploy", check=False)
            assert refused.returncode != 0, other
            assert "password is required" in refused.stderr, other


@pytest.mark.parametrize(
    "expected",
    [
        pytest.param("{}", id="at leisure", marks=pytest.mark.exhaustive),
        pytest.param('{"quick": true}', id="before a deploy"),
    ],
)
def test_one_program_that_sudo_does_not_run_is_told_by_its_name(prepared: Fleet, expected: str) -> None:
    for host in prepared:
        drop_in = "/etc/sudoers.d/zz-less"
        host.write(drop_in, f"deploy ALL=(root) !{TOOLS}/migrate\n", mode=0o440)
        looked = [f"{TOOLS}/doctor", "--expected", "--json"]
        told = json.loads(host.run(looked, user="deploy", check=False, input=expected).stdout)
        host.run(["rm", drop_in])
        (found,) = [check for check in told["checks"] if check["name"] == "sudo"]
        assert found["message"].startswith(f"sudo -n doesn't let deploy run {TOOLS}/migrate: "), found


def test_nothing_that_the_deploy_user_says_or_has_is_run_by_root(prepared: Fleet) -> None:
    for host in prepared:
        tried = "; ".join(
            f"PATH=/home/deploy/traps:$PATH PYTHONPATH=/home/deploy/traps sudo -n {way} {program} --help"
            for way in WAYS
            for program in PROGRAMS
        )
        host.run(f"cd /home/deploy/traps; {tried}; true", user="deploy", check=False)
        environment = "PATH=/home/deploy/traps:$PATH PYTHONPATH=/home/deploy/traps"
        for program in ("/etc/lighttpd/down", "/etc/lighttpd/up", f"{TOOLS}/swap --release r1"):
            host.run(f"cd /home/deploy/traps; {environment} sudo -n {program}", user="deploy", check=False)
        assert sprung(host) == []
        assert not host.get("/").in_maintenance


def test_what_root_writes_for_the_deploy_user_is_readable_whatever_the_umask(prepared: Fleet) -> None:
    for host in prepared:
        host.run(["sudo", "-n", "/etc/lighttpd/down"], user="deploy")
        assert "down since" in host.run([f"{TOOLS}/status"], user="deploy").stdout
        host.run(["sudo", "-n", "/etc/lighttpd/up"], user="deploy")


def test_nothing_that_root_runs_or_trusts_is_the_deploy_users_to_change(prepared: Fleet) -> None:
    places = f"/etc {TOOLS} {ROOT} /usr /run/deploytools*"
    for host in prepared:
        found = host.run(
            f"find {places} \\( -type f -o -type d \\) -writable -print 2>/dev/null; true", user="deploy"
        ).stdout.split()
        assert [path for path in found if not path.startswith(tuple(allowed()))] == []
        for user in ("deploy", "www-data"):
            for path in (f"{TOOLS}/current", f"{ROOT}/current", f"{ROOT}/run/app.sock", "/etc/lighttpd/down"):
                removed = host.run(["rm", path], user=user, check=False)
                assert removed.returncode != 0, path


def allowed() -> list[str]:
    """What the deploy user is meant to write."""
    return [f"{ROOT}/{name}" for name in ("releases", "state", "shared")]


@pytest.mark.parametrize("account", [pytest.param("nobody", marks=pytest.mark.exhaustive), "www-data"])
def test_no_other_account_can_hold_a_lock_that_deploys_wait_for(prepared: Fleet, account: str) -> None:
    for host in prepared:
        for name in ("state", "releases", "migrations"):
            held = host.run(["flock", "-n", f"{ROOT}/{name}", "true"], user=account, check=False)
            assert "Permission denied" in held.stderr, (name, held)
            assert host.run(["flock", "-n", f"{ROOT}/{name}", "true"], user="deploy").returncode == 0
        told = json.loads(host.run([f"{TOOLS}/status", "--json"], user=account).stdout)
        assert "whether a migration runs can't be seen" in " ".join(told["problems"])
        assert json.loads(host.run([f"{TOOLS}/status", "--json"], user="deploy").stdout)["problems"] == []


def test_the_application_starts_in_no_directory_that_its_account_can_not_get_to(prepared: Fleet) -> None:
    """Root would get there, and an open directory behind a closed one would be open to the application."""
    app = {"command": f"/bin/sh -c 'cat plan > {LEAKED}; sleep 60'", "start_timeout": 3}
    for host in prepared:
        host.run(["install", "-d", "-m", "755", "/root/open"])
        host.write("/root/open/plan", "nobody's business")
        host.write("/root/open/.deploytools.json", json.dumps({"id": "r1", "app": app, "health": {}}))
        host.run(["ln", "-s", "/root/open", f"{ROOT}/releases/r1"], user="deploy")
        host.run([f"{TOOLS}/swap", "--release", "r1"], user="deploy", check=False)
        assert not host.exists(LEAKED)
        host.run(["rm", f"{ROOT}/releases/r1"])


def test_a_migration_runs_in_no_directory_that_its_account_can_not_get_to(prepared: Fleet) -> None:
    migrate = {"adapter": "alembic", "python": "/home/deploy/python", "cwd": "/root/open", "engine": "sqlite"}
    for host in prepared:
        host.write("/home/deploy/python", f"#!/bin/sh\ncat plan > {LEAKED}\n", mode=0o755)
        host.run(["chmod", "755", "/home/deploy"])
        host.run(["install", "-d", f"{ROOT}/releases/r2"], user="deploy")
        manifest = {"id": "r2", "app": {"command": "true"}, "health": {}, "migrate": migrate}
        host.write(f"{ROOT}/releases/r2/.deploytools.json", json.dumps(manifest), owner="deploy")
        host.run(["sudo", "-n", f"{TOOLS}/migrate", "check", "--release", "r2"], user="deploy", check=False)
        assert not host.exists(LEAKED)


def test_a_link_in_a_shared_directory_makes_root_give_nothing_away(prepared: Fleet) -> None:
    for host in prepared:
        host.run(["mv", f"{ROOT}/shared/a", f"{ROOT}/shared/was"], user="deploy")
        host.run(["ln", "-s", "/etc", f"{ROOT}/shared/a"], user="deploy")
    refused = prepared.operator.fab("setup", "--as-user", "root", "--yes", code=3).stderr
    assert refused.count(f"{ROOT}/shared/a/b leads out of {ROOT}/shared by a symbolic link") == 2
    for host in prepared:
        assert not host.exists("/etc/b")
        host.run(f"rm {ROOT}/shared/a; mv {ROOT}/shared/was {ROOT}/shared/a", user="deploy")


@pytest.mark.parametrize(
    ("key", "place"),
    [
        ("ROOT", "/home/deploy/site"),
        pytest.param("TOOLS_DIR", "/home/deploy/tools", marks=pytest.mark.exhaustive),
    ],
)
def test_a_place_that_others_can_exchange_is_refused(prepared: Fleet, key: str, place: str) -> None:
    variable = {f"FABRIC_DEPLOY_{key}": place}
    refused = prepared.operator.fab("setup", "--as-user", "root", "--yes", code=3, **variable).stderr
    told = f"others than root can change /home/deploy, and with it what root runs or writes in {place}"
    assert told in refused
    assert not any(host.exists(place) for host in prepared)


def test_what_the_deploy_user_prepared_is_not_taken_for_roots_own(prepared: Fleet) -> None:
    for host in prepared:
        host.write(f"{ROOT}/run/app.7.json", '{"generation": 7, "pid": 1}', owner="deploy")
    refused = prepared.operator.fab("setup", "--as-user", "root", "--yes", code=3).stderr
    assert refused.count(f"{ROOT}/run/app.7.json belongs to deploy, but root would take it for its own") == 2
    for host in prepared:
        host.run(["rm", f"{ROOT}/run/app.7.json"])
