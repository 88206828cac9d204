"""Which keys known_hosts has on file for a host, in the format of sshd(8)."""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path

import pytest

from deploytools.ssh.known_hosts import fingerprint, look_up

KEY, OTHER = (base64.b64encode(b"key").decode(), base64.b64encode(b"other").decode())


def kinds(tmp_path: Path, text: str, *names: str) -> list[tuple[str, str]]:
    file = tmp_path / "known_hosts"
    file.write_text(text)
    return [(key.marker, key.kind) for key in look_up(names, [file])]


@pytest.mark.parametrize(
    ("patterns", "name", "matches"),
    [
        ("web1", "web1", True),
        ("web1", "WEB1", True),
        ("web1", "web10", False),
        ("web2,web1,10.0.0.1", "web1", True),
        ("*.example.com", "web1.example.com", True),
        ("*.example.com", "example.com", False),
        ("web?", "web1", True),
        ("web?", "web12", False),
        ("*.example.com,!web1.example.com", "web1.example.com", False),
        ("!web1.example.com,*.example.com", "web2.example.com", True),
        ("!web1", "web2", False),
        ("[web1]:2222", "[web1]:2222", True),
        ("[web1]:2222", "web1", False),
        ("[web1]:2222", "w", False),
        ("|1|broken", "web1", False),
    ],
)
def test_a_line_counts_for_the_hosts_that_its_patterns_name(
    tmp_path: Path, patterns: str, name: str, matches: bool
) -> None:
    assert bool(kinds(tmp_path, f"{patterns} ssh-ed25519 {KEY} comment\n", name)) is matches


def test_names_that_ssh_keygen_hashed_are_found(tmp_path: Path) -> None:
    file, pair = tmp_path / "known_hosts", tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", pair], check=True)
    public = " ".join((tmp_path / "key.pub").read_text().split()[:2])
    file.write_text(f"[web1]:2222 {public}\n")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", file], check=True, capture_output=True)
    (key,) = look_up(["[web1]:2222"], [file])
    assert look_up(["web1"], [file]) == ()
    printed = subprocess.run(["ssh-keygen", "-lf", pair], check=True, capture_output=True, text=True).stdout
    assert key.fingerprint == printed.split()[1]


def test_every_key_of_a_host_counts_in_the_order_of_the_files(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text(f"web1 ssh-ed25519 {KEY}\n\n# a comment\nweb1 ssh-ed25519 {OTHER}\n")
    two.write_text(f"web1 ssh-rsa {KEY}\n")
    assert [(key.file, key.line, key.kind, key.blob) for key in look_up(["web1"], [one, two])] == [
        (one, 1, "ssh-ed25519", b"key"),
        (one, 4, "ssh-ed25519", b"other"),
        (two, 1, "ssh-rsa", b"key"),
    ]


def test_a_later_name_counts_only_where_nothing_is_on_file_for_an_earlier_one(tmp_path: Path) -> None:
    plain, with_port = f"web1 ssh-rsa {KEY}\n", f"[web1]:2222 ssh-ed25519 {KEY}\n"
    assert kinds(tmp_path, plain, "[web1]:2222", "web1") == [("", "ssh-rsa")]
    assert kinds(tmp_path, plain + with_port, "[web1]:2222", "web1") == [("", "ssh-ed25519")]


def test_a_revoked_key_counts_under_any_name(tmp_path: Path) -> None:
    text = f"[web1]:2222 ssh-ed25519 {KEY}\n@revoked web1 ssh-ed25519 {KEY}\n"
    assert kinds(tmp_path, text, "[web1]:2222", "web1") == [("", "ssh-ed25519"), ("@revoked", "ssh-ed25519")]


def test_an_authority_is_told_apart_from_a_key(tmp_path: Path) -> None:
    text = f"@cert-authority *.example.com ssh-rsa {KEY}\n"
    assert kinds(tmp_path, text, "web1.example.com") == [("@cert-authority", "ssh-rsa")]


@pytest.mark.parametrize(
    "line", ["web1", "web1 ssh-rsa", "web1 ssh-rsa ===", "@revoked", "\x00\xff", "@ web1 x"]
)
def test_lines_that_make_no_sense_are_passed_over(tmp_path: Path, line: str) -> None:
    assert kinds(tmp_path, f"{line}\nweb1 ssh-ed25519 {KEY}\n", "web1") == [("", "ssh-ed25519")]


def test_a_file_that_is_not_there_holds_no_key(tmp_path: Path) -> None:
    assert look_up(["web1"], [tmp_path / "missing", tmp_path]) == ()


def test_a_fingerprint_is_written_as_ssh_writes_it() -> None:
    assert fingerprint(b"") == "SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU"


def test_a_file_that_has_changed_is_read_again(tmp_path: Path) -> None:
    assert kinds(tmp_path, f"web1 ssh-rsa {KEY}\n", "web1") == [("", "ssh-rsa")]
    assert kinds(tmp_path, f"web1 ssh-ed25519 {KEY}\n", "web1") == [("", "ssh-ed25519")]
    (tmp_path / "known_hosts").unlink()
    assert look_up(["web1"], [tmp_path / "known_hosts"]) == ()
