"""The application of the trials: PHP on every host, one PostgreSQL on web1, and commits to deploy.

The code of each commit fits one schema alone: what code 1 calls notes.title is notes.headline after the
migration. Each request reads the schema's revision from the database before and after its work, and answers

    code=1 schema=1,1

so whoever asks knows what met what. Its health page doesn't look at the database: no check of the
toolkit's own keeps a mixture from the public, only the order of its steps.

A migration writes a line into WORK/started each time that it begins. It waits as long as WORK/hold-PLACE is
there (before it connects, inside its transaction, or after its commit), and says so by WORK/at-PLACE.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.fleet import sample
from tests.fleet.fleet import DEPLOY_USER, Fleet
from tests.fleet.hosts import Host, wait_until

PACKAGES = ("postgresql", "php-pgsql")
NOTES = Path(__file__).with_name("notes")
# On every host, outside of what the toolkit has: the migration's gates, the hooks' marks.
WORK = "/var/lib/matrix"
# The database host, by each host's own /etc/hosts.
DATABASE = "database"
# Where a migration can be held, and can fail, by its transaction.
PLACES = ("before", "inside", "after")
# The commits of the project, each a branch beside v1. All of them have the second migration.
GOOD, UNHEALTHY = "v2", "v2-unhealthy"

FABRIC_YAML = """\
tasks: {{executor_class: deploytools.executor.OnceExecutor}}
deploy:
  application: guestbook
  hosts: {hosts}
  ssh_config: {ssh_config}
  app:
    command: /usr/bin/php-cgi -d pgsql.auto_reset_persistent=1
    env: {{PHP_FCGI_CHILDREN: "2"}}
    start_timeout: 8
    drain_timeout: 15
  health: {{path: "/?health"}}
  webserver: {{document_root: public}}
  keep_releases: 20
  migrate:
    adapter: command
    engine: postgresql
    transactional: true
    lock_timeout: 1s
    env: {{DATABASE_URL: "postgres://app@{database}/app"}}
    status: ./schema status
    current: ./schema current
    apply: ./schema apply
  hooks:
    quiesce: touch {work}/quiet
    backup: |
      file={work}/$DEPLOYTOOLS_RUN_ID.dump
      {programs}/pg_dump -Fc -h {database} -U app -f "$file" app && echo "$file"
    resume: rm -f {work}/quiet
  fleet: {{connect_timeout: 5}}
"""
# What the second operator's checkout has in its place.
ELSEWHERE = (
    ("/usr/bin/php-cgi", "/bin/false"),
    ("/?health", "/?nowhere"),
    ("./schema apply", "./schema lost"),
    (f"quiesce: touch {WORK}/quiet", "quiesce: exit 9"),
    ("    backup: |\n", "    backup: |\n      exit 9\n"),
    (f"resume: rm -f {WORK}/quiet", "resume: null"),
)
FABFILE = f"""\
import sys

sys.path.insert(0, {str(Path(__file__).parents[3])!r})
from tests.fleet.matrix import points

from deploytools.tasks import ns  # noqa: F401

points.arrange()
"""
# As it is when v1 has been deployed, after what migrations/0001.sql says; on standard input of psql.
BEFORE = "begin; drop table if exists notes, migrations; create table migrations (name text primary key);\n"
AFTER = "insert into migrations values ('0001'); commit;\n"
# Themselves, without the search for a cluster that Debian's wrappers in Perl begin with.
PROGRAMS = "/usr/lib/postgresql/15/bin"
READY = [f"{PROGRAMS}/pg_isready", "-q", "-h", "/var/run/postgresql"]
PSQL = [f"{PROGRAMS}/psql", "-h", "/var/run/postgresql", "-XAtq", "-v", "ON_ERROR_STOP=1", "app", "app"]


def begin(fleet: Fleet) -> None:
    """Write the project with all its commits; v1 is checked out."""
    project = fleet.operator.directory
    shutil.copytree(NOTES, project, dirs_exist_ok=True)
    (project / "migrations/0002.sql").unlink()
    hosts = json.dumps([f"{DEPLOY_USER}@{host.name}" for host in fleet])
    about = {"hosts": hosts, "ssh_config": json.dumps(str(fleet.ssh_config))}
    (project / "fabric.yaml").write_text(
        FABRIC_YAML.format(**about, database=DATABASE, work=WORK, programs=PROGRAMS)
    )
    (project / "fabfile.py").write_text(FABFILE)
    (project / ".gitignore").write_text("state/\n__pycache__/\n")
    (project / "code").write_text("1\n")
    (project / "fails").write_text("never\n")
    sample.git(project, "init", "-q", "-b", "v1")
    for key, value in (("user.name", "Ann"), ("user.email", "ann@example.com")):
        sample.git(project, "config", key, value)
    sample.commit(fleet, "The first version")
    sample.git(project, "checkout", "-q", "-b", GOOD)
    (project / "code").write_text("2\n")
    shutil.copy(NOTES / "migrations/0002.sql", project / "migrations")
    sample.commit(fleet, "Notes have a headline")
    for place in PLACES:
        sample.git(project, "checkout", "-q", "-b", f"{GOOD}-fails-{place}", GOOD)
        (project / "fails").write_text(f"{place}\n")
        sample.commit(fleet, f"A migration that fails {place} its transaction")
    sample.git(project, "checkout", "-q", "-b", UNHEALTHY, GOOD)
    (project / "unhealthy").write_text("\n")
    sample.commit(fleet, "An application that is never healthy")
    sample.git(project, "checkout", "-q", "v1")


def elsewhere(project: Path) -> None:
    """Bring a copy of the project to a commit whose fabric.yaml would break whatever run went by it."""
    settings = (project / "fabric.yaml").read_text()
    for good, bad in ELSEWHERE:
        assert good in settings, good
        settings = settings.replace(good, bad)
    (project / "fabric.yaml").write_text(settings)
    (project / "code").write_text("3\n")
    sample.git(project, "checkout", "-q", "-b", "elsewhere")
    sample.git(project, "commit", "-qam", "Something else")


def prepare(fleet: Fleet) -> None:
    """Give web1 its database, and every host what the application needs besides."""
    web1 = fleet.hosts[0]
    for host in fleet:
        address = "127.0.0.1" if host is web1 else web1.address
        host.run(f"echo {address} {DATABASE} >>/etc/hosts; install -d -m 1777 {WORK}")
    network = web1.address.rpartition(".")[0] + ".0/24"
    web1.run(
        "cd /etc/postgresql/*/main;"
        "echo \"listen_addresses = '*'\" >>postgresql.conf;"
        f"echo host app app {network} trust >>pg_hba.conf;"
        "sed -i '1i local app app trust\\nhost app app 127.0.0.1/32 trust' pg_hba.conf;"
        "systemctl restart postgresql"
    )
    wait_for_database(web1)
    web1.run("createuser app; createdb -O app app", user="postgres")
    reset(web1)


def reset(host: Host) -> None:
    """Bring the schema back to what it was after the first deploy."""
    wait_for_database(host)
    host.run(PSQL, input=BEFORE + (NOTES / "migrations/0001.sql").read_text() + AFTER)


def ask(host: Host, query: str) -> str:
    """What the database answers."""
    wait_for_database(host)
    return host.run([*PSQL, "-c", query]).stdout.strip()


def wait_for_database(host: Host) -> None:
    """Wait until the server answers; after a crash it takes a moment."""

    def answers() -> bool:
        return host.run(READY, check=False).returncode == 0

    wait_until(answers, lambda: f"PostgreSQL of {host.name}")
