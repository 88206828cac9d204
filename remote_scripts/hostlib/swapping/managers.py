"""The managers of this host behind the interface of one: a record tells whose a generation is."""

from __future__ import annotations

import contextlib

from hostlib.program import USAGE, Config, Failure
from hostlib.releasing.manifest import App
from hostlib.swapping import direct, generations, launch, systemd
from hostlib.swapping.generations import WARM, Life, Manager, Record


class Managers:
    """Starts, looks at and stops generations, by the manager that each of them has."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._managers: dict[str, Manager] = {
            direct.NAME: direct.Direct(config),
            systemd.NAME: systemd.Systemd(config),
        }

    def start(self, release: str, app: App, *, standing_by: bool = False) -> Record:
        """A new generation; one that is `standing_by` has all but its application, which waits for the word.

        Raises Failure or OSError, and leaves nothing, where it can't be started.
        """
        name = self._choose(app.manager)
        number = generations.next_number(self._config)
        record = launch.new_record(self._config, number, release, name, app)
        return self.start_again(record, app, standing_by=standing_by)

    def start_again(self, record: Record, app: App, *, standing_by: bool = False) -> Record:
        """One that ran before the host was booted; it keeps its number and its manager."""
        manager = self._choose(record.manager)
        try:
            record = record.saved(self._config, manager=manager)
            launch.prepare(self._config, record, app, standing_by=standing_by)
            return self._of(record).start(record)
        except BaseException:
            with contextlib.suppress(Failure, OSError):
                self.stop(record)
            raise

    def look(self, record: Record) -> Life:
        return self._of(record).look(record)

    def alive(self, record: Record) -> bool:
        """True while the application's first process runs."""
        return self.look(record).pid is not None

    def stop(self, record: Record) -> None:
        """End all of its processes; then remove its socket, its record and whatever else there is of it."""
        self._of(record).stop(record)
        launch.forget(self._config, record.generation)

    def warm(self) -> Record:
        """The generation that is kept warm; Failure (exit code 2) where none is."""
        serving = generations.serving_number(self._config)
        for record in reversed(generations.records(self._config)):
            if record.state == WARM and record.generation != serving and self.alive(record):
                return record
        raise Failure(
            "there is no warm generation to go back to",
            state="nothing was changed",
            next="fab rollback; one stays warm for the app.soak_time that its successor was deployed with",
            exit_code=USAGE,
        )

    def _of(self, record: Record) -> Manager:
        return self._managers[record.manager]

    def _choose(self, name: str) -> str:
        """Given what the manifest says, return what it means on this host."""
        if name == direct.NAME:
            return name
        if systemd.is_ours_to_use(self._config):
            return systemd.NAME
        if name == "auto":
            return direct.NAME
        raise Failure(
            f"this host can't run generations by {name}",
            state="nothing was changed",
            next="set app.manager to auto or direct and deploy again",
            exit_code=USAGE,
        )
