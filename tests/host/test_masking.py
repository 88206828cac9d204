"""What a migration prints is shown without the passwords that its release knows."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from hostlib.migrating import masking

from tests.support.barehost import bare_host, put_release
from tests.support.webhost import WebHost


@pytest.fixture
def host() -> Iterator[WebHost]:
    with bare_host() as host:
        yield host


def test_known_passwords_are_left_out_of_the_log_as_it_is_shown_and_of_what_is_told(host: WebHost) -> None:
    place = put_release(
        host,
        "r1",
        app={"env": {"API_TOKEN": "t0ken-of-app"}},
        migrate={
            "adapter": "command",
            "python": "/usr/bin/python3",
            "cwd": "{release}",
            "env": {"DATABASE_URL": "postgres://ann:p%40ss-of-url@db/x"},
            "status": "sh status",
            "apply": "sh apply",
        },
    )
    (place / ".deploytools.staged.json").write_text('{"shared": [".env", "var"]}')
    (host.root / "shared" / ".env").write_text("export DB_PASSWORD='s3cret of env'\nCOLOUR=blue\n# KEY\n")
    (place / "status").write_text("echo '[ ] 1'\n")
    (place / "apply").write_text(
        "echo using t0ken-of-app on blue\nprintf 'with s3cr'; sleep 0.1; echo 'et of env'\n"
        "echo as p@ss-of-url or p%40ss-of-url\necho mysql://bob:unknown@db\nexit 1\n"
    )

    ran = host.run("migrate", "run", "run1", "--release=r1", "--target=1")

    shown = [
        "using *** on blue",
        "with ***",
        "as *** or ***",
        "mysql://bob:***@db",
    ]
    assert ran.code == 3
    assert ran.err.splitlines()[:4] == shown, "and what the adapter says of it"
    assert ran.json["details"][:4] == shown
    assert "p@ss-of-url" in (host.root / "migrations" / "run1" / "log").read_text(), "which is root's alone"


def test_what_a_command_says_as_it_fails_is_told_without_them_too(host: WebHost) -> None:
    put_release(
        host,
        "r1",
        migrate={
            "adapter": "command",
            "python": "/usr/bin/python3",
            "cwd": "{release}",
            "env": {"SECRET_KEY": "k3y-of-app"},
            "status": "sh -c 'echo $SECRET_KEY is wrong; exit 1'",
            "apply": "true",
        },
    )
    ran = host.run("migrate", "check", "--release=r1")
    assert ran.json["message"].endswith("*** is wrong")
    assert "k3y-of-app" not in json.dumps(ran.json)


def test_what_is_as_short_as_any_word_is_not_looked_for() -> None:
    assert masking.without(iter(["a", "yes"]))("yes, a word") == "yes, a word"
