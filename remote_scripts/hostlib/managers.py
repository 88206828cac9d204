"""The managers of this host behind the interface of one: a record tells whose a generation is."""

from __future__ import annotations

from hostlib import direct
from hostlib.generations import Manager, Record
from hostlib.manifest import App
from hostlib.program import USAGE, Config, Failure


class Managers:
    """A `Manager` that passes everything on to the one that the manifest or the record names."""

    def __init__(self, config: Config) -> None:
        self._managers: dict[str, Manager] = {direct.NAME: direct.Direct(config)}

    def start(self, generation: int, release: str, app: App) -> Record:
        return self._named(app.manager).start(generation, release, app)

    def ended(self, record: Record) -> str | None:
        return self._named(record.manager).ended(record)

    def stop(self, record: Record) -> None:
        self._named(record.manager).stop(record)

    def list(self) -> set[int]:
        return {number for manager in self._managers.values() for number in manager.list()}

    def _named(self, name: str) -> Manager:
        try:
            return self._managers[direct.NAME if name == "auto" else name]
        except KeyError as error:
            raise Failure(
                f"this host can't run generations by {name}",
                state="nothing was changed",
                next="set app.manager to auto or direct and deploy again",
                exit_code=USAGE,
            ) from error
