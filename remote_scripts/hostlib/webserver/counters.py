"""lighttpd's own counters of an application, which it tells at status.statistics-url.

They are found by the label of the host in fastcgi.server, which is the application's name. Each worker
counts for itself.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from hostlib.program import Config, Failure
from hostlib.switch import maintstate
from hostlib.webserver import web


class Counters(NamedTuple):
    """What one worker has counted: requests in hand for the application, and connections made to it.

    The connections are those by all the labels that were asked for.
    """

    load: int
    connected: int


def read(config: Config, *, timeout: float, labels: Collection[str] = ()) -> dict[int | None, Counters]:
    """The counters of every worker, asked through the maintenance bypass. Raises Failure.

    `labels` are further ones that lead to the application.
    """
    counted: dict[int | None, Counters] = {}

    def noted(answer: web.Answer) -> bool:
        if maintstate.is_marked(answer):
            return False  # a worker that does not know the bypass yet
        counted[answer.worker] = _counters(config, answer, {config.application, *labels})
        return True

    bypass = maintstate.bypass_headers(config)
    web.prove(config, noted, path=config.statistics_path, headers=bypass, timeout=timeout)
    return counted


def _counters(config: Config, answer: web.Answer, labels: Collection[str]) -> Counters:
    prefix = f"gw.backend.{config.application}."
    rows = (row.partition(": ") for row in answer.body.decode(errors="replace").splitlines())
    told = {key: value for key, _, value in rows}
    begin = tuple(f"gw.backend.{label}." for label in labels)
    try:
        connected = sum(
            int(value) for key, value in told.items() if key.startswith(begin) and key.endswith(".connected")
        )
        return Counters(int(told[f"{prefix}load"]), connected)
    except (KeyError, ValueError) as error:
        raise Failure(
            f"lighttpd does not tell {prefix}load at {config.statistics_path} (it answered {answer.status})",
            state="the site is in maintenance; how many requests are being worked on is not known",
            next=f'load mod_status, set status.statistics-url = "{config.statistics_path}", and label the'
            f' host in fastcgi.server "{config.application}"; then restart lighttpd',
        ) from error
