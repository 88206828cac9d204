"""The maintenance page as fabric.yaml wants it, and `fab maint-preview`. In a browser: tests/host."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from deploytools import preview
from deploytools.errors import UsageError
from deploytools.settings import Page
from deploytools.setup.page import rendered
from tests.support.deploy_section import problems, read, with_
from tests.support.fabproject import DEPLOY, ONCE, Project
from tests.support.values import settings

NOON = 1_775_044_800  # 2026-04-01T12:00:00Z


def shown(page: dict[str, Any] | None = None, *, ends: int = 0, sent: bool = False) -> str:
    given = settings(page=page or {})
    return preview.page(given, reason=None, ends=ends, sent=sent, now=NOON).decode()


@pytest.mark.parametrize("lang", ["en", "de", "fr", "es"])
@pytest.mark.parametrize("sent", [False, True])
def test_it_is_whole_and_small_in_every_language(lang: str, sent: bool) -> None:
    page = shown({"lang": lang}, ends=NOON + 600, sent=sent)

    assert f'<html lang="{lang}"' in page
    assert not re.search(r"@\w+@|\{[#^/]|\{(since|end|until)\}", page)
    assert len(page.encode()) < 8_192


def test_what_the_operator_writes_is_text_and_never_markup_or_a_placeholder() -> None:
    nasty = '</title><script>alert(1)</script> {reason} {#sent}x{/sent} @color@ "&'

    page = shown({"title": nasty, "message": nasty, "contact": nasty})

    safe = (
        "&lt;/title&gt;&lt;script&gt;alert(1)&lt;/script&gt; &#123;reason} &#123;#sent}x&#123;/sent} @color@"
    )
    assert page.count(safe + " &quot;&amp;") == 4
    assert page.count("<script>") == 1


@pytest.mark.parametrize(
    ("contact", "link"),
    [
        ("help@example.com", '<a href="mailto:help@example.com">help@example.com</a>'),
        ("https://status.example.com/?a=1&b", '<a href="https://status.example.com/?a=1&amp;b">'),
        ("javascript:alert(1)", "Is it urgent? javascript:alert(1)</p>"),
        ("call 4711", "Is it urgent? call 4711</p>"),
    ],
)
def test_an_address_becomes_a_link_and_nothing_else_does(contact: str, link: str) -> None:
    assert link in shown({"contact": contact})


@pytest.mark.parametrize(
    ("color", "ink"), [("#f2a541", "#000"), ("#0b57d0", "#fff"), ("#ffffff", "#000"), ("#767676", "#000")]
)
def test_what_is_written_on_the_colour_can_be_read(color: str, ink: str) -> None:
    assert f"--fill: {color}; --on-fill: {ink};" in shown({"color": color})


def test_a_logo_is_within_the_page(tmp_path: Path) -> None:
    (tmp_path / "logo.SVG").write_text("<svg/>")

    page = shown({"logo": str(tmp_path / "logo.SVG")})

    assert '<img src="data:image/svg+xml;base64,PHN2Zy8+" alt="">' in page
    assert "<svg viewBox" not in page


@pytest.mark.parametrize(
    ("key", "name", "content", "why"),
    [
        ("logo", "logo.bmp", b"x", "is none of"),
        ("logo", "logo.png", b"x" * 33_000, "more than 32768"),
        ("logo", "missing.png", None, "can't be read: No such file"),
        ("file", "page.html", b" \n", "is empty"),
        ("file", "page.html", b"caf\xe9", "is not UTF-8: byte 3"),
        ("file", "page.html", b"x" * ((1 << 20) + 1), "more than 1048576"),
    ],
)
def test_a_file_that_is_no_good_is_told_with_its_key(
    tmp_path: Path, key: str, name: str, content: bytes | None, why: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)

    with pytest.raises(UsageError) as refused:
        rendered(Page(**{key: tmp_path / name}))  # type: ignore[arg-type]

    assert refused.value.what.startswith(str(tmp_path / name))
    assert why in refused.value.what
    assert refused.value.where == f"deploy.page.{key} in fabric.yaml"


def test_a_page_of_ones_own_is_filled_in_like_ours_and_admits_no_other_key(tmp_path: Path) -> None:
    (tmp_path / "own.html").write_text("closed since {since}, back {until}")

    page = shown({"file": str(tmp_path / "own.html")}, ends=NOON + 86_400)

    assert page == (
        'closed since <time datetime="2026-04-01T12:00:00Z">12:00 UTC</time>,'
        ' back at about <time datetime="2026-04-02T12:00:00Z">2026-04-02 12:00 UTC</time>'
    )
    assert problems(with_("page", {"file": "own.html", "lang": "de"})) == [
        "deploy.page.lang: has no effect beside `file`, which is the whole page"
    ]


def test_its_files_are_relative_to_the_project_and_a_colour_without_quotes_is_noticed() -> None:
    assert read(with_("page.logo", "img/logo.svg")).page.logo == Path("/home/ann/guestbook/img/logo.svg")
    (line,) = problems(with_("page.color", None))  # what YAML makes of `color: #0b57d0`
    assert "in quotes, since # begins a comment" in line


def test_a_preview_is_opened_or_says_where_the_page_is(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(preview.webbrowser, "open", lambda url: opened.append(url) or True)
    path = preview.show(b"<p>", "guestbook")
    assert opened == [f"file://{path}"]
    assert path.read_bytes() == b"<p>"

    monkeypatch.setattr(preview.webbrowser, "open", lambda url: False)
    with pytest.raises(UsageError, match="no browser") as refused:
        preview.show(b"<p>", "guestbook")
    assert "--output" in str(refused.value.next)


def test_the_policy_that_a_page_needs_names_its_scripts_and_styles_whatever_the_window() -> None:
    at_first = preview.policy(shown().encode())

    assert at_first == preview.policy(shown(ends=NOON + 600, sent=True).encode())
    assert at_first.count("'sha256-") == 2
    assert at_first != preview.policy(shown({"color": "#000000"}).encode())
    assert preview.policy(b"<p>") == (
        "default-src 'none'; script-src 'none'; style-src 'none'; img-src 'self' data:; connect-src 'self';"
        " base-uri 'none'"
    )
    # The digest of this script is the one of the specification's example.
    known = "'sha256-qznLcsROx4GACP2dm0UCKCzCG+HiZ1guq6ZZDob/Tng='"
    assert known in preview.policy(b"<script>alert('Hello, world.');</script>")


def test_fab_previews_without_asking_a_host(tmp_path: Path) -> None:
    project = Project(tmp_path, ONCE + DEPLOY + "  page: {title: Closed for stocktaking}\n")
    (tmp_path / "fabfile.py").write_text("from deploytools.tasks import ns\n")

    done = project.fab("maint-preview", "--until", "+10m", "--output", "page.html")

    assert (done.returncode, done.stdout) == (0, "wrote page.html\n"), done.stderr
    page = (tmp_path / "page.html").read_text()
    assert '<h1 id="title">Closed for stocktaking</h1>' in page
    assert '<span id="end"><time' in page


def test_a_preview_that_can_not_be_written_is_told(tmp_path: Path) -> None:
    assert preview.write(b"<p>", tmp_path / "page.html").read_bytes() == b"<p>"
    with pytest.raises(UsageError, match="can't be written: Is a directory"):
        preview.write(b"<p>", tmp_path)
