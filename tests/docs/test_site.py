"""The documents build as a site: every link and every heading that one leads to is there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def test_the_site_builds_without_a_broken_link_and_needs_no_network(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "--keep-going", "docs", tmp_path],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )

    assert built.returncode == 0, built.stderr
    page = (tmp_path / "index.html").read_text()
    loaded = re.findall(r'<(?:script|img)[^>]* src="([^"]+)"|<link[^>]* href="([^"]+)"', page)
    assert loaded
    assert not [address for found in loaded for address in found if "//" in address]
    for style in tmp_path.rglob("*.css"):
        assert not re.search(r"(url\(|@import )[\"']?(https?:)?//", style.read_text()), style
    for document in (REPOSITORY / "docs").rglob("*.md"):
        assert (tmp_path / document.relative_to(REPOSITORY / "docs").with_suffix(".html")).exists()
