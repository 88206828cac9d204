"""What the tasks have in common, where no host is needed to see it. The rest is in tests/integration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deploytools import operation
from deploytools.errors import HostKeyRejected, InMaintenance, Unfinished, UsageError
from deploytools.fleet import Fleet
from deploytools.operation import unreachable
from deploytools.report import error_text
from deploytools.settings import Host
from tests.unit.test_engine import SETTINGS, WINDOW, FakeHost, Silent, World, failing


class Linked(FakeHost):
    sent = 0

    def open(self) -> None: ...
    def close(self) -> None: ...


def fleet(world: World, *names: str) -> Fleet[Any]:
    return Fleet([Host(name) for name in names], lambda host: Linked(str(host), world))


@pytest.fixture
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A window that migrated, and holds because web2 does not swap."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    world = World({("web2", "swap"): [failing("not ready")]})
    with fleet(world, "web1", "web2") as both, pytest.raises(InMaintenance):
        operation.carry_out(WINDOW, SETTINGS, both, Silent(), tmp_path / "archive")
    world.said.clear()
    return world


def test_a_held_run_goes_on_without_a_host_that_died(held: World) -> None:
    with fleet(held, "web1") as left, pytest.raises(Unfinished, match="done") as caught:
        operation.resume(held.stored, SETTINGS, left, Silent(), exclude=["web2"])  # type: ignore[arg-type]

    assert ("web1", "up") in held.said
    assert caught.value.state == "what was wanted is done on web1"
    assert caught.value.details == ("web2: swap: not ready",)
    assert "web2" not in {host for host, _ in held.said}


@pytest.mark.parametrize("exclude", [[], ["web1", "web2"]])
def test_a_run_is_not_resumed_on_hosts_that_it_does_not_have(held: World, exclude: list[str]) -> None:
    with fleet(held, "web1") as left, pytest.raises(UsageError, match="works on"):
        operation.resume(held.stored, SETTINGS, left, Silent(), exclude=exclude)  # type: ignore[arg-type]

    assert held.said == []


def test_a_refused_host_key_is_told_with_the_fingerprint_to_compare() -> None:
    lost = HostKeyRejected(
        "the host key of web1 is not in known_hosts",
        next="ssh web1 true   (answer yes only if it shows this fingerprint)",
        details=["its ssh-ed25519 key is SHA256:abc"],
    )

    told = error_text(unreachable({"web1": lost, "web2": TimeoutError("no answer")}))

    assert told.startswith("error: 2 hosts could not be reached")
    assert "web1: the host key of web1 is not in known_hosts" in told
    assert "SHA256:abc" in told
    assert "web2: no answer" in told
    assert "next:  ssh web1 true" in told
