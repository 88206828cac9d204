"""What `init` finds in a project, and that the fabric.yaml it then writes is a good one."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from invoke.util import yaml

from deploytools.detection import application_name, detect
from deploytools.scaffold import rendered, section
from deploytools.settings import Settings, load

MANAGE = "os.environ.setdefault('DJANGO_SETTINGS_MODULE', 'shop.settings')\n"
FLUP = "from flup.server.fcgi import WSGIServer\n"


@dataclass(frozen=True)
class Case:
    """A project as files and their text, and what is to be found in it."""

    name: str
    files: dict[str, str]
    command: str
    root: str | None = None
    migrate: dict[str, Any] = field(default_factory=dict)


CASES = [
    Case("nothing at all", {}, "/usr/bin/php-cgi", "public"),
    Case("php", {"public/index.php": ""}, "/usr/bin/php-cgi", "public"),
    Case("php elsewhere", {"web/index.php": ""}, "/usr/bin/php-cgi", "web"),
    Case("php at the top", {"index.php": "", "composer.json": "{}"}, "/usr/bin/php-cgi", "public"),
    Case("php-fpm", {"public/index.php": "", "php-fpm.conf": ""}, "php-fpm8.2", "public"),
    Case("perl", {"app.pl": "use FCGI;"}, "perl app.pl"),
    Case("flup", {"app.py": FLUP}, "/usr/bin/python3 app.py"),
    Case("wsgi function", {"wsgi.py": "def application(environ, start):\n"}, "--wsgi-file wsgi.py"),
    Case("flask", {"app.py": "app = Flask(__name__)\n"}, "--wsgi-file app.py --callable app"),
    Case(
        "alembic",
        {"app.py": FLUP, "alembic.ini": "[alembic]\nsqlalchemy.url = postgresql+psycopg://a:%40b@db/x\n"},
        "/usr/bin/python3 app.py",
        migrate={"adapter": "alembic", "engine": "postgresql"},
    ),
    Case(
        "alembic with a URL from elsewhere",
        {"alembic.ini": "[alembic]\nscript_location = here\n"},
        "/usr/bin/php-cgi",
        "public",
        {"adapter": "alembic"},
    ),
    Case(
        "alembic that can't be read",
        {"alembic.ini": "no section\n"},
        "/usr/bin/php-cgi",
        "public",
        {"adapter": "alembic"},
    ),
    Case(
        "django",
        {"manage.py": MANAGE, "shop/settings.py": 'D = {"ENGINE": "django.db.backends.mysql"}'},
        "--module shop.wsgi:application",
        migrate={
            "adapter": "django",
            "engine": "mysql",
            "env": {"DJANGO_SETTINGS_MODULE": "shop.settings"},
        },
    ),
    Case(
        "django with two databases",
        {
            "manage.py": MANAGE,
            "shop/settings.py": 'D = ["django.db.backends.mysql", "django.db.backends.sqlite3"]',
        },
        "--module shop.wsgi:application",
        migrate={"adapter": "django", "env": {"DJANGO_SETTINGS_MODULE": "shop.settings"}},
    ),
    Case(
        "django with settings that are no Python",
        {"manage.py": MANAGE, "shop/settings.py": "this is ("},
        "--module shop.wsgi:application",
        migrate={"adapter": "django", "env": {"DJANGO_SETTINGS_MODULE": "shop.settings"}},
    ),
]


def written(case: Case, directory: Path) -> Path:
    for name, text in case.files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return directory


def settings_of(text: str) -> Settings:
    deploy = yaml.safe_load(text)["deploy"]
    return load(deploy, environment=None, only_hosts=None, environ={}, root=Path("/project"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_is_found_and_the_file_that_init_writes_is_a_good_one(case: Case, tmp_path: Path) -> None:
    found = detect(written(case, tmp_path))
    settings = settings_of(rendered(found, ["web1", "deploy@[::1]:2222"]))

    assert case.command in settings.app.command
    assert settings.webserver.document_root == case.root
    assert found.migrate == case.migrate
    assert found.notes
    wanted = section(found, ["web1", "deploy@[::1]:2222"])
    assert settings == load(wanted, environment=None, only_hosts=None, environ={}, root=Path("/project"))


def test_none_of_the_project_s_code_is_run(tmp_path: Path) -> None:
    files = {"manage.py": MANAGE, "shop/settings.py": "raise SystemExit", "app.py": "raise SystemExit"}

    assert "shop.wsgi" in detect(written(Case("", files, ""), tmp_path)).command


def test_what_is_not_in_git_is_told(tmp_path: Path) -> None:
    assert "git init" in detect(tmp_path).notes[-1]
    (tmp_path / ".git").mkdir()
    assert not any("git init" in note for note in detect(tmp_path / "sub").notes)


@pytest.mark.parametrize(
    ("directory", "name"),
    [
        ("guestbook", "guestbook"),
        ("My.Shop_2", "my-shop-2"),
        ("2024-site", "site"),
        ("ß", "app"),
        ("a" * 60, "a" * 31),
    ],
)
def test_a_directory_s_name_becomes_one_that_an_application_may_have(directory: str, name: str) -> None:
    assert application_name(directory) == name


def test_a_file_for_secrets_is_shared_where_the_project_knows_one(tmp_path: Path) -> None:
    assert detect(tmp_path).shared == ("var",)
    (tmp_path / ".env.example").write_text("SECRET=\n")
    assert detect(tmp_path).shared == (".env", "var")
