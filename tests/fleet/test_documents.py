"""The tutorial and the how-to pages, word for word, on hosts where nothing was set up yet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.docs.walk import Walk
from tests.fleet import Fleet
from tests.fleet.swaphost import PACKAGES

pytestmark = pytest.mark.fleet(2, suites=("bookworm",), packages=PACKAGES)

SETTINGS = """
from pathlib import Path

BASE_DIR = Path(__file__).resolve().parents[1]
SECRET_KEY = (BASE_DIR / "var/secret_key").read_text()
ALLOWED_HOSTS = ["web1.example.com", "127.0.0.1"]
ROOT_URLCONF = "shop.urls"
INSTALLED_APPS = ["guests"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": BASE_DIR / "var/db.sqlite3"}}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
"""
URLS = """
from django.db import connection
from django.http import HttpResponse
from django.urls import path


def home(request):
    with connection.cursor() as cursor:
        columns = connection.introspection.get_table_description(cursor, "guests_guest")
    return HttpResponse(" ".join(sorted(column.name for column in columns)) + "\\n")


urlpatterns = [path("", home)]
"""
MANAGE = """
import os, sys
from django.core.management import execute_from_command_line

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
execute_from_command_line(sys.argv)
"""
WSGI = """
from django.core.wsgi import get_wsgi_application

application = get_wsgi_application()
"""
FIRST = """
from django.db import migrations, models


class Migration(migrations.Migration):
    operations = [
        migrations.CreateModel(
            "Guest", [("id", models.BigAutoField(primary_key=True)), ("name", models.TextField())]
        )
    ]
"""
SECOND = """
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("guests", "0001_first")]
    operations = [migrations.AddField("guest", "town", models.TextField(default=""))]
"""


def write(directory: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)


def test_the_tutorial_leads_from_a_bare_host_to_a_window_and_php_fpm_goes_on_from_there(
    fleet: Fleet, tmp_path: Path
) -> None:
    host = fleet["web1"]
    host.run(["userdel", "--remove", "deploy"])
    reader = Walk(fleet, {"web1": host}, tmp_path / "guestbook")

    said = "\n".join(reader.through("tutorial.md"))

    assert "Hello from release" in said
    assert "Good morning from release" in said
    assert "HTTP/1.1 503" in said
    assert "X-Maintenance-Mode: 1" in said
    assert host.get("/").text.startswith("Good evening from release")

    reader.through("howto/php-fpm.md")
    reader.through("howto/ci.md")

    assert host.get("/").text.startswith("Good evening from release")
    assert host.pids("php-fpm8.2")
    assert not host.pids("php-cgi")


def test_django_is_found_deployed_and_migrated_as_its_page_says(fleet: Fleet, tmp_path: Path) -> None:
    host = fleet["web2"]
    project = tmp_path / "shop"
    write(
        project,
        {
            "manage.py": MANAGE,
            "shop/__init__.py": "",
            "shop/settings.py": SETTINGS,
            "shop/urls.py": URLS,
            "shop/wsgi.py": WSGI,
            "guests/__init__.py": "",
            "guests/migrations/__init__.py": "",
            "guests/migrations/0001_first.py": FIRST,
        },
    )
    reader = Walk(fleet, {"web1": host}, project)
    reader.type("git init --quiet")
    before: dict[str, Callable[[], object]] = {
        "the project gets a field and a migration for it": lambda: write(
            project, {"guests/migrations/0002_town.py": SECOND}
        )
    }

    said = "\n".join(reader.through("howto/django.md", before))

    assert "\nid name\n" in said
    assert host.get("/").text == "id name town\n"
    assert set(host.run("ps -o user= -C uwsgi").stdout.split()) == {"www-data"}


@pytest.mark.exhaustive
def test_a_site_of_capistrano_s_moves_over_with_what_it_shares(tmp_path: Path) -> None:
    with Fleet(1) as fleet:
        moves_over(fleet, tmp_path)


def moves_over(fleet: Fleet, tmp_path: Path) -> None:
    host = fleet["web1"]
    theirs = "/var/www/guestbook"
    host.run(f"install -d -o deploy {theirs}/releases/20260101120000 {theirs}/shared/var")
    host.run(f"ln -s releases/20260101120000 {theirs}/current; echo 7 guests >{theirs}/shared/var/guests")
    before = host.run(f"find {theirs} -printf '%p %u %m %l %T@\\n' | sort").stdout
    project = tmp_path / "guestbook"
    write(project, {"public/index.php": "<?php readfile('../var/guests');"})
    reader = Walk(fleet, {"web1": host}, project)
    reader.type("git init --quiet")
    reader.type("python -m deploytools init --application guestbook --host deploy@web1.example.com")
    reader.type("git add . && git commit --quiet -m 'As it was with Capistrano'")

    reader.through("howto/capistrano.md")

    assert host.get("/").text == "7 guests\n"
    assert host.run(f"find {theirs} -printf '%p %u %m %l %T@\\n' | sort").stdout == before
