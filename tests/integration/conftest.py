from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.site import Site, new_site


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """A sandbox for the tests of one module."""
    with new_site() as made:
        yield made
