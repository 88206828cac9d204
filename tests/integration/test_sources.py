"""A deploy of a patched and built release to a real host, and one whose patch no longer applies."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import subprocess
import urllib.request
from collections.abc import Callable

import pytest

from tests.support.site import FABRIC_YAML, Site

Configure = Callable[..., None]
GREETING = "Greetings from our own fork"


@pytest.fixture(scope="module")
def configure(site: Site) -> Configure:
    """Lay settings over those that the sandbox has for its source."""

    def write(**source: object) -> None:
        sandbox = {"sandbox": {"source": source, "shared": ["var", ".env"]}}
        (site.directory / "fabric.yaml").write_text(
            f"{FABRIC_YAML}deploy: {{environments: {json.dumps(sandbox)}}}\n"
        )

    return write


def fix(site: Site, ref: str) -> bytes:
    """A patch that gives the page of `ref` a heading of our own."""
    repository = site.directory / ".sandbox" / "guestbook"
    shown = subprocess.run(
        ["git", "-C", repository, "show", f"{ref}:page.html"], capture_output=True, text=True, check=True
    )
    before = shown.stdout.splitlines(keepends=True)
    after = [line.replace("<h1>", f"<h1>{GREETING}: ") for line in before]
    return "".join(difflib.unified_diff(before, after, "a/page.html", "b/page.html")).encode()


def page(site: Site) -> str:
    with urllib.request.urlopen(site.url, timeout=20) as answer:  # noqa: S310
        return str(answer.read().decode())


def test_a_patched_and_built_release_is_served_and_says_what_it_is_made_of(
    site: Site, configure: Configure
) -> None:
    patch = fix(site, "v1")
    (site.directory / "fork.diff").write_bytes(patch)
    configure(patches=["fork.diff"], build="echo PASSWORD=hush > .env; echo compiling; echo 1 > built.txt")

    planned = site.on("deploy", "--ref", "v1", "--plan")
    assert "source   v1 of " in planned.stdout
    told = site.on("deploy", "--ref", "v1", "--yes")

    assert "build | compiling" in told.stderr
    assert GREETING in page(site)
    release = site.root / "releases" / os.readlink(site.root / "current").rpartition("/")[2]
    assert (release / "built.txt").read_text() == "1\n"
    assert os.readlink(release / ".env") == "../../shared/.env"
    assert not (site.root / "shared" / ".env").exists()
    described = json.loads((release / ".deploytools.json").read_text())
    assert described["patches"] == [{"name": "fork.diff", "sha256": hashlib.sha256(patch).hexdigest()}]
    (listed,) = json.loads(site.on("releases", "--json").stdout)["sandbox"]
    assert (listed["ref"], listed["digest"]) == ("v1", described["digest"])
    log = site.directory / "state" / "deploytools" / "builds" / f"{release.name}.log"
    assert log.read_text() == "compiling\n"
    assert str(log) in told.stderr
    assert "hush" not in "".join((told.stdout, told.stderr, log.read_text()))


def test_a_patch_that_no_longer_applies_stops_before_the_host_is_touched(
    site: Site, configure: Configure
) -> None:
    """On the host of the test before."""
    stale = fix(site, "v1").replace(b" <body>", b" <body class='old'>")
    (site.directory / "stale.diff").write_bytes(stale)
    configure(patches=["stale.diff"], build="touch /nonexistent/built")
    runs, before = site.history(), sorted(os.listdir(site.root / "releases"))

    refused = site.on("deploy", "--ref", "v1", "--yes", code=2)
    planned = site.on("deploy", "--ref", "v1", "--plan", code=2)
    examined = site.on("doctor", code=3)

    assert refused.stderr == planned.stderr
    assert "where: deploy.source.patches: " in refused.stderr
    assert re.search(r"^    page.html: hunk 1, at line \d+, doesn't fit$", refused.stderr, re.MULTILINE)
    assert "state: nothing was changed" in refused.stderr
    assert "the patch doesn't apply" in examined.stdout
    assert site.history() == runs
    assert sorted(os.listdir(site.root / "releases")) == before


def test_a_build_that_fails_stops_before_the_host_is_touched(site: Site, configure: Configure) -> None:
    """On the host of the tests before."""
    configure(build="echo no compiler >&2; exit 9")
    runs = site.history()

    failed = site.on("deploy", "--ref", "v1", "--yes", code=3)

    assert "    no compiler" in failed.stderr
    assert "state: no host was touched" in failed.stderr
    assert "next:  less " in failed.stderr
    assert site.history() == runs
