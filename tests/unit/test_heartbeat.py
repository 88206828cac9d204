"""Signs of life: again and again while an operation is at work, at once when asked to."""

from __future__ import annotations

import threading

from deploytools.heartbeat import Heartbeat


def test_it_beats_again_and_again_until_the_work_is_done() -> None:
    beats, enough = [], threading.Event()

    def beat() -> None:
        beats.append(1)
        if len(beats) == 3:
            enough.set()

    with Heartbeat(beat, every=0.001):
        assert enough.wait(30)


def test_it_beats_at_once_when_asked_to() -> None:
    beaten = threading.Event()

    with Heartbeat(beaten.set, every=3600) as heart:
        heart.soon()
        assert beaten.wait(30)


def test_a_beat_that_hangs_holds_nobody_up() -> None:
    at_it, never = threading.Event(), threading.Event()

    def hang() -> None:
        at_it.set()
        never.wait()

    with Heartbeat(hang, every=0):
        assert at_it.wait(30)
    never.set()
