"""Debian's Chromium without a window, driven by Playwright.

with chromium() as browser:
    page = browser.new_context(color_scheme="dark").new_page()
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """One browser; it ends with the block. Without Chromium the test is skipped."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("Chromium is missing: packaging/system-packages test")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program,
            chromium_sandbox=os.geteuid() != 0,
            # Visitors' browsers keep the page before as it was, with what was typed into it.
            ignore_default_args=["--disable-back-forward-cache"],
        )
        try:
            yield browser
        finally:
            browser.close()


def accessibility(page: Page) -> list[str]:
    """What axe-core has against a page, a line per finding."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [f"{each['id']}: {each['help']}: {node['html']}" for each in found for node in each["nodes"]]
