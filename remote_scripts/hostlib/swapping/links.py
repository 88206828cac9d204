"""Where `current` and run/app.sock lead: the flip, and the way back."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from hostlib import files
from hostlib.program import TOOLS, USAGE, Config, Failure
from hostlib.swapping import generations
from hostlib.swapping.generations import Record


@dataclass(frozen=True)
class Links:
    """The targets of the two links; None where there is no such link."""

    current: str | None
    socket: str | None

    @property
    def release(self) -> str | None:
        return Path(self.current).name if self.current else None

    @staticmethod
    def to(record: Record) -> Links:
        return Links(f"releases/{record.release}", generations.socket_name(record.generation))

    @staticmethod
    def now(config: Config) -> Links:
        """Raises Failure (exit code 2) where something else is in the place of a link."""
        return Links(_target(config.current), _target(config.run / "app.sock"))

    def set(self, config: Config) -> None:
        """Lead both there, each by one rename and only if it leads elsewhere.

        `current` comes first: PHP finds its scripts by way of it and remembers for minutes where it led
        to, so a new generation must not be asked before.
        """
        for path, target in self._places(config):
            if target is None:
                path.unlink(missing_ok=True)
            elif _target(path) != target:
                _lead(path, target)

    def prepare(self, config: Config) -> None:
        """Have both ready beside their places, so that `set` needs no room on the disk. Raises OSError."""
        for path, target in self._places(config):
            if target is not None and not _prepared(path).is_symlink():
                _prepared(path).symlink_to(target)

    def forget(self, config: Config) -> None:
        """Take away what `prepare` has made; what can't be is litter for the next swap."""
        for path, _ in self._places(config):
            with contextlib.suppress(OSError):
                _prepared(path).unlink(missing_ok=True)

    def _places(self, config: Config) -> tuple[tuple[Path, str | None], ...]:
        return (config.current, self.current), (config.run / "app.sock", self.socket)


def trouble(config: Config) -> list[tuple[str, str]]:
    """What somebody has done to the links or the release of what serves: what, and its remedy.

    It serves on; but a crash or a reboot would find that, and so do scripts that are found by `current`.
    """
    serving = generations.serving(config)
    if serving is None:
        return []
    found = []
    if config.release is None:
        found.append(
            (f"{config.current} is missing, and {serving} serves", "fab hotswap, which leads it there")
        )
    elif config.release != serving.release:
        led = f"{config.current} leads to {config.release}, and {serving} serves"
        found.append((led, "fab hotswap, which leads it there"))
    if not (config.releases / serving.release).is_dir():
        gone = f"{config.releases / serving.release} is gone, and {serving} serves, until it ends"
        found.append((gone, "fab deploy; there is no way back to it"))
    return found


def remove_unfinished_renames(config: Config) -> None:
    """What a killed swap wrote and did not come to rename."""
    for directory, pattern in (
        (config.run, ".app.*"),
        (config.run, ".generation.*"),
        (config.root, ".current.*"),
    ):
        for path in directory.glob(pattern):
            path.unlink(missing_ok=True)


def _prepared(path: Path) -> Path:
    """One of those names that `remove_unfinished_renames` takes away."""
    return path.parent / f".{path.name}.back"


def _lead(path: Path, target: str) -> None:
    try:
        ready = os.readlink(_prepared(path)) == target
    except FileNotFoundError:
        ready = False
    if not ready:
        files.link_atomic(path, target)
        return
    os.replace(_prepared(path), path)
    files.sync_directory(path.parent)


def _target(path: Path) -> str | None:
    if path.exists() and not path.is_symlink():
        raise Failure(
            f"{path} is no symbolic link",
            state="nothing was changed",
            next=f"stop what uses it and move it away, then {TOOLS}/swap --release ID",
            exit_code=USAGE,
        )
    return os.readlink(path) if path.is_symlink() else None
