"""Processes that are killed before one of their writes to MLflow."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

from tests.processes import CONTEXT


def ended(work: Callable[..., None], *arguments: Any) -> int:
    """The exit code of a process that does the work."""
    process = CONTEXT.Process(target=work, args=arguments)
    process.start()
    process.join(60)
    code = process.exitcode
    process.kill()
    assert code is not None, "it did not end in a minute"
    return code


def die_before(client: Any, call: int, *verbs: str) -> None:
    """Kill this process before the client's call of this number, counted from 0, whose name begins with a verb."""
    calls = iter(range(1000))

    def guarded(method: Any) -> Any:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if next(calls) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return method(*args, **kwargs)

        return wrapper

    for name in dir(client):
        if name.startswith(verbs):
            setattr(client, name, guarded(getattr(client, name)))
