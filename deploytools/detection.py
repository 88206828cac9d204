"""What `fab init` finds in a project, by reading its files: none of its code is run or imported."""

from __future__ import annotations

import ast
import configparser
import re
from dataclasses import dataclass, field
from pathlib import Path

# The first word of a database URL, and the last of a Django backend.
ENGINES = {
    "postgresql": "postgresql",
    "postgres": "postgresql",
    "postgis": "postgresql",
    "mysql": "mysql",
    "mariadb": "mariadb",
    "sqlite": "sqlite",
    "sqlite3": "sqlite",
    "spatialite": "sqlite",
}
# For any WSGI application; docs/runtimes.md says why each option is there.
UWSGI = (
    "uwsgi --master --die-on-term --need-app --plugin python3 {what} --processes 4"
    " --listen 1024 --disable-logging --protocol fastcgi"
)


@dataclass(frozen=True)
class Found:
    """What fabric.yaml can say of a project.

    Args:
        application: a name for it, from its directory.
        command: how it is started.
        env: variables that it is started with.
        document_root: the directory that lighttpd serves files from, or None.
        shared: what releases are to share; a `.env` only where the project knows one.
        migrate: the keys of `migrate`, in their order; empty where no migration tool was found.
        notes: what was found, and what is still to be seen to, a sentence each.
    """

    application: str
    command: str
    env: dict[str, str] = field(default_factory=dict)
    document_root: str | None = None
    shared: tuple[str, ...] = ("var",)
    migrate: dict[str, object] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def detect(directory: Path) -> Found:
    """Look at the project in `directory`; what isn't told by a file there is a guess that `notes` names."""
    command, env, root, notes = _application(directory)
    migrate, about = _migrations(directory)
    if not any((parent / ".git").exists() for parent in (directory, *directory.parents)):
        about.append("this is no git checkout: git init, since what is committed is what is shipped")
    shared = (".env", "var") if any(directory.glob(".env*")) else ("var",)
    return Found(application_name(directory.name), command, env, root, shared, migrate, (*notes, *about))


def application_name(text: str) -> str:
    """Given the name of a directory, return one that `deploy.application` may be."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-").lstrip("-0123456789")[:31].rstrip("-")
    return name or "app"


def _application(directory: Path) -> tuple[str, dict[str, str], str | None, list[str]]:
    """How the application is started: command, env, document root, notes."""
    text = _text(directory / "manage.py")
    if settings := _django_settings(text):
        wsgi = f"{settings.rpartition('.settings')[0] or settings}.wsgi"
        env = {"DJANGO_SETTINGS_MODULE": settings}
        return UWSGI.format(what=f"--module {wsgi}:application"), env, None, [f"Django ({settings})"]
    for script in ("app.py", "wsgi.py"):
        text = _text(directory / script)
        if "WSGIServer" in text and "flup" in text:
            return f"/usr/bin/python3 {script}", {}, None, [f"a FastCGI server of flup in {script}"]
        if named := re.search(r"^(?:def )?(application|app)\b *[=(]", text, re.MULTILINE):
            other = "" if named[1] == "application" else f" --callable {named[1]}"
            what = f"--wsgi-file {script}{other}"
            return UWSGI.format(what=what), {}, None, [f"a WSGI application in {script}"]
    if "FCGI" in _text(directory / "app.pl"):
        return "perl app.pl", {}, None, ["a FastCGI application in app.pl"]
    return _php(directory)


def _php(directory: Path) -> tuple[str, dict[str, str], str | None, list[str]]:
    roots = [name for name in ("public", "web", "htdocs", "www") if (directory / name / "index.php").exists()]
    root = roots[0] if roots else "public"
    if roots:
        notes = [f"PHP ({root}/index.php)"]
    elif (directory / "index.php").exists() or (directory / "composer.json").exists():
        notes = [f"PHP, but no {root}/index.php: what visitors may reach belongs into a directory of its own"]
    else:
        notes = [f"nothing that tells how the application is started, so php-cgi with {root}/index.php"]
    if (directory / "php-fpm.conf").exists():
        command = "sh -c 'exec 3<&0; APP_SOCKET=/fd3 FPM_SOCKETS=/fd3=3 exec php-fpm8.2 -F -y php-fpm.conf'"
        return command, {}, root, [*notes, "php-fpm.conf; php-fpm8.2 is bookworm's, php-fpm8.4 trixie's"]
    return "/usr/bin/php-cgi", {"PHP_FCGI_CHILDREN": "4"}, root, notes


def _migrations(directory: Path) -> tuple[dict[str, object], list[str]]:
    """The section `migrate`, and notes."""
    if (directory / "alembic.ini").exists():
        engine = _alembic_engine(directory / "alembic.ini")
        return _tool("alembic", engine, {}), [_noted("Alembic", engine)]
    if settings := _django_settings(_text(directory / "manage.py")):
        engine = _django_engine(directory, settings)
        env = {"DJANGO_SETTINGS_MODULE": settings}
        return _tool("django", engine, env), [_noted("Django's migrations", engine)]
    return {}, []


def _tool(adapter: str, engine: str | None, env: dict[str, str]) -> dict[str, object]:
    return {"adapter": adapter, **({"engine": engine} if engine else {}), **({"env": env} if env else {})}


def _noted(tool: str, engine: str | None) -> str:
    return f"{tool}, {engine}" if engine else f"{tool}; which database isn't told: deploy.migrate.engine"


def _alembic_engine(path: Path) -> str | None:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        parser.read_string(_text(path))
        url = parser.get("alembic", "sqlalchemy.url", fallback="")
    except configparser.Error:
        return None
    return ENGINES.get(re.split(r"[+:]", url)[0].lower())


def _django_settings(manage: str) -> str | None:
    """The settings module that a manage.py names."""
    found = re.search(r"DJANGO_SETTINGS_MODULE[\"'],\s*[\"']([A-Za-z_][\w.]*)[\"']", manage)
    return found[1] if found else None


def _django_engine(directory: Path, settings: str) -> str | None:
    """The engine of DATABASES["default"] where the settings module has it as plain text."""
    place = directory.joinpath(*settings.split("."))
    named = {
        text.rpartition(".")[2]
        for file in (place.with_suffix(".py"), place / "__init__.py", place.parent / "base.py")
        for text in _texts(_text(file))
        if text.startswith(("django.db.backends.", "django.contrib.gis.db.backends."))
    }
    engines = {ENGINES[name] for name in named if name in ENGINES}
    return engines.pop() if len(engines) == 1 else None


def _texts(code: str) -> list[str]:
    """Every piece of text that stands in Python code."""
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError):
        return []
    values = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return [value for value in values if isinstance(value, str)]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    except OSError:
        return ""
