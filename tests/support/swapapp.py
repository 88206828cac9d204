"""The application that the tests of `swap` deploy: flup, and nothing for the sake of a graceful stop.

It dies at once on SIGTERM, whatever it is doing. Its environment tells how to misbehave:
START_DELAY (seconds before it listens or accepts), EXIT (status, at once), STATUS (of all answers),
BEHIND_WEB_STATUS (of answers to a web server, but not to a probe), IGNORE_TERM.
"""

import contextlib
import json
import os
import signal
import sys
import time

from flup.server.fcgi import WSGIServer


class Server(WSGIServer):
    def _installSignalHandlers(self):
        """flup would go on for up to a second; most applications would not."""

    def _restoreSignalHandlers(self):
        pass


def application(environ, start_response):
    path = environ["REQUEST_URI"].partition("?")[0]
    body = b"hello"
    if path == "/slow":
        print("slow begins", flush=True)
        time.sleep(float(environ["QUERY_STRING"]))
    elif path == "/big":
        body = b"x" * 300_000
    elif path == "/echo":
        body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
    elif path == "/self":
        body = json.dumps(describe()).encode()
    status = os.environ.get("STATUS", "200")
    if "lighttpd" in environ["SERVER_SOFTWARE"]:
        status = os.environ.get("BEHIND_WEB_STATUS", status)
    headers = [
        ("X-Generation", os.environ["DEPLOYTOOLS_GENERATION"]),
        ("X-Release", os.environ["DEPLOYTOOLS_RELEASE"]),
    ]
    start_response(f"{status} Whatever", headers)
    return [body]


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


if __name__ == "__main__":
    print("generation", os.environ["DEPLOYTOOLS_GENERATION"], "begins", flush=True)
    if "IGNORE_TERM" in os.environ:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(float(os.environ.get("START_DELAY", "0")))
    if "EXIT" in os.environ:
        print("no database, I give up", file=sys.stderr, flush=True)
        sys.exit(int(os.environ["EXIT"]))
    Server(application, bindAddress=os.environ.get("APP_SOCKET")).run()
