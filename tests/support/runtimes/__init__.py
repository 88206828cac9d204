"""FastCGI runtimes that people run, each with the same small application, and how `swap` is told to start it.

All of them answer, with X-Generation and X-Release:

    /               a greeting
    /slow?SECONDS   the same after a while
    /until?FILE     the same once FILE exists
    /big            BIG bytes
    /stream?FILE    half of STREAMED bytes at once, and the rest once FILE exists
    /echo           the body of the request
    /crash          nothing: every process of the application is killed

The commands are those that docs/runtimes.md recommends.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
BIG = 300_000  # bytes; more than fits into socket buffers
STREAMED = 2_000_000


@dataclass(frozen=True)
class Runtime:
    """A way to run FastCGI applications.

    Args:
        commands: app.command by app.listen.
        install: puts the application into the directory of a release.
        env: app.env.
        document_root: webserver.document_root, for applications of single scripts.
        script: what the paths above come after.
    """

    name: str
    commands: Mapping[str, str]
    install: Callable[[Path], object]
    env: Mapping[str, str] = field(default_factory=dict)
    document_root: str | None = None
    script: str = ""

    def release(
        self,
        tree: Path,
        *,
        listen: str = "fd0",
        env: Mapping[str, str] | None = None,
        health: Mapping[str, Any] | None = None,
        **app: Any,
    ) -> Path:
        """Make the directory `tree` a release of the application; the rest overrides its manifest."""
        tree.mkdir()
        self.install(tree)
        manifest = {
            "id": tree.name,
            "app": {
                "command": self.commands[listen],
                "listen": listen,
                "env": {**self.env, **(env or {})},
                "start_timeout": 60,
                "drain_timeout": 60,
                **app,
            },
            "health": {"path": self.script or "/", **(health or {})},
        }
        (tree / ".deploytools.json").write_text(json.dumps(manifest))
        return tree


def _php(release: Path) -> None:
    (release / "public").mkdir()
    shutil.copy(HERE / "index.php", release / "public")
    shutil.copy(HERE / "php-fpm.conf", release)


def _perl(release: Path) -> None:
    shutil.copy(HERE / "app.pl", release)


def _c(release: Path) -> None:
    source, program = str(HERE / "app.c"), str(release / "app")
    subprocess.run(
        ["gcc", "-O2", "-Wall", "-Werror", "-o", program, source, "-lfcgi", "-pthread"], check=True
    )


def _python(release: Path) -> None:
    """With flup beside it: the interpreter is Debian's, which any account may run."""
    import flup

    shutil.copytree(next(iter(flup.__path__)), release / "flup")
    shutil.copy(HERE / "app.py", release)


def _php_fpm() -> str:
    """Debian names the program by its version."""
    return max((path.name for path in Path("/usr/sbin").glob("php-fpm*")), default="php-fpm")


UWSGI = (
    "uwsgi --master --die-on-term --need-app --plugin python3 --wsgi-file app.py --processes 6"
    " --listen 1024 --disable-logging"
)

RUNTIMES = {
    runtime.name: runtime
    for runtime in (
        Runtime(
            "php-cgi",
            {"fd0": "php-cgi", "path": "sh -c 'exec php-cgi -b \"$APP_SOCKET\"'"},
            _php,
            env={"PHP_FCGI_CHILDREN": "6", "PHP_FCGI_BACKLOG": "1024"},
            document_root="public",
            script="/index.php",
        ),
        Runtime(
            "php-fpm",
            {
                "fd0": "sh -c 'exec 3<&0; APP_SOCKET=/fd3 FPM_SOCKETS=/fd3=3"
                f" exec {_php_fpm()} -F -y php-fpm.conf'",
                "path": f"{_php_fpm()} -F -y php-fpm.conf",
            },
            _php,
            document_root="public",
            script="/index.php",
        ),
        Runtime("perl", dict.fromkeys(("fd0", "path"), "perl app.pl"), _perl),
        Runtime("c", dict.fromkeys(("fd0", "path"), "./app"), _c),
        Runtime("flup", dict.fromkeys(("fd0", "path"), "/usr/bin/python3 app.py"), _python),
        Runtime(
            "uwsgi",
            {
                "fd0": f"{UWSGI} --protocol fastcgi",
                "path": f"sh -c 'exec {UWSGI} --fastcgi-socket \"$APP_SOCKET\"'",
            },
            _python,
        ),
    )
}
