"""The migration, its database or the new application fails; and two operators meet."""

from __future__ import annotations

import pytest

from tests.fleet.matrix.application import PACKAGES
from tests.fleet.matrix.invariants import NEW, OLD
from tests.fleet.matrix.site import Site
from tests.fleet.matrix.trials import check

pytestmark = pytest.mark.fleet(2, packages=PACKAGES)


@pytest.mark.parametrize(
    ("trial", "end"),
    [
        ("migration-fails before web1 resume", OLD),
        pytest.param("migration-fails inside web1 resume", OLD, marks=pytest.mark.exhaustive),
        ("migration-fails after web1 resume", NEW),
        ("locked-before before web1 resume", OLD),
        ("locked-meanwhile before web1 resume", OLD),
        ("kill first:undo-maintenance-on web1 resume", OLD),
        ("runner-killed inside web1 resume", OLD),
        ("database-killed inside web1 resume", OLD),
        ("outlives-the-link inside web1 resume", NEW),
        pytest.param("outlives-by-a-minute inside web1 resume", NEW, marks=pytest.mark.exhaustive),
    ],
)
def test_a_migration_that_fails_is_undone_or_explained(site: Site, trial: str, end: str) -> None:
    check(site, trial, end)


@pytest.mark.parametrize("trial", ["unhealthy swap web1 resume", "sick verify web2 resume"])
def test_the_public_never_meets_an_application_that_does_not_verify(site: Site, trial: str) -> None:
    check(site, trial, NEW)


@pytest.mark.parametrize(
    "trial",
    ["two-operators send:maintenance-on web1 resume", "taken-over send:migrate web1 resume"],
)
def test_of_two_operators_one_is_at_it_and_the_other_is_told(site: Site, trial: str) -> None:
    check(site, trial, NEW)
