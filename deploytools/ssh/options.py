"""What ssh itself would do for a host name: `ssh -G` is asked, so that ssh_config has one reader.

OpenSSH's own answer takes Include, Match, canonical names and the system-wide file into account,
which paramiko's parser does not; it costs about 4 ms per host.
"""

from __future__ import annotations

import os
import pwd
import re
import shlex
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deploytools.errors import UsageError

# Seconds for `ssh -G`, which only waits for something where it makes a name canonical by DNS.
PATIENCE = 30.0

# What ssh itself takes for a name on its command line: no option, nothing that a shell would obey.
_NAME = r"(?!-)[^\s\x00-\x1f\x7f:@\[\]'`\"$\\;&<>|(){}]+"
_USER = r"(?!-)[^\s\x00-\x1f\x7f'`\"$\\;&<>|(){}]+"
_HOP = re.compile(
    rf"(?:ssh://)?(?:(?P<user>{_USER})@)?(?:\[(?P<literal>(?!-)[\w.:%-]+)\]|(?P<host>{_NAME}))"
    r"(?::(?P<port>\d{1,5}))?"
)


@dataclass(frozen=True)
class Hop:
    """A jump host as ProxyJump spells it; None is for what ssh_config says."""

    host: str
    user: str | None = None
    port: int | None = None

    def __str__(self) -> str:
        return self.host


@dataclass(frozen=True)
class SshOptions:
    """How to get to one host, from ssh_config and the defaults of ssh.

    Args:
        address: what to connect to (HostName).
        identity_files: private keys to offer, in order; some may not exist.
        identities_only: True where the agent may offer no other keys than those.
        agent: the socket of the ssh-agent; None for no agent.
        jump: ProxyJump, for instance "bastion" or "me@one,two:2222".
        proxy_command: ProxyCommand with its tokens replaced; a line for /bin/sh, as in ssh.
        key_names: what the host's key may be filed under in known_hosts, best first.
        known_hosts: the files to look into; some may not exist.
        alive_interval: seconds of silence after which the other side is asked for a sign of life.
        alive_count: how many such intervals without an answer mean that the link is dead.
        connect_timeout: seconds; None where ssh_config doesn't say.
        by_hand: the `ssh` command that does the same by hand, up to the remote command.
    """

    address: str
    user: str
    port: int
    identity_files: tuple[Path, ...]
    identities_only: bool
    agent: str | None
    jump: str | None
    proxy_command: str | None
    key_names: tuple[str, ...]
    known_hosts: tuple[Path, ...]
    alive_interval: int
    alive_count: int
    connect_timeout: float | None
    by_hand: tuple[str, ...]


def resolve(
    name: str,
    user: str | None = None,
    port: int | None = None,
    *,
    config: Path | None = None,
    jump: str | None = None,
) -> SshOptions:
    """Ask ssh how it would connect to `name`.

    Args:
        user, port, jump: take the place of what ssh_config says.
        config: read instead of ~/.ssh/config and /etc/ssh/ssh_config.

    Raises UsageError where ssh is missing or can't make sense of its configuration.
    """
    arguments = [
        *(["-F", str(config)] if config else []),
        *(["-l", user] if user else []),
        *(["-p", str(port)] if port else []),
        *(["-J", jump] if jump else []),
    ]
    raw = _ask(["-T", "-G", *arguments, "--", name], name)
    home = pwd.getpwuid(os.getuid()).pw_dir  # as ssh does; it takes no notice of $HOME
    address, login, number = _one(raw, "hostname") or name, _one(raw, "user") or "", _one(raw, "port") or "22"
    alias = _one(raw, "hostkeyalias")
    tokens = {
        "%%": "%",
        "%d": home,
        "%h": address,
        "%n": name,
        "%p": number,
        "%r": login,
        "%u": pwd.getpwuid(os.getuid()).pw_name,
        "%i": str(os.getuid()),
        "%k": alias or name,
        "%l": socket.gethostname(),
        "%L": socket.gethostname().split(".")[0],
    }
    files = f"{_one(raw, 'userknownhostsfile') or ''} {_one(raw, 'globalknownhostsfile') or ''}".split()
    proxy_command = _one(raw, "proxycommand")
    timeout = _one(raw, "connecttimeout")
    return SshOptions(
        address=address,
        user=login,
        port=int(number),
        identity_files=tuple(_path(text, tokens, home) for text in raw.get("identityfile", ())),
        identities_only=_one(raw, "identitiesonly") == "yes",
        agent=_agent(raw.get("identityagent", ["SSH_AUTH_SOCK"])[0], tokens, home),
        jump=_one(raw, "proxyjump"),
        proxy_command=_replace(proxy_command, tokens) if proxy_command else None,
        key_names=_key_names(alias, address, int(number)),
        known_hosts=tuple(_path(text, tokens, home) for text in files if text != "none"),
        alive_interval=int(_one(raw, "serveraliveinterval") or 0) or 15,
        alive_count=int(_one(raw, "serveralivecountmax") or 0) or 3,
        connect_timeout=float(timeout) if timeout else None,
        by_hand=("ssh", *arguments, name),
    )


def parse_hop(text: str) -> Hop:
    """`me@bastion:2222` and `ssh://me@bastion` -> Hop. Raises UsageError where it is neither."""
    match = _HOP.fullmatch(text.strip())
    if match is None:
        raise UsageError(
            f"ProxyJump names {text!r}, which is no [user@]host[:port]",
            where="ssh_config",
            next="mend ProxyJump there",
        )
    port = match["port"]
    return Hop(match["literal"] or match["host"], match["user"], int(port) if port else None)


def _ask(arguments: list[str], name: str) -> dict[str, list[str]]:
    try:
        answer = subprocess.run(
            ["ssh", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
            start_new_session=True,  # Ctrl-C is not for it
        )
    except FileNotFoundError as error:
        raise UsageError(
            "the program ssh is missing on this machine; its configuration decides how hosts are reached",
            next="install the OpenSSH client (Debian: apt install openssh-client)",
        ) from error
    except subprocess.TimeoutExpired as error:
        raise UsageError(
            f"ssh did not finish reading its configuration in {PATIENCE:g} s",
            where=name,
            next=shlex.join(["ssh", *arguments]),
        ) from error
    if answer.returncode != 0:
        lines = answer.stderr.strip().splitlines() or [f"it ended with exit code {answer.returncode}"]
        raise UsageError(
            f"ssh can't tell how to reach {name}: {lines[0]}",
            where=name,
            details=lines[1:],
            next=shlex.join(["ssh", *arguments]),
        )
    raw: dict[str, list[str]] = {}
    for line in answer.stdout.splitlines():
        key, _, value = line.partition(" ")
        raw.setdefault(key.lower(), []).append(value)
    return raw


def _one(raw: Mapping[str, list[str]], key: str) -> str | None:
    value = raw.get(key, ["none"])[0].strip()
    return None if value in ("", "none") else value


def _replace(text: str, tokens: Mapping[str, str]) -> str:
    return re.sub("%.", lambda match: tokens.get(match[0], match[0]), text)


def _path(text: str, tokens: Mapping[str, str], home: str) -> Path:
    text = _replace(text, tokens)
    return Path(home + text[1:] if text == "~" or text.startswith("~/") else text)


def _agent(text: str, tokens: Mapping[str, str], home: str) -> str | None:
    if text == "none":
        return None
    if text == "SSH_AUTH_SOCK" or text.startswith("$"):
        return os.environ.get(text.strip("${}"))
    return str(_path(text, tokens, home))


def _key_names(alias: str | None, address: str, port: int) -> tuple[str, ...]:
    if alias:
        return (alias,)
    # A key that was filed without a port counts for every port, as in ssh.
    return (address,) if port == 22 else (f"[{address}]:{port}", address)
