"""What goes wrong, on a real web host: what it says, what state it leaves, and the way out."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator

import pytest

from tests.support.site import Site, wait_for
from tests.support.webhost import children


@pytest.fixture(scope="module")
def deployed(site: Site) -> Site:
    """The site on v3, the schema on 0002."""
    site.on("deploy", "--ref", "v3", "--yes")
    return site


@pytest.fixture(autouse=True)
def _unharmed(deployed: Site) -> Iterator[None]:
    """Whatever a test breaks, the site is whole afterwards: up, unlocked, answering."""
    yield
    assert not (deployed.root / "state" / "lock").exists()
    assert deployed.get()[0] == 200
    assert deployed.get("health")[0] == 200


def migrations(site: Site) -> int:
    """How many migrations were ever started."""
    return len(list(site.root.glob("migrations/*/started.json")))


def committed(site: Site, message: str, files: dict[str, str]) -> None:
    """One more commit on the sandbox's repository."""
    repository = site.directory / ".sandbox" / "guestbook"
    for name, content in files.items():
        (repository / name).write_text(content)
    for arguments in (["add", "-A"], ["commit", "-q", "-m", message]):
        identity = ["-c", "user.name=Ann", "-c", "user.email=ann@example.com"]
        subprocess.run(["git", "-C", repository, *identity, *arguments], check=True, capture_output=True)


def processes(site: Site) -> tuple[int, int]:
    """The supervisor of the generation that serves, and the application below it."""
    serving = (site.root / "run" / "app.sock").readlink().with_suffix(".json")
    supervisor = json.loads((site.root / "run" / serving).read_text())["pid"]
    (app,) = children(supervisor)
    return supervisor, app


def test_pending_migrations_are_refused_without_a_window(deployed: Site) -> None:
    done = deployed.on("deploy", "--ref", "broken-migration", "--yes", code=3)

    assert "0003: its author hasn't labelled it online-safe" in done.stderr
    assert "migrate the schema, on sandbox" in done.stderr, "the plan of the window"
    assert "next:  fab on sandbox deploy --ref broken-migration --with-downtime" in done.stderr
    assert "state: the site is up on what it ran before" in done.stderr
    assert deployed.serves == deployed.commit("v3")


def test_a_migration_that_fails_leaves_the_old_release_up(deployed: Site) -> None:
    with deployed.visitors("--rate", "100", "--clients", "4") as leave:
        done = deployed.on("deploy", "--ref", "broken-migration", "--with-downtime", "--yes", code=3)
        seen = leave()

    assert "state: the site is up on what it ran before" in done.stderr
    assert deployed.serves == deployed.commit("v3")
    assert deployed.get()[1]["x-schema"] == "0002"
    assert seen["lost"] == 0
    assert seen["mismatches"] == 0


@pytest.mark.parametrize(
    ("ref", "window"),
    [
        ("sick-app", []),
        ("broken-app", ["--with-downtime"]),
        pytest.param("broken-app", [], marks=pytest.mark.exhaustive),
        pytest.param("sick-app", ["--with-downtime"], marks=pytest.mark.exhaustive),
    ],
)
def test_an_app_that_does_not_get_well_is_never_shown_to_the_public(
    deployed: Site, ref: str, window: list[str]
) -> None:
    with deployed.visitors("--rate", "100", "--clients", "4") as leave:
        patience = {"FABRIC_DEPLOY_APP_START_TIMEOUT": "2"}
        done = deployed.fab("on", "sandbox", "deploy", "--ref", ref, *window, "--yes", code=3, **patience)
        seen = leave()

    assert "is not ready" in done.stderr
    assert "next:  look at" in done.stderr
    assert seen["lost"] == 0
    assert [name.rsplit("-", 1)[-1] for name in seen["releases"]] == [deployed.commit("v3")]


def test_two_deploys_at_once_and_the_second_is_told_who_is_at_it(deployed: Site) -> None:
    first = deployed.start("on", "sandbox", "deploy", "--ref", "v3", "--with-downtime", "--yes")
    wait_for((deployed.root / "state" / "lock").exists, "the first one's lock")
    assert first.stderr is not None
    first.stderr.close()  # as where what it was piped to has ended: no reason for the run to stop
    patient = deployed.start("on", "sandbox", "deploy", "--ref", "v3", "--yes", "--lock-wait", "10m")
    second = deployed.on("deploy", "--ref", "v3", "--yes", code=5)
    first.communicate(timeout=60)
    told = patient.communicate(timeout=100)[1]

    assert "where: sandbox" in second.stderr
    assert "nothing was changed" in second.stderr
    assert re.search(r"last heard of \d+ s ago in the step [a-z]", second.stderr)
    assert "--lock-wait" in second.stderr
    assert (first.returncode, patient.returncode) == (0, 0), told


def test_ctrl_c_before_the_migration_can_be_aborted(deployed: Site) -> None:
    before = migrations(deployed)
    process = deployed.start("on", "sandbox", "deploy", "--ref", "slow-migration", "--with-downtime", "--yes")
    wait_for((deployed.root / "state" / "lock").exists, "the lock")
    os.kill(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)

    assert process.returncode == 130
    assert "stopping as soon as the step in hand is done" in stderr
    assert "fab on sandbox deploy --abort" in stderr
    told = deployed.on("deploy", "--abort")
    assert "undone (aborted by " in told.stdout
    assert deployed.serves == deployed.commit("v3")
    assert migrations(deployed) == before


WAITS = """\
        while not os.path.exists({go!r}):
            time.sleep(0.02)"""


def test_a_laptop_that_dies_in_the_migration_changes_nothing_about_it(deployed: Site) -> None:
    before, go = migrations(deployed), deployed.directory / "go"
    repository = deployed.directory / ".sandbox" / "guestbook"
    moods = "migrations/versions/0003_moods.py"
    subprocess.run(["git", "-C", repository, "checkout", "-q", "-b", "waiting", "slow-migration"], check=True)
    waiting = (repository / moods).read_text().replace("\nimport time\n", "\nimport os\nimport time\n")
    waiting = waiting.replace("        time.sleep(PAUSE)", WAITS.format(go=str(go)))
    committed(deployed, "waiting", {moods: waiting})
    window = ("deploy", "--ref", "waiting", "--with-downtime", "--until", "+1s", "--yes")
    process = deployed.start("on", "sandbox", *window)
    wait_for(lambda: migrations(deployed) > before, "the migration")
    process.kill()
    process.communicate()
    status, headers = deployed.get()
    assert (status, headers["retry-after"]) == (503, "120"), "it lasts beyond the end that was announced"

    deployed.on("deploy", "--ref", "v3", "--yes", code=5)
    refused = deployed.on("deploy", "--abort", code=4)
    assert "next:  fab on sandbox deploy --resume" in refused.stderr
    journals = deployed.root / "state" / "journal"
    noted = sum(file.stat().st_size for file in journals.iterdir())
    resuming = deployed.start("on", "sandbox", "deploy", "--resume")
    wait_for(lambda: sum(file.stat().st_size for file in journals.iterdir()) > noted, "it to go on")
    go.touch()
    stdout, stderr = resuming.communicate(timeout=100)

    assert resuming.returncode == 0, stderr
    assert "done" in stdout
    assert len(re.findall("the window was to end at .*, and goes on", stdout + stderr)) == 1
    assert migrations(deployed) == before + 1
    assert deployed.serves == deployed.commit("waiting")
    assert deployed.get()[1]["x-schema"] == deployed.get()[1]["x-schema-expected"]


def test_a_rollback_past_a_migration_is_refused(deployed: Site) -> None:
    done = deployed.on("rollback", "--yes", code=3)

    assert "the site is up on what it ran before" in done.stderr
    assert deployed.serves == deployed.commit("waiting")


def test_an_app_that_was_killed_is_back_before_anybody_looks(deployed: Site) -> None:
    _, killed = processes(deployed)
    os.kill(killed, signal.SIGKILL)
    back = wait_for(lambda: (now := deployed.status()["serving"])["alive"] and now, "it to be started again")
    assert (back["restarts"], back["pid"] != killed) == (1, True)
    assert deployed.get("health")[0] == 200


def test_an_app_that_nobody_starts_again_is_told_and_brought_back_by_a_swap(deployed: Site) -> None:
    supervisor, app = processes(deployed)
    os.kill(supervisor, signal.SIGKILL)
    os.kill(app, signal.SIGKILL)

    told = deployed.on("status", code=3)
    assert "not running" in told.stdout
    assert "visitors get an error" in told.stderr
    assert not deployed.status(code=3)["serving"]["alive"]
    deployed.on("hotswap")


def test_without_a_warm_generation_there_is_no_way_back_but_a_rollback(deployed: Site) -> None:
    done = deployed.on("hotswap", "--back", code=3)

    assert "there is no warm generation" in done.stderr
    assert "next:  fab on sandbox rollback" in done.stderr


def test_a_lock_that_nobody_holds_needs_no_force(deployed: Site) -> None:
    assert "nobody" in deployed.on("unlock", "--force", "20260101T000000Z-abcdef").stdout


def test_nothing_to_resume_is_said(deployed: Site) -> None:
    assert "no run is open" in deployed.on("deploy", "--resume", code=2).stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["deploy", "--ref", "nonsense"], "there is no commit nonsense"),
        (["deploy", "--until", "soon", "--with-downtime"], "can't read the time"),
        (["deploy", "--batch", "many"], "can't read 'many'"),
        (["deploy", "--exclude", "web9"], "no such host: web9"),
        (["deploy", "--exclude", "sandbox"], "every host is excluded"),
        (["deploy"], "there is no terminal to ask on"),
        (["rollback", "--to", "nonsense"], "nonsense is not on the hosts"),
    ],
)
def test_bad_input_is_told_in_one_message_and_changes_nothing(
    deployed: Site, arguments: list[str], said: str
) -> None:
    done = deployed.on(*arguments, code=2)

    assert said in done.stderr


def test_a_host_that_is_not_there_changes_nothing(deployed: Site) -> None:
    config = deployed.directory / ".sandbox" / "ssh" / "config"
    before = config.read_text()
    config.write_text(before.replace(str(deployed.ssh_port), "1"))
    try:
        done = deployed.on("deploy", "--ref", "v3", "--yes", code=6)
        asked = deployed.on("status", code=6)
    finally:
        config.write_text(before)

    assert "sandbox" in done.stderr
    assert "nothing was changed" in done.stderr
    assert "no answer" in asked.stdout


def test_a_host_with_another_key_is_not_talked_to(deployed: Site) -> None:
    known = deployed.directory / ".sandbox" / "ssh" / "known_hosts"
    before = known.read_text()
    known.write_text("")
    try:
        done = deployed.on("status", code=6)
    finally:
        known.write_text(before)

    assert "ssh" in done.stderr.split("next:")[1]
    assert "SHA256:" in done.stderr, "the fingerprint to compare"


MIGRATION = """
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.execute("ALTER TABLE entries ADD COLUMN pinned INTEGER NOT NULL DEFAULT 0")
"""


def test_a_bad_release_on_a_new_schema_holds_and_the_next_one_takes_its_window_over(deployed: Site) -> None:
    """There is no way back once the schema has changed; so there has to be a way forward."""
    repository = deployed.directory / ".sandbox" / "guestbook"
    subprocess.run(["git", "-C", repository, "checkout", "-q", "-b", "forward", "waiting"], check=True)
    whole = (repository / "guestbook.py").read_text()
    broken = whole.replace("\nimport ", "\nraise SystemExit('a bad day')\nimport ", 1)
    committed(deployed, "bad", {"migrations/versions/0004_pinned.py": MIGRATION, "guestbook.py": broken})

    with deployed.visitors("--rate", "50", "--clients", "4") as leave:
        held = deployed.on("deploy", "--ref", "forward", "--with-downtime", "--yes", code=4)
        run_id = deployed.status()["maintenance"]["run_id"]
        deployed.on("deploy", "--resume", code=4)
        deployed.on("deploy", "--abort", code=4)
        committed(deployed, "good", {"guestbook.py": whole})
        deployed.on("deploy", "--ref", "forward", "--with-downtime", "--yes", code=5)
        deployed.on("unlock", "--force", run_id)
        fixed = deployed.on("deploy", "--ref", "forward", "--with-downtime", "--yes")
        seen = leave()

    assert "in maintenance: sandbox" in held.stderr
    assert "a bad day" in held.stderr
    assert f"this takes over the window of run {run_id}" in fixed.stderr
    assert deployed.serves == deployed.commit("forward")
    assert deployed.get()[1]["x-schema"] == "0004"
    assert (seen["lost"], seen["mismatches"]) == (0, 0)


ONLINE = """
from alembic import op

revision = "0005"
down_revision = "0004"
online_safe = True


def upgrade() -> None:
    op.execute("ALTER TABLE entries ADD COLUMN colour TEXT")
"""


def test_what_is_labelled_online_safe_is_migrated_and_then_swapped_with_the_site_up(deployed: Site) -> None:
    """On the release of the test before, whose schema is 0004."""
    before = migrations(deployed)
    committed(deployed, "colours", {"migrations/versions/0005_colour.py": ONLINE})

    with deployed.visitors("--rate", "100", "--clients", "4") as leave:
        deployed.on("deploy", "--ref", "forward", "--yes")
        seen = leave()

    assert migrations(deployed) == before + 1
    assert deployed.serves == deployed.commit("forward")
    assert deployed.get()[1]["x-schema"] == "0005"
    assert (seen["lost"], seen["classes"]["maintenance"]) == (0, 0)

    deployed.on("deploy", "--ref", "forward", "--yes")
    assert migrations(deployed) == before + 1, "with nothing pending no runner is started"


def test_what_was_migrated_online_stays_where_the_release_after_it_does_not_get_well(deployed: Site) -> None:
    """On the release of the test before, whose schema is 0005."""
    repository = deployed.directory / ".sandbox" / "guestbook"
    whole, before = (repository / "guestbook.py").read_text(), deployed.serves
    broken = whole.replace("\nimport ", "\nraise SystemExit('a bad day')\nimport ", 1)
    online = ONLINE.replace("0005", "0006").replace("0004", "0005").replace("colour", "shape")
    committed(deployed, "bad", {"migrations/versions/0006_shape.py": online, "guestbook.py": broken})

    failed = deployed.on("deploy", "--ref", "forward", "--yes", code=3)

    assert "on a schema with 0006, which is labelled online-safe and stays" in failed.stderr
    assert deployed.serves == before
    assert deployed.get()[1]["x-schema"] == "0006"
    started = migrations(deployed)
    refused = deployed.on("rollback", "--yes", code=3)
    assert "0006" in refused.stderr
    committed(deployed, "good", {"guestbook.py": whole})
    deployed.on("deploy", "--ref", "forward", "--yes")
    assert deployed.serves == deployed.commit("forward")
    assert migrations(deployed) == started
