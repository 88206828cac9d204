"""The page of a run in a real browser: nothing sticks out, nothing is fetched, everybody can read it."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploytools.report.page import page as page_of
from tests.support.browser import accessibility, chromium
from tests.support.pastrun import PastRun

MANY = [f"web{number}.some-rather-long-name.example.com" for number in range(1, 101)]


@pytest.mark.parametrize(
    "run",
    [
        pytest.param(PastRun(), id="done", marks=pytest.mark.exhaustive),
        pytest.param(PastRun(hosts=MANY, fails="swap"), id="held"),
    ],
)
def test_it_fits_phone_and_desk_by_day_and_by_night_and_on_paper(run: PastRun, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(page_of(run.records, run.events))
    with chromium() as browser:
        page = browser.new_page()
        fetched: list[str] = []
        complaints: list[str] = []
        page.on("request", lambda request: fetched.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.goto(file.as_uri())

        for width in (320, 360, 768, 1280):
            page.set_viewport_size({"width": width, "height": 740})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
            assert accessibility(page) == []
        page.emulate_media(media="print", color_scheme="dark")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert page.evaluate("getComputedStyle(document.querySelector('pre')).whiteSpace") == "pre-wrap"

    assert fetched == [file.as_uri()]
    assert complaints == []
