"""Several applications on one host: one lighttpd, with the snippets that `fab setup` writes for each.

    with sites(guestbook={}, forum={"host_header": "forum.example.com"}) as (guestbook, forum):
        forum.run("down")
        assert guestbook.get("/").status == 200

Each is a WebHost of its own, down to its programs and its maintenance directory, but for lighttpd, which
they share.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any

from deploytools.setup import lighttpd
from tests.support.ports import free_port
from tests.support.values import settings
from tests.support.webhost import Reply, WebHost, children, end, wait_until


class SharingHost(WebHost):
    """One of several applications of a host; a request asks for its own name."""

    def __init__(self, application: str, port: int, webserver: Mapping[str, Any]) -> None:
        self._settings = {"url": f"http://127.0.0.1:{port}/", **webserver}
        super().__init__(application=application, config={**self._settings})
        self.port = port
        self.name = webserver.get("host_header") or "anything.example"

    @property
    def snippet(self) -> str:
        """What `fab setup` writes into lighttpd's conf-available."""
        about = {"maintenance_dir": str(self.maintenance_dir), **self._settings}
        return lighttpd.snippet(settings(application=self.application, root=str(self.root), webserver=about))

    def request(self, method: str = "GET", path: str = "/", **given: Any) -> Reply:
        headers = {"Host": self.name, **(given.pop("headers", None) or {})}
        return super().request(method, path, headers=headers, **given)


@contextlib.contextmanager
def sites(*, max_workers: int = 0, **applications: Mapping[str, Any]) -> Iterator[list[SharingHost]]:
    """The applications, each serving; values are keys of `webserver` in fabric.yaml."""
    port = free_port()
    with contextlib.ExitStack() as stack:
        hosts = []
        for name, webserver in applications.items():
            host = SharingHost(name, port, webserver)
            stack.callback(host.__exit__)
            (host.base / "snippet.conf").write_text(host.snippet)
            host.serve()
            hosts.append(host)
        first = hosts[0]
        configuration = first.base / "lighttpd.conf"
        configuration.write_text(
            'server.modules = ("mod_indexfile", "mod_access")\n'
            f'server.document-root = "{first.root / "shared"}"\n'
            f'server.bind = "127.0.0.1"\nserver.port = {port}\nserver.max-worker = {max_workers}\n'
            f'server.errorlog = "{first.root / "log" / "lighttpd.log"}"\n'
            f'server.upload-dirs = ("{first.base / "spool"}")\n'
            + "".join(f'include "{host.base / "snippet.conf"}"\n' for host in hosts)
        )
        process = subprocess.Popen(
            ["/usr/sbin/lighttpd", "-D", "-f", str(configuration)], start_new_session=True
        )
        stack.callback(end, process, group=True)

        def accepts() -> bool:
            assert process.poll() is None, first.lighttpd_log()
            with socket.socket() as probe:
                ready = not probe.connect_ex(("127.0.0.1", port))
                return ready and len(children(process.pid)) >= max_workers

        wait_until(accepts, what="lighttpd accepts")
        yield hosts
