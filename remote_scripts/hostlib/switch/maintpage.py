"""What visitors see in maintenance: which page file it is, and what its placeholders become.

Most of a page is settled when `down` writes its script. What isn't is whether the announced end has passed
and what kind of request it is, so a page is a list of pieces, some of which depend on that. The script
puts them together for a visitor, `shown` does it here. This module needs nothing else of hostlib, so that
`fab maint-preview` can use it as it is.
"""

from __future__ import annotations

import contextlib
import html
import os
import re
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

PAGE_LIMIT = 1 << 20  # bytes; every worker keeps the page in memory
NOBODY = 65534  # the account and the group that own nothing

MINIMAL_PAGE = b"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Down for maintenance</title>
<h1>Down for maintenance</h1>
<p>We will be back shortly. Please try again in a few minutes.</p>
</html>
"""

ALWAYS, SOON, SENT = "", "soon", "sent"

# {until}, or a section: {#sent}for those who have sent a form{/sent}, {^sent}for all others{/sent}.
_TOKEN = re.compile(
    rb"\{(until|end|since|reason)\}"
    rb"|\{([#^])(announced|late|open|since|reason|sent)\}((?:[^{]|\{(?![#^/]))*)\{/\3\}"
)
_PLACEHOLDER = re.compile(rb"\{(until|end|since|reason)\}")


@dataclass(frozen=True)
class Piece:
    """A part of a page: `text` where `when` holds, `other` where it doesn't.

    `when` is ALWAYS, SOON (the announced end is still to come) or SENT (the visitor has sent something:
    it is neither GET nor HEAD).
    """

    text: bytes
    when: str = ALWAYS
    other: bytes = b""


def pieces(page: bytes, *, reason: str | None, since: int, ends: int, now: float) -> list[Piece]:
    """A page with its placeholders filled in, each once and never out of another.

    Moments are seconds since the epoch; 0 where it isn't known since when, or no end was announced.
    """
    filled = {
        b"reason": html.escape(reason or "").encode(),
        b"since": _time(since, now),
        b"end": _time(ends, now),
        b"until": b"shortly",
    }
    at = b"at about " + filled[b"end"]
    holds = {b"since": bool(since), b"reason": bool(reason), b"open": not ends}

    def piece(token: re.Match[bytes]) -> Piece:
        name, sign, section, body = token.groups()
        if name:
            return Piece(at, SOON, filled[name]) if name == b"until" and ends else Piece(filled[name])
        values = {**filled, b"until": at} if section == b"announced" else filled
        text = _PLACEHOLDER.sub(lambda found: values[found[1]], body)
        if section == b"sent":
            made = Piece(text, SENT)
        elif section in holds:
            made = Piece(text if holds[section] else b"", ALWAYS, b"" if holds[section] else text)
        elif not ends:  # neither announced nor late
            made = Piece(b"", ALWAYS, text)
        else:
            made = Piece(text, SOON) if section == b"announced" else Piece(b"", SOON, text)
        return made if sign == b"#" else Piece(made.other, made.when, made.text)

    found, last = [], 0
    for token in _TOKEN.finditer(page):
        found += [Piece(page[last : token.start()]), piece(token)]
        last = token.end()
    return _joined([*found, Piece(page[last:])])


def shown(parts: Sequence[Piece], *, soon: bool, sent: bool) -> bytes:
    """What a visitor gets: see Piece for `soon` and `sent`."""
    holds = {ALWAYS: True, SOON: soon, SENT: sent}
    return b"".join(part.text if holds[part.when] else part.other for part in parts)


def _joined(parts: Sequence[Piece]) -> list[Piece]:
    """The same with neighbours made one that are always there."""
    found: list[list[bytes] | Piece] = []
    for part in parts:
        if part.when != ALWAYS:
            found.append(part)
        elif found and isinstance(found[-1], list):
            found[-1].append(part.text)
        else:
            found.append([part.text])
    return [part if isinstance(part, Piece) else Piece(b"".join(part)) for part in found]


def _time(moment: int, now: float) -> bytes:
    """A moment for browsers and for people, who get it in UTC; the page's script turns it into their time."""
    if not moment:
        return b""
    there, today = time.gmtime(moment), time.gmtime(now)[:3] == time.gmtime(moment)[:3]
    told = time.strftime("%H:%M UTC" if today else "%Y-%m-%d %H:%M UTC", there)
    return f'<time datetime="{time.strftime("%Y-%m-%dT%H:%M:%SZ", there)}">{told}</time>'.encode()


# -- the file --------------------------------------------------------------------------------------


def read_page(file: Path, shipped: Path, *, drop: bool) -> tuple[bytes, str]:
    """The page to show, and a sentence about it where it is not the one in `file` ("" otherwise).

    With `drop` it is read with nobody's rights: what a link leads to must not be shown to visitors because
    root may read it.
    """
    page, note = MINIMAL_PAGE, ""
    for candidate in (file, shipped):
        try:
            with _as_nobody() if drop else contextlib.nullcontext():
                page = usable(candidate)
            break
        except (OSError, ValueError) as error:
            note = note or f"{file} can't be used ({why(error)}), so visitors see the built-in page"
    return page, note


def usable(file: Path) -> bytes:
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


def why(error: OSError | ValueError) -> str:
    """What is wrong with a page file, as `usable` found it."""
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8"
    return str(error.strerror if isinstance(error, OSError) else error)
