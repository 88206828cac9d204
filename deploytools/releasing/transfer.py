"""A release on its way to one host: the laptop's half of `release stage`, over the connection that is open.

The host says what it lacks, and only that is sent. `hostlib/releasing/staging.py` is the other half.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from deploytools.releasing.packing import END, Parcel
from deploytools.ssh.channel import Talk

# Bytes sent so far, and of how many.
Told = Callable[[int, int], None]


def send(talk: Talk, parcel: Parcel | None, told: Told) -> None:
    """Tell a host what the release consists of, and give it what it lacks, until it has its answer ready.

    Without a parcel only what the host has already can be staged. Raises what `talk` raises.
    """
    if parcel is None:
        talk.send(END)
        return
    for part in parcel.outline():
        talk.send(part)
    while True:
        try:
            asked = json.loads(talk.read_line())
        except ValueError:
            return
        if "blocks" in asked:
            for part in parcel.listing(asked["blocks"]):
                talk.send(part)
        elif "contents" in asked:
            begun = {int(number): start for number, start in asked.get("from", {}).items()}
            frames = parcel.stream(asked["contents"], begun)
            for part, sent in frames:
                talk.send(part)
                told(sent, frames.size)
        else:
            return
