"""A whole downtime window on a real web host, with visitors on it the whole time."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.site import Site

ALLOWED = 1.5  # seconds that visitors may be sent away for beyond the migration


@dataclass
class Story:
    """What happened: v1 as first deploy, then v2 with its migration under traffic."""

    site: Site
    first: str
    window: str
    visitors: dict[str, Any]
    run: dict[str, Any]


@pytest.fixture(scope="module")
def story(site: Site) -> Story:
    first = site.on("deploy", "--ref", "v1", "--yes")
    with site.visitors("--rate", "200", "--clients", "8") as leave:
        window = site.on("deploy", "--ref", "v2", "--with-downtime", "--yes", "--reason", "it's `$(time)`")
        seen = leave()
    return Story(site, first.stdout, window.stdout, seen, site.history()[0])


def test_the_first_deploy_needs_no_word_about_downtime(story: Story) -> None:
    assert "deploy of guestbook: done, nothing -> " in story.first


def test_visitors_got_the_app_or_the_marked_maintenance_page_and_nothing_else(story: Story) -> None:
    assert story.visitors["lost"] == 0
    assert {kind for kind, count in story.visitors["classes"].items() if count} == {"app", "maintenance"}


def test_no_code_met_a_schema_that_is_not_its_own(story: Story) -> None:
    assert story.visitors["mismatches"] == 0


def test_visitors_met_both_releases(story: Story) -> None:
    releases = {name.rsplit("-", 1)[-1] for name in story.visitors["releases"]}

    assert releases == {story.site.commit("v1"), story.site.commit("v2")}


def test_the_site_was_visibly_down_for_little_more_than_the_migration(story: Story) -> None:
    seen = story.visitors["downtime"]

    assert seen["over"]
    # Twice what is promised: the machine that runs the tests is busy with them.
    assert seen["seconds"] - story.run["migration_seconds"] < 2 * ALLOWED


def test_the_run_is_on_record_with_what_it_measured(story: Story) -> None:
    assert story.run["verdict"] == "done"
    assert story.run["reason"] == "it's `$(time)`"
    assert story.run["downtime_seconds"] >= story.visitors["downtime"]["seconds"] - 0.5
    assert story.run["run_id"] in story.window


def test_afterwards_the_host_is_up_unlocked_and_on_the_new_release(story: Story) -> None:
    status = story.site.status()

    assert status["maintenance"]["state"] == "up"
    assert status["lock"] is None
    assert status["release"].endswith(story.site.commit("v2"))
    assert status["serving"]["alive"]
    assert story.site.get()[1]["x-schema"] == "0002"


def test_nothing_is_pending_and_both_releases_are_there_to_go_back_to(story: Story) -> None:
    assert "nothing is pending" in story.site.on("migrate", "--status").stdout
    listed = story.site.on("releases").stdout
    assert story.site.commit("v1") in listed
    assert story.site.commit("v2") in listed


def test_a_plan_touches_nothing(story: Story) -> None:
    before = sorted(story.site.root.rglob("*"))

    printed = story.site.on("deploy", "--ref", "v3", "--with-downtime", "--plan").stdout

    assert "maintenance on, proved" in printed
    assert "exit code 4" in printed
    assert sorted(story.site.root.rglob("*")) == before


def test_swaps_under_load_lose_nothing(story: Story) -> None:
    with story.site.visitors("--clients", "8") as leave:
        for _ in range(3):
            story.site.on("hotswap")
        seen = leave()

    assert seen["lost"] == 0
    assert seen["classes"]["maintenance"] == 0
    assert len(seen["generations"]) == 4
    assert seen["sent"] > 500


def test_maintenance_by_hand_goes_down_and_up_again(story: Story) -> None:
    site = story.site

    site.on("maint-down", "--reason", "moving; $(disks)", "--until", "+30m", "--drain")
    status, headers = site.get()
    told = site.on("status").stdout
    site.on("maint-down")  # a second time is harmless
    site.on("maint-up")

    assert status == 503
    assert headers["x-maintenance-mode"] == "1"
    assert 1700 < int(headers["retry-after"]) <= 1800
    assert "moving; $(disks)" in told
    assert site.get()[0] == 200
    site.on("maint-up")  # and so is a second up


def test_the_switch_works_by_hand_without_the_laptop(story: Story) -> None:

    switch = story.site.directory / ".sandbox" / "host" / "etc" / "lighttpd"

    subprocess.run([switch / "down", "--reason", "by hand"], check=True, capture_output=True)
    assert story.site.get()[0] == 503
    subprocess.run([switch / "up"], check=True, capture_output=True)
    assert story.site.get()[0] == 200


def test_a_sandbox_that_was_down_comes_back_with_its_site(story: Story) -> None:
    before = story.site.serves

    story.site.fab("sandbox.down")
    story.site.fab("sandbox.up")

    assert story.site.serves == before
