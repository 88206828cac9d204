"""The examples in docs/reference.md are what the settings make of them."""

from __future__ import annotations

import re
from pathlib import Path

from invoke.util import yaml

from tests.support.deploy_section import problems, read

REFERENCE = (Path(__file__).parents[2] / "docs" / "reference.md").read_text()


def test_the_shortest_file_shown_is_a_good_one() -> None:
    examples = re.findall(r"```yaml\n(tasks:.*?)```", REFERENCE, re.DOTALL)

    assert [read(yaml.safe_load(text)["deploy"]).application for text in examples] == ["guestbook"]


def test_the_message_shown_is_the_one_that_is_given() -> None:
    lines = problems(
        {
            "application": "guestbook",
            "hosts": ["web1", {"host": "web2", "port": "abc"}],
            "app": {"command": "/usr/bin/php-cgi"},
            "keep_release": 3,
        }
    )

    assert "".join(f"    {line}\n" for line in lines) in REFERENCE
