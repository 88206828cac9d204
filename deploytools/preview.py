"""`fab maint-preview`: the maintenance page as a host would give it to a visitor, byte by byte.

The hosts' own module fills it in; what it says of a moment is of now, as if the site went down now.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import re
import sys
import tempfile
import webbrowser
from pathlib import Path
from types import ModuleType

from deploytools.errors import UsageError
from deploytools.settings import Settings
from deploytools.setup import page as pages
from deploytools.setup import programs

NONE = "'none'"


def page(settings: Settings, *, reason: str | None, ends: int, sent: bool, now: float) -> bytes:
    """The page of a window that began at `now`; `ends`, too, is seconds since the epoch, 0: not announced.

    Raises UsageError where a file that `page` names can't be used.
    """
    hosts = _maintpage()
    filled = hosts.pieces(pages.rendered(settings.page), reason=reason, since=int(now), ends=ends, now=now)
    shown: bytes = hosts.shown(filled, soon=ends > now, sent=sent)
    return shown


def policy(page: bytes) -> str:
    """The Content-Security-Policy under which the page works, and which lets nothing else in.

    Its own scripts and styles are named by their digests, https://www.w3.org/TR/CSP3/#match-element-to-source-list.
    """
    sources = {
        name: " ".join(
            f"'sha256-{base64.b64encode(hashlib.sha256(block).digest()).decode()}'"
            for block in re.findall(
                rf"<{name}\b[^>]*>(.*?)</{name}>".encode(), page, re.DOTALL | re.IGNORECASE
            )
        )
        for name in ("script", "style")
    }
    return (
        f"default-src 'none'; script-src {sources['script'] or NONE}; style-src {sources['style'] or NONE};"
        " img-src 'self' data:; connect-src 'self'; base-uri 'none'"
    )


def write(page: bytes, file: str | Path) -> Path:
    """Write it to a file. Raises UsageError where that can't be."""
    path = Path(file).expanduser()
    try:
        path.write_bytes(page)
    except OSError as error:
        raise UsageError(
            f"{path} can't be written: {error.strerror}",
            where="--output",
            state="nothing was changed",
            next="fab maint-preview --output with another file, or - for standard output",
        ) from error
    return path


def show(page: bytes, application: str) -> Path:
    """Open it in the browser. Raises UsageError where there is none; the file stays."""
    path = write(page, Path(tempfile.mkdtemp(prefix="maintenance-")) / f"{application}.html")
    if not webbrowser.open(path.as_uri()):
        raise UsageError(
            "no browser is found here",
            state=f"the page is in {path}",
            next="open that file elsewhere, or fab maint-preview --output FILE",
        )
    return path


def _maintpage() -> ModuleType:
    """The hosts' module that fills a page in: it needs nothing but the standard library."""
    name = "deploytools.hosts_maintpage"
    file = programs.remote_scripts() / "hostlib" / "switch" / "maintpage.py"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module
