"""The application that the tests of `swap` deploy, as WSGI: run by flup (`python3 app.py`) or by uWSGI.

It does nothing for the sake of a graceful stop. What it answers is told in tests/support/runtimes.
Its environment tells how to misbehave: START_DELAY (seconds before it listens or accepts), EXIT
(status, at once), STATUS (of all answers), BEHIND_WEB_STATUS (of answers to a web server, but not to
a probe), SICK (a path that is answered by 500), SICK_BEHIND_WEB (one that is where a web server asks),
CRASH_BEHIND_WEB (when a web server asks), IGNORE_TERM,
LEAK (seconds for which a child keeps the listener, in a session of its own).
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

BIG = 300_000
STREAMED = 2_000_000


def application(environ, start_response):
    path = environ["REQUEST_URI"].partition("?")[0]
    query = environ["QUERY_STRING"]
    behind_web = "lighttpd" in environ.get("SERVER_SOFTWARE", "")
    status = os.environ.get("STATUS", "200")
    if behind_web:
        status = os.environ.get("BEHIND_WEB_STATUS", status)
    if path == os.environ.get("SICK") or (behind_web and path == os.environ.get("SICK_BEHIND_WEB")):
        status = "500"
    if path == "/crash" or (behind_web and "CRASH_BEHIND_WEB" in os.environ):
        os.kill(0, signal.SIGKILL)
    headers = [
        ("Content-Type", "application/octet-stream"),
        ("X-Generation", os.environ["DEPLOYTOOLS_GENERATION"]),
        ("X-Release", os.environ["DEPLOYTOOLS_RELEASE"]),
    ]
    start_response(f"{status} Whatever", headers)
    if path == "/stream":
        return stream(query)
    return [body(path, query, environ)]


def body(path, query, environ):
    if path == "/slow":
        print("slow begins", flush=True)
        time.sleep(float(query))
    elif path == "/until":
        print("until begins", flush=True)
        wait_for(query)
    elif path == "/big":
        return b"x" * BIG
    elif path == "/echo":
        return environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
    elif path == "/self":
        return json.dumps(describe()).encode()
    return f"hello from {os.environ['DEPLOYTOOLS_RELEASE']}".encode()


def stream(file):
    yield b"x" * (STREAMED // 2)
    wait_for(file)
    yield b"x" * (STREAMED // 2)


def wait_for(file):
    while not os.path.exists(file):
        time.sleep(0.005)


def describe():
    descriptors = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            descriptors[name] = os.readlink(f"/proc/self/fd/{name}")
    return {
        "descriptors": descriptors,
        "environment": dict(os.environ),
        "directory": os.getcwd(),
        "ids": [*os.getresuid(), *os.getresgid(), *os.getgroups()],
        "pid": os.getpid(),
        "session": os.getsid(0),
    }


def main():
    from flup.server.fcgi import WSGIServer

    class Server(WSGIServer):
        def _installSignalHandlers(self):
            """flup would go on for up to a second; most applications would not."""

        def _restoreSignalHandlers(self):
            pass

    print("generation", os.environ["DEPLOYTOOLS_GENERATION"], "begins", flush=True)
    if "IGNORE_TERM" in os.environ:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "LEAK" in os.environ:
        subprocess.Popen(["sleep", os.environ["LEAK"]], stdin=0, start_new_session=True)
    time.sleep(float(os.environ.get("START_DELAY", "0")))
    if "EXIT" in os.environ:
        print("no database, I give up", file=sys.stderr, flush=True)
        sys.exit(int(os.environ["EXIT"]))
    Server(application, bindAddress=os.environ.get("APP_SOCKET")).run()


if __name__ == "__main__":
    main()
