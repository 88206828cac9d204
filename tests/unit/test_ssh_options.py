"""How ssh would connect: ssh_config is read by ssh itself."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from deploytools.errors import UsageError
from deploytools.ssh.options import Hop, SshOptions, parse_hop, resolve

ME = pwd.getpwuid(os.getuid())


def options(tmp_path: Path, text: str, name: str = "web1", **given: object) -> SshOptions:
    config = tmp_path / "config"
    config.write_text(text)
    return resolve(name, config=config, **given)  # type: ignore[arg-type]


def test_without_any_configuration_a_name_is_its_own_address(tmp_path: Path) -> None:
    found = options(tmp_path, "")
    assert (found.address, found.user, found.port) == ("web1", ME.pw_name, 22)
    assert (found.jump, found.proxy_command, found.connect_timeout) == (None, None, None)
    assert (found.alive_interval, found.alive_count) == (15, 3)
    assert Path(ME.pw_dir, ".ssh/known_hosts") in found.known_hosts
    assert Path("/etc/ssh/ssh_known_hosts") in found.known_hosts
    assert Path(ME.pw_dir, ".ssh/id_ed25519") in found.identity_files


def test_ssh_config_says_the_rest(tmp_path: Path) -> None:
    found = options(
        tmp_path,
        """
        Host web?
            HostName 10.0.0.%n
            User deploy
            Port 2222
            IdentityFile ~/keys/%r@%h
            IdentitiesOnly yes
            ProxyJump me@bastion
            ServerAliveInterval 5
            ServerAliveCountMax 4
            ConnectTimeout 7
            UserKnownHostsFile ~/hosts /etc/hosts.known
            GlobalKnownHostsFile none
        """.replace("%n", "1"),
    )
    assert (found.address, found.user, found.port) == ("10.0.0.1", "deploy", 2222)
    assert found.identity_files == (Path(ME.pw_dir, "keys/deploy@10.0.0.1"),)
    assert found.identities_only
    assert found.jump == "me@bastion"
    assert (found.alive_interval, found.alive_count, found.connect_timeout) == (5, 4, 7)
    assert found.known_hosts == (Path(ME.pw_dir, "hosts"), Path("/etc/hosts.known"))


def test_what_the_settings_say_wins(tmp_path: Path) -> None:
    found = options(tmp_path, "User nobody\nPort 1\nProxyJump one\n", user="deploy", port=2222, jump="two")
    assert (found.user, found.port, found.jump) == ("deploy", 2222, "two")


def test_proxycommand_has_its_tokens_replaced(tmp_path: Path) -> None:
    found = options(tmp_path, "HostName 10.0.0.1\nPort 2222\nUser u\nProxyCommand nc %h %p %r %n 100%%\n")
    assert found.proxy_command == "nc 10.0.0.1 2222 u web1 100%"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("HostName Web1.Example.com", ("web1.example.com",)),
        ("HostName 10.0.0.1\nPort 2222", ("[10.0.0.1]:2222", "10.0.0.1")),
        ("HostKeyAlias cluster\nPort 2222", ("cluster",)),
    ],
)
def test_a_key_is_filed_under_the_address_or_the_alias(
    tmp_path: Path, text: str, names: tuple[str, ...]
) -> None:
    assert options(tmp_path, text).key_names == names


@pytest.mark.parametrize(
    ("text", "agent"),
    [
        ("", "/run/agent"),
        ("IdentityAgent none", None),
        ("IdentityAgent SSH_AUTH_SOCK", "/run/agent"),
        ("IdentityAgent $MY_AGENT", "/run/mine"),
        ("IdentityAgent ~/agent", f"{ME.pw_dir}/agent"),
    ],
)
def test_the_agent_is_the_one_that_ssh_would_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, agent: str | None
) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", "/run/agent")
    monkeypatch.setenv("MY_AGENT", "/run/mine")
    assert options(tmp_path, text).agent == agent


def test_the_command_by_hand_is_the_same(tmp_path: Path) -> None:
    found = options(tmp_path, "", user="deploy", port=2222)
    assert found.by_hand == ("ssh", "-F", str(tmp_path / "config"), "-l", "deploy", "-p", "2222", "web1")


def test_a_name_that_looks_like_an_option_is_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        options(tmp_path, "", name="-oProxyCommand=touch x")


def test_a_broken_configuration_is_told_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="line 2: Bad configuration option: nosuchoption") as told:
        options(tmp_path, "User me\nNoSuchOption 1\n")
    assert str(told.value.next).startswith("ssh -T -G -F ")


def test_without_ssh_on_this_machine_its_package_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="ssh is missing") as told:
        resolve("web1")
    assert "openssh-client" in str(told.value.next)


@pytest.mark.parametrize(
    ("text", "hop"),
    [
        ("bastion", Hop("bastion")),
        ("me@bastion:2222", Hop("bastion", "me", 2222)),
        ("ssh://me@bastion:2222", Hop("bastion", "me", 2222)),
        ("me@realm@bastion", Hop("bastion", "me@realm")),
        ("[::1]:22", Hop("::1", None, 22)),
        ("me@[fe80::1]", Hop("fe80::1", "me")),
    ],
)
def test_a_jump_host_is_read_as_ssh_reads_it(text: str, hop: Hop) -> None:
    assert parse_hop(text) == hop


@pytest.mark.parametrize(
    "text",
    ["a:b:c", "-oProxyCommand=x", "-l@x", "x;id", "$(id)", "a b", "a\nb", "@x", "me@", "[-x]", "[a b]", "[]"],
)
def test_what_is_no_jump_host_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="ProxyJump"):
        parse_hop(text)
