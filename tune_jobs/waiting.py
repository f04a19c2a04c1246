"""Room for a study on a cluster whose nodes come and go: what is not there now may be there soon."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TypeVar

from ssl_core.errors import InputError

T = TypeVar("T")

#: Seconds to wait for nodes, where those that are there could not hold what is asked for even if they were idle.
ROOM_SECONDS = 600.0
#: Seconds between looks.
_AGAIN = 2.0


def await_room(fits: Callable[[], T], *, patience: float) -> T:
    """What `fits` returns; while it raises InputError it is called again, for `patience` seconds at most.

    A driver that was killed together with nodes is often back before they are. What lacks is said once, at the start.
    """
    deadline, said = time.monotonic() + patience, False
    while True:
        try:
            return fits()
        except InputError as error:
            if time.monotonic() >= deadline:
                raise
            if not said:
                print(f"note: {error}; waiting up to {patience:g} s for nodes that may join", file=sys.stderr)
            said = True
        time.sleep(min(_AGAIN, patience))
