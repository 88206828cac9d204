"""The site that the trials of a module share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fleet import Fleet
from tests.fleet.matrix.site import Site


@pytest.fixture(scope="module")
def site(fleet: Fleet) -> Iterator[Site]:
    with Site(fleet) as made:
        yield made
