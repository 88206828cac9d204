"""The process that a generation begins with: python3 -IS generation_runner.py [--supervise FD]

DEPLOYTOOLS_START in its environment tells how the application is to be run: see `launch`. Under systemd it
becomes the application. With --supervise it stays the first process of the generation, starts the
application, and starts it again whenever it ends; the listening socket stays open meanwhile, so what
waits there is answered. It then writes to FD what `direct` reads: the application's pid, how often it was
started again, and how it ended last.

It imports as little as it can, because every swap waits for it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pwd
import signal
import sys
import time

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 10.0  # seconds before the application is started again; it doubles
LONG_ENOUGH = 10.0  # seconds after which an end counts as the first one again
ALL_SIGNALS = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
WHEN_WRITING = (signal.SIGPIPE, signal.SIGXFSZ)  # a log that can't be written must not end the supervisor
PR_SET_CHILD_SUBREAPER = 36  # prctl(2)
NOT_STARTED = 127  # as a shell has it
HINTS = {0: " (it must stay in the foreground)", NOT_STARTED: " (is there such a program?)"}
LIFE_SIZE = 512  # bytes


def main() -> None:
    # What our parents ignored, such as SIGCHLD or SIGHUP, would be ignored by the application, too.
    for number in ALL_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    start = json.loads(os.environ["DEPLOYTOOLS_START"])
    if os.environ.get("LISTEN_FDS"):  # systemd passes a socket as descriptor 3
        os.dup2(3, 0)
        os.close(3)
    elif start["listen"] == "fd0" and not is_socket(0):
        sys.exit("its socket is not there: systemctl start the .socket unit along with the .service")
    os.umask(0o022)
    if os.geteuid() == 0:
        become(start["user"])
    os.chdir(start["directory"])
    # A clean environment: nothing of an operator's shell or of systemd reaches the application.
    os.environ.clear()
    os.environ.update(start["env"])
    own_socket = start["env"]["APP_SOCKET"] if start["listen"] == "path" else None
    if "word" in start:
        wait_for_the_word(start["word"])
    if sys.argv[1:2] == ["--supervise"]:
        return Supervisor(start["argv"], int(sys.argv[2]), own_socket).run()
    if own_socket:
        remove_stale(own_socket)
    try:
        os.execvp(start["argv"][0], start["argv"])
    except OSError as error:
        print(f"{start['argv'][0]} can't be started: {error.strerror}", file=sys.stderr)
        sys.exit(NOT_STARTED)


def is_socket(descriptor: int) -> bool:
    return os.readlink(f"/proc/self/fd/{descriptor}").startswith("socket:")


def become(user: str) -> None:
    account = pwd.getpwnam(user)
    os.initgroups(user, account.pw_gid)
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)


def wait_for_the_word(fifo: str) -> None:
    """Where this generation stands by: until `swap` writes to `fifo`, which it has removed then."""
    with contextlib.suppress(FileNotFoundError), open(fifo, "rb", buffering=0) as word:
        word.read(1)


def remove_stale(path: str) -> None:
    """Remove the socket that an application left when it crashed: not every one can bind to it again."""
    if not os.path.exists(path):
        return
    import socket  # 5 ms, after a crash only

    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)
        if client.connect_ex(path) == errno.ECONNREFUSED:  # else a child of it accepts there
            os.unlink(path)


class Supervisor:
    """Runs `argv` again and again until SIGTERM, which it passes on; then it ends with its last process.

    What the application starts stays among its descendants, even a process that makes itself a daemon.
    """

    def __init__(self, argv: list[str], life: int, own_socket: str | None) -> None:
        self.argv, self.life, self.own_socket = argv, life, own_socket
        self.child = 0
        self.restarts = 0
        self.ended: str | None = None
        self.asked_to_end = False
        os.set_inheritable(life, False)
        import ctypes  # which swap, importing `how_it_ended`, does without

        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        for number in WHEN_WRITING:
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self.end)

    def run(self) -> None:
        pause = FIRST_PAUSE
        while True:
            began = time.monotonic()
            self.start()
            self.wait()
            if self.asked_to_end:
                return self.wait_for_the_rest()
            if time.monotonic() - began > LONG_ENOUGH:
                pause = FIRST_PAUSE
            with contextlib.suppress(OSError):  # a full disk must not end us
                print(f"{self.argv[0]}: {self.ended}; started again in {pause:g} s", file=sys.stderr)
            time.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)
            self.restarts += 1

    def start(self) -> None:
        """In a session of its own: an application may signal its whole process group."""
        if self.own_socket:
            remove_stale(self.own_socket)
        try:
            # A SIGTERM waits until we know whom to pass it on to.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            self.child = os.posix_spawnp(
                self.argv[0],
                self.argv,
                os.environ,
                setsid=True,
                setsigmask=(),
                setsigdef=WHEN_WRITING,
            )
        except OSError as error:
            self.ended = f"it can't be started: {error.strerror}: {self.argv[0]}"
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        self.tell()

    def wait(self) -> None:
        """Until the application's first process ends; others that end meanwhile are orphans of it."""
        while self.child:
            pid, status = os.wait()
            if pid == self.child:
                self.child, self.ended = 0, how_it_ended(os.waitstatus_to_exitcode(status))
                self.tell()

    def wait_for_the_rest(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                os.wait()

    def tell(self) -> None:
        """In one short write over the one before, so that a reader never sees a part."""
        told = {"pid": self.child or None, "restarts": self.restarts, "ended": self.ended}
        with contextlib.suppress(OSError):
            told["start_time"] = start_time(self.child) if self.child else None
            os.pwrite(self.life, json.dumps(told).ljust(LIFE_SIZE).encode(), 0)

    def end(self, *_: object) -> None:
        self.asked_to_end = True
        if self.child:
            with contextlib.suppress(ProcessLookupError):  # it ended at this moment
                os.kill(self.child, signal.SIGTERM)
        else:
            self.wait_for_the_rest()
            sys.exit()


def start_time(pid: int) -> int:
    """In clock ticks after boot: see proc_pid_stat(5). Told along with a pid, which may be given again."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[19])


def how_it_ended(code: int) -> str:
    """Given an exit status, or a negative signal number, return it in words."""
    if code < 0:
        return f"it was ended by signal {-code} ({signal.strsignal(-code)})"
    return f"it ended with exit status {code}{HINTS.get(code, '')}"


if __name__ == "__main__":
    main()
