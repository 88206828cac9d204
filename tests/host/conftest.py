"""Real web hosts for the tests of the host programs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.support.webhost import WebHost


@pytest.fixture
def make_web_host() -> Iterator[Callable[..., WebHost]]:
    """Call it with the options of WebHost; the hosts are stopped after the test."""
    with ExitStack() as stack:

        def make(**options: Any) -> WebHost:
            return stack.enter_context(WebHost(**options))

        yield make


@pytest.fixture
def web_host(make_web_host: Callable[..., WebHost]) -> WebHost:
    """A host with one lighttpd process and no application yet."""
    return make_web_host()
