"""Clients that ask a web host without a pause, and everything that they saw.

with Load(host, allow={"app": is_app, "maintenance": is_page}) as load:
    ...
assert load.strange == []
"""

from __future__ import annotations

import http.client
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping

from tests.support.webhost import Reply, WebHost, read_reply


class Load:
    """`clients` threads; every second one keeps its connection as long as the server does.

    An answer counts in `seen` under the first name of `allow` whose test it passes; any other answer,
    and every refused, reset or cut connection, is written down in `strange`. Bounded by `seconds` and
    `requests` (over all clients).
    """

    def __init__(
        self,
        host: WebHost,
        *,
        allow: Mapping[str, Callable[[Reply], bool]],
        clients: int = 4,
        path: str = "/",
        seconds: float = 30,
        requests: int = 200_000,
    ) -> None:
        self.seen: Counter[str] = Counter()
        self.strange: list[str] = []
        self._host, self._allow, self._path = host, allow, path
        self._deadline = time.monotonic() + seconds
        self._left = requests
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(number % 2 == 0,), daemon=True)
            for number in range(clients)
        ]

    @property
    def requests(self) -> int:
        return sum(self.seen.values()) + len(self.strange)

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=15)
        assert not any(thread.is_alive() for thread in self._threads), (
            "a client is still waiting for its answer"
        )

    def _ask(self, keep: bool) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._host.port, timeout=10)
        while not self._stop.is_set() and time.monotonic() < self._deadline and self._left > 0:
            self._left -= 1
            try:
                connection.request("GET", self._path)
                reply = read_reply(connection)
            except (OSError, http.client.HTTPException) as error:
                self.strange.append(repr(error))
                connection.close()
                continue
            name = next((name for name, fits in self._allow.items() if fits(reply)), None)
            if name:
                self.seen[name] += 1
            else:
                self.strange.append(f"{reply.status} {dict(reply.headers)} {reply.body[:80]!r}")
            if not keep:
                connection.close()
        connection.close()
