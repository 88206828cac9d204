"""The maintenance page in a visitor's browser: real lighttpd, real Chromium, a clock that the test moves."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from deploytools.preview import policy
from deploytools.settings import Page as Theme
from deploytools.setup.page import rendered
from tests.support.browser import accessibility, chromium
from tests.support.switching import switch_down, switch_up
from tests.support.webhost import WebHost, wait_until

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

LOGO = (
    b'<svg xmlns="http://www.w3.org/2000/svg" width="160" height="48"><rect width="160" height="48"/></svg>'
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


class Visitor:
    """Somebody with a tab. Every delay is the middle one of those that are possible."""

    def __init__(self, page: Page, host: WebHost) -> None:
        self.page, self.host = page, host
        self.asked: list[str] = []
        self._answered = 0
        page.on("requestfinished", lambda _: self._has_answer())
        page.on("requestfailed", lambda _: self._has_answer())
        page.on("request", lambda request: self.asked.append(f"{request.method} {self._path(request.url)}"))
        page.add_init_script("Math.random = () => 0.5")
        page.clock.install()

    def _has_answer(self) -> None:
        self._answered += 1

    def _path(self, url: str) -> str:
        site = f"http://127.0.0.1:{self.host.port}"
        return url.removeprefix(site)  # another site would be told in full

    def goes_to(self, path: str = "/") -> None:
        self.page.goto(f"http://127.0.0.1:{self.host.port}{path}")

    def sends_a_form(self, word: str, path: str = "/form") -> None:
        """From a page that was there before the site went down."""
        self.goes_to(path)
        self.page.fill("input", word)
        switch_down(self.host)
        self.page.click("button")
        self.page.wait_for_selector("#sent")

    def waits(self, seconds: int, until: Callable[[], object] = lambda: False) -> None:
        """Let so much time pass for the page, in small steps: its requests take none of it."""
        for _ in range(0, seconds, 2):
            self.page.clock.run_for(2_000)
            wait_until(self._is_quiet, timeout=30, what="every request has its answer")
            if until():
                return

    def _is_quiet(self) -> bool:
        self.page.context.cookies()  # events arrive while we talk to the browser
        return self._answered >= len(self.asked)

    def sees(self, text: str) -> bool:
        return text in self.page.inner_text("body")


@pytest.fixture
def visitor(browser: Browser, site: WebHost) -> Iterator[Callable[..., Visitor]]:
    """Call it with options of Playwright's new_context."""
    with ExitStack() as stack:

        def make(**options: Any) -> Visitor:
            context = browser.new_context(**options)
            stack.callback(context.close)
            return Visitor(context.new_page(), site)

        yield make


class TestComingBack:
    def test_one_request_finds_out_and_one_loads_the_site(
        self, visitor: Callable[..., Visitor], site: WebHost
    ) -> None:
        switch_down(site)
        ann = visitor()
        ann.goes_to("/basket?item=7")
        switch_up(site)
        ann.waits(6)
        ann.page.wait_for_selector("text=app /basket")
        ann.waits(120)
        assert ann.asked == ["GET /basket?item=7", "HEAD /basket?item=7", "GET /basket?item=7"]

    def test_in_maintenance_it_asks_ever_more_seldom_and_never_loads_itself(
        self, visitor: Callable[..., Visitor], site: WebHost
    ) -> None:
        switch_down(site)
        ann = visitor()
        ann.goes_to()
        ann.waits(60)
        first = len(ann.asked)
        ann.waits(300)
        assert set(ann.asked[1:]) == {"HEAD /"}
        assert 4 <= first <= 6
        assert len(ann.asked) - first <= 7

    def test_a_page_that_was_loaded_anew_and_is_this_one_again_takes_its_time(
        self, browser: Browser, site: WebHost
    ) -> None:
        switch_down(site)
        with tab(browser) as page:
            page.add_init_script(
                "Math.random = () => 0.5; window.delays = []; const later = setTimeout;"
                " window.setTimeout = (what, delay) => { delays.push(delay); return later(what, delay) }"
            )
            page.goto(f"http://127.0.0.1:{site.port}/")
            assert page.evaluate("delays") == [5_000]
            page.reload()
            assert page.evaluate("delays") == [20_000]

    def test_a_site_that_is_up_but_broken_is_not_loaded(
        self, visitor: Callable[..., Visitor], site: WebHost
    ) -> None:
        switch_down(site)
        ann = visitor()
        ann.goes_to()
        ann.page.route("**/*", lambda route: route.fulfill(status=502))
        ann.waits(60)
        assert ann.sees("be back soon")
        assert set(ann.asked[1:]) == {"HEAD /", "GET /"}  # an application may know no HEAD
        ann.page.unroute("**/*")
        switch_up(site)
        ann.waits(60, until=lambda: ann.sees("app /"))
        ann.page.wait_for_selector("text=app /")

    def test_without_a_connection_it_says_so_and_goes_on(
        self, visitor: Callable[..., Visitor], site: WebHost
    ) -> None:
        switch_down(site)
        ann = visitor()
        ann.goes_to()
        ann.page.context.set_offline(True)
        ann.waits(8)
        ann.page.wait_for_selector("text=no connection")
        ann.page.context.set_offline(False)
        ann.waits(30, until=lambda: ann.sees("keeps checking by itself"))
        assert ann.sees("keeps checking by itself")

    def test_a_hidden_tab_asks_nothing_until_somebody_looks_at_it(
        self, visitor: Callable[..., Visitor], site: WebHost
    ) -> None:
        switch_down(site)
        ann = visitor()
        # A browser without a window shows every tab.
        turn = "Object.defineProperty(document, 'hidden', {value: %s, configurable: true});"
        turn += " document.dispatchEvent(new Event('visibilitychange'))"
        ann.page.add_init_script(turn % "true")
        ann.goes_to()
        ann.waits(120)
        assert ann.asked == ["GET /"]
        ann.page.evaluate(turn % "false")
        ann.waits(2)
        assert ann.asked == ["GET /", "HEAD /"]
        ann.page.evaluate(turn % "true")
        switch_up(site)
        ann.waits(120)
        assert ann.asked == ["GET /", "HEAD /"]
        ann.page.evaluate(turn % "false")
        ann.waits(6)
        ann.page.wait_for_selector("text=app /")
        assert ann.asked == ["GET /", "HEAD /", "HEAD /", "GET /"]


def test_under_the_policy_that_it_asks_for_it_looks_and_works_as_without_one(
    browser: Browser, make_web_host: Callable[..., WebHost]
) -> None:
    theirs = policy(rendered(Theme()))
    host = make_web_host(
        extra=f'server.modules += ("mod_setenv")\n'
        f'setenv.add-response-header = ("Content-Security-Policy" => "{theirs}")'
    )
    host.serve()
    switch_down(host)
    with browser.new_context() as context:
        complaints: list[str] = []
        ann = Visitor(context.new_page(), host)
        ann.page.on("console", lambda said: complaints.append(said.text))
        ann.goes_to()
        styled = ann.page.evaluate("getComputedStyle(document.querySelector('main')).borderRadius")
        ann.waits(10)
        switch_up(host)
        ann.waits(60, until=lambda: ann.asked.count("GET /") == 2)
        ann.page.wait_for_selector("text=app /")

    assert styled == "20px"
    # That the page itself is a 503 is told there, too.
    assert [said for said in complaints if "503" not in said] == []


class TestAForm:
    def test_it_is_never_sent_again_by_itself_and_the_way_back_has_what_was_typed(
        self, visitor: Callable[..., Visitor], site: WebHost
    ) -> None:
        ann = visitor()
        ann.sends_a_form("hello")
        assert ann.sees("reach us")
        ann.waits(60)
        switch_up(site)
        ann.waits(60, until=lambda: ann.page.is_visible("#back"))
        assert ann.page.title() == "The site is back."
        ann.waits(60)
        assert ann.asked[:2] == ["GET /form", "POST /post"]
        assert set(ann.asked[2:]) == {"HEAD /post"}
        ann.page.click("#back")
        ann.page.wait_for_selector("input")
        assert ann.page.input_value("input") == "hello"

    def test_a_visitor_may_send_it_again_as_it_was(
        self, visitor: Callable[..., Visitor], site: WebHost
    ) -> None:
        ann = visitor()
        ann.sends_a_form("hello")
        switch_up(site)
        ann.waits(8, until=lambda: ann.page.is_visible("#send"))
        ann.page.click("#send")
        ann.page.wait_for_selector(f"text=got {len('word=hello')}")
        assert [each for each in ann.asked if "POST" in each] == ["POST /post", "POST /post"]

    def test_who_goes_back_too_early_still_has_what_was_typed(
        self, visitor: Callable[..., Visitor], site: WebHost
    ) -> None:
        ann = visitor()
        ann.sends_a_form("hello", "/form?no-store")
        ann.page.evaluate("history.back()")
        ann.page.wait_for_selector("input")
        assert ann.page.input_value("input") == "hello"


class TestWhatItSays:
    def test_moments_are_in_the_visitors_own_time(
        self, visitor: Callable[..., Visitor], site: WebHost
    ) -> None:
        ends = int(datetime(2100, 5, 17, 14, 30, tzinfo=timezone.utc).timestamp())
        switch_down(site, until=ends)
        told = []
        for zone, locale in (("America/New_York", "en-US"), ("Asia/Tokyo", "de-DE")):
            ann = visitor(timezone_id=zone, locale=locale)
            ann.goes_to()
            told.append(ann.page.inner_text("#end").replace("\u202f", " "))
        assert re.fullmatch("Monday, May 17.* 10:30 AM", told[0])
        assert re.fullmatch("Monday, May 17.* 11:30 PM", told[1]), "in the page's language"

    def test_a_new_end_reaches_a_page_that_is_open_and_so_does_that_it_takes_longer(
        self, visitor: Callable[..., Visitor], site: WebHost
    ) -> None:
        first = int(time.time()) + 3_600
        switch_down(site, until=first)
        ann = visitor()
        ann.goes_to()
        switch_down(site, until=first + 3_600)
        ann.waits(10, until=lambda: len(ann.asked) > 2)
        assert ann.asked == ["GET /", "HEAD /", "GET /"]
        wait_until(lambda: ends_at(ann.page) == first + 3_600, what="the new end")
        switch_down(site, until=1)
        ann.waits(20, until=lambda: ann.sees("longer than planned"))
        assert ann.sees("longer than planned")

    def test_without_scripts_it_tells_utc_and_loads_itself_unless_a_form_was_sent(
        self, browser: Browser, site: WebHost
    ) -> None:
        with tab(browser, java_script_enabled=False) as page:
            address = f"http://127.0.0.1:{site.port}"
            page.goto(f"{address}/form")
            switch_down(site, until=int(time.time()) + 600)
            page.click("button")
            assert page.locator("meta[http-equiv=refresh]").count() == 0
            page.goto(address)
            assert page.locator("meta[http-equiv=refresh]").get_attribute("content") == "60"
            assert page.inner_text("#end").endswith(" UTC")
            assert page.is_visible("text=Try again")
            assert not page.is_visible("[role=status]")

    def test_on_paper_there_is_nothing_to_press(self, visitor: Callable[..., Visitor], site: WebHost) -> None:
        switch_down(site)
        ann = visitor(color_scheme="dark")
        ann.goes_to()
        ann.page.emulate_media(media="print")
        assert ann.sees("be back soon")
        assert not ann.page.is_visible(".go")
        assert ann.page.evaluate("getComputedStyle(document.querySelector('h1')).color") == "rgb(0, 0, 0)"


@pytest.mark.parametrize(
    "themed",
    [False, pytest.param(True, marks=pytest.mark.exhaustive)],
    ids=["ours", "themed"],
)
def test_an_accessibility_checker_finds_nothing_and_everything_fits(
    visitor: Callable[..., Visitor], site: WebHost, tmp_path: Path, themed: bool
) -> None:
    if themed:
        (tmp_path / "logo.svg").write_bytes(LOGO)
        theme = Theme(
            lang="de",
            title="W" * 40,
            message="Ein sehr langes Wort: " + "Donaudampfschifffahrt" * 6,
            contact="help@shop.example.com",
            color="#20104a",
            logo=tmp_path / "logo.svg",
        )
        (site.maintenance_dir / "maint.html").write_bytes(rendered(theme))
    ann = visitor()
    switch_down(site, until=int(time.time()) + 600)
    ann.goes_to()
    is_fine(ann.page)
    switch_up(site)
    ann.sends_a_form("hello")
    switch_up(site)
    ann.waits(8, until=lambda: ann.page.is_visible("#back"))
    is_fine(ann.page)


def is_fine(page: Page) -> None:
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        assert accessibility(page) == []
    for width in (320, 360, 768, 1280):
        page.set_viewport_size({"width": width, "height": 740})
        assert page.evaluate("document.documentElement.scrollWidth") <= width


@contextmanager
def tab(browser: Browser, **options: Any) -> Iterator[Page]:
    context = browser.new_context(**options)
    try:
        yield context.new_page()
    finally:
        context.close()


def ends_at(page: Page) -> float:
    told = page.get_attribute("#end time", "datetime") or ""
    return datetime.fromisoformat(told.replace("Z", "+00:00")).timestamp()
