"""A whole downtime window on a real web host, with visitors on it the whole time."""

from __future__ import annotations

import json
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


def test_a_probe_saw_what_the_visitors_saw(story: Story) -> None:
    (told,) = [line for line in story.window.splitlines() if line.startswith("  downtime")]

    seen = float(told.split()[1])
    # It asks four times a second, and each end of the downtime may be just after it has asked.
    assert abs(seen - story.visitors["downtime"]["seconds"]) < 1.0
    assert "  lost       0 of the probe's " in story.window


def test_the_page_of_the_run_has_its_migration_and_its_visitors(story: Story) -> None:
    file = story.site.on("report", story.run["run_id"], "--output", "page.html").stdout.strip()
    text = (story.site.directory / file).read_text()

    assert "Running upgrade 0001 -&gt; 0002" in text
    assert '<rect class="maintenance"' in text
    assert "it&#39;s `$(time)`" in text
    assert "there is no run" in story.site.on("report", "--run", "nope", code=2).stderr


def test_a_machine_gets_one_object_and_its_events_by_the_line(story: Story) -> None:
    swapped = story.site.on("hotswap", "--json")
    refused = story.site.on("rollback", "--to", "nope", "--yes", "--json", code=2)

    events = [json.loads(line)["event"] for line in swapped.stderr.splitlines()]
    assert (events[0], events.count("step")) == ("begin", 3)
    assert json.loads(swapped.stdout)["run"]["verdict"] == "done"
    told = json.loads(refused.stdout)
    assert (told["ok"], told["exit_code"], told["run"]) == (False, 2, None)
    assert told["error"]["where"] == "--to"
    assert refused.stderr == ""


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
    with story.site.visitors("--rate", "400", "--clients", "8") as leave:
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
