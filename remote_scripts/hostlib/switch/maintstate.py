"""Where this host stands: what maint.lua does, and whose maintenance window that is.

What is true is what mod_magnet runs, so the state is read from maint.lua itself; maint.json beside it
tells about the window that the script belongs to, and counts for nothing when they don't match. The
bypass token is in the script only, which none but root and the web server can read.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from hostlib.files import read_json
from hostlib.names import timestamp
from hostlib.program import IN_MAINTENANCE, Config, Failure, Result
from hostlib.switch import maintscript
from hostlib.switch.maintscript import BYPASS, MARKER, PROOF
from hostlib.webserver import web

NOBODYS = "unknown"  # who opened a window that was opened by copying a script


@dataclass(frozen=True)
class Window:
    """Who put the site into maintenance, and why. `since` and `until` are ISO 8601 in UTC."""

    window: str
    since: str
    by: str
    reason: str | None = None
    until: str | None = None
    run_id: str | None = None


@dataclass(frozen=True)
class State:
    """What maint.lua does: "up", "down", or "unknown" (missing, empty or not ours)."""

    state: str
    window: Window | None = None

    def as_result(self) -> Result:
        """The state for --json and for `status`; never the token."""
        window = dataclasses.asdict(self.window) if self.window else {}
        names = ("since", "until", "by", "reason", "run_id")
        return {"state": self.state, **{name: window.get(name) for name in names}}


def read_state(config: Config) -> State:
    """Where this host stands, without asking the web server. Works without root."""
    try:
        script = script_in(lua_file(config))
    except FileNotFoundError:
        return State("unknown")
    except PermissionError:
        # Only a script with a token in it is kept from other accounts. Or one that a hand has copied
        # over it, which leaves the file its mode: that is the up script if there is no room for a page.
        copied = lua_file(config).stat().st_size < maintscript.SHORTEST_DOWN
        return State("up") if copied else State("down", _recorded(config))
    if maintscript.is_up(script):
        return State("up")
    if not maintscript.is_down(script):
        return State("unknown")
    recorded = _recorded(config)
    if recorded is not None and recorded.window == maintscript.window_of(script):
        return State("down", recorded)
    # Put there by hand (cp maint.lua.down maint.lua): nobody's window.
    return State("down", Window("", timestamp(lua_file(config).stat().st_mtime), NOBODYS))


def bypass_headers(config: Config) -> dict[str, str]:
    """The request headers that pass through maintenance; {} while the site is up.

    Raises Failure where there is no token, or we may not read it.
    """
    try:
        token = bypass_token(config)
    except PermissionError as error:
        raise Failure(
            f"{lua_file(config)} can't be read, and with it the bypass token", next="use sudo"
        ) from error
    if not token and read_state(config).state == "down":
        raise Failure(
            f"{lua_file(config)} was put in place by hand and lets nobody through",
            state="the site is in maintenance",
            next=f"{config.maintenance_dir}/down, which adds a bypass",
            exit_code=IN_MAINTENANCE,
        )
    return {BYPASS: token} if token else {}


def is_marked(answer: web.Answer) -> bool:
    """True for the maintenance answer."""
    return answer.status == 503 and answer.headers.get(MARKER.lower()) == "1"


def answered_for(answer: web.Answer) -> str | None:
    """The application whose maintenance script answered; None where none that `down` wrote told so."""
    told = answer.headers.get(PROOF.lower(), "").partition(" ")[0]
    return told if told and is_marked(answer) else None


def public_path(config: Config) -> str:
    """A path that is answered by the page in maintenance, so not one of the liveness paths."""
    return "/" if "/" not in config.liveness else "/maintenance-check"


# -- files ---------------------------------------------------------------------------------------


def lua_file(config: Config, suffix: str = "") -> Path:
    """maint.lua, which mod_magnet runs, or with `suffix` .up or .down a script to put in its place."""
    return config.maintenance_dir / f"maint.lua{suffix}"


def script_in(file: Path) -> str:
    """The text of a script. Raises OSError."""
    return file.read_text(encoding="utf-8", errors="replace")  # somebody else's script may be there


def bypass_token(config: Config) -> str:
    """The bypass token in maint.lua; "" where there is none."""
    try:
        return maintscript.bypass_of(script_in(lua_file(config)))
    except FileNotFoundError:
        return ""


def page_file(config: Config) -> Path:
    """The operator's page."""
    return config.maintenance_dir / "maint.html"


def record_file(config: Config) -> Path:
    """What is known of the window."""
    return config.maintenance_dir / "maint.json"


def _recorded(config: Config) -> Window | None:
    try:
        raw = read_json(record_file(config))
        return Window(**raw) if raw else None
    except (OSError, ValueError, TypeError):
        return None  # damaged by hand: the script still tells that it is down
