"""In CI nothing is skipped: what a machine lacks for a test is a failure. And every message is provoked."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

from tests.provoked import Recorder


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--messages", action="store_true", help="name the error messages that no test of this run provokes"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Recorder(config))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and "CI" in os.environ:
        told = report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome, report.longrepr = "failed", f"in CI nothing is skipped; {told}"
    return report
