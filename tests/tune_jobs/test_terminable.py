"""Ctrl-C and SIGTERM arrive, also where Python would drop them."""

from __future__ import annotations

import os
import signal
import sys
import time
import weakref

import pytest

from tune_jobs.ablate import terminable

pytestmark = pytest.mark.timeout(30)


class Thing:
    pass


def test_an_interrupt_within_a_callback_comes_again() -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    before, arrived = sys.unraisablehook, False
    ctrl_c = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with terminable():
            thing = Thing()
            watched = weakref.ref(thing, interrupted)
            del thing
            for _ in range(500):
                time.sleep(0.01)
    except KeyboardInterrupt:
        arrived = True
    finally:
        signal.signal(signal.SIGINT, ctrl_c)
    assert arrived
    assert watched() is None
    assert sys.unraisablehook is before


def test_sigterm_is_an_interrupt() -> None:
    before, arrived = signal.getsignal(signal.SIGTERM), False  # Ray sets its own where a test before this one began it
    try:
        with terminable():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
    except KeyboardInterrupt:
        arrived = True
    assert arrived
    assert signal.getsignal(signal.SIGTERM) == before
