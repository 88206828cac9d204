from __future__ import annotations

import datetime

import pytest

from deploytools.settings import Host
from deploytools.settings.keys import Key, dotted
from tests.support.deploy_section import MINIMAL, SCALARS, around, problems, read, with_

HUGE = 1 << 20000  # more digits than Python would print
BAD_HOSTS = (
    "", "-oProxyCommand=id", "web 1", "web1;id", "web1\n", "$(id)", "web1:", "[::1", "[web1]2", "a::b::c",
    "user@", "-l@web1", "a b@web1", "@web1", "web\x1b[0m", "[::1]:22]", "web1:0", "web1:65536", "web1:+22",
)  # fmt: skip
BAD_PATHS = (
    "", "/", "srv", "/a/../b", "/a/", "//a", "/a//b", "/./a", "/a\nb", "/a\0", "/a;b", "/a$b", '/a"b', "/a'b",
    "/a`b", "/a*", "/a\\b", "/a ", "~/a", "{release}",
)  # fmt: skip
SQL = {
    "adapter": "command", "engine": "postgresql", "status": "x", "apply": "x", "files": "db/migrations",
}  # fmt: skip
BAD_NUMBERS_OF_SECONDS = (
    0, -1, "0", "-5s", "5 m", "5x", "", "m", "s", "1e3", "inf", float("inf"), 86401, "25h", True, HUGE,
)  # fmt: skip
REFUSED: dict[str, tuple[object, ...]] = {
    "application": ("", "Guestbook", "1a", "a_b", "a" * 32, "a/b", "-a", "a\n", "ä"),
    "root": BAD_PATHS,
    "tools_dir": BAD_PATHS,
    "webserver.maintenance_dir": BAD_PATHS,
    "webserver.config": BAD_PATHS,
    "webserver.statistics_path": ("", "x", "/a b", '/"', "/\n", "/a?b"),
    "webserver.liveness": (["x"], [""], ["/a?b"], ['/"'], ["/\n"], ["/]]"], [None], "/"),
    "webserver.url": (
        "", "x", "ftp://x/", "file:///etc", "http://", "http://u:p@x/", "http://x/?a", "http://x/#a",
        "http://x y/", "http://x:99999/", "http://x/\n", "javascript:x",
    ),
    "webserver.host_header": ("", "a b", "a\r\nX: y", "-a", "a/b", 'a"'),
    "webserver.aliases": ([""], ["a b"], ["a\nb"], [".*"], "example.com", [None]),
    "webserver.unproved": ([""], ["8443"], ["a:1"], ["::1:80"], ["127.0.0.1:80\n"], "0.0.0.0:80"),
    "webserver.document_root": ("/etc", "../x", "a/../b", "-a", "a b", "", "a/"),
    "shared": (
        [""], ["."], [".."], ["/etc"], ["../x"], ["a/../b"], ["a/"], ["-x"], ["a\nb"], ["a;b"], ["a//b"], [5],
        ["var", "var/log"], ["var", "var"], "var",
    ),
    "health.path": ("", "x", "/a b", "/a\n", '/a"', "/a\\", "/ä", "http://x/"),
    "health.smoke": (["x"], ["/a b"], ["/\n"], [None], "/"),
    "health.status": (99, 503, "200", 200.0, HUGE),
    "source.ref": ("", "-x", "--upload-pack=x", "a b", "a\n", "a:b", "a*"),
    "source.path": ("", "a\nb", "a\0", None, 5, b"x"),
    "source.exclude": ([""], ["a\nb"], [None]),
    "source.build": ("", " \n", "a\0", ["make"]),
    "app": (None, [], "php-cgi"),
    "app.command": ("", " ", "a 'b", "a\nb", None),
    "app.env": ({"": "x"}, {"1A": "x"}, {"A B": "x"}, {"A": "x\ny"}, {"A": "x\0"}, {"A": 5}, {"A=B": ""}, []),
    "app.user": ("", "-x", "a b", "a;b", "1a", "root"),
    "app.start_timeout": BAD_NUMBERS_OF_SECONDS,
    "app.soak_time": (-1, "x", None),
    "window.expected": BAD_NUMBERS_OF_SECONDS,
    "keep_releases": (0, -1, 1.5, "5", True, None, 1001, HUGE),
    "privileged": ("yes", 1, None),
    "fleet.parallel": (0, "many"),
    "fleet.connect_timeout": (0, None),
    "hooks.notify": ("", "  ", "a\0", ["a"]),
    "hosts": ("web1", {"web1": None}, None, [["web1"]], [None], [5]),
    "ssh_config": ("", "a\nb", 5),
    "migrate": (
        *({"adapter": "alembic", "cwd": bad} for bad in ("", "x", "{release}x", "{release}/..", "/a/")),
        *({"adapter": "alembic", "python": bad} for bad in ("", "python3", "/a/{release}", "{x}", "/a;b")),
        *({"adapter": "alembic", "lock_timeout": bad} for bad in BAD_NUMBERS_OF_SECONDS),
        *({**SQL, "squawk": True, **bad} for bad in ({"files": None}, {"engine": "mysql"})),
        {"adapter": "alembic", "files": "db"}, {**SQL, "files": "/db"}, {**SQL, "files": "../db"},
        {"adapter": "flyway"}, {"adapter": False}, "alembic",
    ),
}  # fmt: skip
TAKEN: dict[str, tuple[object, ...]] = {
    "root": (
        "/home/ann/My Projects/.sandbox/srv",
        "/srv/päge",
    ),  # a project may lie anywhere; see `privileged`
    "shared": ([".env", "var/log", "var-old"],),
    "source.ref": ("v1.0^{commit}", "feature/x@{1}", "HEAD~2"),
    "source.build": ("npm ci && npm run build", "set -e\nmake\n"),
    "webserver.url": ("https://[::1]:8443/app/", "http://localhost"),
    "health.path": ("/health?full=1&x=%20",),
    "health.smoke": (["/", "/login?next=%2F"],),
    "app.command": ("python3 -m app --name='a b'",),
    "app.env": ({"http_proxy": "", "HTTP_PROXY": "http://proxy:3128", "A": "ü ="},),
    "hooks.backup": ("pg_dump guestbook |\n  gzip > /var/backups/guestbook.gz",),
    "migrate": (
        {"adapter": "alembic", "python": "{release}/.venv/bin/python", "cwd": "{release}/db"},
        {**SQL, "squawk": True},
    ),
}


def cases(table: dict[str, tuple[object, ...]]) -> list[object]:
    return [
        pytest.param(path, value, id=f"{path}-{number}")
        for path, values in table.items()
        for number, value in enumerate(values)
    ]


def test_everything_that_is_wrong_is_reported_at_once() -> None:
    raw = {
        "application": "Guest Book",
        "hosts": ["-x", {"host": "web2", "prot": 22}],
        "keep_release": 3,
        "app": {"command": "a 'b", "env": {"A-B": "1"}},
        "migrate": {"adapter": "alembic", "apply": "x", "engine": "oracle"},
        "window": {"expected": "soon"},
    }

    lines = problems(raw, environ={"FABRIC_DEPLOY_KEEP_RELEASES": "many", "FABRIC_DEPLOY_X": ""})

    assert sorted(line.partition(":")[0] for line in lines) == [
        "FABRIC_DEPLOY_KEEP_RELEASES",
        "FABRIC_DEPLOY_X",
        "deploy.app.command",
        "deploy.app.env.A-B",
        "deploy.application",
        "deploy.hosts[0].host",
        "deploy.hosts[1].prot",
        "deploy.keep_release",
        "deploy.migrate.apply",
        "deploy.migrate.engine",
        "deploy.window.expected",
    ]


class TestKeys:
    def test_one_that_is_needed_is_missing(self) -> None:
        assert problems({}) == [
            "deploy.application: is missing",
            "deploy.hosts: is missing",
            "deploy.app: is missing",
        ]

    @pytest.mark.parametrize(
        ("path", "line"),
        [
            ("keep_release", "deploy.keep_release: is not a known key; did you mean keep_releases?"),
            ("app.comand", "deploy.app.comand: is not a known key; did you mean command?"),
            ("start_timeout", "deploy.start_timeout: is not a known key; did you mean app.start_timeout?"),
            ("webserver.zzz", "deploy.webserver.zzz: is not a known key"),
        ],
    )
    def test_an_unknown_one_is_refused_with_what_was_meant(self, path: str, line: str) -> None:
        assert problems(with_(path, "x")) == [line]

    @pytest.mark.parametrize("key", [5, True, None, datetime.date(2024, 1, 1)])
    def test_it_is_text(self, key: object) -> None:
        assert problems({**MINIMAL, key: 1})[0].endswith("is a key that is not text; put it in quotes")
        assert "should be the name of" in problems(with_("app", {"command": "x", "env": {key: "x"}}))[0]


class TestValues:
    @pytest.mark.parametrize(("path", "value"), cases(REFUSED))
    def test_what_is_unsafe_or_senseless_is_refused(self, path: str, value: object) -> None:
        lines = problems(with_(path, value))

        assert all(line.startswith(f"deploy.{path}") for line in lines)

    @pytest.mark.parametrize(("path", "value"), cases(TAKEN))
    def test_what_is_sensible_is_taken(self, path: str, value: object) -> None:
        read({**with_(path, value), "privileged": False})

    @pytest.mark.parametrize("key", SCALARS, ids=lambda key: dotted(key.path))
    @pytest.mark.parametrize(
        "wrong",
        [[], {}, b"x", {"x"}, object(), float("nan"), pytest.param(HUGE, id="huge"), "\ud800", "a\0b"],
    )
    def test_no_scalar_takes_what_fits_no_scalar(self, key: Key, wrong: object) -> None:
        assert refused(key, wrong)

    @pytest.mark.parametrize("key", SCALARS, ids=lambda key: dotted(key.path))
    def test_nothing_is_converted_silently(self, key: Key) -> None:
        assert refused(key, {int: "5", bool: "true"}.get(key.kind, True))

    @pytest.mark.parametrize("value", [1.10, 5, True, datetime.date(2024, 1, 1)])
    def test_text_that_yaml_takes_for_something_else_belongs_in_quotes(self, value: object) -> None:
        (line,) = problems(with_("source.ref", value))

        assert line.startswith("deploy.source.ref: should be a branch, tag or commit of git, is ")
        assert line.endswith("; put it in quotes")

    @pytest.mark.parametrize("path", ["root", "tools_dir", "webserver.maintenance_dir"])
    def test_what_stands_in_sudoers_has_no_space(self, path: str) -> None:
        assert problems(with_(path, "/a b")) == [
            f"deploy.{path}: should have no space in it where `privileged` is true"
        ]

    def test_systemd_takes_root(self) -> None:
        raw = {**with_("app.manager", "systemd"), "privileged": False}
        assert problems(raw) == ["deploy.app.manager: can't be systemd where `privileged` is false"]

    @pytest.mark.parametrize(
        ("path", "value"),
        [
            ("app.env", {"TOKEN": "geheim\n"}),
            ("app.env", {"TOKEN": 4711}),
            ("app.command", "geheim '4711"),
            ("hooks.notify", "geheim 4711\0"),
            ("hooks.notify", ["geheim 4711"]),
            ("hooks.notify", 4711),
        ],
    )
    def test_what_may_be_secret_is_not_repeated(self, path: str, value: object) -> None:
        text = "\n".join(problems(with_(path, value)))

        assert path in text
        assert "geheim" not in text
        assert "4711" not in text

    def test_a_long_one_is_cut_in_the_message(self) -> None:
        (line,) = problems(with_("application", "x" * 100_000))
        assert len(line) < 300


class TestHosts:
    @pytest.mark.parametrize(
        ("written", "host"),
        [
            ("web1", Host("web1")),
            ("deploy@web1", Host("web1", user="deploy")),
            ("web1:2222", Host("web1", port=2222)),
            ("deploy@10.0.0.1:22", Host("10.0.0.1", user="deploy", port=22)),
            ("::1", Host("::1")),
            ("ann@[fe80::1]:2222", Host("fe80::1", user="ann", port=2222)),
            ({"host": "::1", "port": 22}, Host("::1", port=22)),
            ({"host": "web1", "user": None}, Host("web1")),
        ],
    )
    def test_one_is_an_address_or_a_mapping(self, written: object, host: Host) -> None:
        assert read({**MINIMAL, "hosts": [written]}).hosts == (host,)

    @pytest.mark.parametrize("written", BAD_HOSTS)
    def test_what_ssh_or_a_shell_could_misread_is_refused(self, written: str) -> None:
        lines = problems({**MINIMAL, "hosts": [written]})

        assert lines
        assert all(line.startswith("deploy.hosts[0].") for line in lines)

    def test_the_place_in_the_list_is_named(self) -> None:
        assert problems({**MINIMAL, "hosts": ["web1", {"host": "web2", "port": "abc"}]}) == [
            "deploy.hosts[1].port: should be an integer from 1 to 65535, is 'abc'"
        ]

    def test_each_is_named_once(self) -> None:
        (line,) = problems({**MINIMAL, "hosts": ["web1", "ann@WEB1:2222"]})
        assert line.startswith("deploy.hosts: should name each host once, but has web1 more than once")

    def test_there_is_at_least_one(self) -> None:
        assert problems({**MINIMAL, "hosts": []}) == ["deploy.hosts: should name at least one host"]

    def test_its_name_is_what_messages_call_it(self) -> None:
        assert str(Host("web1", user="deploy", port=22)) == "web1"
        assert Host("web1", user="deploy", port=22).address == "deploy@web1:22"
        assert Host("::1", port=22).address == "[::1]:22"


def refused(key: Key, value: object) -> bool:
    """Whether `value` at `key` is refused, in a line about this key."""
    lines = problems(around(key, value))
    return any(line.startswith(f"deploy.{dotted(key.path)}: should") for line in lines)
