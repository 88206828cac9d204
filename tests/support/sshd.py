"""A real sshd on 127.0.0.1, with keys of its own, for the current user.

    with Sshd(tmp_path / "web1") as web1, Sshd(tmp_path / "web2") as web2:
        config = write_config(tmp_path / "config", web1=web1, web2=web2)
        subprocess.run(["ssh", "-F", config, "web1", "true"], check=True)

Nothing outside the directory is touched, but that root's sshd insists on /run/sshd. HOME is the directory,
which keeps the user's own shell start-up files out of it. Every process is ended by its own id; the
commands that a killed session leaves behind belong to whoever started them.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from tests.support.ports import free_port

PRIVILEGE_SEPARATION = Path("/run/sshd")


class Sshd:
    """One sshd. `with` starts and stops it.

    Args:
        directory: made where it is missing; holds keys, configuration and log.
        settings: further lines of sshd_config, which come first and so win.
        largest_file: bytes that any of its processes may write into one file: a disk that fills up.
    """

    def __init__(self, directory: Path, *, settings: str = "", largest_file: int | None = None) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.port = free_port()
        self.user = pwd.getpwuid(os.getuid()).pw_name
        self.client_key = directory / "client_key"
        self.known_hosts = directory / "known_hosts"
        self._settings, self._largest_file = settings, largest_file
        self._process: subprocess.Popen[bytes] | None = None
        make_key(self.client_key)
        shutil.copy(public(self.client_key), directory / "authorized_keys")
        self.new_host_key()
        self.trust()

    @property
    def host_key(self) -> str:
        """The public key, as "kind base64"."""
        return " ".join(public(self.directory / "host_key").read_text().split()[:2])

    @property
    def fingerprint(self) -> str:
        """As `ssh-keygen -l` prints it."""
        printed = subprocess.run(
            ["ssh-keygen", "-lf", public(self.directory / "host_key")],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        return printed.split()[1]

    @property
    def log(self) -> str:
        """What it has logged so far, over all its starts."""
        return (self.directory / "log").read_text()

    def config(self, name: str, *lines: str) -> str:
        """A block of ssh_config that reaches it as `name`; `lines` come first and so win."""
        defaults = (
            "HostName 127.0.0.1",
            f"Port {self.port}",
            f"User {self.user}",
            f"IdentityFile {self.client_key}",
            "IdentitiesOnly yes",
            f"UserKnownHostsFile {self.known_hosts}",
            "GlobalKnownHostsFile none",
        )
        return "".join(f"{line}\n" for line in (f"Host {name}", *lines, *defaults))

    def trust(self) -> None:
        """File the present host key in `known_hosts`, in place of all others."""
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {self.host_key}\n")

    def new_host_key(self, kind: str = "ed25519") -> None:
        """Make another host key; it counts from the next start on."""
        for file in (self.directory / "host_key", public(self.directory / "host_key")):
            file.unlink(missing_ok=True)
        make_key(self.directory / "host_key", kind)

    def start(self) -> None:
        """Start it and wait until it answers."""
        if os.geteuid() == 0:
            PRIVILEGE_SEPARATION.mkdir(mode=0o755, exist_ok=True)
        (self.directory / "sshd_config").write_text(self._sshd_config())
        sshd = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
        assert sshd is not None, "sshd is missing: apt install openssh-server"
        argv = [sshd, "-D", "-f", str(self.directory / "sshd_config"), "-E", str(self.directory / "log")]
        if self._largest_file is not None:
            blocks = str(self._largest_file // 512)
            argv = ["sh", "-c", 'trap "" XFSZ; ulimit -f "$0"; exec "$@"', blocks, *argv]
        self._process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 10
        while not _listens(self.port):
            assert self._process.poll() is None, f"sshd ended:\n{self.log}"
            assert time.monotonic() < deadline, f"sshd does not listen:\n{self.log}"
            time.sleep(0.005)

    def stop(self) -> None:
        """End it with all its sessions."""
        if self._process is None:
            return
        sessions = self.sessions()
        self._process.terminate()
        self._process.wait(10)
        self._process = None
        for pid in sessions:
            _kill(pid)

    def restart(self) -> None:
        """Stop and start on the same port."""
        self.stop()
        self.start()

    def sessions(self) -> list[int]:
        """The ids of the sshd processes that serve connections."""
        assert self._process is not None, "it is not running"
        return [pid for pid in _descendants(self._process.pid) if _name(pid).startswith("sshd")]

    def kill_sessions(self) -> None:
        """Cut every connection at once, as a crash would; their commands go on."""
        for pid in self.sessions():
            _kill(pid)

    def __enter__(self) -> Sshd:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _sshd_config(self) -> str:
        return f"""{self._settings}
Port {self.port}
ListenAddress 127.0.0.1
HostKey {self.directory}/host_key
AuthorizedKeysFile {self.directory}/authorized_keys
PidFile none
SetEnv HOME={self.directory}
StrictModes no
UsePAM no
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
PrintMotd no
LogLevel VERBOSE
MaxStartups 100
Subsystem sftp internal-sftp
"""


def write_config(path: Path, *blocks: str) -> Path:
    """Write an ssh_config."""
    path.write_text("\n".join(blocks))
    return path


def make_key(path: Path, kind: str = "ed25519", passphrase: str = "") -> Path:
    """Make a key pair at `path`, unless there is one."""
    if not path.exists():
        subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-f", path], check=True)
    return path


def public(key: Path) -> Path:
    """The file of a key's public half."""
    return key.with_name(f"{key.name}.pub")


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _descendants(pid: int) -> list[int]:
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
    found = [pid]
    for candidate in found:
        found.extend(child for child, parent in parents.items() if parent == candidate)
    return found[1:]


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
