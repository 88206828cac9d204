"""The sandbox's two servers: how they are configured, started and waited for."""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from deploytools.errors import OperationFailed
from deploytools.sandbox import checks, processes
from deploytools.sandbox.layout import HOST, Layout, account

START_TIMEOUT = 15.0  # seconds

LIGHTTPD_CONF = """\
# A small relative of Debian's lighttpd.conf. It runs as whoever started it.
server.modules = (
	"mod_indexfile",
	"mod_access",
	"mod_alias",
	"mod_redirect",
)

server.document-root        = "{host}/var/www/html"
server.upload-dirs          = ( "{host}/var/cache/lighttpd/uploads" )
server.errorlog             = "{logs}/lighttpd.log"
server.bind                 = "127.0.0.1"
server.port                 = {port}

index-file.names            = ( "index.html" )
url.access-deny             = ( "~", ".inc" )

include "conf-enabled/*.conf"

server.modules += (
	"mod_staticfile",
)
"""

SSHD_CONFIG = """\
ListenAddress 127.0.0.1:{port}
HostKey {ssh}/host_key
PidFile none

# One user, one key. sshd asks a command for it rather than reading a file: it refuses a file below a
# directory that others may write to, such as /tmp, and what it read at its start can't be exchanged.
AllowUsers {user}
AuthenticationMethods publickey
AuthorizedKeysFile none
AuthorizedKeysCommand {echo} {key}
AuthorizedKeysCommandUser {user}
PermitRootLogin prohibit-password
UsePAM {pam}

# A home of its own: what the operator's ~/.bashrc does would be done for each command.
SetEnv PATH={path} HOME={home} {mark}={base}
PermitUserRC no
Subsystem sftp internal-sftp
MaxSessions 100
MaxStartups 200
UseDNS no
PrintMotd no
PrintLastLog no
X11Forwarding no
AllowTcpForwarding no
AllowAgentForwarding no
"""

SSH_CONFIG = """\
Host {host}
  HostName 127.0.0.1
  Port {port}
  User {user}
  IdentityFile {ssh}/id_ed25519
  IdentitiesOnly yes
  UserKnownHostsFile {ssh}/known_hosts
  GlobalKnownHostsFile /dev/null
  StrictHostKeyChecking yes
"""


@dataclass(frozen=True)
class Server:
    """A server of the sandbox.

    Args:
        name: what its record and its messages are called.
        argv: the program in the foreground.
        port: where it listens, on 127.0.0.1.
        option: the argument of `sandbox.up` that chooses the port.
        log: where it says why it can't start.
        answers: whether it serves by now; may raise OSError or HTTPException while it doesn't.
    """

    name: str
    argv: tuple[str, ...]
    port: int
    option: str
    log: Path
    record: Path
    answers: Callable[[int], bool]

    @property
    def runs(self) -> bool:
        return processes.recorded(self.record) is not None


def sshd(layout: Layout) -> Server:
    """The ssh server of this sandbox."""
    log = layout.logs / "sshd.log"
    # sshd runs itself again for each connection and so wants an absolute path.
    argv = (checks.program("sshd") or "sshd", "-D", "-f", str(layout.ssh / "sshd_config"), "-E", str(log))
    return Server("sshd", argv, layout.ssh_port, "--ssh-port", log, layout.run / "sshd.stat", _greets)


def lighttpd(layout: Layout) -> Server:
    """The web server of this sandbox."""
    argv = (checks.program("lighttpd") or "lighttpd", "-D", "-f", str(layout.lighttpd / "lighttpd.conf"))
    return Server(
        "lighttpd",
        argv,
        layout.http_port,
        "--http-port",
        layout.logs / "lighttpd.log",
        layout.run / "lighttpd.stat",
        _speaks_http,
    )


def both(layout: Layout) -> tuple[Server, Server]:
    """In the order in which they are started."""
    return sshd(layout), lighttpd(layout)


def configure(layout: Layout) -> None:
    """Write the directories and the configuration of both, keeping keys that are there."""
    directories = [
        layout.lighttpd / "conf-available",
        layout.lighttpd / "conf-enabled",
        layout.home,
        layout.logs,
        layout.run,
        layout.tools.parent,
        layout.application.parent,
        layout.host / "var/www/html",
        layout.host / "var/cache/lighttpd/uploads",
    ]
    for directory in directories:
        directory.mkdir(parents=True, exist_ok=True)
    whole(layout.ssh, _make_keys)
    user = account().pw_name
    lighttpd_conf = LIGHTTPD_CONF.format(host=layout.host, logs=layout.logs, port=layout.http_port)
    (layout.lighttpd / "lighttpd.conf").write_text(lighttpd_conf)
    sshd_config = SSHD_CONFIG.format(
        port=layout.ssh_port,
        ssh=layout.ssh,
        user=user,
        echo=checks.program("echo"),
        key=(layout.ssh / "id_ed25519.pub").read_text().strip(),
        pam="yes" if _needs_pam() else "no",
        path=checks.PATH,
        mark=processes.MARK,
        home=layout.home,
        base=layout.base,
    )
    (layout.ssh / "sshd_config").write_text(sshd_config)
    ssh_config = SSH_CONFIG.format(host=HOST, port=layout.ssh_port, user=user, ssh=layout.ssh)
    (layout.ssh / "config").write_text(ssh_config)
    host_key = (layout.ssh / "host_key.pub").read_text()
    (layout.ssh / "known_hosts").write_text(f"[127.0.0.1]:{layout.ssh_port} {host_key}")


def whole(path: Path, make: Callable[[Path], None]) -> None:
    """Have `make` fill a new directory that becomes `path` when it is complete; keep one that is there."""
    if path.exists():
        return
    unfinished = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        make(unfinished)
        os.replace(unfinished, path)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _make_keys(directory: Path) -> None:
    keygen = checks.program("ssh-keygen") or "ssh-keygen"
    for name in ("host_key", "id_ed25519"):
        argv = [keygen, "-q", "-t", "ed25519", "-N", "", "-C", "sandbox", "-f", str(directory / name)]
        subprocess.run(argv, check=True, capture_output=True, timeout=60)


def _needs_pam() -> bool:
    """Whether sshd lets us in only with PAM: without it, it refuses an account whose password is locked."""
    try:
        accounts = [line.split(":") for line in Path("/etc/shadow").read_text().splitlines()]
    except OSError:
        return False  # An ordinary user's sshd can't read it either, and can't use PAM.
    user = account().pw_name
    return any(account[0] == user and account[1].startswith("!") for account in accounts)


def check(layout: Layout) -> None:
    """Raise OperationFailed where lighttpd refuses its configuration, our part and what was put into it."""
    argv = [checks.program("lighttpd") or "lighttpd", "-tt", "-f", str(layout.lighttpd / "lighttpd.conf")]
    test = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=30)
    if test.returncode != 0:
        raise _failed("lighttpd refuses its configuration", layout.lighttpd, test.stderr)


def start(server: Server, *, timeout: float = START_TIMEOUT) -> None:
    """Start a server and wait until it answers.

    Raises OperationFailed with the end of its log where it ends or doesn't answer within `timeout` seconds.
    """
    if server.name == "sshd" and os.geteuid() == 0:
        # Where it locks up the process that talks to strangers; a machine that never ran sshd lacks it.
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    server.record.unlink(missing_ok=True)
    # The shell records itself and becomes the server: there is no moment at which it runs unrecorded.
    script = 'cat /proc/$$/stat >"$0.new" && mv "$0.new" "$0" && exec "$@"'
    become = ["setsid", "--fork", "sh", "-c", script, str(server.record)]
    with server.log.open("a") as log:
        where = log.tell()
        subprocess.run(
            [*become, *server.argv],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            umask=0o022,
            env={"PATH": checks.PATH, "LANG": "C.UTF-8"},
            check=True,
            timeout=timeout,
        )
    deadline = time.monotonic() + timeout
    while not _answers(server):
        if (server.record.exists() and not server.runs) or time.monotonic() > deadline:
            with server.log.open() as log:
                log.seek(where)
                raise _failed(f"{server.name} doesn't come up on port {server.port}", server.log, log.read())
        time.sleep(0.02)


def _answers(server: Server) -> bool:
    """Whether it is ours that answers: another program may have taken the port in the meantime."""
    try:
        return server.runs and server.answers(server.port)
    except (OSError, http.client.HTTPException):
        return False


def _greets(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
        return connection.recv(4) == b"SSH-"


def _speaks_http(port: int) -> bool:
    """lighttpd answers this one itself, so that it doesn't ask an application that isn't there yet."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("OPTIONS", "*")
        return connection.getresponse().status > 0
    finally:
        connection.close()


def _failed(what: str, where: Path, output: str) -> OperationFailed:
    return OperationFailed(
        what,
        where=str(where),
        state="nothing of the sandbox is left running",
        next="mend what it says below, then: fab sandbox.up",
        details=output.strip().splitlines()[-10:],
    )
