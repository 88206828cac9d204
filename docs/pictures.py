"""Draws the pictures in docs/images anew: `python -m docs.pictures`, with chromium installed.

The run is made up (tests.support.pastrun), and so is the moment at which somebody meets the maintenance page:
they change only when what they show does.
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

from deploytools import preview
from deploytools.journal import Estimate
from deploytools.probe import MAINTENANCE, SITE, Sample
from deploytools.report.live import LiveReporter, View
from deploytools.report.page import page
from deploytools.report.plain import PlainReporter
from tests.support.browser import chromium
from tests.support.pastrun import BEGAN, SAYS, PastRun
from tests.support.values import ok, settings

IMAGES = Path(__file__).parent / "images"
# A phone, a tablet in the dark, a desk.
SIZES = {"360": (360, 800, "light"), "768": (768, 1000, "dark"), "1280": (1280, 900, "light")}


# The same three of the maintenance page, with the dark one at the desk.
VISITORS = {"360": (360, 740, "light"), "768": (768, 1024, "light"), "1280": (1280, 800, "dark")}


def maintenance_pages() -> None:
    """As visitors in Berlin meet it a minute after the site went down."""
    body = preview.page(settings(), reason=None, ends=int(BEGAN) + 1200, sent=False, now=BEGAN)
    with chromium() as browser:
        for name, (width, height, scheme) in VISITORS.items():
            with browser.new_context(
                viewport={"width": width, "height": height},
                color_scheme="dark" if scheme == "dark" else "light",
                timezone_id="Europe/Berlin",
                locale="en-GB",
                reduced_motion="reduce",
            ) as context:
                page = context.new_page()
                page.clock.install(time=BEGAN + 60)
                page.route(
                    "**/*",
                    lambda route: route.fulfill(
                        status=503,
                        headers={"X-Maintenance-Mode": "1", "Content-Type": "text/html; charset=utf-8"},
                        body=body,
                    ),
                )
                page.goto("http://www.example.com/")
                page.screenshot(path=IMAGES / f"maintenance-{name}.png")


def reports() -> None:
    run = PastRun()
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "report.html"
        for name, (width, height, scheme) in SIZES.items():
            text = page(run.records, run.events)
            if scheme == "dark":
                text = text.replace("@media (prefers-color-scheme: dark)", "@media all")
            file.write_text(text)
            picture(file, IMAGES / f"report-{name}.png", width, height)


def picture(file: Path, image: Path, width: int, height: int) -> None:
    """Have a browser draw a page."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or "chromium"
    options = [
        f"--screenshot={image}",
        f"--window-size={width},{height}",
        f"--user-data-dir={file.parent}/profile",
    ]
    subprocess.run(
        [chromium, "--headless=new", "--no-sandbox", "--hide-scrollbars", *options, file.as_uri()],
        check=True,
        capture_output=True,
        timeout=120,
    )


def live_views(directory: Path) -> None:
    """The view in the middle of a migration, at three widths."""
    plan, now = PastRun().plan, BEGAN + 21.0
    down = next(step for step in plan.steps if step.name == "maintenance-on")
    migrate = next(step for step in plan.steps if step.name == "migrate")
    view = View(plan, BEGAN, Estimate(3, 11.0, 13.0, 16.0, 2.0))
    view.begin(down, plan.hosts, BEGAN + 9.8, undo=False)
    view.begin(migrate, plan.hosts[:1], BEGAN + 10.2, undo=False)
    for number in range(84):
        kind, status = (SITE, 200) if number < 40 else (MAINTENANCE, 503)
        view.sample(Sample(BEGAN + number / 4, 0.012, kind, status))
    view.tail.extend(f"  web1.example.com  | visitors: {row}000000 rows" for row in range(4, 8))
    for width in (40, 80, 200):
        out = io.StringIO()
        console = Console(file=out, record=True, width=width, height=24, force_terminal=True)
        above = PlainReporter(lambda text: console.print(Text(text, overflow="fold")))  # noqa: B023
        above.step(plan, down, plan.hosts, undo=False)
        answers = {host: ok(message=SAYS["maintenance-on"]) for host in plan.hosts}
        above.answers(down, answers, dict.fromkeys(plan.hosts, 0.2))
        above.step(plan, migrate, plan.hosts[:1], undo=False)
        console.print(LiveReporter(console=console, clock=lambda: now).shown(view))
        drawn = console.export_svg(title="fab deploy --with-downtime", unique_id="live")
        # The font is fetched from the network otherwise.
        (directory / f"live-{width}.svg").write_text(
            re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL)
        )


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    maintenance_pages()
    reports()
    live_views(IMAGES)
