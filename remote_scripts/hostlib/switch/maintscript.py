"""The two Lua scripts that mod_magnet runs, and what can be read back from them.

The up script is a comment: no Lua logic while the site is up. The down script holds the page itself,
so that the 503 and its marker cannot get lost with a missing page file. It runs on lighttpd 1.4.60
and newer, with any Lua from 5.1 on.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

from hostlib.switch import maintpage

MARKER = "X-Maintenance-Mode"
BYPASS, BYPASS_COOKIE = "X-Maintenance-Bypass", "maintenance_bypass"
PROOF = "X-Maintenance-Proof"
RETRY_AFTER = 120  # seconds, where no end was announced or it has passed

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
local method = lighty.r.req_attr["request.method"]
local soon, sent = left > 0, method ~= "GET" and method ~= "HEAD"
lighty.r.resp_body.set(table.concat({{{page}}}))
return 503
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
    since: int = 0,
    ends: int = 0,
) -> str:
    """The script that answers every request with `page` and 503.

    What the page's placeholders become, `maintpage` says; `since` and `ends` are seconds since the epoch,
    0 where that isn't known. To those who ask for proof it tells `application` and `proof`, which no two
    scripts share. Without `bypass` nobody gets through; without `window` it is the script of nobody's
    window, to be put in place by hand.
    """
    parts = maintpage.pieces(page, reason=reason, since=since, ends=ends, now=time.time())
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
        page=", ".join(_lua_piece(part) for part in parts),
    )


def _lua_piece(part: maintpage.Piece) -> str:
    text = lua_string(part.text)
    return f"{part.when} and {text} or {lua_string(part.other)}" if part.when else text


def lua_string(data: bytes) -> str:
    """A Lua string literal for any bytes, in ASCII, line by line so that a page stays readable."""
    return '"' + data.decode("latin-1").translate(_ESCAPED) + '"'


_ESCAPED = {byte: f"\\{byte:03}" for byte in range(256) if not 32 <= byte < 127}
_ESCAPED |= {ord("\n"): "\\\n", ord('"'): '\\"', ord("\\"): "\\\\"}


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
