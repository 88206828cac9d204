"""Many hosts in few words."""

from __future__ import annotations

import pytest

from deploytools.hostnames import folded, names

HUNDRED = [f"web{number}.example.com" for number in range(1, 101)]


@pytest.mark.parametrize(
    ("some", "told"),
    [
        ([], ""),
        (["db"], "db"),
        (["web1", "web2"], "web1, web2"),
        (["web1", "web2", "web3"], "web[1-3]"),
        (["web09", "web10", "web11"], "web[09-11]"),
        (["web9", "web10", "web11"], "web[9-11]"),
        (["web1", "web2", "web3", "web5", "db1", "db2", "db3"], "web[1-3], web5, db[1-3]"),
        (["web1.a", "web2.b", "web3.c"], "web1.a, web2.b, web3.c"),
        (["10.0.0.1", "10.0.0.2", "10.0.0.3"], "10.0.0.1, 10.0.0.2, 10.0.0.3"),
    ],
)
def test_names_that_go_up_by_one_are_written_once(some: list[str], told: str) -> None:
    assert folded(some) == told


@pytest.mark.parametrize(
    ("some", "every", "told"),
    [
        (["web1"], ["web1"], "web1"),
        (["web1", "web2"], ["web1", "web2"], "all 2 hosts"),
        (["web1", "web2"], ["web1", "web2", "web3"], "web1, web2"),
        (HUNDRED, HUNDRED, "all 100 hosts"),
        (HUNDRED[:40], HUNDRED, "web[1-40].example.com (40 of 100 hosts)"),
        (HUNDRED[41:42], HUNDRED, "web42.example.com"),
    ],
)
def test_among_many_hosts_their_number_is_told(some: list[str], every: list[str], told: str) -> None:
    assert names(some, every) == told
