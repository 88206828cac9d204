"""Hands a test its hosts, or says what this machine lacks for them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet.fleet import Fleet, missing

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Real hosts take their time, and the first of them an image that is made in a minute."""
    for item in items:
        if HERE in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session")
def fleet_possible() -> None:
    """Skips where this machine can't have a fleet, and says why."""
    if lacking := missing():
        reason = f"no test fleet, so nothing was tested on real hosts; missing: {'; '.join(lacking)}"
        pytest.skip(reason)


@pytest.fixture(scope="module")
def fleet(request: pytest.FixtureRequest, fleet_possible: None) -> Iterator[Fleet]:
    """The fleet of this module: `pytestmark = pytest.mark.fleet(count, suites=..., packages=...)`."""
    mark = request.node.get_closest_marker("fleet")
    with Fleet(*(mark.args if mark else ()), **(mark.kwargs if mark else {})) as made:
        yield made
