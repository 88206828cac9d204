"""The two Lua scripts that mod_magnet runs, and what can be read back from them.

The up script is a comment: no Lua logic while the site is up. The down script holds the page itself,
so that the 503 and its marker cannot get lost with a missing page file. It runs on lighttpd 1.4.60
and newer, with any Lua from 5.1 on.
"""

from __future__ import annotations

import contextlib
import html
import os
import re
import stat
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from hostlib.program import HERE

MARKER = "X-Maintenance-Mode"
BYPASS, BYPASS_COOKIE = "X-Maintenance-Bypass", "maintenance_bypass"
PROOF = "X-Maintenance-Proof"
RETRY_AFTER = 120  # seconds, where no end was announced or it has passed
PAGE_LIMIT = 1 << 20  # bytes; every worker keeps the page in memory
NOBODY = 65534  # the account and the group that own nothing

UP = """\
-- The site is up, so this is but a comment. `down` puts maint.lua.down in place of maint.lua.
-- It must never be empty: lighttpd answers 500 to everything then.
"""

SHORTEST_DOWN = 1000  # bytes; the logic alone has more

_FIRST_LINE = "-- The site is down for maintenance"
_DOWN = """\
{first_line}, window {window}. Written by `down`; `up` ends it.
local bypass = {bypass}
local proof = {proof}
local ends = {ends}
local alive = {{{alive}}}

-- Takes the same time wherever the two differ.
local function same(given, secret)
  if not given or #secret == 0 or #given ~= #secret then
    return false
  end
  local difference = 0
  for i = 1, #secret do
    local d = given:byte(i) - secret:byte(i)
    difference = difference + d * d
  end
  return difference == 0
end

local request, response, env = lighty.r.req_header, lighty.r.resp_header, lighty.r.req_env
local cookies = request["Cookie"] or ""
local cookie = cookies:match("{cookie}=([%w_-]+)")
if env["MAINTENANCE_BYPASS"] or same(request["{bypass_header}"], bypass) or same(cookie, bypass) then
  -- Neither the application's business nor the access log's. lighttpd asks again after a rewrite; the
  -- token is gone by then.
  request["{bypass_header}"] = nil
  if cookie then
    local others = cookies:gsub("{cookie}=[%w_-]*;? ?", "")
    request["Cookie"] = #others > 0 and others or nil
  end
  env["MAINTENANCE_BYPASS"] = "1"
  return
end
if request["{proof_header}"] then
  response["{proof_header}"] = proof -- `down` and `up` ask whose script it is that answers
elseif alive[lighty.r.req_attr["uri.path"]] then
  response["Content-Type"] = "text/plain; charset=utf-8"
  response["Cache-Control"] = "no-store"
  lighty.r.resp_body.set("ok\\n")
  return 200
end
local left = ends - os.time()
response["{marker}"] = "1"
response["Retry-After"] = tostring(left > 0 and left or {retry_after})
response["Cache-Control"] = "no-store"
response["Content-Type"] = "text/html; charset=utf-8"
-- The page in pieces; between them goes when it ends.
local page = {{{page}}}
lighty.r.resp_body.set(table.concat(page, left > 0 and {at} or "shortly"))
return 503
"""

MINIMAL_PAGE = b"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Down for maintenance</title>
<h1>Down for maintenance</h1>
<p>We will be back shortly. Please try again in a few minutes.</p>
</html>
"""


def down_script(
    page: bytes,
    *,
    application: str,
    reason: str | None = None,
    window: str = "",
    bypass: str = "",
    proof: str = "",
    liveness: Sequence[str] = (),
    ends: int = 0,
) -> str:
    """The script that answers every request with `page` and 503.

    {reason} and {until} in the page are replaced. `ends` is seconds since the epoch (0: not announced).
    To those who ask for proof it tells `application` and `proof`, which no two scripts
    share. Without `bypass` nobody gets through; without `window` it is the script of nobody's window, to
    be put in place by hand.
    """
    why = html.escape(reason or "").encode()
    return _DOWN.format(
        first_line=_FIRST_LINE,
        window=window or "-",
        bypass=lua_string(bypass.encode()),
        proof=lua_string(f"{application} {proof}".rstrip().encode()),
        ends=ends,
        alive=", ".join(f"[{lua_string(path.encode())}] = true" for path in liveness),
        cookie=BYPASS_COOKIE,
        bypass_header=BYPASS,
        proof_header=PROOF,
        marker=MARKER,
        retry_after=RETRY_AFTER,
        page=", ".join(lua_string(part.replace(b"{reason}", why)) for part in page.split(b"{until}")),
        at=lua_string(_moment(ends).encode() if ends else b""),
    )


def lua_string(data: bytes) -> str:
    """A Lua string literal for any bytes, in ASCII, line by line so that a page stays readable."""
    return '"' + "".join(_ESCAPED[byte] for byte in data) + '"'


_ESCAPED = [chr(byte) if 32 <= byte < 127 else f"\\{byte:03}" for byte in range(256)]
_ESCAPED[ord("\n")], _ESCAPED[ord('"')], _ESCAPED[ord("\\")] = "\\\n", '\\"', "\\\\"


def is_up(script: str) -> bool:
    """True for a script without any logic: comments and blank lines, but not nothing at all."""
    lines = [line.strip() for line in script.splitlines()]
    return bool(script) and all(not line or (line.startswith("--") and line[2:3] != "[") for line in lines)


def is_down(script: str) -> bool:
    """True for what `down_script` returned, and for a script that was written by hand to the same end."""
    return script.startswith(_FIRST_LINE) or (MARKER in script and "return 503" in script)


def window_of(script: str) -> str:
    """The window that a down script belongs to."""
    found = re.match(rf"{_FIRST_LINE}, window ([\w-]+)\.", script)
    return found[1] if found else ""


def bypass_of(script: str) -> str:
    """The bypass token of a down script; "" where it lets nobody through."""
    found = re.search(r'^local bypass = "([\w-]*)"$', script, re.MULTILINE)
    return found[1] if found else ""


def proof_of(script: str) -> str:
    """What a down script tells to those who ask for proof; "" for one that was written by hand."""
    found = re.search(r'^local proof = "([\w -]*)"$', script, re.MULTILINE)
    return found[1] if found else ""


# -- the page --------------------------------------------------------------------------------------


def read_page(file: Path, *, drop: bool) -> tuple[bytes, str]:
    """The page to show, and a sentence about it where it is not the one in `file` ("" otherwise).

    With `drop` it is read with nobody's rights: what a link leads to must not be shown to visitors because
    root may read it.
    """
    page, note = MINIMAL_PAGE, ""
    for candidate in (file, HERE / "maint.html"):
        try:
            with _as_nobody() if drop else contextlib.nullcontext():
                page = _usable(candidate)
            break
        except (OSError, ValueError) as error:
            note = note or f"{file} can't be used ({_why(error)}), so visitors see the built-in page"
    return page, note


def _usable(file: Path) -> bytes:
    """What is in a page file. Raises OSError or ValueError where it isn't fit to be shown to everybody."""
    # A FIFO would keep us waiting for a writer.
    with open(os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as opened:
        if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
            raise ValueError("it is no regular file")
        page = opened.read(PAGE_LIMIT + 1)
    if len(page) > PAGE_LIMIT:
        raise ValueError(f"it is larger than {PAGE_LIMIT} bytes")
    if not page.strip():
        raise ValueError("it is empty")
    page.decode()
    return page


@contextlib.contextmanager
def _as_nobody() -> Iterator[None]:
    if os.geteuid() != 0:
        yield
        return
    groups, group = os.getgroups(), os.getegid()
    os.setgroups([])
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)


def _why(error: OSError | ValueError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8"
    return str(error.strerror if isinstance(error, OSError) else error)


def _moment(ends: int) -> str:
    """`ends`, in seconds since the epoch, as the page tells it."""
    local = time.localtime(ends)
    today = time.localtime()[:3] == local[:3]
    shown = time.strftime("%H:%M %Z" if today else f"%H:%M %Z on {local.tm_mday} %B", local)
    machine = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(ends))
    return f'at about <time datetime="{machine}">{html.escape(shown)}</time>'
