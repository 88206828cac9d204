"""What `doctor` found on a host, for tests that look for one thing in it."""

from __future__ import annotations

from typing import Any

from tests.support.webhost import Ran, WebHost

Check = dict[str, Any]


def failed(ran: Ran) -> list[Check]:
    """Every check that failed; a program that ended in any other way is no answer."""
    assert ran.code in (0, 3), ran
    assert (ran.code == 3) is any(
        check["level"] == "error" for check in ran.json["checks"] if not check["ok"]
    )
    return [check for check in ran.json["checks"] if not check["ok"]]


def the(ran: Ran, name: str) -> Check:
    """The one check of that name that failed; its remedy is there."""
    (found,) = [check for check in failed(ran) if check["name"] == name]
    assert found["remedy"]
    return found


def only(host: WebHost, name: str, **env: str) -> Check:
    """The one check that fails at all on this host, where the application is not looked at."""
    ran = host.run("doctor", **env)
    (found,) = [check for check in failed(ran) if check["name"] != "site"]
    assert found["name"] == name, found
    assert found["remedy"]
    return found
