"""Where `current` and run/app.sock lead: the flip, and the way back."""

from __future__ import annotations

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
        for path, target in ((config.current, self.current), (config.run / "app.sock", self.socket)):
            if target is None:
                path.unlink(missing_ok=True)
            elif _target(path) != target:
                files.link_atomic(path, target)


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


def _target(path: Path) -> str | None:
    if path.exists() and not path.is_symlink():
        raise Failure(
            f"{path} is no symbolic link",
            state="nothing was changed",
            next=f"stop what uses it and move it away, then {TOOLS}/swap --release ID",
            exit_code=USAGE,
        )
    return os.readlink(path) if path.is_symlink() else None
