"""One host over SSH, against real sshds on 127.0.0.1."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pytest
from paramiko import PKey

from deploytools.commands import Command
from deploytools.errors import HostKeyRejected, OperationFailed, Unreachable, UsageError
from deploytools.fleet import Fleet, Ok, Unreached
from deploytools.remote import LinkLost, Remote, StillRunning, connector
from deploytools.ssh.channel import Talk
from tests.support.ports import free_port
from tests.support.sshd import Sshd, make_key, public, write_config

pytestmark = pytest.mark.usefixtures("no_agent")

# Seconds after which a test that hangs is a failed one.
PATIENCE = 10.0


@dataclass(frozen=True)
class Host:
    host: str
    user: str | None = None
    port: int | None = None

    def __str__(self) -> str:
        return self.host


@pytest.fixture
def no_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The keys of whoever runs the tests stay out of them."""
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with Sshd(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@pytest.fixture
def reach(tmp_path: Path) -> Iterator[Callable[..., Remote]]:
    """Makes a remote from blocks of ssh_config, and closes it in the end."""
    with contextlib.ExitStack() as stack:

        def make(*blocks: str, name: str = "web1", timeout: float | None = 5) -> Remote:
            remote = Remote(Host(name), write_config(tmp_path / "ssh_config", *blocks), timeout)
            stack.callback(remote.close)
            return remote

        yield make


@pytest.fixture(scope="module")
def remote(sshd: Sshd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remote]:
    """Connected once for all tests that leave the connection alone."""
    config = write_config(tmp_path_factory.mktemp("remote") / "ssh_config", sshd.config("web1"))
    shared = Remote(Host("web1"), config, 5)
    yield shared
    shared.close()


@pytest.fixture
def fresh(sshd: Sshd, reach: Callable[..., Remote]) -> Remote:
    """For tests that cut or stop the connection."""
    return reach(sshd.config("web1"))


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


# Commands


@pytest.mark.parametrize(
    "argument",
    [
        "",
        " ",
        "two words",
        "it's",
        '"quoted"',
        "'; touch /tmp/pwned; '",
        "$(id) `id` $HOME ${HOME}",
        "two\nlines\n",
        "tab\there",
        "back\\slash \\n \\",
        "* ? [a-z] {1,2} ~ !! # & | < > ;",
        "-n",
        "--help",
        "Grüße 日本 🚀",
        "caf\udce9",  # a byte that is no UTF-8, as os.fsdecode gives it
    ],
)
def test_arguments_arrive_as_they_are(remote: Remote, argument: str) -> None:
    result = remote.run(Command(("printf", "[%s]", argument, argument)))
    seen = os.fsencode(argument).decode(errors="replace")
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"[{seen}][{seen}]", "")


def test_an_argument_with_a_nul_is_refused_before_anything_is_sent(remote: Remote) -> None:
    sent = remote.sent
    with pytest.raises(UsageError, match="NUL"):
        remote.run(Command(("echo", "a\0b")))
    assert remote.sent == sent


def test_stdin_is_what_the_command_reads(remote: Remote) -> None:
    result = remote.run(Command(("od", "-An", "-tx1"), stdin=b"\x00\xff\nend"))
    assert result.stdout.split() == ["00", "ff", "0a", "65", "6e", "64"]


def test_no_stdin_is_an_end_of_file(remote: Remote) -> None:
    assert remote.run(Command(("cat",), timeout=5)).stdout == ""


def test_much_stdin_and_much_stdout_at_once_do_not_block_each_other(remote: Remote) -> None:
    data = os.urandom(1 << 20).hex().encode() * 4  # more than any window has room for
    assert remote.run(Command(("cat",), stdin=data)).stdout.encode() == data


def test_a_command_that_reads_none_of_its_stdin_ends_all_the_same(remote: Remote) -> None:
    assert remote.run(Command(("true",), stdin=b"x" * (8 << 20))).exit_code == 0


@pytest.mark.parametrize("code", [0, 1, 7, 130, 255])
def test_exit_codes_come_back(remote: Remote, code: int) -> None:
    assert remote.run(Command(("sh", "-c", f"exit {code}"))).exit_code == code


def test_stdout_and_stderr_are_kept_apart(remote: Remote) -> None:
    result = remote.run(Command(("sh", "-c", "echo out; echo err >&2")))
    assert (result.stdout, result.stderr) == ("out\n", "err\n")


def test_there_is_no_terminal(remote: Remote) -> None:
    assert remote.run(Command(("sh", "-c", "test ! -t 0 && test ! -t 1 && test ! -t 2"))).exit_code == 0


def test_nothing_is_printed_here(remote: Remote, capfd: pytest.CaptureFixture[str]) -> None:
    remote.run(Command(("sh", "-c", "echo out; echo err >&2; exit 3")))
    assert capfd.readouterr() == ("", "")


def test_lines_of_stderr_are_passed_on_while_the_command_runs(remote: Remote, tmp_path: Path) -> None:
    """The command goes on only when its first line has been seen here."""
    seen: list[str] = []
    go = tmp_path / "go"

    def on_line(line: str) -> None:
        seen.append(line)
        if line == "first":
            go.touch()

    script = 'echo first >&2; until [ -e "$0" ]; do sleep 0.01; done; printf "second\\nwithout an end" >&2'
    result = remote.run(Command(("sh", "-c", script, str(go)), timeout=PATIENCE), on_line=on_line)
    assert seen == ["first", "second", "without an end"]
    assert result.stderr == "first\nsecond\nwithout an end"


def test_an_error_in_the_callback_is_not_taken_for_a_lost_link(remote: Remote) -> None:
    def on_line(line: str) -> None:
        raise BrokenPipeError("nobody reads what we print")

    with pytest.raises(BrokenPipeError):
        remote.run(Command(("sh", "-c", "echo line >&2")), on_line=on_line)


def test_a_command_that_a_signal_killed_has_ended(remote: Remote) -> None:
    result = remote.run(Command(("sh", "-c", "echo before; kill -9 $$")))
    assert (result.exit_code, result.stdout) == (-1, "before\n")
    assert remote.run(Command(("echo", "still here"))).stdout == "still here\n"


def test_a_link_that_dies_under_a_command_is_lost_and_the_command_goes_on(
    sshd: Sshd, fresh: Remote, tmp_path: Path
) -> None:
    script = 'echo $$ > "$0/pid"; until [ -e "$0/go" ]; do sleep 0.01; done; echo done > "$0/end"'
    command = Command(("sh", "-c", script, str(tmp_path)), timeout=PATIENCE)
    cut = threading.Thread(
        target=lambda: (eventually((tmp_path / "pid").exists), sshd.kill_sessions()), daemon=True
    )
    cut.start()
    with pytest.raises(LinkLost, match="web1") as lost:
        fresh.run(command)
    cut.join(PATIENCE)
    assert (lost.value.host, lost.value.command) == ("web1", command)
    (tmp_path / "go").touch()
    eventually((tmp_path / "end").exists)


def test_a_link_that_died_before_a_command_is_opened_anew(sshd: Sshd, fresh: Remote) -> None:
    assert fresh.run(Command(("echo", "one"))).stdout == "one\n"
    sshd.kill_sessions()
    assert fresh.run(Command(("echo", "two"))).stdout == "two\n"


def test_past_its_time_out_a_command_goes_on(fresh: Remote, tmp_path: Path) -> None:
    script = 'until [ -e "$0/go" ]; do sleep 0.01; done; echo still heard; echo done > "$0/end"'
    command = Command(("sh", "-c", script, str(tmp_path)), timeout=0.2)
    with pytest.raises(StillRunning, match=r"0\.2 s") as late:
        fresh.run(command)
    assert (late.value.host, late.value.command) == ("web1", command)
    (tmp_path / "go").touch()
    eventually((tmp_path / "end").exists)
    assert fresh.run(Command(("echo", "next"))).stdout == "next\n"


# Programs that answer line by line

ECHO = ("python3", "-uc", "import sys\nfor line in sys.stdin: print(line.strip() + '!')")


def test_a_program_that_answers_every_line_is_started_once(fresh: Remote, tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    talker = Command(("sh", "-c", f"echo x >> {starts}; exec {shlex.join(ECHO)}"))

    assert [fresh.ask(talker, line) for line in (b"one", b"two", b"three")] == [b"one!", b"two!", b"three!"]
    assert starts.read_text() == "x\n"


def test_other_commands_run_while_such_a_program_waits(fresh: Remote) -> None:
    assert fresh.ask(Command(ECHO), b"one") == b"one!"
    assert fresh.run(Command(("echo", "between"))).stdout == "between\n"
    assert fresh.ask(Command(ECHO), b"two") == b"two!"


def test_a_line_whose_answer_never_came_is_unknown_and_the_next_one_starts_anew(
    sshd: Sshd, fresh: Remote
) -> None:
    assert fresh.ask(Command(ECHO), b"one") == b"one!"
    sshd.kill_sessions()
    with pytest.raises(LinkLost):
        fresh.ask(Command(ECHO), b"two")
    assert fresh.ask(Command(ECHO), b"three") == b"three!"


def test_a_program_that_ends_instead_of_answering_is_told(fresh: Remote) -> None:
    with pytest.raises(LinkLost):
        fresh.ask(Command(("sh", "-c", "echo no such file >&2; exit 3")), b"one")


def test_an_answer_that_takes_too_long_is_not_waited_for(fresh: Remote) -> None:
    with pytest.raises(StillRunning):
        fresh.ask(Command(("sh", "-c", "read line; exec tail -f /dev/null"), timeout=0.2), b"one")


# Programs that are started before their turn

WAITS = 'echo x >> "$0/started"; read word || exit 2; echo "$word" >> "$0/told"; echo done'


def waits(directory: Path) -> Command:
    plain = 'echo x >> "$0/plain"; echo done'
    argv = ("sh", "-c", plain, str(directory))
    return Command(argv, timeout=PATIENCE, ahead=("sh", "-c", f"echo ready; {WAITS}", str(directory)))


def test_a_program_started_before_its_turn_goes_on_when_it_is_run(fresh: Remote, tmp_path: Path) -> None:
    command, sent = waits(tmp_path), fresh.sent
    fresh.start([command])

    assert fresh.greeting(command) == b"ready"
    eventually((tmp_path / "started").exists)
    assert (fresh.sent, (tmp_path / "told").exists()) == (sent, False)  # so far nothing can have changed

    result = fresh.run(command)

    assert (result.exit_code, result.stdout) == (0, "done\n")
    assert (tmp_path / "told").read_text() == "go\n"
    assert fresh.sent == sent + 1
    assert not (tmp_path / "plain").exists()


def test_it_is_told_once_and_run_plainly_the_second_time(fresh: Remote, tmp_path: Path) -> None:
    command = waits(tmp_path)
    fresh.start([command])
    fresh.run(command)

    assert fresh.run(command).stdout == "done\n"
    assert (tmp_path / "plain").read_text() == "x\n"


def test_programs_are_started_at_the_same_time(fresh: Remote, tmp_path: Path) -> None:
    """Each of these is ready only when the other one has begun."""
    script = 'touch "$0/$1"; until [ -e "$0/$2" ]; do sleep 0.01; done; echo ready; read word'
    one, two = (
        Command(("true", name), ahead=("sh", "-c", script, str(tmp_path), name, other))
        for name, other in (("one", "two"), ("two", "one"))
    )
    fresh.start([one, two])

    assert (fresh.greeting(one), fresh.greeting(two)) == (b"ready", b"ready")


def test_a_program_that_lingers_after_its_answer_is_not_waited_for(fresh: Remote, tmp_path: Path) -> None:
    """It ends with the connection; what it answered tells how."""
    answer = json.dumps({"exit_code": 5, "ok": False})
    script = f"echo ready; read word; echo '{answer}'; read end; touch \"$0\""
    command = Command(("true",), ahead=("sh", "-c", script, str(tmp_path / "ended")))
    fresh.start([command])

    result = fresh.run(command)

    assert (result.exit_code, json.loads(result.stdout.splitlines()[-1])["ok"]) == (5, False)
    assert not (tmp_path / "ended").exists()
    fresh.close()
    eventually((tmp_path / "ended").exists)


def test_one_that_dies_before_its_answer_is_whole_has_the_exit_code_of_its_death(
    fresh: Remote,
) -> None:
    script = """read word; printf '{"exit_code": 0'; exit 9"""
    command = Command(("true",), ahead=("sh", "-c", script))
    fresh.start([command])

    result = fresh.run(command)

    assert (result.exit_code, result.stdout) == (9, '{"exit_code": 0')


def test_what_waits_for_a_line_is_asked_without_being_started_again(fresh: Remote, tmp_path: Path) -> None:
    argv = ("sh", "-c", f"echo x >> {tmp_path}/starts; exec {shlex.join(ECHO)}")
    talker = Command(argv, ahead=argv)
    fresh.start([talker])

    assert [fresh.ask(talker, line) for line in (b"one", b"two")] == [b"one!", b"two!"]
    assert (tmp_path / "starts").read_text() == "x\n"


def test_a_program_that_waits_ends_untold_with_its_connection(fresh: Remote, tmp_path: Path) -> None:
    command = Command(("true",), ahead=("sh", "-c", 'read word; echo "$?" > "$0/read"', str(tmp_path)))
    fresh.start([command])
    fresh.close()

    eventually(lambda: (tmp_path / "read").exists() and (tmp_path / "read").read_text())
    assert (tmp_path / "read").read_text() == "1\n"


def test_a_program_that_is_dismissed_ends_untold(fresh: Remote, tmp_path: Path) -> None:
    command = waits(tmp_path)
    fresh.start([command])
    fresh.dismiss(command)

    assert fresh.run(command).stdout == "done\n"
    assert (tmp_path / "plain").exists()
    assert not (tmp_path / "told").exists()


@pytest.mark.parametrize("ahead", [None, ("sh", "-c", "exit 3"), ("/does/not/exist",)])
def test_what_can_not_wait_is_run_plainly(fresh: Remote, tmp_path: Path, ahead: tuple[str, ...]) -> None:
    command = Command(waits(tmp_path).argv, ahead=ahead)
    fresh.start([command])

    assert fresh.greeting(command) is None
    assert fresh.run(command).stdout == "done\n"
    assert (tmp_path / "plain").exists()


def test_a_program_whose_link_died_while_it_waited_is_run_plainly_on_a_new_one(
    sshd: Sshd, fresh: Remote, tmp_path: Path
) -> None:
    command = waits(tmp_path)
    fresh.start([command])
    assert fresh.greeting(command) == b"ready"
    sshd.kill_sessions()
    eventually(lambda: not fresh.alive)

    assert fresh.run(command).stdout == "done\n"
    assert (tmp_path / "plain").exists()
    assert not (tmp_path / "told").exists()


def test_a_link_that_dies_after_a_waiting_program_was_told_is_lost(
    sshd: Sshd, fresh: Remote, tmp_path: Path
) -> None:
    script = 'echo ready; read word; echo $$ > "$0/pid"; until [ -e "$0/go" ]; do sleep 0.01; done'
    command = Command(("true",), timeout=PATIENCE, ahead=("sh", "-c", script, str(tmp_path)))
    fresh.start([command])
    cut = threading.Thread(
        target=lambda: (eventually((tmp_path / "pid").exists), sshd.kill_sessions()), daemon=True
    )
    cut.start()

    with pytest.raises(LinkLost):
        fresh.run(command)
    cut.join(PATIENCE)
    (tmp_path / "go").touch()


def test_what_a_command_leaves_in_the_background_does_not_make_it_unfinished(
    remote: Remote, tmp_path: Path
) -> None:
    """It holds stdout open, so that there is no end of file; but the exit code has come."""
    script = 'sh -c \'until [ -e "$0" ]; do sleep 0.01; done\' "$0" & echo started; exit 4'
    result = remote.run(Command(("sh", "-c", script, str(tmp_path / "go")), timeout=0.5))
    (tmp_path / "go").touch()
    assert (result.exit_code, result.stdout) == (4, "started\n")


def test_a_server_that_refuses_to_run_a_command_is_told_from_a_lost_link(
    fresh: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sshd runs one command in a session, and refuses a second one there."""
    session = fresh._session()
    session.exec_command("cat")
    monkeypatch.setattr(fresh, "_session", lambda: session)

    with pytest.raises(OperationFailed) as refused:
        fresh.run(Command(("true",)))

    assert not isinstance(refused.value, LinkLost)
    assert "web1 refuses to run a command: " in refused.value.what
    assert refused.value.state == "true was not run"
    assert "ForceCommand" in str(refused.value.next)


def test_a_server_that_hangs_before_it_starts_the_command_is_given_up(
    sshd: Sshd, fresh: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploytools.remote.GRACE", 0.2)
    with frozen(sshd, fresh, monkeypatch), pytest.raises(LinkLost):
        fresh.run(Command(("true",), timeout=0.2))


def test_a_server_that_hangs_in_a_conversation_is_given_up(
    sshd: Sshd, fresh: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dialog(talk: Talk) -> None:
        while True:
            talk.send(b"x" * (1 << 20))

    monkeypatch.setattr("deploytools.remote.GRACE", 0.2)
    with frozen(sshd, fresh, monkeypatch), pytest.raises((LinkLost, StillRunning)):
        fresh.run(Command(("sh", "-c", "cat >/dev/null"), timeout=0.2), dialog=dialog)


@contextlib.contextmanager
def frozen(sshd: Sshd, remote: Remote, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Stop the server's process right after it has opened a session."""
    session, stopped = remote._session, []

    def freeze() -> object:
        channel = session()
        for pid in sshd.sessions():
            with contextlib.suppress(ProcessLookupError):  # the last of an earlier test, on its way out
                os.kill(pid, signal.SIGSTOP)
                stopped.append(pid)
        return channel

    monkeypatch.setattr(remote, "_session", freeze)
    begun = time.monotonic()
    try:
        yield
        assert time.monotonic() - begun < 3
    finally:
        for pid in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def test_close_frees_a_thread_that_waits(fresh: Remote, tmp_path: Path) -> None:
    errors: list[Exception] = []

    def wait() -> None:
        try:
            fresh.run(Command(("sh", "-c", 'touch "$0"; sleep 5', str(tmp_path / "on")), timeout=60))
        except LinkLost as error:
            errors.append(error)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    eventually((tmp_path / "on").exists)
    fresh.close()
    thread.join(3)
    assert len(errors) == 1


def test_packets_are_sent_at_once(remote: Remote) -> None:
    remote.open()
    assert remote._connection is not None
    assert remote._connection.transport.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


def test_an_idle_connection_is_kept_alive_and_a_dead_one_noticed(
    bastion: Sshd, reach: Callable[..., Remote]
) -> None:
    remote = reach(bastion.config("web1", "ServerAliveInterval 1", "ServerAliveCountMax 7"))
    remote.open()
    assert remote._connection is not None
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        limit = remote._connection.transport.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
        assert limit == 7000
    eventually(lambda: "keepalive@lag.net" in bastion.log)


# Host keys


def test_an_unknown_key_is_refused_with_how_to_check_and_add_it(
    sshd: Sshd, reach: Callable[..., Remote], tmp_path: Path
) -> None:
    empty = tmp_path / "known_hosts"
    remote = reach(sshd.config("web1", f"UserKnownHostsFile {empty}"))
    logins = sshd.log.count("Accepted publickey")
    with pytest.raises(HostKeyRejected) as refused:
        remote.open()
    error = refused.value
    told = "\n".join((error.what, str(error.where), str(error.next), *error.details))
    assert "web1 is not in known_hosts" in error.what
    for hint in (sshd.fingerprint, str(sshd.port), str(empty), "ssh_host_ed25519_key.pub"):
        assert hint in told
    assert sshd.log.count("Accepted publickey") == logins, "it logged in nevertheless"

    # What it says to type does add the key: here by a script that answers "yes" only to the fingerprint.
    line = str(error.next).partition("   ")[0]
    answer = tmp_path / "answer"
    answer.write_text(f"#!/bin/sh\necho {shlex.quote(sshd.fingerprint)}\n")
    answer.chmod(0o755)
    environment = {**os.environ, "SSH_ASKPASS": str(answer), "SSH_ASKPASS_REQUIRE": "force"}
    subprocess.run(shlex.split(line), check=True, env=environment, stdin=subprocess.DEVNULL, timeout=20)
    assert remote.run(Command(("echo", "trusted"))).stdout == "trusted\n"


def test_a_changed_key_is_refused_with_where_the_old_one_stands(
    reach: Callable[..., Remote], tmp_path: Path
) -> None:
    with Sshd(tmp_path / "sshd") as server:
        old = server.fingerprint
        server.new_host_key()
        server.restart()
        remote = reach(server.config("web1"))
        with pytest.raises(HostKeyRejected, match="changed") as refused:
            remote.open()
    told = "\n".join((str(refused.value.next), *refused.value.details))
    assert old in told
    assert server.fingerprint in told
    assert f"{server.known_hosts}:1" in told
    assert f"ssh-keygen -R '[127.0.0.1]:{server.port}' -f {server.known_hosts}" in told


def test_stricthostkeychecking_no_changes_nothing(
    sshd: Sshd, reach: Callable[..., Remote], tmp_path: Path
) -> None:
    nothing = ("StrictHostKeyChecking no", f"UserKnownHostsFile {tmp_path / 'none'}")
    with pytest.raises(HostKeyRejected):
        reach(sshd.config("web1", *nothing)).open()
    assert not (tmp_path / "none").exists()


def test_hostkeyalias_names_the_key(sshd: Sshd, reach: Callable[..., Remote], tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    lines = ("HostKeyAlias webserver", f"UserKnownHostsFile {file}")
    file.write_text(f"webserver {sshd.host_key}\n")
    reach(sshd.config("web1", *lines)).open()
    file.write_text(f"[127.0.0.1]:{sshd.port} {sshd.host_key}\n")
    with pytest.raises(HostKeyRejected):
        reach(sshd.config("web1", *lines)).open()


def test_globalknownhostsfile_counts_too(sshd: Sshd, reach: Callable[..., Remote], tmp_path: Path) -> None:
    lines = (f"UserKnownHostsFile {tmp_path / 'none'}", f"GlobalKnownHostsFile {sshd.known_hosts}")
    reach(sshd.config("web1", *lines)).open()


def test_a_hashed_name_is_found(sshd: Sshd, reach: Callable[..., Remote], tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    file.write_text(sshd.known_hosts.read_text())
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", file], check=True, capture_output=True)
    assert "127.0.0.1" not in file.read_text()
    reach(sshd.config("web1", f"UserKnownHostsFile {file}")).open()


def test_a_revoked_key_is_refused_although_it_is_known(
    sshd: Sshd, reach: Callable[..., Remote], tmp_path: Path
) -> None:
    file = tmp_path / "known_hosts"
    file.write_text(f"{sshd.known_hosts.read_text()}@revoked * {sshd.host_key}\n")
    with pytest.raises(HostKeyRejected, match="revoked"):
        reach(sshd.config("web1", f"UserKnownHostsFile {file}")).open()


@pytest.mark.parametrize("kind", ["ecdsa", "rsa"])
def test_of_a_hosts_keys_the_known_one_is_asked_for(
    reach: Callable[..., Remote], tmp_path: Path, kind: str
) -> None:
    """Left to itself paramiko would take the ed25519 key, which is not on file."""
    other = make_key(tmp_path / "other", kind)
    with Sshd(tmp_path / "sshd", settings=f"HostKey {other}") as server:
        on_file = " ".join(public(other).read_text().split()[:2])
        server.known_hosts.write_text(f"[127.0.0.1]:{server.port} {on_file}\n")
        reach(server.config("web1")).open()


# ssh_config and keys


def test_included_files_are_read(sshd: Sshd, reach: Callable[..., Remote], tmp_path: Path) -> None:
    included = write_config(tmp_path / "included", sshd.config("web1"))
    assert reach(f"Include {included}").run(Command(("echo", "in"))).stdout == "in\n"


def test_a_broken_ssh_config_is_the_users_to_mend(reach: Callable[..., Remote]) -> None:
    with pytest.raises(UsageError, match="nosuchoption"):
        reach("NoSuchOption yes\n").open()


def test_user_and_port_of_the_settings_win(sshd: Sshd, tmp_path: Path) -> None:
    block = sshd.config("web1", "User nobody-at-all", "Port 1")
    remote = Remote(Host("web1", sshd.user, sshd.port), write_config(tmp_path / "config", block), 5)
    try:
        assert remote.run(Command(("id", "-un"))).stdout.strip() == sshd.user
    finally:
        remote.close()


def test_two_hosts_are_each_offered_their_own_key_only(reach: Callable[..., Remote], tmp_path: Path) -> None:
    with Sshd(tmp_path / "one") as one, Sshd(tmp_path / "two") as two:
        config = write_config(tmp_path / "config", one.config("web1"), two.config("web2"))
        with Fleet([Host("web1"), Host("web2")], connector(config, 5)) as fleet:
            outcomes = fleet.map(lambda remote: remote.run(Command(("true",))).exit_code)
            assert outcomes == {"web1": Ok(0), "web2": Ok(0)}
        for server, other in ((one, two), (two, one)):
            foreign = subprocess.run(
                ["ssh-keygen", "-lf", public(other.client_key)], check=True, capture_output=True, text=True
            ).stdout.split()[1]
            assert foreign not in server.log
            assert "Failed publickey" not in server.log


def test_a_key_file_is_loaded_once_for_all_hosts(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenSSL checks an RSA key for a tenth of a second of processor time, each time that it is loaded."""
    loaded: list[Path] = []
    load = PKey.from_path

    def loading(path: Path) -> PKey:
        loaded.append(path)
        return load(path)

    monkeypatch.setattr(PKey, "from_path", loading)
    names = [f"web{number}" for number in range(5)]
    config = write_config(tmp_path / "ssh_config", *(sshd.config(name) for name in names))
    key = make_key(tmp_path / "another", "rsa")
    config.write_text(config.read_text() + f"Host *\n  IdentityFile {key}\n")
    with Fleet([Host(name) for name in names], connector(config, 5)) as fleet:
        outcomes = fleet.connect()

    assert list(outcomes.values()) == [Ok(None)] * 5
    assert len(loaded) == len(set(loaded))
    assert key in loaded


def test_a_key_that_is_not_let_in_is_named(sshd: Sshd, reach: Callable[..., Remote], tmp_path: Path) -> None:
    stranger = make_key(tmp_path / "stranger")
    locked = make_key(tmp_path / "locked", passphrase="not telling")  # noqa: S106
    block = sshd.config("web1", f"IdentityFile {stranger}", f"IdentityFile {locked}")
    with pytest.raises(Unreachable, match=f"does not let {sshd.user} in") as refused:
        reach(block.replace(f"IdentityFile {sshd.client_key}\n", "")).open()
    told = "\n".join(refused.value.details)
    assert f"in {stranger}" in told
    assert f"ssh-add {locked}" in told
    assert refused.value.exit_code == 6


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An ssh-agent that holds more strangers' keys than a server puts up with."""
    path = tmp_path / "agent"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", path], stdout=subprocess.DEVNULL)
    try:
        eventually(path.exists)
        monkeypatch.setenv("SSH_AUTH_SOCK", str(path))
        for number in range(7):
            add_to_agent(make_key(tmp_path / f"stranger{number}"))
        yield path
    finally:
        process.terminate()
        process.wait(PATIENCE)


def add_to_agent(key: Path) -> None:
    subprocess.run(["ssh-add", "-q", key], check=True, capture_output=True)


def test_the_agents_key_that_ssh_config_names_comes_first(
    sshd: Sshd, reach: Callable[..., Remote], agent: Path, tmp_path: Path
) -> None:
    """Only its public half is on disk."""
    add_to_agent(sshd.client_key)
    named = tmp_path / "named.pub"
    named.write_text(public(sshd.client_key).read_text())
    block = sshd.config("web1", f"IdentityFile {named}", "IdentitiesOnly no")
    assert (
        reach(block.replace(f"IdentityFile {sshd.client_key}\n", "")).run(Command(("true",))).exit_code == 0
    )


def test_identitiesonly_keeps_the_agents_other_keys_back(
    sshd: Sshd, reach: Callable[..., Remote], agent: Path
) -> None:
    failures = sshd.log.count("Failed publickey")
    reach(sshd.config("web1")).open()
    assert sshd.log.count("Failed publickey") == failures


def test_identityagent_none_means_no_agent(sshd: Sshd, reach: Callable[..., Remote], agent: Path) -> None:
    reach(sshd.config("web1", "IdentityAgent none", "IdentitiesOnly no")).open()


def test_identityagent_names_another_agent(
    sshd: Sshd, reach: Callable[..., Remote], agent: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    subprocess.run(["ssh-add", "-q", "-D"], check=True, capture_output=True)
    add_to_agent(sshd.client_key)
    monkeypatch.delenv("SSH_AUTH_SOCK")
    block = sshd.config("web1", f"IdentityAgent {agent}", "IdentitiesOnly no")
    assert (
        reach(block.replace(f"{sshd.client_key}", f"{tmp_path / 'none'}")).run(Command(("true",))).exit_code
        == 0
    )


# Jump hosts


@pytest.fixture(scope="module")
def bastion(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with Sshd(tmp_path_factory.mktemp("bastion"), settings="LogLevel DEBUG1") as server:
        yield server


def test_hosts_behind_the_same_jump_host_share_one_connection_to_it(
    sshd: Sshd, bastion: Sshd, tmp_path: Path
) -> None:
    names = ["web1", "web2", "web3"]
    blocks = [sshd.config(name, "ProxyJump bastion") for name in names]
    config = write_config(tmp_path / "config", bastion.config("bastion"), *blocks)
    logins = bastion.log.count("Accepted publickey")
    with Fleet([Host(name) for name in names], connector(config, 5)) as fleet:
        outcomes = fleet.map(lambda remote: remote.run(Command(("echo", remote.name))).stdout)
        assert outcomes == {name: Ok(f"{name}\n") for name in names}
        assert bastion.log.count("Accepted publickey") == logins + 1
    eventually(lambda: not bastion.sessions())


def test_jump_hosts_are_passed_in_the_order_in_which_they_are_written(
    sshd: Sshd, bastion: Sshd, reach: Callable[..., Remote], tmp_path: Path
) -> None:
    """The second one may only be reached from the first, as far as it can tell: it is asked last."""
    with Sshd(tmp_path / "inner", settings="LogLevel DEBUG1") as inner:
        block = sshd.config("web1", "ProxyJump bastion,inner")
        assert (
            reach(bastion.config("bastion"), inner.config("inner"), block).run(Command(("true",))).exit_code
            == 0
        )
        assert f"127.0.0.1 port {inner.port}" in bastion.log
        assert f"127.0.0.1 port {sshd.port}" in inner.log
        assert f"127.0.0.1 port {bastion.port}" not in inner.log


def test_a_jump_hosts_key_is_verified_too(
    sshd: Sshd, bastion: Sshd, reach: Callable[..., Remote], tmp_path: Path
) -> None:
    gate = bastion.config("bastion", f"UserKnownHostsFile {tmp_path / 'none'}")
    with pytest.raises(HostKeyRejected, match="bastion is not in known_hosts"):
        reach(gate, sshd.config("web1", "ProxyJump bastion")).open()


def test_the_key_of_a_host_behind_a_jump_host_is_verified(
    sshd: Sshd, bastion: Sshd, reach: Callable[..., Remote], tmp_path: Path
) -> None:
    block = sshd.config("web1", "ProxyJump bastion", f"UserKnownHostsFile {tmp_path / 'none'}")
    with pytest.raises(HostKeyRejected, match="web1 is not in known_hosts"):
        reach(bastion.config("bastion"), block).open()


def test_a_jump_host_that_covers_itself_is_reached_directly(
    sshd: Sshd, bastion: Sshd, reach: Callable[..., Remote]
) -> None:
    everybody = "Host *\nProxyJump bastion\n"
    remote = reach(bastion.config("bastion"), sshd.config("web1"), everybody)
    assert remote.run(Command(("true",))).exit_code == 0


def test_jump_hosts_in_a_circle_are_the_users_to_mend(reach: Callable[..., Remote]) -> None:
    with pytest.raises(UsageError, match="one -> two -> one"):
        reach("Host one\nProxyJump two\nHost two\nProxyJump one\n", name="one").open()


def test_a_dead_jump_host_is_tried_once_for_all_who_wait_for_it(sshd: Sshd, tmp_path: Path) -> None:
    names = [f"web{number}" for number in range(6)]
    blocks = [sshd.config(name, "ProxyJump bastion") for name in names]
    with black_hole() as port:
        gate = f"Host bastion\nHostName 127.0.0.1\nPort {port}\n"
        config = write_config(tmp_path / "config", gate, *blocks)
        begun = time.monotonic()
        with Fleet([Host(name) for name in names], connector(config, 0.5)) as fleet:
            outcomes = fleet.connect()
    assert all(isinstance(outcome, Unreached) for outcome in outcomes.values())
    assert time.monotonic() - begun < 2, "they queued up"


def test_a_host_that_its_jump_host_cannot_reach_is_unreachable(
    bastion: Sshd, reach: Callable[..., Remote]
) -> None:
    gone = f"Host web1\nHostName 127.0.0.1\nPort {free_port()}\nProxyJump bastion\n"
    with pytest.raises(Unreachable, match="bastion finds no way to 127"):
        reach(bastion.config("bastion"), gone).open()


def test_proxycommand_is_run_by_a_shell_and_ends_with_the_connection(
    sshd: Sshd, reach: Callable[..., Remote], tmp_path: Path
) -> None:
    relay = tmp_path / "relay.py"
    relay.write_text(
        "import os, socket, sys, threading\n"
        "open(sys.argv[3], 'w').write(str(os.getpid()))\n"
        "link = socket.create_connection((sys.argv[1], int(sys.argv[2])))\n"
        "def up():\n"
        "    while data := os.read(0, 65536): link.sendall(data)\n"
        "    os._exit(0)\n"
        "threading.Thread(target=up).start()\n"
        "while data := link.recv(65536): os.write(1, data)\n"
        "os._exit(0)\n"
    )
    pid = tmp_path / "pid"
    remote = reach(sshd.config("web1", f'ProxyCommand python3 {relay} %h %p "$(echo {pid})"'))
    assert remote.run(Command(("echo", "through"))).stdout == "through\n"
    process = int(pid.read_text())
    remote.close()
    assert not Path(f"/proc/{process}").exists()


# Hosts that can't be reached


@contextlib.contextmanager
def black_hole(*, accepts: bool = True) -> Iterator[int]:
    """A port that never answers: connections are accepted and left alone, or not even accepted."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(50 if accepts else 0)
        port = listener.getsockname()[1]
        for _ in range(0 if accepts else 3):  # until its queue is full
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                filler.connect(("127.0.0.1", port))
        yield port


def at(address: str, port: int) -> str:
    return f"Host web1\nHostName {address}\nPort {port}\nUserKnownHostsFile none\nGlobalKnownHostsFile none\n"


def test_a_wrong_port_is_said_to_be_refused(reach: Callable[..., Remote]) -> None:
    port = free_port()
    with pytest.raises(Unreachable, match=f"port {port}: connection refused") as refused:
        reach(at("127.0.0.1", port)).open()
    assert refused.value.exit_code == 6
    assert refused.value.next


def test_a_name_without_an_address_is_said_to_have_none(reach: Callable[..., Remote]) -> None:
    with pytest.raises(Unreachable, match=r"web1\.invalid has no address") as unknown:
        reach(at("web1.invalid", 22)).open()
    assert "HostName" in str(unknown.value.next)


@pytest.mark.parametrize(("accepts", "said"), [(True, "not answer as an ssh server"), (False, "no answer")])
def test_silence_is_given_up_in_time(reach: Callable[..., Remote], accepts: bool, said: str) -> None:
    with black_hole(accepts=accepts) as port:
        begun = time.monotonic()
        with pytest.raises(Unreachable, match=said):
            reach(at("127.0.0.1", port), timeout=0.5).open()
        assert time.monotonic() - begun < 2


def test_connecttimeout_of_ssh_config_counts_where_nothing_else_is_said(reach: Callable[..., Remote]) -> None:
    with black_hole() as port:
        begun = time.monotonic()
        with pytest.raises(Unreachable):
            reach(at("127.0.0.1", port) + "ConnectTimeout 1\n", timeout=None).open()
        assert 1 <= time.monotonic() - begun < 3


def test_failed_attempts_leave_nothing_open(reach: Callable[..., Remote], tmp_path: Path) -> None:
    with Sshd(tmp_path / "sshd") as server:
        remote = reach(server.config("web1", f"UserKnownHostsFile {tmp_path / 'none'}"))
        files = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            with pytest.raises(HostKeyRejected):
                remote.open()
        eventually(lambda: not server.sessions())
        eventually(lambda: len(os.listdir("/proc/self/fd")) <= files)


# Conversations


def test_a_program_is_given_what_it_asks_for(remote: Remote) -> None:
    asks = 'read -r one; echo "more than $one"; head -c 3000000 | sha256sum'
    heard = []

    def dialog(talk: Talk) -> None:
        talk.send(b"this\n")
        heard.append(talk.read_line())
        talk.send(b"x" * 3_000_000)

    ended = remote.run(Command(("sh", "-c", asks)), dialog=dialog)

    assert heard == [b"more than this"]
    assert ended.stdout.splitlines() == [heard[0].decode(), f"{sha256(b'x' * 3_000_000).hexdigest()}  -"]


def test_a_program_that_ends_before_it_was_given_everything_is_heard_all_the_same(remote: Remote) -> None:
    def dialog(talk: Talk) -> None:
        while True:
            talk.send(b"x" * (1 << 20))

    ended = remote.run(Command(("sh", "-c", "echo no room; exit 3")), dialog=dialog)

    assert (ended.exit_code, ended.stdout) == (3, "no room\n")


def test_a_conversation_may_take_longer_than_its_time_out_but_not_be_silent_for_longer(fresh: Remote) -> None:
    waits = Command(("sh", "-c", "for n in 1 2 3 4; do echo $n; sleep 0.4; done; sleep 60"), timeout=1.2)
    heard = []

    def dialog(talk: Talk) -> None:
        while True:
            heard.append(talk.read_line())

    with pytest.raises(StillRunning):
        fresh.run(waits, dialog=dialog)
    assert heard == [b"1", b"2", b"3", b"4"]


def test_a_link_that_dies_in_a_conversation_is_lost(sshd: Sshd, fresh: Remote) -> None:
    def dialog(talk: Talk) -> None:
        talk.read_line()
        sshd.kill_sessions()
        while True:
            talk.send(b"x" * (1 << 20))

    with pytest.raises(LinkLost, match="web1"):
        fresh.run(Command(("sh", "-c", "echo begin; cat >/dev/null")), dialog=dialog)
