"""A release on its way to real hosts: what a full disk, a dead link and somebody's hand do to it."""

from __future__ import annotations

import json
import os

import pytest

from tests.fleet import Fleet, sample
from tests.fleet.hosts import Host, wait_until

pytestmark = pytest.mark.fleet(2, suites=("bookworm", "trixie"))

RELEASES = "/srv/guestbook/releases"
CONTENT = f"{RELEASES}/.incoming/content"


@pytest.fixture(scope="module")
def site(fleet: Fleet) -> Fleet:
    """Hosts that serve a first release, with some files beside the application."""
    sample.begin(fleet)
    for number in range(20):
        (fleet.operator.directory / f"public/page-{number}").write_text(f"{number}" * 1000)
    sample.commit(fleet, "Some pages")
    fleet.operator.fab("setup", "--as-user", "root", "--yes")
    fleet.operator.fab("deploy", "--yes", timeout=300)
    return fleet


def serving(host: Host) -> str:
    return host.get("/").text.split()[1]


def staged(fleet: Fleet) -> dict[str, dict[str, object]]:
    """What the newest run's journal has of the step that ships the release, by host."""
    run = json.loads(fleet.operator.fab("history", "--json").stdout)[0]["run_id"]
    journal = fleet.operator.directory / "state/deploytools/journal" / f"{run}.jsonl"
    records = [json.loads(line) for line in journal.read_text().splitlines()]
    return {
        record["host"]: record["value"]
        for record in records
        if record["kind"] == "outcome" and record["step"] == "stage" and not record["undo"]
    }


def test_a_disk_that_is_full_stops_the_deploy_before_anything_is_sent(site: Fleet) -> None:
    before = [serving(host) for host in site]
    (site.operator.directory / "large").write_bytes(os.urandom(8 << 20))
    sample.commit(site, "A large file")
    site["web2"].fill_disk(free=4 << 20)
    try:
        failed = site.operator.fab("deploy", "--yes", code=3, timeout=300)
    finally:
        site["web2"].free_disk()
    assert "MiB" in failed.stderr
    assert [serving(host) for host in site] == before
    for host in site:
        assert host.run(f"ls {RELEASES}").stdout.split() == before[:1], "it was discarded everywhere"


def test_a_link_that_is_cut_in_the_middle_is_taken_up_where_it_was(site: Fleet) -> None:
    web1, large = site["web1"], 60 << 20
    (site.operator.directory / "large").write_bytes(os.urandom(large))
    sample.commit(site, "A larger file")
    deploy = site.operator.start("deploy", "--yes")
    arrived = f"find {CONTENT} -type f -size +5M -printf '%s\\n' 2>/dev/null"
    wait_until(lambda: web1.run(arrived, check=False).stdout, lambda: "a part of it to arrive")
    web1.kill("sshd")
    _, said = deploy.communicate(timeout=300)
    assert deploy.returncode == 0, said
    assert "asking again" in said
    sent = int(str(staged(site)["web1"]["bytes"]))
    assert 0 < sent < large - (5 << 20), "only the rest came the second time"
    assert serving(web1) == serving(site["web2"])
    assert web1.run(f"stat -c %s {RELEASES}/{serving(web1)}/large").stdout.strip() == str(large)


def test_what_a_hand_has_damaged_or_removed_is_sent_anew(site: Fleet) -> None:
    web1, web2 = site
    # In place, and so in all releases that share the file.
    web1.run(f"printf 4 | dd conv=notrunc status=none of={RELEASES}/{serving(web1)}/public/page-3")
    verified = site.operator.fab("releases", "--verify", code=3)
    assert "public/page-3" in verified.stderr
    assert f"web2: release {serving(web2)}: all" in verified.stdout
    gone = [name for name in web2.run(f"ls {RELEASES}").stdout.split() if name != serving(web2)]
    web2.run(f"rm -rf {' '.join(f'{RELEASES}/{name}' for name in gone)}")
    (site.operator.directory / "public/page-1").write_text("changed")
    sample.commit(site, "A page")
    deployed = site.operator.fab("deploy", "--yes", timeout=300)
    assert "public/page-3 is not what it was when it was staged" in deployed.stderr
    values = staged(site)
    assert values["web1"]["arrived"] == 3
    assert values["web2"]["arrived"] == 2
    for host in site:
        assert host.read(f"{RELEASES}/{serving(host)}/public/page-3") == "3" * 1000
