"""What systemd and its journal are asked, where no host is needed for it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hostlib.swapping import systemd

from tests.support.webhost import REMOTE_SCRIPTS  # noqa: F401 - it makes hostlib importable


@pytest.mark.timeout(30)
def test_a_journal_that_takes_too_long_does_not_hold_up_the_way_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = tmp_path / "journalctl"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(systemd, "JOURNAL", 0.1)

    assert systemd.ended_before("deploytools-guestbook@1.service") == "it ended, and was started again"
