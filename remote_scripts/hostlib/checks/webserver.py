"""lighttpd's configuration, as lighttpd itself understands it: that the maintenance switch sees every
request, and that the application is reached. How lighttpd runs and answers is looked at in `site`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hostlib.checks.finding import ERROR, WARNING, Finding, Subject, judged
from hostlib.webserver import lighttpd
from hostlib.webserver.lighttpd import Block, Configuration, backends

# They drop the body and the headers of a Lua script's own answer, so the maintenance page is lost.
BROKEN = ("1.4.83", "1.4.84")
OLDEST = (1, 4, 60)
MODULES = ("mod_magnet", "mod_rewrite", "mod_status", "mod_fastcgi")
INSTALL = "apt install lighttpd lighttpd-modules-lua"
RELOAD = "systemctl reload lighttpd"
RAW = "magnet.attract-raw-url-to"
# Modules that are done with a request before mod_magnet sees its path, or see it later wherever they stand.
HARMLESS_BEFORE_MAGNET = {
    *("mod_access", "mod_accesslog", "mod_alias", "mod_auth", "mod_authn_file", "mod_cgi", "mod_deflate"),
    *("mod_dirlisting", "mod_evhost", "mod_expire", "mod_extforward", "mod_fastcgi", "mod_indexfile"),
    *("mod_openssl", "mod_gnutls", "mod_proxy", "mod_redirect", "mod_scgi", "mod_setenv", "mod_simple_vhost"),
    *("mod_ssi", "mod_staticfile", "mod_status", "mod_userdir", "mod_vhostdb", "mod_webdav", "mod_wstunnel"),
}


def version(subject: Subject) -> Iterator[Finding]:
    if subject.lighttpd is None:
        yield Finding("lighttpd", False, "lighttpd is not installed", INSTALL)
        return
    found = lighttpd.version(subject.lighttpd)
    good = found not in BROKEN and tuple(map(int, found.split("."))) >= OLDEST
    yield judged(
        "lighttpd",
        good,
        f"lighttpd is {found}",
        f"apt install lighttpd, for a version from 1.4.60 that is none of {', '.join(BROKEN)}",
        bad=f"lighttpd is {found}, which loses the maintenance page",
    )


def modules(subject: Subject) -> Iterator[Finding]:
    """Whether they can be loaded; that they are is in the configuration."""
    if subject.lighttpd is None:
        return
    missing = lighttpd.missing_module(subject.lighttpd, MODULES)
    yield judged(
        "modules",
        missing is None,
        "lighttpd has the modules that we need",
        INSTALL,
        bad=f"lighttpd can't load {missing}",
    )


def configuration(subject: Subject) -> Iterator[Finding]:
    if subject.lighttpd is None:
        return
    file = subject.config.lighttpd_config
    # Without root its keys and logs may be out of reach, which says nothing of the configuration.
    unseen = os.geteuid() != 0 and "ermission denied" in (subject.refusal or "")
    yield judged(
        "configuration",
        subject.refusal is None,
        f"lighttpd takes {file}",
        f"mend it until this says nothing: lighttpd -tt -f {file}",
        bad=f"lighttpd refuses {file}: {subject.refusal}",
        level=WARNING if unseen else ERROR,
    )


def magnet(subject: Subject) -> Iterator[Finding]:
    """mod_magnet is there, comes first, and runs our script for every request to the application."""
    found = subject.configuration
    if found is None:
        return
    loaded = _list(found.server("server.modules"))
    there = "mod_magnet" in loaded
    remedy = mend(subject, "server.modules", 'server.modules := ( "mod_magnet" ) + server.modules')
    yield judged(
        "mod_magnet",
        there,
        "mod_magnet is loaded",
        remedy,
        bad="mod_magnet is not loaded, so silently there is no maintenance mode",
    )
    before = loaded[: loaded.index("mod_magnet")] if there else []
    risky = [name for name in before if name not in HARMLESS_BEFORE_MAGNET]
    bad = f"mod_magnet comes after {', '.join(risky or before)}"
    if risky:
        bad += ", which may change or answer a request before the maintenance switch sees it"
    good = "mod_magnet comes first"
    yield judged("mod_magnet", not before, good, remedy, bad=bad, level=ERROR if risky else WARNING)
    yield from _script(subject, found)


def _script(subject: Subject, found: Configuration) -> Iterator[Finding]:
    script = str(subject.config.maintenance_dir / "maint.lua")
    missing = f"{script} is not asked, so silently there is no maintenance mode"
    remedy = mend(subject, RAW, f'{RAW} = ( "{script}" )')
    asked = _for_the_application(subject, found, RAW)
    if not any(block.holds(proof(subject)) for block in asked):
        yield Finding("switch", False, missing, remedy)
    for block in asked:
        names = _list(block.settings[RAW])
        good, bad = f"{script} runs for every request", missing
        if block.conditions:
            good = f"{script} runs for requests where {block}"
            bad = f"where {block}, {RAW} is set anew without {script}: there is no maintenance mode there"
            both = ", ".join(f'"{name}"' for name in (script, *names))
            place = elsewhere(subject, RAW) or f"the block {block}"
            remedy = f"{RAW} = ( {both} ) in {place}; then {RELOAD}"
        yield judged("switch", script in names, good, remedy, bad=bad)


def _for_the_application(subject: Subject, found: Configuration, key: str) -> list[Block]:
    """Blocks whose setting of `key` counts for some request that goes on to the application."""
    return [
        block
        for block in found.possible(key, _visitor(subject))
        if not (other := found.inside(block, "fastcgi.server")) or _backend(subject, other)
    ]


def stat_cache(subject: Subject) -> Iterator[Finding]:
    if subject.configuration is None:
        return
    key = "server.stat-cache-engine"
    engine = subject.configuration.server(key)
    late = {"simple": "up to a second late"}.get(engine, "some 16 s late")
    yield judged(
        "stat cache",
        engine == "disable",
        f"{key} is {engine}",
        mend(subject, key, f'{key} := "disable"'),
        bad=f"with {key} {engine} lighttpd notices a flipped switch {late}",
        level=WARNING if engine == "simple" else ERROR,
    )


def error_pages(subject: Subject) -> Iterator[Finding]:
    """server.error-intercept replaces every 503 by lighttpd's own page, the maintenance page too.

    Not so with server.error-handler: that is a request of its own, which the switch sees again.
    """
    found, key = subject.configuration, "server.error-intercept"
    if found is None:
        return
    replaced = str(found.effective(key, proof(subject))) in ("enable", "true", "1")
    handled = found.effective("server.error-handler", proof(subject))
    yield judged(
        "error pages",
        not replaced or bool(handled),
        "lighttpd leaves the maintenance page alone",
        f'{key} = "disable" in {elsewhere(subject, key) or subject.config.lighttpd_config}; then {RELOAD}',
        bad=f"{key} replaces the maintenance page by lighttpd's own error page",
    )


def backend(subject: Subject) -> Iterator[Finding]:
    """lighttpd leads to run/app.sock, and leaves that socket alone."""
    found, name = subject.configuration, subject.config.application
    if found is None:
        return
    path = subject.config.run / "app.sock"
    configured = found.effective("fastcgi.server", proof(subject))
    host = _backend(subject, configured)
    line = f'"{name}" => ( "socket" => "{path}", "check-local" => "disable", ... )'
    remedy = mend(subject, "fastcgi.server", line)
    there = ", ".join(sorted(_sockets(configured))) or "no FastCGI backend"
    bad = f"lighttpd doesn't lead to {path}, but to {there}"
    yield judged("backend", host is not None, f"lighttpd leads to {path}", remedy, bad=bad)
    if host is None:
        return
    label, options = host
    yield judged(
        "backend",
        "bin-path" not in options,
        "lighttpd starts no application of its own",
        remedy,
        bad=f"bin-path is set: lighttpd starts {options.get('bin-path')} itself, and connects to {path}-0",
    )
    yield judged(
        "backend",
        options.get("check-local") == "disable",
        "check-local is disabled",
        remedy,
        bad="check-local is enabled: lighttpd answers 404 for whatever is no file of its own",
    )
    yield judged(
        "backend",
        label == name,
        f"the backend is labelled {name}",
        remedy,
        bad=f"the backend is {f'labelled {label}' if label else 'not labelled'}: lighttpd's counters don't"
        f" tell the requests of {name}, which `drain` waits for",
    )


# -- who asks --------------------------------------------------------------------------------------


def _visitor(subject: Subject) -> Mapping[str, str]:
    """What is known of every visitor of the site: its name, if it has one."""
    return {"host": subject.config.host_header} if subject.config.host_header else {}


def proof(subject: Subject) -> Mapping[str, str]:
    """What is known of our own requests."""
    return lighttpd.own_request(subject.config)


# -- what is configured ----------------------------------------------------------------------------


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _sockets(value: Any) -> set[str]:
    return {
        str(host.get("socket") or f"{host.get('host')}:{host.get('port')}") for _, host in backends(value)
    }


def _backend(subject: Subject, value: Any) -> tuple[str, dict[str, Any]] | None:
    """The host of a `fastcgi.server` that is our application."""
    ours = os.path.normpath(subject.config.run / "app.sock")
    found = (
        (label, host) for label, host in backends(value) if os.path.normpath(host.get("socket", "")) == ours
    )
    return next(found, None)


def user(subject: Subject) -> str | None:
    """The account that lighttpd runs as, if its configuration says."""
    return subject.configuration and subject.configuration.server("server.username")


def mend(subject: Subject, key: str, line: str) -> str:
    """The remedy where `key` isn't as the part that `fab setup` writes has it (`line`, in short)."""
    part = f"50-deploytools-{subject.config.application}.conf"
    enabled = subject.config.lighttpd_config.parent / "conf-enabled" / part
    other = elsewhere(subject, key)
    if other and _lines(enabled, key):
        return f"take {key} out of {other}, which comes after {enabled}; then {RELOAD}"
    return f"fab setup, which writes {line} into {enabled}"


def elsewhere(subject: Subject, key: str) -> str | None:
    """FILE:LINE of the last line that sets `key`, but for what `fab setup` writes; None without one."""
    configuration = subject.config.lighttpd_config
    parts = sorted(configuration.parent.glob("conf-enabled/*"))
    others = [part for part in parts if not part.name.startswith("50-deploytools-")]
    found = [place for file in (configuration, *others) for place in _lines(file, key)]
    return found[-1] if found else None


def _lines(file: Path, key: str) -> list[str]:
    try:
        lines = file.read_text(errors="replace").splitlines()
    except OSError:
        return []
    sets = re.compile(rf"[^#]*{re.escape(key)}")
    return [f"{file}:{number}" for number, line in enumerate(lines, 1) if sets.match(line)]
