"""How lighttpd runs and answers: what shows in its behaviour is looked at there, not in its configuration."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from hostlib.checks import services
from hostlib.checks.finding import ERROR, WARNING, Finding, Subject, judged
from hostlib.checks.webserver import RELOAD, elsewhere, mend, proof, user
from hostlib.program import TOOLS, Failure
from hostlib.swapping.managers import Managers
from hostlib.switch import maintenance
from hostlib.webserver import accesslog, web

CUT_AFTER = 8  # seconds that a reload leaves to requests, where the configuration doesn't say
# Debian's configuration has 5 s. Who has longer requests learns of it from the plan of a set-up that reloads.
FEWEST, WISHED = 5, 30
MANY_WORKERS = 16  # each has to be seen for a proof


def statistics(subject: Subject) -> Iterator[Finding]:
    """lighttpd's counters, as `drain` asks for them."""
    config = subject.config
    try:
        answer = web.request(config, config.statistics_path, timeout=5)
    except OSError:
        return  # the site gives no answer at all, which is a finding of its own
    if maintenance.is_marked(answer):
        return  # only root can ask past the page
    wanted = f"gw.backend.{config.application}.load: "
    told = answer.status == 200 and any(
        row.startswith(wanted) for row in answer.body.decode(errors="replace").splitlines()
    )
    where = f"{config.url.rstrip('/')}{config.statistics_path}"
    bad = f"{where} answers {answer.status}" + (f" without {wanted.strip()}" if answer.status == 200 else "")
    found, key = subject.configuration, "status.statistics-url"
    other = found and found.effective(key, proof(subject))
    if other not in (None, "", config.statistics_path):
        bad += f"; the counters are at {other}, as another part of the configuration says"
    yield judged(
        "statistics",
        told,
        f"{where} tells lighttpd's counters",
        mend(subject, key, f'$HTTP["remote-ip"] == "127.0.0.1" {{ {key} := "{config.statistics_path}" }}'),
        bad=f"{bad}: `drain` can't tell when no request is being worked on",
    )


def answers_told(subject: Subject) -> Iterator[Finding]:
    """The bake time of a deploy compares visitors' 5xx answers with those before: who tells them?"""
    if not subject.expected.get("bake") or subject.configuration is None:
        return
    found = accesslog.place(subject.configuration, subject.config)
    yield judged(
        "bake",
        not isinstance(found, str),
        f"{found} tells what visitors are answered",
        "lighty-enable-mod accesslog, whose format is the usual one; then systemctl restart lighttpd",
        bad=f"{found}: while a new release is watched, only its health check and its crashes count",
        level=WARNING,
    )


def workers(subject: Subject) -> Iterator[Finding]:
    """Each worker has caches and counters of its own, so a proof takes an answer of each."""
    found = subject.configuration
    if found is None:
        return
    count = int(found.server("server.max-worker") or 0)
    config = subject.config
    # With root the proofs see whose answer it is; without, only where lighttpd runs as we do.
    seen = config.privileged or os.geteuid() == 0 or bool(web.workers(config))
    yield judged(
        "workers",
        count < 2 or seen,
        f"lighttpd has {count or 1} worker{'s' if count > 1 else ''}, and proofs tell them apart",
        f"server.max-worker = 0 in {config.lighttpd_config}; then systemctl restart lighttpd; or privileged:"
        " true in fabric.yaml, then fab setup",
        bad=f"lighttpd has {count} workers, and nobody but root and {user(subject) or 'its own account'} can"
        " tell which of them answered: `down` and `up` go by a second of right answers",
        level=WARNING,
    )
    if seen:
        yield judged(
            "workers",
            count <= MANY_WORKERS,
            "a proof of all workers is quick",
            f"server.max-worker = 4 or less in {config.lighttpd_config}: lighttpd serves thousands of"
            " connections with one; then systemctl restart lighttpd",
            bad=f"lighttpd has {count} workers, and every one of them has to be seen for each proof",
            level=WARNING,
        )


def reload(subject: Subject) -> Iterator[Finding]:
    """A reload cuts requests that take longer than lighttpd is told to wait."""
    found = subject.configuration
    if found is None:
        return
    key = "server.graceful-shutdown-timeout"
    flags = found.server("server.feature-flags")
    seconds = int(flags.get(key, CUT_AFTER)) if isinstance(flags, dict) else CUT_AFTER
    given = f"{seconds} s" if seconds else "as long as they take"
    place = elsewhere(subject, key) or str(subject.config.lighttpd_config)
    yield judged(
        "reload",
        seconds >= FEWEST or seconds == 0,  # 0 is for no end
        f"a reload of lighttpd leaves requests {given} to finish",
        f'server.feature-flags += ( "{key}" => {WISHED} ) in {place}; then {RELOAD}',
        bad=f"a reload of lighttpd, as by fab setup, cuts requests that take longer than {seconds} s",
        level=WARNING,
    )


def loaded(subject: Subject) -> Iterator[Finding]:
    """What runs is what the files say."""
    began = services.changed_at("lighttpd.service")
    if began is None or subject.configuration is None:
        return
    files = [subject.config.lighttpd_config, *subject.config.lighttpd_config.parent.glob("conf-enabled/*")]
    newer = [file for file in files if file.exists() and max(_times(file)) > began + 1]
    yield judged(
        "loaded",
        not newer,
        "lighttpd runs with its configuration as it is",
        RELOAD,
        bad=f"lighttpd has not read {', '.join(map(str, newer))} since it was changed",
        level=WARNING,
    )


def _times(file: Path) -> tuple[float, float]:
    """When the file was changed, and when it was put in that place: in seconds since the epoch."""
    return file.stat().st_mtime, file.lstat().st_mtime


def unit(subject: Subject) -> Iterator[Finding]:
    """The sandbox of lighttpd's systemd unit lets it see the socket and the switch; and it starts at boot."""
    config = subject.config
    told = services.show("lighttpd.service", *services.SANDBOX, "UnitFileState", "LoadState")
    if told.get("LoadState") != "loaded":
        return
    for setting, hidden in services.hidden(told, [config.run, config.maintenance_dir]):
        yield Finding(
            "unit",
            False,
            f"{setting} of lighttpd.service hides {hidden} from lighttpd",
            services.override("lighttpd.service", services.lifted(setting)),
        )
    families = told.get("RestrictAddressFamilies", "")
    blocked = _families_without_unix(families)
    yield judged(
        "unit",
        not blocked,
        "lighttpd.service lets lighttpd use unix sockets",
        services.override("lighttpd.service", "RestrictAddressFamilies=AF_UNIX"),
        bad=f"RestrictAddressFamilies={families} of lighttpd.service keeps lighttpd from unix sockets",
    )
    yield judged(
        "unit",
        told.get("UnitFileState") in ("enabled", "enabled-runtime", "static", "alias", "indirect", ""),
        "lighttpd starts at boot",
        "systemctl enable lighttpd",
        bad=f"lighttpd.service is {told.get('UnitFileState')}: after a reboot there is no web server",
        level=WARNING,
    )


def _families_without_unix(families: str) -> bool:
    names = families.removeprefix("~").split()
    if families.startswith("~"):
        return "AF_UNIX" in names
    return bool(names) and "AF_UNIX" not in names and names != ["none"]


def script(subject: Subject) -> Iterator[Finding]:
    """maint.lua is whole: lighttpd answers every request by 500 otherwise."""
    config = subject.config
    state, file = maintenance.read_state(config).state, config.maintenance_dir / "maint.lua"
    what = "is not ours"
    if not file.exists():
        what = "is missing"
    elif state == "unknown" and not file.stat().st_size:
        what = "is empty"
    bad = f"{file} {what}" + ("" if what == "is not ours" else ": lighttpd answers every request by 500")
    yield judged(
        "maintenance script",
        state != "unknown",
        f"{file} says that the site is {state}",
        f"{'sudo ' if config.privileged else ''}{config.maintenance_dir}/up",
        bad=bad,
    )


def page(subject: Subject) -> Iterator[Finding]:
    """Without a page visitors see a plain one; the operator's own is not that of fabric.yaml."""
    file = subject.config.maintenance_dir / "maint.html"
    there = file.is_file() and file.stat().st_size > 0
    if there and subject.expected.get("page") and _is_own(file):
        yield Finding(
            "maintenance page",
            False,
            f"{file} was changed by hand, so visitors don't see what deploy.page of fabric.yaml says",
            f"rm {file}; then fab setup; or take `page` out of fabric.yaml",
            WARNING,
        )
        return
    yield judged(
        "maintenance page",
        there,
        f"{file} is there",
        f"rm -f {file}; then fab setup, which puts ours there; or put a page of your own there",
        bad=f"{file} is {'empty' if file.exists() else 'missing'}: visitors will see a plain page",
        level=WARNING,
    )


def _is_own(file: Path) -> bool:
    """Whether no set-up has put it there: as hostsetup.versions has it, which tells what is replaced."""
    shipped = [*TOOLS.glob("versions/*/maint.html"), TOOLS / "maint.html"]
    try:
        return all(file.read_bytes() != page.read_bytes() for page in shipped if page.is_file())
    except OSError:
        return False  # can't be read, nor told apart


def site(subject: Subject) -> Iterator[Finding]:
    """Some answer must come. A bad one stops no deploy: it may be what the deploy is for."""
    config = subject.config
    health = subject.health
    path = health.path if health else "/"
    try:
        answer = web.request(config, path, timeout=5)
    except OSError as error:
        yield Finding(
            "site",
            False,
            f"{config.url} gives no answer: {error}",
            "systemctl restart lighttpd; or, where it runs, webserver.url in fabric.yaml, then fab setup",
        )
        return
    except Failure as failure:  # the host's name has no address
        yield Finding("site", False, failure.what, failure.next)
        return
    where = f"{config.url.rstrip('/')}{path}"
    if elsewhere := _redirected(answer, config.url):
        yield Finding(
            "site",
            False,
            f"{where} is redirected to {elsewhere}, so `swap` never sees the application answer there",
            f"webserver: {{url: {elsewhere}}} in fabric.yaml; then fab setup",
            ERROR if health is None or not health.met(answer.status, answer.body) else WARNING,
        )
        return
    fine = answer.status < 500 or maintenance.is_marked(answer)
    serving = subject.serving
    if serving is None and subject.expected.get("deploying"):
        return  # nothing can answer yet
    if serving is None:
        remedy = "fab deploy, because nothing is deployed yet"
    elif Managers(subject.config).alive(serving):
        remedy = f"tail {config.log}/app.log, which may tell why"
    else:
        remedy = f"fab hotswap, because the application is not running; why is in {config.log}/app.log"
    yield judged("site", fine, f"{where} answers {answer.status}", remedy, level=WARNING)


def _redirected(answer: web.Answer, url: str) -> str | None:
    """Where a redirect leads that goes to another scheme or host: no page of the application's own."""
    there = urlsplit(answer.headers.get("location", ""))
    here = urlsplit(url)
    if not 300 <= answer.status < 400 or not there.netloc:
        return None
    same = (there.scheme, there.hostname) == (here.scheme, here.hostname)
    return None if same else f"{there.scheme}://{there.netloc}/"


def reaches(subject: Subject) -> Iterator[Finding]:
    """lighttpd runs as the account that the application's sockets belong to."""
    name, config = user(subject), subject.config
    wanted = config.webserver_user or config.user
    if name is None or not config.privileged:
        return  # one user owns everything
    yield judged(
        "socket",
        name == wanted,
        f"{name} may connect to the application's sockets",
        f"webserver: {{user: {name}}} in fabric.yaml; then fab setup; then fab hotswap",
        bad=f"lighttpd runs as {name}, and the application's sockets belong to {wanted}: it can't connect",
    )
