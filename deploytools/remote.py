"""One host over SSH: the sole user of fabric.Connection; with the parts in `ssh`, of paramiko.

Where a host is, who logs in and with which key is ssh's to say (ssh/options). Host keys are always
verified (ssh/login), nothing here waits without a limit, and a command whose end we did not see raises
OutcomeUnknown: it is never taken for failed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shlex
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fabric import Config, Connection
from paramiko import Channel, ChannelException, SSHException, Transport

from deploytools.errors import DeployError, OperationFailed, Unreachable, UsageError
from deploytools.ssh import channel as channels
from deploytools.ssh import login, options
from deploytools.ssh.options import SshOptions
from deploytools.ssh.routes import Gateways, proxy_command
from deploytools.ssh.waiting import Waiting

if TYPE_CHECKING:
    from deploytools.commands import Command

# Seconds to connect, where neither the caller nor ssh_config says.
CONNECT = 10.0
# Seconds beyond a command's own time-out after which the connection is closed under whoever still hangs.
GRACE = 10.0
# Seconds that programs may take to get ready for their turn.
READY = 20.0
# Between two attempts to end a wait that is over its limit, in seconds.
GLANCE = 0.1

# What a waiting program is told.
GO = b"go\n"
# What the end of a connection looks like.
BROKEN = (SSHException, EOFError, OSError)
# paramiko logs tracebacks, and Python prints what nobody handles.
logging.getLogger("paramiko").addHandler(logging.NullHandler())


class Address(Protocol):
    """A host as settings.Host describes it; str() is its name in every message and result."""

    @property
    def host(self) -> str: ...
    @property
    def user(self) -> str | None: ...
    @property
    def port(self) -> int | None: ...


@dataclass(frozen=True)
class Result:
    """How a command ended.

    Args:
        exit_code: the command's own; -1 where a signal killed it.
        stdout, stderr: what it printed, as UTF-8; bytes that are none are replaced.
        seconds: from sending it to its end.
    """

    exit_code: int
    stdout: str
    stderr: str
    seconds: float


class OutcomeUnknown(Exception):
    """A command was sent and we did not see its end: the host has to be asked what became of it.

    Args:
        host: the host's name.
        command: what was sent.
        what: what happened, one sentence.
    """

    def __init__(self, host: str, command: Command | None, what: str) -> None:
        super().__init__(what)
        self.host, self.command = host, command


class LinkLost(OutcomeUnknown):
    """The connection died while the command ran."""


class StillRunning(OutcomeUnknown):
    """Our time-out passed; the command goes on."""


class Remote:
    """One host. For one thread at a time, except `close`, which frees a thread that hangs, and except `ask`.

    Args:
        host: where to; what it leaves open (user, port) is for ssh_config to say.
        ssh_config: read instead of ~/.ssh/config and /etc/ssh/ssh_config.
        connect_timeout: seconds for each step of connecting; ssh_config's or 10 where None.
        gateways: the jump hosts to share with other remotes; its own where None.
    """

    def __init__(
        self,
        host: Address,
        ssh_config: Path | None = None,
        connect_timeout: float | None = None,
        gateways: Gateways | None = None,
        *,
        jump: str | None = None,
        behind: tuple[str, ...] = (),
    ) -> None:
        self.name = str(host)
        # How many commands were begun: tells whether a host may have changed.
        self.sent = 0
        self._host, self._ssh_config, self._jump, self._behind = host, ssh_config, jump, behind
        self._timeout = connect_timeout
        self._gateways = gateways or Gateways()
        self._lock, self._opening = threading.Lock(), threading.Lock()
        self._connection: Connection | None = None
        self._cleanup = contextlib.ExitStack()
        self._unfinished: list[Channel] = []
        self._lingering: list[Channel] = []  # of programs that have answered
        self._waiting = Waiting()
        self._latest: Channel | None = None

    @property
    def alive(self) -> bool:
        """Whether the connection is open, as far as this side can know."""
        connection = self._connection
        return connection is not None and bool(connection.is_connected)

    def open(self) -> None:
        """Connect, where there is no connection or the last one has died.

        Raises Unreachable, HostKeyRejected, or UsageError for a broken ssh_config. No command was sent then.
        """
        if self.alive:
            return
        with self._opening:
            if not self.alive:
                self._open()

    def _open(self) -> None:
        self.close()
        how = options.resolve(
            self._host.host, self._host.user, self._host.port, config=self._ssh_config, jump=self._jump
        )
        timeout = self._timeout or how.connect_timeout or CONNECT
        with contextlib.ExitStack() as undo:
            try:
                connection = self._connect(how, timeout, undo)
            except BROKEN as error:
                raise login.unreachable(error, self.name, how, timeout) from error
            with self._lock:
                self._connection, self._cleanup = connection, undo.pop_all()

    def close(self) -> None:
        """Close the connection, at once: nothing is sent that a dead link could hold up."""
        with self._lock:
            self._connection = None
            cleanup, self._cleanup = self._cleanup, contextlib.ExitStack()
        cleanup.close()
        self._unfinished.clear()
        self._lingering.clear()
        self._waiting.clear()

    def start(self, commands: Sequence[Command]) -> None:
        """Start the programs that can wait for their turn (Command.ahead), all at the same time.

        To tell one to go on, which `run` and `ask` of the same command do, takes one round trip; to start
        it takes two more, and its own time. One that can't be started here is started by them. They have
        changed nothing until they are told, and end with the connection. Raises as `open` does.
        """
        self.open()
        lines = {command.argv: _shell_line(command.ahead) for command in commands if command.ahead}
        self._waiting.start(self._transport(), lines, GRACE)

    def greeting(self, command: Command) -> bytes | None:
        """The line by which a started program says that it waits; None where none waits."""
        channel = self._waiting.get(command.argv)
        if channel is None:
            return None
        try:
            return channels.read_line(channel, time.monotonic() + command.timeout)
        except (channels.TimeUp, *BROKEN):
            return None

    def get_ready(self, commands: Sequence[Command]) -> None:
        """Start programs as `start` does, and return when each of them waits or has failed to."""
        self.start(commands)
        deadline = time.monotonic() + READY
        for command in commands:
            channel = self._waiting.get(command.argv)
            if channel is not None and command.ahead != command.argv:  # which says nothing before it is asked
                with contextlib.suppress(channels.TimeUp, *BROKEN):
                    channels.read_line(channel, deadline)

    def dismiss(self, command: Command) -> None:
        """Let a started program end without having been told to go on."""
        channel = self._waiting.take(command.argv)
        if channel is not None:
            channel.close()

    def run(
        self,
        command: Command,
        on_line: Callable[[str], None] | None = None,
        dialog: Callable[[channels.Talk], None] | None = None,
    ) -> Result:
        """Run a command and return how it ended, whatever its exit code.

        A connection that died in the meantime is opened anew, once, before anything is sent.

        Args:
            on_line: called with each line of its stderr as it comes.
            dialog: talks with the command before it is left to end; its time-out begins anew with every
                sign of life meanwhile.

        Raises Unreachable where it was not sent, LinkLost or StillRunning where it was.
        """
        line, stdin = _shell_line(command.argv), command.stdin or b""
        waiting = self._waiting.take(command.argv)
        channel = waiting or self._session()
        lingers = waiting is not None and not stdin and dialog is None
        begun = time.monotonic()
        with self._limit(command.timeout + GRACE) as again:
            self.sent += 1
            try:
                if waiting is None:
                    channel.exec_command(line)
                else:
                    stdin = GO + stdin
                said = b""
                if dialog is not None:
                    talk = channels.Talk(channel, command.timeout, again)
                    try:
                        dialog(talk)
                    except channels.Ended:
                        pass  # what it has to say of that comes next
                    except DeployError:
                        channel.close()  # which it takes for the end of the link
                        raise
                    channel.settimeout(None)
                    said = bytes(talk.said)
                    again()
                deadline = time.monotonic() + command.timeout
                stdout, stderr = channels.converse(
                    channel, stdin, deadline, on_line, _has_answered if lingers else None
                )
                stdout = said + stdout
            except channels.TimeUp as late:
                # Not closed: that would take away the command's stdout, and SIGPIPE kills.
                self._unfinished.append(channel)
                what = (
                    f"{command.argv[0]} on {self.name} is not done after {command.timeout:g} s, and goes on"
                )
                raise StillRunning(self.name, command, what) from late
            except BROKEN as error:
                if not self._answers():
                    raise self._link_lost(command) from error
                if isinstance(error, SSHException):
                    raise OperationFailed(
                        f"{self.name} refuses to run a command: {error}",
                        where=self.name,
                        state=f"{command.argv[0]} was not run",
                        next="look at the login shell there, and at ForceCommand in its sshd_config",
                    ) from error
                raise
            told = _exit_code(stdout) if lingers else None
            if told is not None:
                self._lingering.append(channel)
            code = self._ended(channel, command) if told is None else told
        seconds = time.monotonic() - begun
        return Result(code, stdout.decode(errors="replace"), stderr.decode(errors="replace"), seconds)

    def _ended(self, channel: Channel, command: Command) -> int:
        """The exit code of a command that has ended. Raises LinkLost where nobody can tell."""
        code, whole = channel.recv_exit_status(), channel.eof_received
        channel.close()
        # No exit code: a signal killed it, or the link went. No end of file: output may be missing.
        if (code == -1 or not whole) and not self._answers():
            raise self._link_lost(command)
        return int(code)

    def ask(self, command: Command, line: bytes) -> bytes:
        """Give a program that answers every line by a line one more, and return its answer.

        The program is started for the first line and stays until the connection is closed.
        Raises Unreachable where the line was not sent; LinkLost or StillRunning where that isn't known.
        """
        channel = self._waiting.get(command.argv)
        if channel is None:
            with self._limit(GRACE):
                channel = self._session()
                channel.exec_command(_shell_line(command.argv))
            self._waiting.keep(command.argv, channel)
        self.sent += 1
        try:
            return channels.exchange(channel, line, time.monotonic() + command.timeout)
        except (channels.TimeUp, *BROKEN) as error:
            self._waiting.take(command.argv)
            channel.close()
            if isinstance(error, channels.TimeUp):
                what = f"{command.argv[0]} on {self.name} gave no answer in {command.timeout:g} s"
                raise StillRunning(self.name, command, what) from error
            raise self._link_lost(command) from error

    def channel_to(self, address: str, port: int, timeout: float) -> Channel:
        """As a jump host: a way from this host to another. Raises Unreachable where there is none."""
        try:
            return self._transport().open_channel("direct-tcpip", (address, port), ("", 0), timeout=timeout)
        except BROKEN as error:
            reason = error.text if isinstance(error, ChannelException) else error
            raise Unreachable(
                f"the jump host {self.name} finds no way to {address} port {port}: {reason}",
                where=self.name,
                state="nothing was sent",
                next=f"on {self.name}: nc -vz {address} {port}",
            ) from error

    def _connect(self, how: SshOptions, timeout: float, undo: contextlib.ExitStack) -> Connection:
        sock = self._socket(how, timeout, undo)
        connection = Connection(
            how.address,
            user=how.user,
            port=how.port,
            config=Config(lazy=True),
            # Never empty: Fabric would fall back to a dictionary that all connections share.
            connect_kwargs={
                "sock": sock,
                "timeout": 2 * timeout,  # for banner and key exchange together
                "banner_timeout": timeout,
                "auth_timeout": login.PATIENCE,
                "channel_timeout": timeout,
                "transport_factory": login.transport_factory(how),
                "auth_strategy": login.Keys(how),
            },
        )
        undo.callback(_hang_up, connection, wait=isinstance(sock, Channel))
        connection.client.set_missing_host_key_policy(login.KnownHostsOnly(self.name, how))
        connection.open()
        if not connection.transport.is_authenticated():
            raise SSHException("it asks for more than a key")
        connection.transport.set_keepalive(how.alive_interval)
        return connection

    def _socket(self, how: SshOptions, timeout: float, undo: contextlib.ExitStack) -> Any:
        if how.proxy_command:
            return proxy_command(how.proxy_command, undo)
        jump = how.jump or ""
        before, _, last = jump.rpartition(",")
        # `Host *` with a ProxyJump covers the jump host too; it is not to be reached through itself.
        if last and options.parse_hop(last).host != self._host.host:
            gateway = self._gateways.lease(jump, lambda: self._gateway(last, before))
            undo.callback(self._gateways.release, jump)
            return gateway.channel_to(how.address, how.port, timeout)
        # Not left to paramiko, which gives up at the first address that doesn't answer.
        sock = socket.create_connection((how.address, how.port), timeout)
        undo.callback(sock.close)
        return sock

    def _gateway(self, hop: str, jump: str) -> Remote:
        """The last jump host before us, itself reached over those in `jump`."""
        behind = (*self._behind, self.name)
        host = options.parse_hop(hop)
        if str(host) in behind:
            raise UsageError(
                f"ProxyJump goes round in circles: {' -> '.join((*behind, str(host)))}",
                where="ssh_config",
                next=f"ssh -G {self.name} | grep proxyjump; then mend ssh_config",
            )
        return Remote(host, self._ssh_config, self._timeout, self._gateways, jump=jump or None, behind=behind)

    def _transport(self) -> Transport:
        connection = self._connection
        if connection is None:
            raise SSHException("not connected")
        transport: Transport = connection.transport
        return transport

    def _session(self) -> Channel:
        """A channel for a command. Nothing has been sent on it, so that a second attempt is safe."""
        self.open()
        with contextlib.suppress(*BROKEN):
            self._latest = self._transport().open_session()
            return self._latest
        self.close()
        self.open()
        try:
            self._latest = self._transport().open_session()
            return self._latest
        except BROKEN as error:
            raise Unreachable(
                f"{self.name} lets us in but starts no session: {error}",
                where=self.name,
                state="nothing was sent to it",
                next=f"look at sshd's log on {self.name}",
            ) from error

    def _answers(self) -> bool:
        """Whether the other side of the connection is still there, by asking it."""
        try:
            self._transport().open_session(timeout=GRACE).close()
        except ChannelException:
            return True
        except BROKEN:
            return False
        return True

    @contextlib.contextmanager
    def _limit(self, seconds: float) -> Iterator[Callable[[], None]]:
        """Close the connection after `seconds`, again and again, which ends every wait on it.

        What is yielded begins the count anew.
        """
        over, ends = threading.Event(), time.monotonic() + seconds

        def again() -> None:
            nonlocal ends
            ends = time.monotonic() + seconds

        def expire() -> None:
            patience = seconds
            while not over.wait(patience):
                patience = ends - time.monotonic()
                if patience > 0:
                    continue
                self.close()
                if self._latest is not None:
                    # paramiko loses a close that comes just before it begins to wait for an answer.
                    self._latest.event.set()
                patience = GLANCE

        threading.Thread(target=expire, daemon=True).start()
        try:
            yield again
        finally:
            over.set()

    def _link_lost(self, command: Command) -> LinkLost:
        self.close()
        what = f"the connection to {self.name} was lost while {command.argv[0]} ran"
        return LinkLost(self.name, command, what)


def connector(
    ssh_config: Path | None = None, connect_timeout: float | None = None
) -> Callable[[Address], Remote]:
    """What makes the remotes of a fleet; those with the same ProxyJump share their jump hosts."""
    gateways = Gateways()
    return lambda host: Remote(host, ssh_config, connect_timeout, gateways)


def _hang_up(connection: Connection, *, wait: bool) -> None:
    """Close a connection, be it only half open: Fabric's own close() would leave that as it is.

    With `wait` its thread ends first, so that it does not meet a jump host that is closed already.
    """
    transport = connection.client.get_transport()
    with contextlib.suppress(*BROKEN):
        connection.client.close()
    if wait and transport is not None and transport.is_alive():
        transport.join(1)


def _exit_code(stdout: bytes) -> int | None:
    """What a host program that lingers says of its exit code, in the last line of its answer."""
    try:
        code = json.loads(stdout[stdout.rstrip().rfind(b"\n") + 1 :])["exit_code"]
    except (ValueError, TypeError, KeyError):
        return None
    return code if isinstance(code, int) else None


def _has_answered(stdout: bytes) -> bool:
    return stdout.endswith(b"\n") and _exit_code(stdout) is not None


def _shell_line(argv: tuple[str, ...]) -> bytes:
    """Each argument quoted for the login shell, which is a POSIX one. Raises UsageError for a NUL."""
    line = shlex.join(argv).encode("utf-8", "surrogateescape")
    if b"\0" in line:
        raise UsageError("a command can't contain a NUL character", where=argv[0])
    return line
