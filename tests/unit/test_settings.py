from __future__ import annotations

from dataclasses import MISSING, asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploytools import sandbox
from deploytools.errors import DeployError, SettingsError, UsageError
from deploytools.sandbox.layout import Layout, save
from deploytools.settings import Host, environments
from deploytools.settings.keys import Key, dotted, keys
from deploytools.settings.overrides import variable
from tests.support.deploy_section import MINIMAL, SCALARS, another, around, example, problems, read, with_

# What a YAML document can have in it.
leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.dates()
    | st.datetimes()
    | st.binary()
)
names = (
    st.sampled_from(sorted({key.path[-1] for key in keys().values()} | {"environments", "host"})) | st.text()
)
anything = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(names | st.integers() | st.none(), inner, max_size=6)
    ),
    max_leaves=15,
)


class TestDefaults:
    def test_three_keys_are_enough(self) -> None:
        settings = read(MINIMAL)

        assert settings.root == "/srv/guestbook"
        assert settings.tools_dir == "/usr/local/lib/deploytools/guestbook"
        assert settings.hosts == (Host("web1"), Host("web2"))
        assert settings.migrate is None
        assert settings.app.drain_timeout == 30
        assert settings.window.expected == 300

    def test_the_example_of_the_contract_is_taken_whole(self) -> None:
        settings = read(example())

        assert settings.hosts == (
            Host("web1.example.com"),
            Host("web2.example.com", user="deploy", port=2222),
        )
        assert settings.shared == (".env", "var")
        assert settings.migrate is not None
        assert settings.migrate.lock_timeout == "5s"
        assert settings.lock_host == Host("web1.example.com")

    def test_a_section_that_is_left_empty_has_its_defaults(self) -> None:
        empty = dict.fromkeys(
            ("source", "health", "webserver", "hooks", "window", "fleet", "shared", "migrate")
        )

        assert read({**MINIMAL, **empty}) == read(MINIMAL)

    def test_the_adapter_null_means_no_database(self) -> None:
        assert read(with_("migrate", {"adapter": None, "host": "web2"})).migrate is None

    def test_each_of_several_sites_of_a_host_has_a_switch_of_its_own(self) -> None:
        named = {**MINIMAL, "webserver": {"host_header": "www.example.com"}}
        chosen = {**MINIMAL, "webserver": {"host_header": "www.example.com", "maintenance_dir": "/etc/maint"}}

        assert read(MINIMAL).webserver.maintenance_dir == "/etc/lighttpd"
        assert read(named).webserver.maintenance_dir == "/etc/lighttpd/guestbook"
        assert read(chosen).webserver.maintenance_dir == "/etc/maint"

    def test_settings_can_not_be_changed(self) -> None:
        with pytest.raises(AttributeError):
            read(MINIMAL).keep_releases = 1  # type: ignore[misc]

    def test_durations_are_read_in_the_units_people_write(self) -> None:
        app = {"start_timeout": "1h30m", "drain_timeout": 2.5, "soak_time": "2m"}
        settings = read(with_("app", {**MINIMAL["app"], **app}))  # type: ignore[dict-item]

        assert (settings.app.start_timeout, settings.app.drain_timeout, settings.app.soak_time) == (
            5400,
            2.5,
            120,
        )

    @pytest.mark.parametrize(
        ("written", "told"), [("2m", "120s"), (3, "3s"), ("1.5s", "1500ms"), ("250ms", "250ms")]
    )
    def test_the_lock_timeout_is_told_as_postgresql_spells_it(self, written: object, told: str) -> None:
        migrate = read(with_("migrate", {"adapter": "alembic", "lock_timeout": written})).migrate

        assert migrate is not None
        assert migrate.lock_timeout == told

    def test_paths_on_this_computer_are_relative_to_the_project(self) -> None:
        assert read(MINIMAL).source.path == Path("/home/ann/guestbook")
        assert read(with_("source.path", "../other")).source.path == Path("/home/ann/other")
        assert read(with_("source.path", "/src")).source.path == Path("/src")
        assert read(with_("ssh_config", "~/x"), environ={"HOME": "/home/ann"}).ssh_config == Path(
            "/home/ann/x"
        )


class TestLimitingHosts:
    def test_a_subset_comes_in_the_order_of_the_file(self) -> None:
        settings = read(example(), only_hosts=["web2.example.com", "web1.example.com"])

        assert [str(host) for host in settings.hosts] == ["web1.example.com", "web2.example.com"]

    @pytest.mark.parametrize("name", ["web2.example.com", "WEB2.example.com", "deploy@web2.example.com:2222"])
    def test_a_host_answers_to_its_name_and_to_its_address(self, name: str) -> None:
        assert read(example(), only_hosts=[name]).hosts == (
            Host("web2.example.com", user="deploy", port=2222),
        )

    def test_the_lock_host_stays_the_same(self) -> None:
        settings = read(example(), only_hosts=["web2.example.com"])

        assert settings.lock_host == Host("web1.example.com")
        assert len(settings.all_hosts) == 2

    @pytest.mark.parametrize(
        "name", ["web9.example.com", "root@web2.example.com", "web2.example.com:22", "", "-H"]
    )
    def test_an_unknown_one_is_refused_and_the_known_ones_are_named(self, name: str) -> None:
        with pytest.raises(UsageError, match="-H names no host") as caught:
            read(example(), only_hosts=["web1.example.com", name])

        assert caught.value.details == ("web1.example.com", "deploy@web2.example.com:2222")

    def test_no_host_at_all_is_refused(self) -> None:
        with pytest.raises(UsageError, match="names no host"):
            read(example(), only_hosts=[])


class TestMigrate:
    def test_the_host_is_one_of_the_hosts(self) -> None:
        assert problems(with_("migrate", {"adapter": "alembic", "host": "web3"})) == [
            "deploy.migrate.host: should be one of deploy.hosts, is 'web3'; did you mean web2?"
        ]

    def test_locks_and_migrations_are_on_its_host(self) -> None:
        assert read(with_("migrate", {"adapter": "alembic", "host": "web2"})).lock_host == Host("web2")
        assert read(with_("migrate", {"adapter": "alembic"})).lock_host == Host("web1")

    @pytest.mark.parametrize("adapter", ["alembic", "django", None])
    def test_commands_belong_to_the_adapter_command(self, adapter: str | None) -> None:
        (line,) = problems(with_("migrate", {"adapter": adapter, "rollback": "undo"}))
        assert line.startswith("deploy.migrate.rollback: belongs to the adapter command")

    def test_the_adapter_command_needs_its_commands(self) -> None:
        assert problems(with_("migrate", {"adapter": "command"})) == [
            "deploy.migrate: should have `status` or `pending`, as the adapter is command",
            "deploy.migrate.apply: is missing, as the adapter is command",
        ]

    def test_the_adapter_command_takes_exit_codes(self) -> None:
        pending = {"cmd": "dbmate status --exit-code", "none": 0, "some": 1}
        commands = {"pending": pending, "current": "dbmate version", "apply": "dbmate up"}
        migrate = read(with_("migrate", {"adapter": "command", **commands})).migrate

        assert migrate is not None
        assert migrate.pending is not None
        assert asdict(migrate.pending) == pending

    def test_either_status_or_pending(self) -> None:
        both = {"adapter": "command", "status": "x", "pending": {"cmd": "x"}, "current": "x", "apply": "x"}
        assert problems(with_("migrate", both)) == [
            "deploy.migrate: should have either `status` or `pending`, not both"
        ]

    def test_no_tool_rolls_ddl_back_on_mysql(self) -> None:
        said = {"adapter": "command", "status": "x", "apply": "x", "engine": "mariadb", "transactional": True}
        (line,) = problems(with_("migrate", said))
        assert line.startswith("deploy.migrate.transactional: can't be true")


class TestEnvironments:
    def test_mappings_are_merged_and_lists_replaced(self) -> None:
        raw = example()
        raw["app"]["env"] = {"LANG": "C"}
        settings = read(raw, environment="staging")

        assert settings.hosts == (Host("stage.example.com"),)
        assert settings.app.env == {"LANG": "C", "DEBUG": "1"}
        assert settings.app.command == "/usr/bin/php-cgi"
        assert settings.environment == "staging"

    def test_the_file_itself_is_not_changed(self) -> None:
        raw = example()
        read(raw, environment="staging", environ={"FABRIC_DEPLOY_APP_USER": "ann"})
        assert raw == example()

    def test_an_unknown_one_is_refused_and_the_known_ones_are_named(self) -> None:
        with pytest.raises(SettingsError, match=r"no environment 'stagin'; did you mean staging\?") as caught:
            read(example(), environment="stagin")
        assert caught.value.details == ("known environments: staging, sandbox",)

    def test_problems_are_named_where_they_were_written(self) -> None:
        raw = example()
        raw["environments"]["staging"]["hosts"] = ["a b"]
        raw["environments"]["staging"]["environments"] = {}
        raw["keep_releases"] = 0

        assert [line.partition(": ")[0] for line in problems(raw, environment="staging")] == [
            "deploy.environments.staging.hosts[0].host",
            "deploy.keep_releases",
            "deploy.environments.staging.environments",
        ]

    def test_one_that_is_not_chosen_may_be_incomplete(self) -> None:
        raw = {**MINIMAL, "environments": {"staging": {"hosts": []}, "later": None}}

        assert read(raw) == read(MINIMAL)
        assert read(raw, environment="later").environment == "later"

    def test_where_hosts_are_only_in_environments_one_has_to_be_chosen(self) -> None:
        raw = {
            "application": "a",
            "app": {"command": "x"},
            "environments": {"production": {"hosts": ["web1"]}},
        }

        with pytest.raises(SettingsError) as caught:
            read(raw)
        assert caught.value.next is not None
        assert "fab on production" in caught.value.next

    @pytest.mark.parametrize(
        "named", [5, "x", ["staging"], {"staging": 5}, {"staging": "x"}, {"staging": ["x"]}]
    )
    def test_they_are_mappings(self, named: object) -> None:
        chosen = "staging" if isinstance(named, dict) else None
        (line,) = problems({**MINIMAL, "environments": named}, environment=chosen)

        assert line.startswith("deploy.environments")
        assert "should be a mapping" in line

    def test_their_names_can_be_listed(self) -> None:
        assert environments(example()) == ("staging", "sandbox")
        assert environments(None) == ("sandbox",)
        assert environments({"environments": {True: {}, "sandbox": {}}}) == ("sandbox",)


class TestSandbox:
    @pytest.fixture
    def project(self, tmp_path: Path) -> Path:
        (tmp_path / ".sandbox").mkdir()
        save(Layout((tmp_path / ".sandbox").resolve(), http_port=18080, ssh_port=12222))
        return tmp_path

    def test_it_is_built_in(self, project: Path) -> None:
        settings = read(None, environment="sandbox", root=project)

        assert [str(host) for host in settings.hosts] == sandbox.environment(project)["hosts"]
        assert settings.webserver.url == "http://127.0.0.1:18080/"
        assert settings.privileged is False

    def test_the_projects_own_hosts_have_no_part_in_it(self, project: Path) -> None:
        settings = read({**example(), "nonsense": 1}, environment="sandbox", root=project)

        assert settings == read(None, environment="sandbox", root=project)

    def test_it_can_be_adapted(self, project: Path) -> None:
        raw = {**example(), "environments": {"sandbox": {"keep_releases": 2, "app": {"soak_time": "10s"}}}}
        settings = read(raw, environment="sandbox", root=project)

        assert (settings.keep_releases, settings.app.soak_time) == (2, 10)
        assert settings.app.manager == "direct"

    def test_without_one_it_says_how_to_make_it(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError):
            read(None, environment="sandbox", root=tmp_path)


class TestOverrides:
    @pytest.mark.parametrize("key", SCALARS, ids=lambda key: dotted(key.path))
    def test_every_scalar_can_be_overridden(self, key: Key) -> None:
        value = another(key)

        assert read(around(key, MISSING), environ={variable(key.path): str(value)}) == read(
            around(key, value)
        )

    @pytest.mark.parametrize("text", ["true", "True", "1", "yes", "on"])
    def test_a_flag_is_read_as_people_write_it(self, text: str) -> None:
        raw = with_("privileged", False)

        assert read(raw, environ={"FABRIC_DEPLOY_PRIVILEGED": text}).privileged is True

    @pytest.mark.parametrize("text", ["false", "0", "no", "OFF"])
    def test_the_word_false_is_false(self, text: str) -> None:
        assert read(MINIMAL, environ={"FABRIC_DEPLOY_PRIVILEGED": text}).privileged is False

    def test_nothing_means_null_where_null_is_possible(self) -> None:
        raw = with_("source.build", "make")

        assert read(raw, environ={"FABRIC_DEPLOY_SOURCE_BUILD": ""}).source.build is None

    def test_they_win_over_the_environment(self) -> None:
        raw = {**MINIMAL, "environments": {"staging": {"keep_releases": 2}}}

        assert (
            read(raw, environment="staging", environ={"FABRIC_DEPLOY_KEEP_RELEASES": "9"}).keep_releases == 9
        )

    def test_a_section_that_is_not_in_the_file_is_made(self) -> None:
        settings = read({**MINIMAL, "migrate": None}, environ={"FABRIC_DEPLOY_MIGRATE_ADAPTER": "alembic"})

        assert settings.migrate is not None

    @pytest.mark.parametrize(
        ("name", "text", "line"),
        [
            ("KEEP_RELEASES", "abc", "should be an integer from 1 to 1000, is 'abc'"),
            ("KEEP_RELEASES", "", "should be an integer from 1 to 1000, is ''"),
            ("KEEP_RELEASES", "1_0", "should be an integer from 1 to 1000, is '1_0'"),
            ("KEEP_RELEASES", "9" * 5000, "should be an integer from 1 to 1000, is '999"),
            ("PRIVILEGED", "maybe", "should be true or false, is 'maybe'"),
            (
                "APP_STRAT_TIMEOUT",
                "1",
                "overrides no key of fabric.yaml; did you mean FABRIC_DEPLOY_APP_START_TIMEOUT?",
            ),
            ("HOSTS", "web1", "deploy.hosts is a list, which no variable can override"),
            ("APP_ENV_DEBUG", "1", "deploy.app.env is a mapping, which no variable can override"),
            (
                "ENVIRONMENTS_STAGING_ROOT",
                "/x",
                "deploy.environments is a mapping, which no variable can override",
            ),
            ("APP", "x", "deploy.app is a section; override its keys one by one"),
            ("", "x", "overrides no key of fabric.yaml"),
        ],
    )
    def test_a_bad_one_is_an_error_that_names_the_variable(self, name: str, text: str, line: str) -> None:
        (found,) = problems(MINIMAL, environ={f"FABRIC_DEPLOY_{name}": text})
        assert found.startswith(f"FABRIC_DEPLOY_{name}: {line}")

    def test_no_two_keys_share_a_variable(self) -> None:
        names = [variable(path) for path in keys()]
        assert len(names) == len(set(names))

    def test_other_variables_are_none_of_our_business(self) -> None:
        assert read(MINIMAL, environ={"FABRIC_RUN_ECHO": "1", "FABRIC_DEPLOYTOOLS": "x"}) == read(MINIMAL)


class TestAnyInput:
    @given(raw=anything)
    def test_any_document_is_taken_or_refused_with_a_message(self, raw: object) -> None:
        check_that_it_is_taken_or_refused(raw)

    @given(data=st.data(), key=st.sampled_from(list(keys().values())), value=anything)
    def test_any_value_anywhere_is_taken_or_refused_with_a_message(
        self, data: Any, key: Key, value: object
    ) -> None:
        within = data.draw(st.sampled_from([None, "staging"]))
        raw = around(key, value)
        if within:
            raw = {**MINIMAL, "environments": {within: around(key, value)}}
        check_that_it_is_taken_or_refused(raw, within)

    @given(name=st.sampled_from([variable(path) for path in keys()]), text=st.text())
    def test_any_variable_is_taken_or_refused_with_a_message(self, name: str, text: str) -> None:
        check_that_it_is_taken_or_refused(MINIMAL, environ={name: text})

    @given(name=st.text())
    def test_any_name_of_a_host_is_taken_or_refused_with_a_message(self, name: str) -> None:
        check_that_it_is_taken_or_refused({**MINIMAL, "hosts": [name]})
        check_that_it_is_taken_or_refused(MINIMAL, only_hosts=[name])

    def test_a_list_may_contain_itself(self) -> None:
        endless: list[Any] = []
        endless.append(endless)

        for key in ("hosts", "app", "shared", "application"):
            assert problems({**MINIMAL, key: endless})


def check_that_it_is_taken_or_refused(raw: object, environment: str | None = None, **about: Any) -> None:
    """Any exception but ours would be a traceback; and a message has lines that a terminal can show."""
    try:
        read(raw, environment=environment, **about)
    except DeployError as error:
        refusal = error
    else:
        return
    assert refusal.exit_code == 2
    assert refusal.details
    assert all(line.isprintable() for line in refusal.details)
