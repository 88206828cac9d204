"""When an image is made anew and when it is taken from the cache; what a layer has."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fleet import Fleet, images
from tests.fleet.keeper import REPOSITORY


class Kitchen:
    """Makes images of which nothing is large."""

    def __init__(self) -> None:
        self.made = 0

    def image(self, recipe: str = "recipe", kind: str = "suite-base") -> images.Image:
        with images.alone():
            return images.cached(kind, {"recipe": recipe}, self.make)

    def make(self, place: Path) -> None:
        self.made += 1
        (place / "tree/file").write_text(str(self.made))


@pytest.fixture
def kitchen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kitchen:
    monkeypatch.setenv("DEPLOYTOOLS_FLEET_CACHE", str(tmp_path / "cache"))
    return Kitchen()


def age(image: images.Image, *, in_use: bool = False) -> None:
    """Let it be older than an image may be."""
    name, _, made = image.directory.name.rpartition("-")
    image.directory.rename(image.directory.with_name(f"{name}-{int(made) - int(images.MAX_AGE) - 1}"))
    if not in_use:
        os.close(image.descriptor)


def test_an_image_is_made_once(kitchen: Kitchen) -> None:
    assert kitchen.image() == kitchen.image()
    assert kitchen.made == 1


def test_another_recipe_is_another_image_and_both_stay(kitchen: Kitchen) -> None:
    first = kitchen.image("one")
    assert kitchen.image("two") != first
    assert kitchen.image("one") == first
    assert kitchen.made == 2


def test_an_old_image_is_made_anew_and_removed(kitchen: Kitchen) -> None:
    age(kitchen.image())
    new = kitchen.image()
    assert (new.tree / "file").read_text() == "2"
    assert [path.name for path in images.cache().glob("suite-*")] == [new.directory.name]


def test_an_old_image_stays_as_long_as_somebody_has_hosts_on_it(kitchen: Kitchen) -> None:
    old = kitchen.image()
    age(old, in_use=True)
    new = kitchen.image()
    assert len(list(images.cache().glob("suite-*"))) == 2
    os.close(old.descriptor)
    assert kitchen.image() == new
    assert len(list(images.cache().glob("suite-*"))) == 1


def test_an_image_that_could_not_be_made_leaves_nothing(kitchen: Kitchen) -> None:
    def broken(place: Path) -> None:
        (place / "tree/half").write_text("")
        raise OSError("no network")

    with images.alone(), pytest.raises(OSError, match="no network"):
        images.cached("suite-base", {}, broken)
    assert [path.name for path in images.cache().iterdir()] == ["lock"]


def test_what_a_killed_maker_left_is_removed(kitchen: Kitchen) -> None:
    left = images.cache() / "making-abc"
    (left / "tree").mkdir(parents=True)
    kitchen.image()
    assert not left.exists()


def test_two_that_want_the_same_image_make_it_once(kitchen: Kitchen) -> None:
    script = """
import time
from tests.fleet import images

def make(place):
    (images.cache() / "made").open("a").write("x")
    time.sleep(0.2)

with images.alone():
    print(images.cached("suite-base", {}, make).directory)
"""
    argv = [sys.executable, "-c", script]
    both = [subprocess.Popen(argv, cwd=REPOSITORY, stdout=subprocess.PIPE) for _ in range(2)]
    assert len({process.communicate(timeout=60)[0] for process in both}) == 1
    assert (images.cache() / "made").read_text() == "x"


def test_an_image_in_use_is_locked_until_the_last_one_is_closed(kitchen: Kitchen) -> None:
    image, again = kitchen.image(), kitchen.image()
    os.close(image.descriptor)
    other = os.open(image.directory, os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(again.descriptor)
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(other)


@pytest.mark.usefixtures("fleet_possible")
def test_further_packages_are_a_layer_on_the_base() -> None:
    layer, base = images.ready("bookworm", ["netcat-openbsd"])
    assert (layer.tree / "usr/bin/nc.openbsd").exists()
    assert not (base.tree / "usr/bin/nc.openbsd").exists()
    assert not (layer.tree / "usr/sbin/lighttpd").exists()
    assert images.ready("bookworm", ["netcat-openbsd", "sudo"]) == [layer, base], "sudo is in the base"
    with Fleet(1, packages=["netcat-openbsd"]) as fleet:
        assert "OpenBSD netcat" in fleet["web1"].run(["nc", "-h"]).stderr
        assert fleet["web1"].run(["dpkg", "--audit"]).stdout == ""


@pytest.mark.usefixtures("fleet_possible")
def test_nothing_of_this_machine_gets_into_an_image() -> None:
    (base,) = images.ready("trixie")
    assert (base.tree / "etc/machine-id").read_text() == ""
    assert (base.tree / "etc/resolv.conf").read_text() == ""
    assert not (base.tree / "etc/hostname").exists()
    assert not list((base.tree / "etc/ssh").glob("ssh_host_*"))
    left = {path.name for path in (base.tree / "etc/apt/apt.conf.d").iterdir()}
    assert not left - {"01autoremove", "70debconf"}


@pytest.mark.exhaustive
@pytest.mark.usefixtures("fleet_possible")
def test_a_package_that_does_not_exist_is_an_error_and_no_fleet() -> None:
    with pytest.raises(subprocess.CalledProcessError), Fleet(1, packages=["no-such-package-anywhere"]):
        pass
    assert not list(images.cache().glob("making-*"))
