"""The host's half of `fab setup`: what it does, what it refuses, and that it is whole at any moment."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hostlib.locking import exclusive
from hostlib.switch import maintscript

from tests.support.ground import ME, Ground, of_an_older_toolkit, paths
from tests.support.interrupts import SOME_OR_EVERY
from tests.support.webhost import REMOTE_SCRIPTS

sys.path.insert(0, str(REMOTE_SCRIPTS))

from hostsetup import asking, install, placing, remove, trust
from hostsetup import bundle as bundles
from hostsetup import main as hostsetup
from hostsetup.bundle import Directory, Refused


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    return Ground(tmp_path)


def accepted(ground: Ground) -> bool:
    """Whether lighttpd would start with what is in its directory now."""
    argv = ["/usr/sbin/lighttpd", "-tt", "-f", str(ground.configuration)]
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


def tree(place: Path) -> dict[str, tuple[int, bytes | str | None]]:
    """Everything below a directory: mode, and content or target."""
    found: dict[str, tuple[int, bytes | str | None]] = {}
    for path in sorted(place.rglob("*")):
        mode = path.lstat().st_mode
        content = (
            os.readlink(path) if stat.S_ISLNK(mode) else path.read_bytes() if stat.S_ISREG(mode) else None
        )
        found[str(path.relative_to(place))] = mode, content
    return found


# -- what it does ------------------------------------------------------------------------------------


def test_a_second_run_changes_nothing_and_says_so(ground: Ground) -> None:
    first = ground.install()
    before = tree(ground.base)
    second = ground.install()

    assert {str(ground.snippet), str(ground.enabled), str(ground.etc / "down")} <= set(paths(first))
    assert (second["changes"], second["code"]) == ([], 0)
    assert tree(ground.base) == before
    assert (ground.etc / "maint.lua").read_text() == maintscript.UP
    assert accepted(ground)


def test_a_plan_shows_every_difference_and_changes_nothing(ground: Ground) -> None:
    before = tree(ground.base)

    planned = ground.install(plan_only=True)

    assert tree(ground.base) == before
    snippet = next(change for change in planned["changes"] if change["path"] == str(ground.snippet))
    assert "+magnet.attract-raw-url-to" in snippet["diff"]
    assert set(paths(planned)) == set(paths(ground.install()))


def test_what_a_hand_has_changed_is_mended_and_told(ground: Ground) -> None:
    ground.install()
    swap = ground.tools / "swap"
    hostlib = (ground.tools / "current").resolve() / "hostlib"
    swap.resolve().chmod(0o777)
    (hostlib / "names.py").write_text("")
    (hostlib / "stranger.py").write_text("")
    (ground.root / "run").chmod(0o777)
    ground.snippet.chmod(0o600)

    mended = {change["path"]: change for change in ground.install()["changes"]}

    assert mended[str(swap)]["diff"].endswith(" 0755")
    assert mended[str(ground.root / "run")]["what"] == "owner or mode"
    assert {str(ground.snippet), str(ground.tools / "hostlib/names.py")} < set(mended)
    assert "none of ours" in mended[str(hostlib / "stranger.py")]["what"]
    assert len(mended) == 5
    assert ground.install()["changes"] == []
    assert stat.S_IMODE(swap.stat().st_mode) == 0o755


def test_the_operators_page_and_an_open_window_stay(ground: Ground) -> None:
    ground.install()
    (ground.etc / "maint.html").write_text("<p>mine")
    down = maintscript.down_script(b"closed", application="guestbook", window="w1")
    (ground.etc / "maint.lua").write_text(down)

    assert ground.install()["changes"] == []
    ground.install(edit=of_an_older_toolkit)
    assert (ground.etc / "maint.html").read_text() == "<p>mine"
    assert (ground.etc / "maint.lua").read_text() == down


def test_a_page_that_a_set_up_has_put_there_follows_fabric_yaml(ground: Ground) -> None:
    ground.install()
    ground.overrides["page"] = {"title": "Closed for stocktaking"}

    (change,) = [one for one in ground.install()["changes"] if one["path"] == str(ground.etc / "maint.html")]

    assert "+<title>Closed for stocktaking</title>" in change["diff"]
    assert "Closed for stocktaking" in (ground.etc / "maint.html").read_text()
    assert ground.install()["changes"] == []


def test_a_page_of_before_a_set_up_that_was_killed_is_still_nobodys_own(ground: Ground) -> None:
    ground.install()
    at_first = (ground.etc / "maint.html").read_bytes()
    ground.overrides["page"] = {"title": "One"}
    ground.install()
    (ground.etc / "maint.html").write_bytes(at_first)  # it was killed before it came to the page

    ground.overrides["page"] = {"title": "Two"}
    ground.install()

    assert "<title>Two</title>" in (ground.etc / "maint.html").read_text()
    assert len(list((ground.tools / "versions").iterdir())) == 2


def test_an_empty_switch_which_would_answer_500_is_filled(ground: Ground) -> None:
    ground.install()
    (ground.etc / "maint.lua").write_bytes(b"")

    assert paths(ground.install()) == [str(ground.etc / "maint.lua")]
    assert (ground.etc / "maint.lua").read_text() == maintscript.UP


# -- what it refuses ---------------------------------------------------------------------------------


def test_a_configuration_that_lighttpd_would_refuse_never_lands(ground: Ground) -> None:
    (ground.etc / "conf-enabled/10-mine.conf").write_text(
        'fastcgi.server = ( "/" => (( "port" => 9000 )) )\n'
    )
    before = tree(ground.etc)

    refused = ground.install()

    assert refused["code"] == 3
    assert "Duplicate array-key" in refused["error"]["what"]
    assert "webserver.host_header" in refused["error"]["next"]
    assert tree(ground.etc) == before
    assert not ground.tools.exists(), "nor anything else"


def test_a_configuration_that_is_broken_already_is_told_as_that(ground: Ground) -> None:
    (ground.etc / "conf-enabled/10-mine.conf").write_text("nonsense\n")

    refused = ground.install()

    assert refused["code"] == 3
    assert "as it is, before any change" in refused["error"]["what"]
    assert str(ground.etc / "conf-enabled/10-mine.conf") in refused["error"]["what"], "and not that of a copy"


def test_a_web_server_that_would_not_read_it_is_told(ground: Ground) -> None:
    ground.configuration.write_text(ground.configuration.read_text().replace("include", "#"))

    refused = ground.install()

    assert refused["code"] == 3
    assert "includes no conf-enabled" in refused["error"]["what"]
    assert f'include "{ground.etc}/conf-enabled/*.conf"' in refused["error"]["next"]


def test_an_unknown_account_is_told_with_its_remedy(ground: Ground) -> None:
    ground.overrides = {"app": {"user": "nobody-of-that-name"}}

    refused = ground.install()

    assert "there is no account nobody-of-that-name" in refused["error"]["what"]
    assert "adduser nobody-of-that-name" in refused["error"]["next"]


@pytest.fixture
def shop(ground: Ground) -> Ground:
    """Another application on the ground of the guestbook, with settings that keep the two apart."""
    ground.install()
    other = Ground(ground.base)
    other.overrides = {
        "application": "shop",
        "root": str(ground.base / "srv/shop"),
        "tools_dir": str(ground.tools.parent / "shop"),
        "webserver": {"host_header": "shop.example.com", "maintenance_dir": str(ground.etc / "shop")},
    }
    return other


def test_two_applications_live_side_by_side(shop: Ground, ground: Ground) -> None:
    before = tree(ground.tools), tree(ground.root), ground.snippet.read_bytes()

    assert shop.install()["ok"]
    assert ground.install()["changes"] == []
    assert accepted(ground)
    assert shop.remove(purge=True)["ok"]
    assert (tree(ground.tools), tree(ground.root), ground.snippet.read_bytes()) == before
    assert ground.install()["changes"] == []


@pytest.mark.parametrize(
    ("same", "told"),
    [
        ({"webserver": {"host_header": "shop.example.com"}}, "/down belongs to the application guestbook"),
        ({"root": None}, "is the root of the application guestbook"),
        ({"tools_dir": None}, "belongs to the application guestbook"),
    ],
    ids=["the switch", "the root", "the programs"],
)
def test_what_is_another_applications_is_not_taken_over(
    shop: Ground, ground: Ground, same: dict[str, Any], told: str
) -> None:
    theirs = {"root": str(ground.root), "tools_dir": str(ground.tools)}
    shop.overrides |= {name: value or theirs[name] for name, value in same.items()}
    before = tree(ground.base)

    refused = shop.install()

    assert told in refused["error"]["what"]
    assert tree(ground.base) == before


@pytest.mark.parametrize("same", ["root", "tools_dir"])
def test_what_is_another_applications_is_not_taken_away(shop: Ground, ground: Ground, same: str) -> None:
    """Where fabric.yaml has the name of one application, and a place of another."""
    shop.overrides[same] = str({"root": ground.root, "tools_dir": ground.tools}[same])
    before = tree(ground.base)

    refused = shop.remove(purge=True)

    assert refused["error"]["what"].endswith("belongs to the application guestbook")
    assert f"deploy.{same}" in refused["error"]["next"]
    assert tree(ground.base) == before


def test_a_directory_that_is_full_of_other_things_is_no_place_for_programs(ground: Ground) -> None:
    ground.tools.mkdir(parents=True)
    (ground.tools / "swap").write_text("somebody's")

    assert "has other things in it" in ground.install()["error"]["what"]
    assert (ground.tools / "swap").read_text() == "somebody's"


def test_a_link_below_what_others_own_is_not_followed(ground: Ground, tmp_path: Path) -> None:
    ground.overrides = {"shared": ["a/b"]}
    (ground.root / "shared").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (ground.root / "shared/a").symlink_to(tmp_path / "elsewhere")
    directory = Directory(ground.root / "shared/a/b", ME, 0o750, within=ground.root / "shared")

    assert "leads out of" in ground.install()["error"]["what"]
    with pytest.raises(OSError, match=r"symbolic|Not a directory"):  # nor where it appears in between
        placing.make_directory(directory)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_what_is_missing_on_the_way_is_made_as_its_parent_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o2775)

    placing.make_directory(Directory(tmp_path / "a/b", ME, 0o750, within=tmp_path))

    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o2775
    assert stat.S_IMODE((tmp_path / "a/b").stat().st_mode) == 0o750


def test_the_way_to_a_place_is_told_step_by_step_through_links(tmp_path: Path) -> None:
    (tmp_path / "real/deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")

    passed = [path for path in trust.passed(tmp_path / "link/deep/file") if tmp_path in path.parents]

    assert passed == [tmp_path / "link", tmp_path / "real", tmp_path / "real/deep"]


def test_a_way_that_leads_in_a_circle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")

    with pytest.raises(Refused, match="circle"):
        list(trust.passed(tmp_path / "a/file"))


# -- upgrades ----------------------------------------------------------------------------------------


def test_an_upgrade_turns_one_link_and_takes_away_what_has_lost_its_place(ground: Ground) -> None:
    ground.install(edit=of_an_older_toolkit)
    assert (ground.tools / "hostlib").exists() is False
    old = (ground.tools / "current").resolve()

    planned = ground.install(plan_only=True)
    ground.install()

    assert str(ground.tools / "hostlib/gone.py") in paths(planned)
    (new,) = (each for each in planned["changes"] if each["path"] == str(ground.tools / "drain"))
    assert (new["what"], "+main(parser, " in new["diff"]) == ("create", True)
    assert not ((ground.tools / "current").resolve() / "hostlib/gone.py").exists()
    assert old.is_dir(), "what was started on it may still run"
    ground.overrides = {"webserver": {"liveness": ["/alive"]}}
    ground.install()
    assert not old.exists()
    assert json.loads((ground.tools / "config.json").read_text())["liveness"] == ["/alive"]


def test_files_that_the_settings_have_no_place_for_any_more_go(ground: Ground) -> None:
    ground.install()
    elsewhere = ground.base / "switch"
    ground.overrides = {"webserver": {"maintenance_dir": str(elsewhere)}}

    moved = ground.install()

    assert (elsewhere / "down").is_symlink()
    assert not (ground.etc / "down").exists()
    assert str(ground.etc / "down") in paths(moved)
    assert ground.install()["changes"] == []


def test_a_program_that_runs_keeps_its_own_version_through_an_upgrade(ground: Ground) -> None:
    ground.install()
    (ground.tools / "current/wait").write_text(
        "#!/usr/bin/python3 -EsS\nimport sys\nimport hostlib\nprint('here', flush=True)\nsys.stdin.read()\n"
        "from hostlib import gone\nprint(gone.__doc__)\n"
    )
    (ground.tools / "current/wait").chmod(0o755)
    shutil.copy(ground.tools / "current/hostlib/names.py", ground.tools / "current/hostlib/gone.py")
    program = subprocess.Popen(
        [ground.tools / "current/wait"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert program.stdout
    assert program.stdout.readline() == "here\n"

    ground.overrides = {"webserver": {"liveness": ["/alive"]}}
    ground.install()

    said, _ = program.communicate(timeout=30)
    assert said.startswith("Names that become paths"), "it was imported after the upgrade"


def test_a_program_started_at_the_moment_of_the_turn_is_started_anew(ground: Ground) -> None:
    """Python has found hostlib of the old version, and reads the program when the link has turned."""
    ground.install(edit=of_an_older_toolkit)
    old = (ground.tools / "current").resolve()
    ground.install()
    late = f"import sys; sys.path.insert(0, {str(old)!r}); sys.argv = ['status', '--json']\n"
    late += f"__file__ = {str(ground.tools / 'status')!r}\nimport hostlib\nprint('went on')"

    ran = subprocess.run([sys.executable, "-c", late], capture_output=True, text=True, check=True)

    assert json.loads(ran.stdout)["toolkit"] != "0.0.9"


def test_the_time_before_versions_is_upgraded_too(ground: Ground) -> None:
    ground.install()
    current = (ground.tools / "current").resolve()
    for entry in ground.tools.iterdir():
        if entry.is_symlink():
            entry.unlink()
    for entry in current.iterdir():
        entry.rename(ground.tools / entry.name)
    shutil.rmtree(ground.tools / "versions")
    for later in ("installed.json", "maint.html"):
        (ground.tools / later).unlink()

    ground.install()

    assert sorted(path.name for path in ground.tools.iterdir() if not path.is_symlink()) == ["versions"]
    assert ground.install()["changes"] == []


# -- cut short ---------------------------------------------------------------------------------------

# What changes a directory, and which argument says where.
CALLS = {"mkdir": 0, "replace": 1, "rename": 1, "symlink": 1, "unlink": 0, "rmdir": 0}


def finished(ground: Ground, raw: dict[str, Any], *, kill_after: int = 0) -> bool:
    """Run the installer in a child, which ends as by SIGKILL after so many changes; False if it did.

    A version that nobody can call counts as one thing, however many files are made or removed in it.
    """
    child = os.fork()
    if not child:
        left, last = kill_after, None

        def counted(call: Callable[..., Any], where: int) -> Callable[..., Any]:
            def change(*arguments: Any, **options: Any) -> Any:
                nonlocal left, last
                directory = options.get("dir_fd")
                place = "" if directory is None else os.readlink(f"/proc/self/fd/{directory}")
                path = os.path.join(place, arguments[where])
                answer = call(*arguments, **options)
                version = re.match(r".*/versions/[^/]+/", path)
                if path.startswith(str(ground.base)) and (version is None or version[0] != last):
                    left -= 1
                    if not left:
                        os._exit(9)
                last = version and version[0]
                return answer

            return change

        for name, where in CALLS.items():
            setattr(os, name, counted(getattr(os, name), where))
        with contextlib.redirect_stdout(io.StringIO()):
            os._exit(hostsetup.main(raw))
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert ended in (0, 9), ended
    return ended == 0


def whole(ground: Ground) -> None:
    """Whatever was cut short: lighttpd would start, no visitor would get a 500, programs work."""
    assert accepted(ground)
    if ground.enabled.exists():
        assert (ground.etc / "maint.lua").read_bytes()
    if (ground.tools / "status").exists():
        ran = subprocess.run([ground.tools / "status"], capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr


@pytest.mark.timeout(900)
@pytest.mark.parametrize("upgrade", [False, True], ids=["a new host", "an upgrade"])
@SOME_OR_EVERY
def test_wherever_it_is_killed_everything_is_whole_and_the_same_again_finishes_it(
    tmp_path: Path, upgrade: bool, stride: int
) -> None:
    point, survived = 0, False
    while not survived:
        point += stride
        ground = Ground(tmp_path / str(point))
        if upgrade:
            old = ground.bundle()
            of_an_older_toolkit(old)
            assert finished(ground, old)
            ground.overrides = {"webserver": {"statistics_path": "/counts"}, "shared": [".env", "var", "up"]}
        raw = ground.bundle()
        survived = finished(ground, raw, kill_after=point)

        whole(ground)
        assert finished(ground, raw)
        assert install.plan(bundles.read(raw, systemd=False)).changes == [], point
        assert [path for path in ground.base.rglob(".*") if path.name != ".deploytools"] == [], point
        shutil.rmtree(ground.base)
    assert point > (7 if upgrade else 15)


def test_two_set_ups_at_once_take_turns(ground: Ground) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: ground.install(), range(4)))

    assert all(answer["ok"] for answer in answers)
    assert sum(bool(answer["changes"]) for answer in answers) == 1
    assert ground.install()["changes"] == []


# -- removal -----------------------------------------------------------------------------------------


def test_a_removal_leaves_a_fresh_host_as_it_was(ground: Ground) -> None:
    before = tree(ground.base / "etc")
    ground.install()

    planned = ground.remove(plan_only=True)
    removed = ground.remove()

    assert paths(planned) == paths(removed)
    assert tree(ground.base / "etc") == before
    assert not ground.root.exists()
    assert not ground.tools.parent.exists()
    assert (ground.remove()["changes"], ground.remove()["notes"]) == ([], [])


def test_a_removal_keeps_data_and_the_operators_page_and_says_so(ground: Ground) -> None:
    ground.install()
    (ground.root / "releases/r1").mkdir()
    (ground.root / "releases/r1/index.php").write_text("<?php")
    (ground.root / "current").symlink_to("releases/r1")
    (ground.root / "run/generation").write_text("7")
    (ground.etc / "maint.html").write_text("<p>mine")

    removed = ground.remove()

    assert (ground.root / "current/index.php").exists()
    assert not (ground.root / "run").exists()
    assert (ground.etc / "maint.html").read_text() == "<p>mine"
    assert removed["notes"] == [
        f"kept: {ground.root}/releases (--purge removes data too)",
        f"kept: {ground.etc}/maint.html, which is your own",
    ]
    assert ground.remove()["changes"] == []
    assert paths(ground.remove(purge=True)) == [str(ground.etc / "maint.html"), str(ground.root)]
    assert not ground.root.exists()


def test_a_purge_takes_everything(ground: Ground) -> None:
    ground.install()
    (ground.root / "log/app.log").write_text("printed")
    (ground.etc / "maint.html").write_text("<p>mine")

    assert ground.remove(purge=True)["notes"] == []
    assert not ground.root.exists()
    assert not (ground.etc / "maint.html").exists()


def test_a_purge_of_what_was_never_set_up_touches_nothing(ground: Ground) -> None:
    (ground.root / "releases").mkdir(parents=True)
    (ground.root / "releases/mine").write_text("mine")
    (ground.etc / "maint.lua").write_text("-- somebody's own\n")
    before = tree(ground.base)

    assert ground.remove(purge=True)["changes"] == []
    assert tree(ground.base) == before


@pytest.mark.timeout(900)
@SOME_OR_EVERY
def test_a_removal_that_is_killed_anywhere_is_finished_by_the_next(tmp_path: Path, stride: int) -> None:
    point, survived = 0, False
    while not survived:
        point += stride
        ground = Ground(tmp_path / str(point))
        before = tree(ground.etc)
        assert finished(ground, ground.bundle())
        raw = ground.bundle("remove")
        survived = finished(ground, raw, kill_after=point)

        whole(ground)
        assert finished(ground, raw)
        assert tree(ground.etc) == before, point
        assert [path for path in ground.base.iterdir() if path.name != "etc" and any(path.iterdir())] == []
        shutil.rmtree(ground.base)
    assert point > 15


def test_it_takes_off_what_an_earlier_version_or_other_settings_have_put_there(ground: Ground) -> None:
    ground.install(edit=of_an_older_toolkit)
    ground.overrides = {"root": str(ground.base / "srv/elsewhere")}

    ground.remove()

    assert not (ground.base / "srv/guestbook").exists()
    assert not ground.tools.exists()


def test_nothing_is_removed_while_somebody_deploys(ground: Ground) -> None:
    ground.install()
    lock = [
        ground.tools / "lock",
        "acquire",
        "--run-id=r1",
        "--by=ann",
        "--laptop=desk",
        "--operation=deploy",
    ]
    subprocess.run(lock, check=True, capture_output=True)

    refused = ground.remove()

    assert (refused["code"], "ann on desk" in refused["error"]["what"]) == (5, True)
    assert "fab unlock --force r1" in refused["error"]["next"]
    assert ground.enabled.exists()


def test_nothing_is_removed_while_the_site_is_in_maintenance(ground: Ground) -> None:
    ground.install()
    (ground.etc / "maint.lua").write_text(maintscript.down_script(b"closed", application="guestbook"))

    refused = ground.remove()

    assert (refused["code"], "in maintenance" in refused["error"]["what"]) == (4, True)
    assert refused["error"]["next"].startswith("fab maint-up")


def test_what_is_in_use_by_the_time_of_the_removal_stays(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the plan, which finds the site up, and the removal somebody begins a window."""
    ground.install()
    planned = remove.plan

    def plan_and_then(bundle: bundles.Bundle) -> remove.Plan:
        found = planned(bundle)
        (ground.etc / "maint.lua").write_text(maintscript.down_script(b"down", application="guestbook"))
        return found

    monkeypatch.setattr(remove, "plan", plan_and_then)
    before = tree(ground.etc / "conf-available")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert hostsetup.main(ground.bundle("remove")) == 4
    assert "the site is in maintenance" in json.loads(printed.getvalue())["error"]["what"]
    assert tree(ground.etc / "conf-available") == before


def test_a_removal_waits_for_a_command_of_the_switch_that_is_at_work(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    ground.install()
    monkeypatch.setattr(remove, "WAIT", 0.1)
    (ground.etc / "maint.lock").mkdir(mode=0o700)
    with exclusive(ground.etc / "maint.lock", wait=0), contextlib.redirect_stdout(io.StringIO()) as printed:
        assert hostsetup.main(ground.bundle("remove")) == 5
    assert "another program has been working in" in json.loads(printed.getvalue())["error"]["what"]
    assert (ground.etc / "down").exists()
    assert ground.remove()["ok"]
    assert not (ground.etc / "maint.lock").exists()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.write_text('{"by": "ann"}')])
def test_a_lock_that_nobody_can_read_is_told_and_not_waited_for(
    ground: Ground, make: Callable[[Path], object]
) -> None:
    """The deploy user may put there what they like, and it is root who reads it."""
    ground.install()
    (ground.root / "state/lock").mkdir()
    make(ground.root / "state/lock/details.json")

    refused = ground.remove()

    assert refused["code"] == 3
    assert "who holds the lock can't be read" in refused["error"]["what"]
    assert f"{ground.root}/state/lock" in refused["error"]["next"]


@pytest.mark.skipif(
    os.geteuid() != 0, reason="without root the copies are in the directory for temporary files"
)
def test_what_a_killed_set_up_left_in_run_goes_with_the_next_but_for_one_that_is_at_work(
    ground: Ground,
) -> None:
    left, used = (Path(tempfile.mkdtemp(prefix="deploytools-", dir="/run")) for _ in range(2))
    try:
        for place in (left, used):
            (place / "lighttpd").mkdir()
        with exclusive(used, wait=0):
            ground.install()
            assert (left.exists(), used.exists()) == (False, True)
        ground.install(plan_only=True)
        assert used.exists(), "a plan changes nothing"
        ground.install()
        assert not used.exists()
    finally:
        for place in (left, used):
            shutil.rmtree(place, ignore_errors=True)


def test_the_programs_of_a_killed_set_up_go_with_the_next_but_for_those_of_one_at_work(
    ground: Ground,
) -> None:
    left, used, young = (Path(tempfile.mkdtemp(prefix="deploytools-setup-")) for _ in range(3))
    try:
        for place in (left, used):
            (place / "hostlib").mkdir()
            os.utime(place, (0, 0))
        with exclusive(used, wait=0):
            ground.install()
        assert [place.exists() for place in (left, used, young)] == [False, True, True]
    finally:
        for place in (left, used, young):
            shutil.rmtree(place, ignore_errors=True)


def test_a_module_that_only_our_configuration_loads_is_not_taken_from_others(ground: Ground) -> None:
    ground.install()
    others = ground.etc / "conf-enabled/90-mine.conf"
    others.write_text('$HTTP["host"] == "b" { fastcgi.server = ( "/" => (( "socket" => "/run/x" )) ) }\n')

    refused = ground.remove()

    assert refused["code"] == 3
    assert "fastcgi.server" in refused["error"]["what"]
    others.write_text('server.modules += ( "mod_fastcgi" )\n' + others.read_text())
    assert ground.remove()["ok"]


def test_a_removal_goes_on_where_lighttpds_configuration_is_broken_anyway(ground: Ground) -> None:
    ground.install()
    (ground.etc / "conf-enabled/90-mine.conf").write_text("nonsense\n")

    assert "with the application or without" in ground.remove()["notes"][0]
    assert not ground.enabled.exists()


def test_a_program_of_the_system_that_hangs_ends_set_up_with_its_name_and_what_to_look_at(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lighttpd").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "lighttpd").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(asking, "WITHIN", 0.2)

    assert hostsetup.main(ground.bundle()) == 3
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["what"].startswith("`lighttpd -tt -f ")
    assert "had not ended within" in error["what"]
    assert "does no harm" in error["state"]
    assert "systemctl list-jobs" in error["next"]


def test_a_bundle_that_makes_no_sense_is_no_traceback(
    ground: Ground, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = ground.bundle()
    raw["directories"].append({"path": "/", "strange": True})

    assert hostsetup.main(raw) == 1
    assert "strange" in json.loads(capsys.readouterr().out)["error"]["what"]
    assert bundles.read(ground.bundle(), systemd=False).application == "guestbook"
