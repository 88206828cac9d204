"""Getting in with paramiko: whom we believe (host keys), who we say we are (our keys), what went wrong."""

from __future__ import annotations

import base64
import contextlib
import shlex
import socket
import threading
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from paramiko import PKey, SSHException, Transport
from paramiko.agent import AgentKey, AgentSSH
from paramiko.auth_strategy import AuthFailure, AuthSource, AuthStrategy, InMemoryPrivateKey
from paramiko.client import MissingHostKeyPolicy, SSHClient

from deploytools.errors import HostKeyRejected, Unreachable
from deploytools.ssh import known_hosts
from deploytools.ssh.known_hosts import KnownKey
from deploytools.ssh.options import SshOptions

# Seconds for one of our keys to be accepted: a person may have to touch a token or confirm in the agent.
PATIENCE = 30.0

# Every host's thread wants the same keys at the same time.
_LOADING = threading.Lock()


def transport_factory(options: SshOptions) -> Callable[..., Transport]:
    """What makes paramiko's transport over a socket, tuned for short commands and known keys."""
    known = {key.kind for key in _on_file(options)}
    if "ssh-rsa" in known:
        known |= {"rsa-sha2-512", "rsa-sha2-256"}

    def make(sock: Any, disabled_algorithms: Any = None) -> Transport:
        if isinstance(sock, socket.socket) and sock.family != socket.AF_UNIX:
            _tune(sock, options)
        transport = Transport(sock, disabled_algorithms=disabled_algorithms)
        security = transport.get_security_options()
        # Ask for a key of a kind that we have on file; a host has several.
        security.key_types = sorted(security.key_types, key=lambda kind: kind not in known)
        return transport

    return make


def _tune(sock: socket.socket, options: SshOptions) -> None:
    # With Nagle's algorithm a warm command takes three times as long.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # paramiko never looks for answers to its keepalives; this way the kernel does (Linux only).
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        milliseconds = options.alive_interval * options.alive_count * 1000
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)


class KnownHostsOnly(MissingHostKeyPolicy):
    """Accepts a key that known_hosts has on file, and no other; StrictHostKeyChecking changes nothing.

    paramiko's client is given no keys of its own, so that every key comes by here.
    """

    def __init__(self, name: str, options: SshOptions) -> None:
        self._name, self._options = name, options

    def missing_host_key(self, client: SSHClient, hostname: str, key: PKey) -> None:
        """Raise HostKeyRejected, or return where the key is the host's."""
        on_file, blob = _on_file(self._options), key.asbytes()
        markers = {entry.marker for entry in on_file if entry.blob == blob}
        if "" not in markers or "@revoked" in markers:
            raise _rejected(self._name, self._options, key.get_name(), blob, on_file)


def _on_file(options: SshOptions) -> tuple[KnownKey, ...]:
    return known_hosts.look_up(options.key_names, options.known_hosts)


def _rejected(
    name: str, options: SshOptions, kind: str, blob: bytes, on_file: tuple[KnownKey, ...]
) -> HostKeyRejected:
    fingerprint = known_hosts.fingerprint(blob)
    # A host's files are called ssh_host_ed25519_key, ssh_host_ecdsa_key, ssh_host_rsa_key.
    file = f"/etc/ssh/ssh_host_{kind.removeprefix('ssh-').split('-')[0]}_key.pub"
    ask = shlex.join(["ssh", "-o", "StrictHostKeyChecking=ask", *options.by_hand[1:], "true"])
    details = [
        f"its {kind} key is {fingerprint}",
        f"on the host itself this prints the same, if nobody is in between: ssh-keygen -lf {file}",
    ]
    for key in on_file:
        details.append(
            f"on file: {key.marker or 'valid'} {key.kind} {key.fingerprint}, {key.file}:{key.line}"
        )
        if key.marker == "@cert-authority":
            details.append("host certificates are not supported: put the host's own key on file")
    if any(key.blob == blob and key.marker == "@revoked" for key in on_file):
        what = f"the host key of {name} is marked as revoked"
        remedy = f"make new host keys on {name}, then: {ask}"
    elif any(key.kind == kind and not key.marker for key in on_file):
        what = f"the host key of {name} has changed: somebody may be in between"
        files = sorted({str(key.file) for key in on_file if not key.marker})
        forget = [shlex.join(["ssh-keygen", "-R", options.key_names[0], "-f", file]) for file in files]
        remedy = f"if the host was set up anew: {'; '.join([*forget, ask])}"
    else:
        what = f"the host key of {name} is not in known_hosts"
        remedy = f"{ask}   (answer yes only if it shows this fingerprint)"
        details.append(f"looked for {' and '.join(options.key_names)} in: {_list(options.known_hosts)}")
    return HostKeyRejected(
        what, where=_where(name, options), state="nothing was sent to it", next=remedy, details=details
    )


class Keys(AuthStrategy):
    """Our keys in ssh's order: those of the agent, the ones that ssh_config names first, then files.

    Attributes:
        notes: what became of each key, a line each.
    """

    def __init__(self, options: SshOptions) -> None:
        super().__init__(ssh_config=None)  # type: ignore[arg-type]  # `options` has read it
        self._options = options
        self.notes: list[str] = []

    def get_sources(self) -> Iterator[AuthSource]:
        """Yield one key after the other until the host accepts one."""
        user = self._options.user
        files = [(path, *self._load(path)) for path in self._options.identity_files]
        named = [blob for _, blob, _ in files if blob]
        with contextlib.closing(_Agent(self._options.agent)) as agent:
            held = [key.asbytes() for key in agent.get_keys()]
            for key in _in_order(agent.get_keys(), named, only=self._options.identities_only):
                self.notes.append(f"refused: {known_hosts.fingerprint(key.asbytes())} of the ssh-agent")
                yield InMemoryPrivateKey(user, key)
        for path, blob, private in files:
            if private is not None and blob not in held:
                self.notes.append(f"refused: {known_hosts.fingerprint(private.asbytes())} in {path}")
                yield InMemoryPrivateKey(user, private)

    def _load(self, path: Path) -> tuple[bytes | None, PKey | None]:
        """The public and the private half of an identity; None for what is out of reach."""
        try:
            private = _private_key(path)
            return private.asbytes(), private
        except FileNotFoundError:
            pass
        except TypeError:  # how `cryptography` says that it is encrypted
            self.notes.append(f"needs its passphrase: {path} (ssh-add {shlex.quote(str(path))})")
        except (ValueError, OSError, SSHException) as error:
            if path.suffix != ".pub":  # the public half may stand for a key that the agent holds
                self.notes.append(f"can't be used: {path}: {error}")
        for public in (path, Path(f"{path}.pub")):
            with contextlib.suppress(OSError, ValueError, IndexError):
                return base64.b64decode(public.read_text().split()[1], validate=True), None
        return None, None


def _private_key(path: Path) -> PKey:
    """The key in a file, loaded once for all hosts: OpenSSL checks an RSA key for a tenth of a second.

    Raises what PKey.from_path raises.
    """
    about = path.stat()
    with _LOADING:
        return _loaded(path, about.st_mtime_ns, about.st_size)


@lru_cache
def _loaded(path: Path, _changed: int, _size: int) -> PKey:
    return PKey.from_path(path)


def _in_order(keys: tuple[AgentKey, ...], named: list[bytes], *, only: bool) -> list[AgentKey]:
    first = sorted(
        (key for key in keys if key.asbytes() in named), key=lambda key: named.index(key.asbytes())
    )
    return first if only else [*first, *(key for key in keys if key.asbytes() not in named)]


class _Agent(AgentSSH):
    """The agent at a given socket. paramiko's own Agent knows only $SSH_AUTH_SOCK, not IdentityAgent."""

    def __init__(self, path: str | None) -> None:
        super().__init__()
        if path is None:
            return
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(PATIENCE)
        try:
            sock.connect(path)
            self._connect(sock)  # type: ignore[attr-defined]
        except (OSError, SSHException):
            sock.close()  # no agent, no keys

    def close(self) -> None:
        self._close()  # type: ignore[attr-defined]


def unreachable(error: Exception, name: str, options: SshOptions, timeout: float) -> Unreachable:
    """Given why connecting failed, return it in words, with its remedy."""
    at, details = f"{options.address} port {options.port}", []
    by_hand = shlex.join([*options.by_hand[:1], "-v", *options.by_hand[1:], "true"])
    if isinstance(error, socket.gaierror):
        what = f"the name {options.address} has no address: {error.strerror}"
        remedy = "correct the host in fabric.yaml or HostName in ssh_config, or look at the DNS"
    elif isinstance(error, ConnectionRefusedError):
        what = f"nothing listens at {at}: connection refused"
        remedy = "check the port, and that sshd runs there"
    elif isinstance(error, TimeoutError):
        what = f"no answer from {at} within {timeout:g} s"
        remedy = "check that the host is up, and that no firewall or missing VPN is in the way"
    elif isinstance(error, AuthFailure):
        keys = error.result.strategy
        assert isinstance(keys, Keys)
        what = f"{name} does not let {options.user} in with any of our keys"
        details = keys.notes or [
            f"there is no key to offer: no ssh-agent, and none of {_list(options.identity_files)}"
        ]
        remedy = f"ssh-add, or put a public key into ~/.ssh/authorized_keys of {options.user} there"
    elif isinstance(error, SSHException) and "banner" in str(error):
        what = f"{at} does not answer as an ssh server"
        remedy = f"check the port; an overloaded sshd does this too (MaxStartups): {by_hand}"
    elif isinstance(error, OSError):
        what, remedy = f"no way to {at}: {error.strerror or error}", "check the network, a VPN for instance"
    else:
        what, remedy = f"{at} answers, but no connection came about: {error or 'it hung up'}", by_hand
    return Unreachable(
        what, where=_where(name, options), state="nothing was sent to it", next=remedy, details=details
    )


def _where(name: str, options: SshOptions) -> str:
    way = f", through {options.jump}" if options.jump else ""
    way = f", by ProxyCommand {options.proxy_command}" if options.proxy_command else way
    return f"{name} ({options.address} port {options.port}{way})"


def _list(paths: tuple[Path, ...]) -> str:
    return ", ".join(map(str, paths)) or "no file"
