"""Real web hosts for the tests of the host programs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from typing import Any

import pytest

from tests.support.databases import SERVERS, Database
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


@pytest.fixture(scope="module")
def shared_host() -> Iterator[WebHost]:
    with WebHost() as host:
        host.serve()
        yield host


@pytest.fixture
def site(shared_host: WebHost) -> WebHost:
    """A site that is up, with one lighttpd process and an application that answers."""
    shared_host.reset_maintenance()
    return shared_host


@pytest.fixture
def own_site(web_host: WebHost) -> WebHost:
    """The same for a test that breaks more of it than the maintenance directory."""
    web_host.serve()
    return web_host


@pytest.fixture(scope="session")
def new_database() -> Iterator[Callable[[str], Database]]:
    """A new database on the server of a kind; there is one for all tests, since to make it takes seconds."""
    with ExitStack() as stack:
        server = cache(lambda kind: stack.enter_context(SERVERS[kind]()))
        numbers = itertools.count()
        yield lambda kind: server(kind).create(f"d{next(numbers)}")
