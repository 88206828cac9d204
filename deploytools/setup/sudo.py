"""The deploy user's sudoers file: six programs by full path, and nothing of the caller's environment."""

from __future__ import annotations

import re

from deploytools import __version__
from deploytools.errors import UsageError
from deploytools.settings import Settings

# What needs root, besides the maintenance switch: see docs/design.md, "A web host".
PRIVILEGED = ("swap", "drain", "verify", "migrate")
# An administrator may have turned these defaults of Debian off for everything else.
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def programs(settings: Settings) -> list[str]:
    """The only programs that the deploy user may run as root."""
    switch = [f"{settings.webserver.maintenance_dir}/{name}" for name in ("down", "up")]
    return switch + [f"{settings.tools_dir}/{name}" for name in PRIVILEGED]


def sudoers(settings: Settings, user: str) -> str:
    """The drop-in file. Raises UsageError for a name that sudoers would take for an alias."""
    if re.fullmatch("[A-Z][A-Z0-9_]*", user):
        raise UsageError(
            f"the deploy user can't be called {user}: sudoers takes capitals for an alias",
            where="deploy.hosts",
            state="nothing was changed",
            next="choose an account with small letters in its name",
        )
    name = re.sub(r"([@!=:,()\\])", r"\\\1", user)
    alias = "DEPLOYTOOLS_" + settings.application.upper().replace("-", "_")
    return f"""# {settings.application}: `fab setup` of deploytools {__version__} wrote this; edits are lost.
Cmnd_Alias {alias} = {", ".join(programs(settings))}
Defaults!{alias} env_reset, secure_path="{SEARCH_PATH}", umask=0022, umask_override
{name} ALL=(root) NOPASSWD: NOSETENV: {alias}
"""
