"""What a swap did: in fields for the laptop, in a sentence for a person."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from hostlib.program import BUG, FAILED, TOOLS, UNFINISHED, Config, Failure, Result, remedy
from hostlib.swapping import generations
from hostlib.swapping.generations import WARM, Record
from hostlib.swapping.links import Links


@dataclass
class Account:
    """Times are in seconds.

    Args:
        changed: False where nothing had to be done, or only the rest of an earlier swap.
        new: what serves now; old: what served before.
        ready_in: from its start until it met its health check.
        drained_in: from the barrier until no request was in any other generation.
        stopped: the generations that were ended.
        kept: those that could not be: generation, connections, why.
        baked: what was seen in the bake time, see `bake.watch`.
    """

    changed: bool = False
    new: Record | None = None
    old: Record | None = None
    ready_in: float | None = None
    drained_in: float | None = None
    stopped: list[int] = field(default_factory=list)
    kept: list[dict[str, Any]] = field(default_factory=list)
    baked: dict[str, Any] | None = None

    def keep(self, record: Record, connections: int, why: str) -> None:
        why = f"{count(connections)}; {why}"
        self.kept.append({"generation": record.generation, "connections": connections, "why": why})

    def told(self, config: Config) -> Result:
        """The result of the program; raises Failure (exit code 7) where a generation had to be kept."""
        warm = [record.generation for record in generations.records(config) if record.state == WARM]
        result = {
            "changed": self.changed,
            "generation": self.new.generation if self.new else generations.serving_number(config),
            "release": self.new.release if self.new else None,
            "previous_generation": self.old.generation if self.old else None,
            "previous_release": self.old.release if self.old else None,
            "ready_in": self.ready_in,
            "drained_in": self.drained_in,
            "stopped": self.stopped,
            "warm": warm,
            "kept": self.kept,
            "baked": self.baked,
        }
        story = []
        if self.new is not None:
            story.append(f"{self.new} serves" if self.changed else f"{self.new} serves already")
        if self.ready_in is not None:
            story.append(f"it was ready in {self.ready_in:.2f} s")
        if self.baked is not None:
            from hostlib.swapping import bake  # only where one was asked for

            story.append(bake.told(self.baked))
        if self.stopped:
            story.append(f"stopped: {', '.join(map(str, self.stopped))}")
        if warm:
            story.append(f"kept warm for `swap --back`: {', '.join(map(str, warm))}")
        if self.kept:
            kept = (f"generation {one['generation']} ({one['why']})" for one in self.kept)
            raise Failure(
                f"not stopped: {', '.join(kept)}",
                state="; ".join(story),
                next=f"{TOOLS}/swap --reap",
                exit_code=UNFINISHED,
                **result,
            )
        return {**result, "message": "; ".join(story) or "nothing to do"}


@contextlib.contextmanager
def errors_explained(config: Config) -> Iterator[None]:
    """Turn what the operating system refuses, such as a write to a full disk, into a Failure that says
    which generation serves.

    Where that isn't as before nothing is proved of it, so it is no success of any kind.
    """
    before = Links.now(config)
    try:
        yield
    except OSError as error:
        now = generations.serving(config)
        serves = f"{now} serves" if now else "no generation serves"
        led = Links.now(config)
        as_before = led == before or (
            now is not None and before.socket == led.socket and led == Links.to(now)
        )
        raise Failure(
            f"{error.strerror}: {error.filename}" if error.filename else str(error),
            state=f"{serves}, as before" if as_before else f"{serves}, and {config.current} is {led.current}",
            next=remedy(error),
            exit_code=FAILED if as_before else BUG,
        ) from error


def count(connections: int) -> str:
    return "1 connection" if connections == 1 else f"{connections} connections"
