"""The maintenance page with the texts, the colour and the logo of fabric.yaml; or the one that it names.

What is left for the hosts to fill in (since when, until when) are the placeholders of
remote_scripts/hostlib/switch/maintpage.py.
"""

from __future__ import annotations

import base64
import html
import json
import re
from pathlib import Path

from deploytools.errors import UsageError
from deploytools.settings import Page

TEMPLATE = Path(__file__).parent.parent / "templates" / "maint.html"
TEXTS = TEMPLATE.with_suffix(".json")  # by language
# Bytes. The logo is in every answer; the page is kept in memory by every worker (maintpage.PAGE_LIMIT).
LOGO_LIMIT, FILE_LIMIT = 32 << 10, 1 << 20
IMAGES = {".svg": "svg+xml", ".png": "png", ".webp": "webp", ".jpg": "jpeg", ".jpeg": "jpeg", ".gif": "gif"}
SUNRISE = """\
<svg viewBox="0 0 120 60" aria-hidden="true" fill="none" stroke-width="4" stroke-linecap="round">
<path d="M36 50a24 24 0 0 1 48 0" fill="var(--fill)"/>
<path d="M60 6v10M27 20l7 7M93 20l-7 7M12 48h9M99 48h9" stroke="var(--fill)"/>
<path d="M4 56h112" stroke="var(--ink)"/>
</svg>"""


def rendered(page: Page) -> bytes:
    """The page as `fab setup` puts it on a host. Raises UsageError where a file that it names is unfit."""
    if page.file is not None:
        return _whole(page.file)
    texts = json.loads(TEXTS.read_text(encoding="utf-8"))[page.lang]
    values = {name: html.escape(text) for name, text in texts.items()}
    values.update(
        lang=page.lang,
        title=_text(page.title or texts["title"]),
        message=_text(page.message or texts["message"]),
        contact="" if page.contact is None else _contact(texts["contact"], page.contact),
        color=page.color,
        on_color="#000" if _luminance(page.color) > 0.179 else "#fff",
        logo=SUNRISE if page.logo is None else _logo(page.logo),
        say=_script({name: texts[name] for name in ("waiting", "offline", "back_again", "form")}),
    )
    template = TEMPLATE.read_text(encoding="utf-8")
    return re.sub(r"@([a-z_]+)@", lambda found: values[found[1]], template).encode()


def _text(text: str) -> str:
    """Text of the operator's, of which nothing is markup or one of the page's placeholders."""
    return html.escape(text).replace("{", "&#123;")


def _contact(label: str, contact: str) -> str:
    shown = _text(contact)
    if re.fullmatch(r"[^\s@:/]+@[^\s@:/]+", contact):
        shown = f'<a href="mailto:{shown}">{shown}</a>'
    elif re.fullmatch(r"https?://\S+", contact):
        shown = f'<a href="{shown}">{shown}</a>'
    return f'<p class="contact">{html.escape(label)} {shown}</p>'


def _script(texts: dict[str, str]) -> str:
    """A JavaScript literal that can't end the script element."""
    return json.dumps(texts, ensure_ascii=False).replace("<", "\\u003c")


def _luminance(color: str) -> float:
    """Relative luminance of #rrggbb, 0 to 1.

    https://www.w3.org/TR/WCAG22/#dfn-relative-luminance; above 0.179 black is the better contrast, below
    it white, and either is at least 4.5 to 1.
    """
    parts = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _logo(file: Path) -> str:
    """An img element: in one, what is in an SVG file can neither run nor fetch anything."""
    kind = IMAGES.get(file.suffix.lower())
    if kind is None:
        raise _unfit("logo", file, f"is none of {', '.join(sorted(IMAGES))}")
    data = _read("logo", file, LOGO_LIMIT)
    return f'<img src="data:image/{kind};base64,{base64.b64encode(data).decode()}" alt="">'


def _whole(file: Path) -> bytes:
    page = _read("file", file, FILE_LIMIT)
    try:
        page.decode()
    except UnicodeDecodeError as error:
        raise _unfit("file", file, f"is not UTF-8: byte {error.start}") from error
    return page


def _read(key: str, file: Path, limit: int) -> bytes:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise _unfit(key, file, f"can't be read: {error.strerror}") from error
    if not data.strip():
        raise _unfit(key, file, "is empty")
    if len(data) > limit:
        raise _unfit(key, file, f"has {len(data)} bytes, more than {limit}")
    return data


def _unfit(key: str, file: Path, why: str) -> UsageError:
    return UsageError(
        f"{file} {why}",
        where=f"deploy.page.{key} in fabric.yaml",
        state="nothing was changed",
        next="mend that, then run the same command again",
    )
