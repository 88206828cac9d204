"""What is broken in a trial. Each begins the window, breaks something, and returns what was typed.

A fault knows what it must cause (`Allowance`); that a fault causes nothing at all is the rule.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.fleet.hosts import Host, wait_until
from tests.fleet.matrix import application
from tests.fleet.matrix.invariants import Allowance
from tests.fleet.matrix.recovery import ABORT, RESUME, let_go
from tests.fleet.matrix.site import MIGRATIONS, Ran, Running, Site

CUT = 3.0  # seconds for which a link is cut
OUT_OF_REACH = ("refused", "lost", "hang")
LOCK_ELSEWHERE = {"FABRIC_DEPLOY_MIGRATE_HOST": "web2"}
UNDOING = ":undo-"  # in the name of a point


@dataclass
class Broken:
    """A trial under way.

    Attributes:
        typed: the commands that have come to their end.
        allowed: what the fault must cause.
        holds: where the migration is still held when the second operator takes over.
    """

    site: Site
    point: str
    host: Host
    typed: list[Ran] = field(default_factory=list)
    allowed: list[Allowance] = field(default_factory=list)
    holds: tuple[str, ...] = ()

    def until_the_end(self, running: Running) -> None:
        self.typed.append(running.end())

    def migrating(self, place: str, ref: str = application.GOOD) -> Running:
        """The window, with its migration waiting at that place."""
        self.site.web1.run(["touch", f"{application.WORK}/hold-{place}"])
        running = self.site.deploy(ref)
        self.site.wait_until_at(place, running)
        self.holds = (place,)
        return running

    def let_go(self) -> None:
        let_go(self.site, self.holds)
        self.holds = ()

    @contextmanager
    def outage(self, kinds: Sequence[str], why: str) -> Iterator[None]:
        """The host may fail its visitors until the block is left and it answers one well again.

        Whoever is parted from the database by that says so: every host, where it is web1.
        """
        since = time.time()
        try:
            yield
        finally:
            back = time.time()

            def well() -> bool:
                answers = [seen for seen in self.site.observer.since(back) if seen.host == self.host.name]
                return any(seen.kind in ("app", "maintenance") for seen in answers[-2:])

            wait_until(well, lambda: f"{self.host.name} to be back for the public")
            until = time.time() + 0.5
            self.allowed.append(Allowance((self.host.name,), since, until, tuple(kinds), why))
            # Kept connections find out within 2 s (tcp_user_timeout).
            apart = self.site.fleet.hosts if self.host is self.site.web1 else (self.host,)
            names, no_database = tuple(host.name for host in apart), "no answer from the database"
            self.allowed.append(
                Allowance(names, since, until + 3, ("error",), f"{why}: {no_database}", no_database)
            )


# -- the operator's process -----------------------------------------------------------------------


def kill(trial: Broken) -> None:
    """SIGKILL to the operator's process at the point."""
    _stopped(trial, "kill")


def interrupt(trial: Broken) -> None:
    """Ctrl-C at the point."""
    _stopped(trial, "interrupt")


def _stopped(trial: Broken, act: str) -> None:
    if trial.point in application.PLACES:
        running = trial.migrating(trial.point)
        running.process.send_signal(signal.SIGKILL if act == "kill" else signal.SIGINT)
        if act == "interrupt":
            trial.let_go()  # the first Ctrl-C waits for the step in hand
    else:
        running = trial.site.deploy(_what(trial.point), point=trial.point, act=act)
    trial.until_the_end(running)
    assert trial.point in application.PLACES or running.reached.exists(), f"not reached: {trial.typed}"


def _what(point: str) -> str:
    """The commit whose window comes to that point: one whose migration fails, where it is undone."""
    return "v2-fails-inside" if UNDOING in point else application.GOOD


def interrupt_twice(trial: Broken) -> None:
    """Ctrl-C twice in the migration: nobody waits for it, and it goes on."""
    running = trial.migrating(trial.point)
    for _ in range(2):
        running.process.send_signal(signal.SIGINT)
        time.sleep(0.2)  # two of them at the same moment are one
    trial.until_the_end(running)


def kill_again(trial: Broken) -> None:
    """SIGKILL to the operator, and at the point to whoever goes on elsewhere, or backs out."""
    undoing = UNDOING in trial.point
    before = "wrote:backup" if undoing else "intend:maintenance-on"
    trial.until_the_end(trial.site.deploy(application.GOOD, point=before, act="kill"))
    way = ABORT if undoing else RESUME
    running = trial.site.start("deploy", f"--{way}", point=trial.point, act="kill", by=trial.site.second)
    trial.until_the_end(running)
    assert running.reached.exists(), f"not reached: {trial.typed}"


# -- a host, at the point -------------------------------------------------------------------------


def _meanwhile(trial: Broken, act: Callable[[Running], None]) -> None:
    """Break it while the operator waits at the point, and let the operator go on."""
    if trial.point in application.PLACES:
        running = trial.migrating(trial.point)
        act(running)
        trial.let_go()
    else:
        running = trial.site.deploy(_what(trial.point), point=trial.point, act="wait")
        running.wait_until_here()
        act(running)
        running.go_on()
    trial.until_the_end(running)


def reboot(trial: Broken) -> None:
    """The host is shut down in good order and boots again."""

    def act(running: Running) -> None:
        with trial.outage((*OUT_OF_REACH, "error"), "the host reboots"):
            trial.host.reboot()

    _meanwhile(trial, act)


def power(trial: Broken) -> None:
    """The host's plug is pulled; it boots again."""

    def act(running: Running) -> None:
        with trial.outage((*OUT_OF_REACH, "error"), "the host has no power, and boots"):
            trial.host.power_off()
            trial.host.boot()

    _meanwhile(trial, act)


def link(trial: Broken) -> None:
    """The host's cable is pulled, while the operator goes on; and put back after a while."""

    def act(running: Running) -> None:
        with trial.outage(OUT_OF_REACH, "nobody reaches the host"):
            trial.host.link_down()
            running.go_on()
            trial.let_go()
            time.sleep(CUT)
            trial.host.link_up()

    _meanwhile(trial, act)


def sshd(trial: Broken) -> None:
    """sshd dies with all its connections; systemd starts it again."""
    _meanwhile(trial, lambda running: trial.host.kill("sshd"))


def lighttpd(trial: Broken) -> None:
    """lighttpd dies; systemd starts it again."""

    def act(running: Running) -> None:
        with trial.outage(("refused", "lost"), "its requests died with lighttpd, until systemd started it"):
            trial.host.kill("lighttpd")

    _meanwhile(trial, act)


def disk(trial: Broken) -> None:
    """The host's disk is full from the point on, until the operator's command has ended."""
    _meanwhile(trial, lambda running: trial.host.fill_disk())
    trial.host.free_disk()


# -- the migration, the database, the application -------------------------------------------------


def migration_fails(trial: Broken) -> None:
    """The migration fails before, inside or after its transaction."""
    trial.until_the_end(trial.site.deploy(f"v2-fails-{trial.point}"))


def locked_before(trial: Broken) -> None:
    """Somebody holds a lock on a table before the migration begins, and doesn't let it go."""
    with _lock_on_a_table(trial.site):
        trial.until_the_end(trial.site.deploy(application.GOOD))


def locked_meanwhile(trial: Broken) -> None:
    """Somebody takes a lock on the table after the migration has begun, and keeps it."""
    running = trial.migrating("before")
    with _lock_on_a_table(trial.site):
        trial.let_go()
        trial.until_the_end(running)


@contextmanager
def _lock_on_a_table(site: Site) -> Iterator[None]:
    held = "select count(*) from pg_locks where mode = 'AccessShareLock' and relation = 'notes'::regclass"
    other = site.web1.start(
        [*application.PSQL, "-c", "begin; lock table notes in access share mode; select pg_sleep(600)"]
    )
    try:
        wait_until(lambda: application.ask(site.web1, held) != "0", lambda: "somebody to hold a lock")
        yield
    finally:
        end = "select pg_terminate_backend(pid) from pg_stat_activity where query like '%pg_sleep(600)%'"
        application.ask(site.web1, f"{end} and pid <> pg_backend_pid()")
        other.communicate(timeout=60)


def runner_killed(trial: Broken) -> None:
    """All processes of the migration are killed on its host."""
    running = trial.migrating(trial.point)
    trial.site.web1.run(["systemctl", "kill", "--signal=SIGKILL", MIGRATIONS])
    trial.until_the_end(running)


def database_killed(trial: Broken) -> None:
    """The database server is killed in the migration, and starts again."""
    running = trial.migrating(trial.point)
    trial.site.web1.run(
        "systemctl kill --signal=SIGKILL postgresql@15-main; systemctl restart postgresql@15-main"
    )
    application.wait_for_database(trial.site.web1)
    trial.let_go()
    trial.until_the_end(running)


def outlives_the_link(trial: Broken) -> None:
    """The migration ends while nobody reaches its host; the operator's process is killed meanwhile."""
    trial.host = trial.site.web1
    running = trial.migrating(trial.point)
    with trial.outage(OUT_OF_REACH, "nobody reaches the host"):
        trial.host.link_down()
        running.process.kill()
        trial.let_go()
        wait_until(lambda: trial.site.revision() == 2, lambda: "the migration to end")
        trial.host.link_up()
    trial.until_the_end(running)


def outlives_by_a_minute(trial: Broken) -> None:
    """The migration goes on when the operator's process has given up, to whom its host was lost."""
    trial.host = trial.site.web1
    running = trial.migrating(trial.point)
    with trial.outage(OUT_OF_REACH, "nobody reaches the host"):
        trial.host.link_down()
        trial.until_the_end(running)
        trial.host.link_up()
    assert trial.typed[-1].code in (4, 130), trial.typed
    assert not trial.site.web1.exists(f"{application.WORK}/at-after"), "the migration is over already"


def unhealthy(trial: Broken) -> None:
    """The new application never gets healthy; the mended one is deployed by the runbook's way."""
    trial.until_the_end(trial.site.deploy(application.UNHEALTHY))
    lock = trial.site.status(trial.site.web1)["lock"]
    assert lock is not None, trial.typed
    trial.typed.append(trial.site.fab("unlock", "--force", lock["run_id"]))
    trial.until_the_end(trial.site.deploy(application.GOOD))


def sick(trial: Broken) -> None:
    """The application passes its start, and fails the verification behind the page until it is mended."""
    running = trial.site.deploy(application.GOOD, point="send:verify", act="wait")
    running.wait_until_here()
    trial.host.run(["touch", f"{application.WORK}/sick"])
    running.go_on()
    trial.until_the_end(running)
    trial.host.run(["rm", f"{application.WORK}/sick"])


# -- two operators --------------------------------------------------------------------------------


def two_operators(trial: Broken) -> None:
    """A second one wants a window, to resume or to abort while the first is at the point; he is told so."""
    running = trial.site.deploy(application.GOOD, point=trial.point, act="wait")
    running.wait_until_here()
    lock = trial.site.status(trial.site.web1)["lock"]
    other = trial.site.deploy(application.GOOD, by=trial.site.second).end()
    assert other.code == 5, other
    assert lock["run_id"] in other.err, other
    assert "a trial" in other.err, other
    for way in (RESUME, ABORT):
        other = trial.site.fab("deploy", f"--{way}", by=trial.site.second)
        assert other.code == 5, other
        assert lock["run_id"] in other.err, other
    # One whose fabric.yaml has the lock on another host finds it, too.
    for code, other in (
        (5, trial.site.deploy(application.GOOD, by=trial.site.second, **LOCK_ELSEWHERE).end()),
        (2, trial.site.fab("deploy", "--resume", by=trial.site.second, **LOCK_ELSEWHERE)),
    ):
        assert other.code == code, other
        assert lock["run_id"] in other.err, other
    running.go_on()
    trial.until_the_end(running)


def taken_over(trial: Broken) -> None:
    """The first one's laptop sleeps at the point; a second one goes on, and then the first wakes up."""
    running = trial.site.deploy(application.GOOD, point=trial.point, act="freeze")
    running.wait_until_here()
    other = trial.site.fab("deploy", "--resume", by=trial.site.second)
    assert other.code in (0, 3), other  # undone, where the release was not on the hosts yet
    running.go_on()
    first = running.end()
    assert first.code == 5, f"he did more than he should: {first}"
    trial.typed += [first, other]
