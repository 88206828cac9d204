from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from deploytools.detection import Found
from deploytools.errors import SettingsError, UsageError
from deploytools.scaffold import public_url, write_project

BLOG = Found("blog", "/usr/bin/php-cgi")


def test_existing_files_are_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "fabric.yaml").write_text("mine")

    with pytest.raises(UsageError, match="already"):
        write_project(tmp_path, BLOG, [])
    assert (tmp_path / "fabric.yaml").read_text() == "mine"
    assert not (tmp_path / "fabfile.py").exists()


def test_where_one_of_them_can_not_be_written_neither_is(tmp_path: Path) -> None:
    (tmp_path / "fabfile.py").symlink_to("gone/fabfile.py")

    with pytest.raises(UsageError, match=r"fabfile\.py can't be written: File exists") as caught:
        write_project(tmp_path, BLOG, [])
    assert [path.name for path in tmp_path.iterdir()] == ["fabfile.py"]
    assert caught.value.where == str(tmp_path)


@pytest.mark.parametrize(
    ("application", "hosts"), [("Blog", []), ("blog", ["-oProxyCommand=x"]), ("a\nb", [])]
)
def test_a_name_that_can_not_be_used_writes_nothing(
    tmp_path: Path, application: str, hosts: list[str]
) -> None:
    with pytest.raises(SettingsError):
        write_project(tmp_path, replace(BLOG, application=application), hosts)
    assert list(tmp_path.iterdir()) == []


def test_hosts_are_written_so_that_yaml_reads_them_back(tmp_path: Path) -> None:
    write_project(tmp_path, BLOG, ["deploy@web1:2222", "[::1]:22"])

    text = (tmp_path / "fabric.yaml").read_text()
    assert '    - "deploy@web1:2222"' in text
    assert '    - "[::1]:22"' in text
    assert 'public_url: "http://web1/"' in text


@pytest.mark.parametrize(
    ("host", "url"),
    [("deploy@web1:2222", "http://web1/"), ("[::1]:22", "http://[::1]/"), ("10.0.0.5", "http://10.0.0.5/")],
)
def test_the_first_host_is_where_visitors_are_looked_for(host: str, url: str) -> None:
    assert public_url(host) == url
