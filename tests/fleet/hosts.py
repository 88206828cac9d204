"""One Debian host of a fleet, and what happens to real machines as one-liners.

    host.run(["systemctl", "is-active", "lighttpd"])     as root, not over ssh
    host.reboot()                                        through systemd; returns when it is reachable again
    host.power_off(); host.boot()                        the plug pulled: what was on its disk is on its disk
    host.link_down(); host.link_up()                     the network cable
    host.delay(100)                                      every round trip takes 100 ms longer
    host.kill("sshd")                                    as a crash would; systemd starts it again
    host.fill_disk(free=4096); host.free_disk()          4 KiB left, really
    host.small_disk("/srv", free=4096)                   the same on a disk of its own for /srv
    host.power_off_before(["mv", "a", "b"], "rename")    the plug pulled right before that system call

Whatever is done to it, the host is reached from behind, through its namespaces.
"""

from __future__ import annotations

import http.client
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.fleet import network
from tests.fleet.images import Image
from tests.fleet.keeper import INSIDE, Place, inside, joining, processes
from tests.support.webhost import Reply, read_reply

# $1: the host's directory in the holder's namespaces, $2: its name there, $3: its address, $4: the images.
UNPACK = f"""
mkdir "$1"
mount -t tmpfs -o mode=755 "$2" "$1"
mkdir "$1/changes" "$1/work" "$1/root"
mount -t overlay -o "lowerdir=$4,upperdir=$1/changes,workdir=$1/work" overlay "$1/root"
set -- "$1/net" "$2" "$3"
{network.PLUG}"""
# systemd as it sees a machine with cgroup v2 alone, also where this machine still has v1. systemd 256 and
# newer boot on nothing else.
ENVIRONMENT = ["env", "UNIFIED_CGROUP_HIERARCHY=1"]
NSPAWN = [
    *("systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit", "--console=read-only"),
    *("--resolv-conf=off", "--timezone=off", "--link-journal=no"),
]
# nspawn ends with 133 where the host wants to be booted again.
BOOTS = 'while code=0; "$@" || code=$?; [ "$code" = 133 ]; do :; done; exit "$code"'
# $1: where a tmpfs is mounted, $2, $3: how many bytes and inodes it has left, or nothing for plenty.
RESIZE = """
size=75% inodes=1000000
[ -z "$2" ] || size=$(($(stat -f -c '(%b - %f) * %S' "$1") + $2))
[ -z "$3" ] || inodes=$(($(stat -f -c '%c - %d' "$1") + $3))
mount -o "remount,size=$size,nr_inodes=$inodes" "$1"
"""
NAMESPACES = ["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wd"]
# nsenter that forks stops itself when its child is stopped, which systemd does with all processes at a
# shutdown; then a zombie that nobody waits for holds up the end of the host. So a shell waits.
WAITING = ["--no-fork", "sh", "-c", '"$@"; exit $?', "sh"]
SLOW_CABLE = Path(__file__).with_name("slowcable.py")
TRACE = "/run/fleet.strace"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Host:
    """One host; `Fleet` makes them.

    Attributes:
        name: its host name, by which ssh_config and the other hosts know it.
        address: its IPv4 address, reachable from this machine while it runs.
        suite: bookworm or trixie.
        host_key: its public ssh key, as "kind base64".
    """

    def __init__(
        self, place: Place, holder: int, name: str, address: str, suite: str, images: Sequence[Image]
    ) -> None:
        self.name, self.address, self.suite = name, address, suite
        self.host_key = ""
        self._place, self._holder, self._images = place, holder, images
        self._inside = INSIDE / name
        self._leader = 0
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._cable: subprocess.Popen[str] | None = None

    def __repr__(self) -> str:
        return f"<Host {self.name} {self.address} {self.suite}>"

    # -- life -----------------------------------------------------------------------------------

    def unpack(self) -> None:
        """Give it a disk and a network, before its first boot."""
        lower = ":".join(str(image.tree) for image in self._images)
        self._in_fleet("sh", "-euc", UNPACK, "sh", str(self._inside), self.name, self.address, lower)

    def boot(self, *, wait: bool = True) -> None:
        """Switch it on, and wait until sshd and lighttpd answer (see `wait_until_reachable`)."""
        assert not self.is_running, f"{self.name} is running"
        self._in_fleet("ip", "link", "set", self.name, "up")
        cgroups = self._place.cgroups(self.name)
        for cgroup in cgroups:
            cgroup.mkdir(exist_ok=True)
        nspawn = [*NSPAWN, f"--directory={self._inside}/root", f"--machine={self.name}"]
        nspawn.append(f"--network-namespace-path={self._inside}/net")
        once = joining(cgroups, inside(self._holder, *ENVIRONMENT, *nspawn))
        with self.console.open("ab") as console:
            self._nspawn = subprocess.Popen(
                ["sh", "-c", BOOTS, "sh", *once],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,  # Ctrl-C in the terminal isn't the hosts' business
            )
        if wait:
            self.wait_until_reachable()

    def wait_until_reachable(self, seconds: float = 120) -> None:
        """Wait until its sshd says hello and its lighttpd accepts connections.

        Raises AssertionError with what its console said, where it ends or takes longer.
        """

        for what, port, greeting in (("sshd", 22, b"SSH-"), ("lighttpd", 80, b"")):
            # One after the other: sshd of trixie shuts out who connects again and again without logging in.
            def answers(port: int = port, greeting: bytes = greeting) -> bool:
                assert self.is_running, f"{self.name} ended while it booted:\n{self.console_text}"
                return _greets(self.address, port, greeting)

            wait_until(answers, lambda what=what: f"{what} of {self.name}:\n{self.console_text}", seconds)  # type: ignore[misc]

    def stop(self) -> None:
        """Shut it down in good order."""
        self.run(["systemctl", "poweroff", "--no-wall"], check=False)  # it may be ended by it
        self._wait_for_end()

    def reboot(self) -> None:
        """Shut it down in good order and boot it again; returns when it is reachable."""
        before = self.leader
        self.run(["systemctl", "reboot", "--no-wall"], check=False)  # it may be ended by it

        def again() -> bool:
            return any(_is_init(pid) for pid in self.pids() if pid != before)

        wait_until(again, lambda: f"{self.name} to boot again:\n{self.console_text}", 120)
        self.wait_until_reachable()

    def power_off(self) -> None:
        """Pull the plug: every process is gone at once, nothing is told, the disk keeps what was written."""
        subprocess.run(["kill", "-KILL", str(self.leader)], check=True)
        self._wait_for_end()

    @property
    def is_running(self) -> bool:
        return self._nspawn is not None and self._nspawn.poll() is None

    @property
    def boot_id(self) -> str:
        """Another one after every boot."""
        return self.read("/proc/sys/kernel/random/boot_id").strip()

    # -- what is in it --------------------------------------------------------------------------

    def run(
        self,
        argv: Sequence[str] | str,
        *,
        user: str = "root",
        check: bool = True,
        input: str | None = None,
        timeout: float = 60,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in it (a string is a line for sh) without ssh, to its end.

        Raises AssertionError with what it printed where it fails, unless `check` is false.
        """
        done = subprocess.run(
            self.entering(argv, user=user, env=env),
            stdin=subprocess.DEVNULL if input is None else None,
            input=input,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert not check or done.returncode == 0, (
            f"{self.name}: {argv} ended with {done.returncode}\n{done.stdout}{done.stderr}"
        )
        return done

    def start(self, argv: Sequence[str] | str, *, user: str = "root") -> subprocess.Popen[str]:
        """Begin a command in it; the caller waits for its end. It ends with the host at the latest."""
        return subprocess.Popen(
            self.entering(argv, user=user),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def entering(
        self, argv: Sequence[str] | str, *, user: str = "root", env: Mapping[str, str] | None = None
    ) -> list[str]:
        """The argv that runs a command in it, from this machine."""
        command = ["sh", "-c", argv] if isinstance(argv, str) else list(argv)
        if user != "root":
            command = ["runuser", "-u", user, "--", *command]
        variables = {"PATH": PATH, "HOME": "/root", "LANG": "C.UTF-8", **(env or {})}
        settings = [f"{name}={value}" for name, value in variables.items()]
        enter = ["nsenter", f"--target={self.leader}", *NAMESPACES, *WAITING]
        return [*enter, "env", "-i", *settings, *command]

    def read(self, path: str) -> str:
        """A file in it."""
        return self.run(["cat", path]).stdout

    def write(self, path: str, text: str, *, mode: int = 0o644, owner: str = "root") -> None:
        """Write a file in it, made with its directories where it is missing."""
        script = 'mkdir -p "$(dirname "$1")" && cat >"$1" && chmod "$2" "$1" && chown "$3:" "$1"'
        self.run(["sh", "-euc", script, "sh", path, f"{mode:o}", owner], input=text)

    def exists(self, path: str) -> bool:
        return self.run(["test", "-e", path], check=False).returncode == 0

    def pids(self, name: str = "") -> list[int]:
        """The processes in it, by their ids on this machine; with `name` those whose name begins so."""
        found = []
        for pid in processes(self._place.cgroups(self.name)[0]):
            try:
                comm = Path(f"/proc/{pid}/comm").read_text().strip()
            except OSError:
                continue
            if comm.startswith(name):
                found.append(pid)
        return found

    @property
    def memory(self) -> int:
        """What its processes take, in bytes; what they share with others counts by its share (PSS)."""
        total = 0
        for pid in self.pids():
            try:
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            except OSError:
                continue
            total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
        return total

    def request(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        timeout: float = 20,
    ) -> Reply:
        """One HTTP request from this machine, on a connection of its own."""
        connection = http.client.HTTPConnection(self.address, timeout=timeout)
        try:
            connection.request(method, path, body=body, headers=dict(headers or {}))
            return read_reply(connection)
        finally:
            connection.close()

    def get(self, path: str = "/", *, headers: Mapping[str, str] | None = None) -> Reply:
        return self.request("GET", path, headers=headers)

    # -- what happens to it ---------------------------------------------------------------------

    def kill(self, name: str) -> None:
        """Kill every process whose name begins so (sshd, lighttpd), as a crash would.

        Where its unit says Restart=on-failure, as both do in Debian, systemd starts it again.
        """
        pids = self.pids(name)
        assert pids, f"no {name} runs on {self.name}"
        subprocess.run(["kill", "-KILL", *map(str, pids)], check=False)
        wait_until(lambda: not set(pids) & set(self.pids()), lambda: f"{name} of {self.name} to be gone")

    def link_down(self) -> None:
        """Pull the network cable."""
        self._ip("link", "set", "eth0", "down")

    def link_up(self) -> None:
        """Put the network cable back."""
        self._ip("link", "set", "eth0", "up")

    def delay(self, milliseconds: float) -> None:
        """Let every round trip over its cable take so much longer; 0 is the quick cable again."""
        if self._cable is not None:
            self._cable.communicate()  # the end of its standard input
            self._cable = None
        if milliseconds:
            argv = [sys.executable, str(SLOW_CABLE), self.name, str(milliseconds / 2000)]
            self._cable = subprocess.Popen(
                inside(self._holder, *argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            assert self._cable.stdout is not None
            assert self._cable.stdout.readline() == "in place\n"

    def fill_disk(self, *, free: int = 0, inodes: int | None = None) -> None:
        """Leave `free` bytes on its disk (whole pages of 4096), and `inodes` more files, until `free_disk`.

        A boot changes nothing about it. /run and /dev are no disks.
        """
        self._in_fleet("sh", "-euc", RESIZE, "sh", str(self._inside), str(free), _or_nothing(inodes))

    def free_disk(self) -> None:
        """Plenty of space again."""
        self._in_fleet("sh", "-euc", RESIZE, "sh", str(self._inside), "", "")

    def small_disk(self, path: str, *, free: int = 0, inodes: int | None = None) -> None:
        """Give a directory a disk of its own, with its content and so much left; see `fill_disk`.

        Once more for the same directory, it changes what is left. Gone after a boot, with all that was
        written to it.
        """
        script = f"""
        resize() {{ {RESIZE} }}
        if findmnt --noheadings --source small --mountpoint "$1" >/dev/null; then
          resize "$1" "$2" "$3"
          exit
        fi
        disk=$(mktemp -d)
        mount -t tmpfs -o mode=755 small "$disk"
        chown --reference="$1" "$disk"
        chmod --reference="$1" "$disk"
        cp -a "$1/." "$disk"
        resize "$disk" "$2" "$3"
        mount --bind "$disk" "$1"
        umount "$disk"
        rmdir "$disk"
        """
        self.run(["sh", "-euc", script, "sh", path, str(free), _or_nothing(inodes)])

    def power_off_before(
        self, argv: Sequence[str], calls: str = "rename,renameat,renameat2", nth: int = 1, user: str = "root"
    ) -> bool:
        """Run a command, and pull the plug right before one of its processes makes its nth such system call.

        What was written before is on the disk, synced or not: in that a real disk is worse. Returns False,
        with the host running, where the command ended without making so many.
        """
        self.run(["rm", "-f", TRACE])
        stop = f"inject={calls}:error=EINTR:signal=SIGSTOP:when={nth}"
        command = ["strace", "-f", "-qq", "-o", TRACE, "-e", f"trace={calls}", "-e", stop, "--", *argv]
        process = self.start(command, user=user)
        reached = False
        while not reached and process.poll() is None:
            reached = "--- stopped by SIGSTOP ---" in self.run(["cat", TRACE], check=False).stdout
            time.sleep(0.01)
        if reached:
            self.power_off()
        process.communicate()
        return reached

    # -- how ------------------------------------------------------------------------------------

    @property
    def console(self) -> Path:
        """What it printed on its console, over all its boots."""
        return self._place.directory / f"{self.name}.console"

    @property
    def console_text(self) -> str:
        return self.console.read_text(errors="replace")[-4000:]

    @property
    def root(self) -> Path:
        """Its disk before it boots. Afterwards only its own view is true: use `run`, `read` and `write`."""
        return Path(f"/proc/{self._holder}/root{self._inside}/root")

    @property
    def base(self) -> Path:
        """The image below all others, as this machine sees it."""
        return self._images[-1].tree

    @property
    def leader(self) -> int:
        """Its systemd's process id on this machine."""
        if not self._leads(self._leader):
            leaders = [pid for pid in self.pids() if _is_init(pid)]
            assert leaders, f"{self.name} is not running"
            self._leader = leaders[0]
        return self._leader

    def _leads(self, pid: int) -> bool:
        """Whether it is still this host's, which is cheaper to ask than to look through all its processes."""
        try:
            cgroups = Path(f"/proc/{pid}/cgroup").read_text()
        except OSError:
            return False
        return f"/{self._place.name}/{self.name}/" in cgroups and _is_init(pid)

    def _in_fleet(self, *argv: str) -> str:
        done = subprocess.run(
            inside(self._holder, *argv), capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, f"{self.name}: {shlex.join(argv)}: {done.stderr}"
        return done.stdout

    def _ip(self, *words: str) -> None:
        self._in_fleet("nsenter", f"--net={self._inside}/net", "ip", *words)

    def _wait_for_end(self) -> None:
        assert self._nspawn is not None
        self._nspawn.wait(60)
        # Its network namespace is still there, and the kernel would refuse connections in its name.
        self._in_fleet("ip", "link", "set", self.name, "down")


def wait_until(condition: Callable[[], object], what: Callable[[], str], seconds: float = 60) -> None:
    """Poll until `condition()` is true; AssertionError with `what()` after so many seconds."""
    deadline, pause = time.monotonic() + seconds, 0.01
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what()}"
        time.sleep(pause)
        pause = min(pause * 1.2, 0.06)  # a look may be a process of its own


def _or_nothing(number: int | None) -> str:
    return "" if number is None else str(number)


def _is_init(pid: int) -> bool:
    """Whether it is process 1 of a namespace inside the fleet's own."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    ids = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()[1:]
    return len(ids) > 2 and ids[-1] == "1" and "\nState:\tZ" not in status


def _greets(address: str, port: int, greeting: bytes) -> bool:
    """Whether it accepts a connection there, and begins with `greeting`."""
    try:
        with socket.create_connection((address, port), timeout=1) as connection:
            return not greeting or connection.recv(len(greeting)) == greeting
    except OSError:
        return False
