"""deploytools.sandbox: up, down, and what they refuse; with real lighttpd and sshd."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploytools import sandbox
from deploytools.errors import OperationFailed, UsageError
from deploytools.sandbox import checks, layout, processes
from tests.support.ports import free_port
from tests.support.sandboxes import Guestbook, Project, project, wait_until

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture
def place() -> Iterator[Project]:
    with project() as made:
        yield made


def gone(pid: int) -> bool:
    """Whether there is no such process; a zombie is none."""
    return processes.read(pid) is None


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def started(argv: list[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A program that prints `started`, and is ended afterwards whatever happens."""
    silent = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(argv, **silent, **options) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "started\n"
            yield process
        finally:
            process.kill()


class TestUp:
    def test_gives_a_site_and_a_shell(self, place: Project) -> None:
        said = place.up()
        assert f"http://127.0.0.1:{place.http_port}/" in said
        assert sandbox.is_up(place.root)
        assert place.request()[0] == 503  # nothing is deployed yet
        user, lighttpd = place.shell("id -un; command -v lighttpd").split()
        assert user == layout.account().pw_name
        assert lighttpd.startswith("/usr/")

    def test_gives_a_shell_without_the_operators_own_settings(self, place: Project) -> None:
        place.up()
        assert place.shell("echo $HOME; ls -A $HOME").split() == [str(place.layout.home)]

    def test_gives_a_host_that_files_can_be_copied_to(self, place: Project) -> None:
        place.up()
        batch = f"put {place.layout.base}/sandbox.json {place.layout.host}/copied\n"
        argv = ["sftp", "-b", "-", "-F", str(place.layout.ssh / "config"), "sandbox"]
        subprocess.run(argv, input=batch, text=True, check=True, capture_output=True, timeout=30)
        assert (place.layout.host / "copied").read_text() == place.layout.ports_file.read_text()

    def test_takes_many_sessions_at_once(self, place: Project) -> None:
        place.up()
        sessions = [
            subprocess.Popen(place.ssh("echo here"), stdout=subprocess.PIPE, text=True) for _ in range(25)
        ]
        assert [session.communicate(timeout=60)[0] for session in sessions] == ["here\n"] * 25

    def test_listens_on_the_loopback_only(self, place: Project) -> None:
        place.up()
        rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        rows += [row.split() for row in Path("/proc/net/tcp6").read_text().splitlines()[1:]]
        ports = {f"{port:04X}" for port in (place.http_port, place.ssh_port)}
        listening = [row[1].split(":") for row in rows if row[3] == "0A"]
        assert sorted(address for address, port in listening if port in ports) == ["0100007F", "0100007F"]

    def test_lets_in_nobody_without_the_key(self, place: Project) -> None:
        place.up()
        other = place.root / "other"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(other)], check=True)
        argv = ["ssh", "-i", str(other), "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-F", "none"]
        argv += ["-o", f"UserKnownHostsFile={place.layout.ssh / 'known_hosts'}", "-p", str(place.ssh_port)]
        ran = subprocess.run(
            [*argv, "127.0.0.1", "true"], capture_output=True, text=True, check=False, timeout=30
        )
        assert ran.returncode == 255
        assert "Permission denied (publickey)" in ran.stderr

    def test_lets_in_nobody_but_its_own_user(self, place: Project) -> None:
        place.up()
        other = "daemon" if layout.account().pw_name != "daemon" else "bin"
        argv = [*place.ssh()[:-1], "-o", "BatchMode=yes", "-l", other, "sandbox", "true"]
        ran = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=30)
        assert "Permission denied (publickey)" in ran.stderr

    def test_keeps_its_keys_to_itself(self, place: Project) -> None:
        place.up()
        for path in (
            place.layout.base,
            place.layout.ssh,
            place.layout.ssh / "id_ed25519",
            place.layout.ssh / "host_key",
        ):
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path

    def test_stays_out_of_the_projects_git(self, place: Project) -> None:
        subprocess.run(["git", "init", "-q", str(place.root)], check=True)
        place.up()
        status = ["git", "-C", str(place.root), "status", "--porcelain"]
        assert subprocess.check_output(status, text=True) == ""

    def test_a_second_time_is_harmless(self, place: Project) -> None:
        place.up()
        before = place.pid("lighttpd"), place.pid("sshd")
        installed = []
        assert "already" in place.up(lambda: installed.append(True))
        assert (place.pid("lighttpd"), place.pid("sshd")) == before
        assert not installed

    def test_brings_back_the_server_that_died_and_leaves_the_other(self, place: Project) -> None:
        place.up()
        sshd, lighttpd = place.pid("sshd"), place.pid("lighttpd")
        os.kill(lighttpd, signal.SIGKILL)
        wait_until(lambda: gone(lighttpd), "lighttpd is gone")
        assert not sandbox.is_up(place.root)
        place.up()
        assert place.pid("sshd") == sshd
        assert place.request()[0] == 503

    def test_remembers_its_ports(self, place: Project) -> None:
        place.up()
        sandbox.down(place.root)
        sandbox.up(place.root, install=place.install)
        assert listens(place.http_port)
        assert listens(place.ssh_port)

    def test_moves_to_other_ports_when_it_is_down(self, place: Project) -> None:
        place.up()
        sandbox.down(place.root)
        moved = dataclasses.replace(place, http_port=free_port(), ssh_port=free_port())
        moved.up()
        assert moved.shell("echo here") == "here\n"
        assert moved.request()[0] == 503

    def test_has_a_host_side_put_in_place_between_its_two_servers(self, place: Project) -> None:
        seen = []

        def install() -> None:
            place.install()
            seen.append((place.shell("echo here"), listens(place.http_port)))

        place.up(install)
        assert seen == [("here\n", False)]


class TestUpRefuses:
    def test_other_ports_while_it_is_up(self, place: Project) -> None:
        place.up()
        with pytest.raises(UsageError, match=f"up on other ports: {place.http_port} and {place.ssh_port}"):
            sandbox.up(place.root, http_port=free_port())
        assert sandbox.is_up(place.root)

    @pytest.mark.parametrize(("which", "option"), [("http_port", "--http-port"), ("ssh_port", "--ssh-port")])
    def test_a_taken_port_and_names_who_holds_it(self, place: Project, which: str, option: str) -> None:
        with socket.socket() as holder:
            holder.bind(("127.0.0.1", 0))
            holder.listen()
            taken = dataclasses.replace(place, **{which: holder.getsockname()[1]})
            with pytest.raises(UsageError) as refused:
                taken.up()
        assert f"(pid {os.getpid()})" in refused.value.what
        command, other = (refused.value.next or "").rsplit(maxsplit=1)
        assert command.endswith(f"fab sandbox.up {option}")
        assert not listens(int(other))
        assert processes.of(place.layout) == set()

    @pytest.mark.parametrize("port", [0, -1, 65536, 10**9])
    def test_what_is_no_port(self, place: Project, port: int) -> None:
        with pytest.raises(UsageError, match="ports go from 1 to 65535"):
            dataclasses.replace(place, http_port=port).up()

    def test_one_port_for_both(self, place: Project) -> None:
        with pytest.raises(UsageError, match="both ports are"):
            dataclasses.replace(place, ssh_port=place.http_port).up()

    def test_to_start_without_its_packages(self, place: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(checks, "PATH", "/nonexistent")
        monkeypatch.setenv("PATH", "/nonexistent")
        monkeypatch.setattr(checks, "MODULES", ("flup", "no_such_module"))
        with pytest.raises(UsageError) as refused:
            place.up()
        remedy = refused.value.next or ""
        assert "apt-get install git lighttpd openssh-client openssh-server" in remedy
        assert "pip install 'deploytools[sandbox]'" in remedy
        assert not place.layout.base.exists()

    def test_to_start_without_mod_magnet(self, place: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        # A lighttpd as it is without lighttpd-modules-lua: it looks for its modules elsewhere.
        wrapper = place.root / "bin/lighttpd"
        wrapper.parent.mkdir()
        wrapper.write_text('#!/bin/sh\nexec /usr/sbin/lighttpd -m /nonexistent "$@"\n')
        wrapper.chmod(0o755)
        monkeypatch.setattr(checks, "PATH", f"{wrapper.parent}:{checks.PATH}")
        with pytest.raises(UsageError) as refused:
            place.up()
        assert "apt-get install lighttpd-modules-lua" in (refused.value.next or "")

    def test_a_path_that_is_too_long_for_a_socket(self, place: Project) -> None:
        deep = place.root / ("d" * 80)
        deep.mkdir()
        with pytest.raises(UsageError, match="too long") as refused:
            sandbox.up(deep)
        shorter = int((refused.value.next or "").split()[-3])
        fitting = place.root / ("d" * (80 - shorter))
        fitting.mkdir()
        assert checks.place(fitting) == fitting / ".sandbox"

    @pytest.mark.parametrize("name", ["two words", 'quo"te', "per%cent", "do$llar", "ünicode", "new\nline"])
    def test_a_path_that_would_need_quoting(self, place: Project, name: str) -> None:
        odd = place.root / name
        odd.mkdir()
        with pytest.raises(UsageError, match="quote this path"):
            sandbox.up(odd)

    def test_a_directory_that_is_not_its_own(self, place: Project) -> None:
        (place.layout.base / "precious").mkdir(parents=True)
        for command in (sandbox.up, sandbox.down, sandbox.reset):
            with pytest.raises(UsageError, match="isn't a sandbox"):
                command(place.root)
        shutil.rmtree(place.layout.base)

    def test_a_symbolic_link(self, place: Project) -> None:
        (place.root / "elsewhere").mkdir()
        place.layout.base.symlink_to("elsewhere")
        for command in (sandbox.up, sandbox.down, sandbox.reset):
            with pytest.raises(UsageError, match="symbolic link"):
                command(place.root)
        place.layout.base.unlink()

    def test_to_work_beside_another_command(self, place: Project) -> None:
        with checks.alone(place.layout.base):
            for command in (sandbox.up, sandbox.down):
                with pytest.raises(UsageError, match="another sandbox command"):
                    command(place.root)


class TestAnUpThatFails:
    def test_half_way_leaves_nothing_running(self, place: Project) -> None:
        def install() -> None:
            raise UsageError("no such luck")

        with pytest.raises(UsageError, match="no such luck"):
            place.up(install)
        assert processes.of(place.layout) == set()
        assert not listens(place.ssh_port)

    def test_at_lighttpds_configuration_says_what_lighttpd_says(self, place: Project) -> None:
        def install() -> None:
            (place.layout.lighttpd / "conf-enabled/broken.conf").write_text("server.modules += nonsense(\n")

        with pytest.raises(OperationFailed, match="refuses its configuration") as failed:
            place.up(install)
        assert any("broken.conf" in line for line in failed.value.details)
        assert processes.of(place.layout) == set()

    def test_at_a_server_says_what_its_log_says(self, place: Project) -> None:
        place.up()
        sandbox.down(place.root)
        for name in ("host_key", "host_key.pub"):
            (place.layout.ssh / name).write_text("broken\n")
        with pytest.raises(OperationFailed, match=f"sshd doesn't come up on port {place.ssh_port}") as failed:
            place.up()
        assert any("no hostkeys available" in line for line in failed.value.details)
        assert processes.of(place.layout) == set()

    def test_by_being_killed_is_cleaned_up_by_down_or_the_next_up(self, place: Project) -> None:
        code = (
            "import os; from pathlib import Path; from deploytools import sandbox\n"
            f"sandbox.up(Path({str(place.root)!r}), http_port={place.http_port}, ssh_port={place.ssh_port},"
            " install=lambda: os.kill(os.getpid(), 9))"
        )
        for clean_up in (lambda: sandbox.down(place.root), place.up):
            subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, check=False, timeout=60)
            sshd = place.pid("sshd")
            assert not sandbox.is_up(place.root)
            clean_up()
            assert gone(sshd) or sandbox.is_up(place.root)


class TestDown:
    def test_is_harmless_where_there_is_no_sandbox_and_where_it_is_down(self, place: Project) -> None:
        assert "no sandbox" in sandbox.down(place.root)
        assert not place.layout.base.exists()
        place.up()
        assert "down" in sandbox.down(place.root)
        assert "already" in sandbox.down(place.root)

    def test_ends_the_servers_and_frees_the_ports(self, place: Project) -> None:
        place.up()
        pids = place.pid("sshd"), place.pid("lighttpd")
        sandbox.down(place.root)
        assert all(gone(pid) for pid in pids)
        assert not listens(place.http_port)
        assert not listens(place.ssh_port)
        assert not sandbox.is_up(place.root)

    def test_ends_sessions_and_what_they_left_behind(self, place: Project) -> None:
        place.up()
        with started(place.ssh("echo started; exec sleep 300")) as session:
            orphan = int(place.shell("setsid --fork sh -c 'echo $$; exec sleep 300' 2>&1 | head -1"))
            ours = processes.of(place.layout)
            assert orphan in {process.pid for process in ours}
            sandbox.down(place.root)
            assert session.wait(10) == 255
        assert all(gone(process.pid) for process in ours)

    @pytest.mark.parametrize("server", ["sshd", "lighttpd"])
    def test_finds_what_is_left_of_a_server_that_was_killed(self, place: Project, server: str) -> None:
        place.up()
        # A session without a command: sshd's own process is all there is of it.
        open_session = ["-o", "PermitLocalCommand=yes", "-o", "LocalCommand=echo started", "-N"]
        with started([*place.ssh()[:-1], *open_session, "sandbox"]) as session:
            ours = processes.of(place.layout)
            assert len(ours) >= 3
            os.kill(place.pid(server), signal.SIGKILL)
            sandbox.down(place.root)
            assert session.wait(10) == 255
        assert all(gone(process.pid) for process in ours)

    def test_ends_generations_and_running_migrations(self, place: Project) -> None:
        """Both run detached, with an environment of their own that says nothing of the sandbox."""
        place.up()
        book = Guestbook(place)
        run = place.layout.application / "migrations/run-1"
        run.mkdir(parents=True)
        holding = ["sh", "-c", 'exec 9>"$0"; echo started; exec sleep 300', str(run / "lock")]
        with contextlib.closing(book), started(holding, env={}) as migration:
            recorded = book.serve("v1", 1, log=Path(os.devnull))
            book.record(1)
            unrecorded = book.serve("v1", 2)
            sandbox.down(place.root)
            for process in (recorded, unrecorded, migration):
                assert process.wait(5) == -signal.SIGTERM

    def test_kills_what_does_not_listen(self, place: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(processes, "PATIENCE", 0.3)
        place.up()
        pid = int(
            place.shell(
                "setsid --fork sh -c 'trap \"\" TERM; echo $$; while :; do sleep 1; done' 2>&1 | head -1"
            )
        )
        sandbox.down(place.root)
        assert gone(pid)

    def test_leaves_a_process_alone_that_was_given_the_pid_of_a_dead_one(self, place: Project) -> None:
        place.up()
        with started(["sh", "-c", "echo started; exec sleep 300"]) as bystander:
            server = place.layout.run / "sshd.stat"
            fields = server.read_text().split()
            os.kill(int(fields[0]), signal.SIGKILL)
            fields[0] = str(bystander.pid)
            server.write_text(" ".join(fields))
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            generation = {"pid": bystander.pid, "start_time": 1, "boot_id": boot}
            (place.layout.application / "run/app.1.json").write_text(json.dumps(generation))
            sandbox.down(place.root)
            assert bystander.poll() is None

    def test_spares_whoever_asks_for_it_and_their_other_programs(self, place: Project) -> None:
        """Even where they look like the sandbox's own: here, by having a migration's lock open."""
        place.up()
        run = place.layout.application / "migrations/run-1"
        run.mkdir(parents=True)
        with (run / "lock").open("w"), started(["sh", "-c", "echo started; exec sleep 300"]) as other:
            sandbox.down(place.root)
            assert other.poll() is None

    def test_leaves_another_sandbox_alone(self, place: Project) -> None:
        with project() as other:
            place.up()
            other.up()
            sandbox.down(place.root)
            assert sandbox.is_up(other.root)
            assert other.shell("echo here") == "here\n"

    def test_leaves_who_looks_at_its_files_alone(self, place: Project) -> None:
        place.up()
        log = place.layout.logs / "sshd.log"
        log.write_text("started\n")
        with started(["tail", "-f", str(log)]) as reader:
            sandbox.down(place.root)
            assert reader.poll() is None


class TestReset:
    def test_starts_anew_on_the_same_ports(self, place: Project) -> None:
        place.up()
        key = (place.layout.ssh / "host_key.pub").read_text()
        (place.layout.host / "srv/old").touch()
        sandbox.reset(place.root, install=place.install)
        assert (place.layout.ssh / "host_key.pub").read_text() != key
        assert not (place.layout.host / "srv/old").exists()
        assert place.shell("echo here") == "here\n"
        assert place.request()[0] == 503

    def test_makes_a_first_one(self, place: Project) -> None:
        sandbox.reset(place.root, http_port=place.http_port, ssh_port=place.ssh_port, install=place.install)
        assert sandbox.is_up(place.root)

    def test_mends_a_record_that_cannot_be_read(self, place: Project) -> None:
        place.up()
        place.layout.ports_file.write_text("{")
        with pytest.raises(UsageError) as refused:
            sandbox.environment(place.root)
        assert refused.value.next == "fab sandbox.reset"
        sandbox.reset(place.root, http_port=place.http_port, ssh_port=place.ssh_port, install=place.install)
        assert sandbox.is_up(place.root)


class TestTheEnvironment:
    def test_needs_a_sandbox(self, place: Project) -> None:
        with pytest.raises(UsageError) as refused:
            sandbox.environment(place.root)
        assert refused.value.next == "fab sandbox.up"

    def test_is_there_while_the_sandbox_is_down(self, place: Project) -> None:
        place.up()
        up = sandbox.environment(place.root)
        sandbox.down(place.root)
        assert sandbox.environment(place.root) == up

    def test_passes_the_checks_of_settings(self, place: Project) -> None:
        from deploytools.settings import load

        place.up()
        settings = load({}, environment="sandbox", only_hosts=None, environ={}, root=place.root)
        assert settings.webserver.url == place.layout.url
        assert str(settings.root) == str(place.layout.application)
        assert settings.app.command.endswith(" guestbook.py")


class TestAnOrdinaryUser:
    """In a mount namespace of its own, in which one more line stands in /etc/passwd."""

    def test_has_a_sandbox_too(self) -> None:
        if os.geteuid() != 0:
            return  # all other tests here ran as one
        if subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True).returncode != 0:
            pytest.skip("this root can't make a mount namespace, so it can't have a user for a test")
        root = Path(tempfile.mkdtemp(prefix="sb", dir="/tmp"))
        try:
            if not _readable_by_others(Path(sys.executable), CHECKOUT / "deploytools"):
                pytest.skip("other users can't read this checkout or its Python")
            accounts = root / "passwd"
            accounts.write_text(Path("/etc/passwd").read_text() + f"sbxuser:x:47110:47110::{root}:/bin/sh\n")
            os.chown(root, 47110, 47110)
            script = (
                f"mount --bind {accounts} /etc/passwd && exec setpriv --reuid=47110 --regid=47110 "
                f'--clear-groups env -i PATH=/usr/bin:/bin HOME={root} {sys.executable} -c "$0"'
            )
            argv = ["unshare", "--mount", "sh", "-c", script, ORDINARY_USER]
            environment = {"PATH": os.environ["PATH"]}
            ran = subprocess.run(
                argv, cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=False, timeout=100
            )
            assert ran.returncode == 0, ran.stderr
            assert json.loads(ran.stdout.splitlines()[-1]) == {
                "user": "sbxuser",
                "lighttpd": "/usr/sbin/lighttpd",
                "status": 503,
                "left": 0,
            }
        finally:
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(root)


ORDINARY_USER = """
import json, sys
sys.path.insert(0, '.')
from deploytools import sandbox
from deploytools.sandbox import processes
from tests.support.sandboxes import project
with project() as made:
    made.up()
    made.up()
    user, lighttpd = made.shell('id -un; command -v lighttpd').split()
    status = made.request()[0]
    sandbox.down(made.root)
    left = len(processes.of(made.layout))
    sandbox.reset(made.root, install=made.install)
print(json.dumps({'user': user, 'lighttpd': lighttpd, 'status': status, 'left': left}))
"""


def _readable_by_others(*paths: Path) -> bool:
    every = [directory for path in paths for directory in (path.resolve(), *path.resolve().parents)]
    return all(path.stat().st_mode & 0o005 == 0o005 for path in every)


class TestAProcess:
    FIELDS = "1 2 3 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 4711 99"  # from the parent on; 4711 is the start time

    @pytest.mark.parametrize("name", ["sshd", "two words", ") S 9 (", "a) Z 1 2"])
    def test_may_have_any_name(self, name: str) -> None:
        assert processes.parse(f"12 ({name}) S {self.FIELDS}") == processes.Process(12, 4711, 1)

    @pytest.mark.parametrize("text", ["", "12", "12 (sshd) S 1 2", "12 (sshd) Z " + FIELDS])
    def test_is_not_what_is_cut_short_or_a_zombie(self, text: str) -> None:
        assert processes.parse(text) is None
