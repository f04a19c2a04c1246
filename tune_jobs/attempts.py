"""The attempts of a pretraining, or of a stage of several workers: each leaves a file, so that the manifest can tell.

    <root>/stages/.train/<kind>-<key>/attempts/<number>.json

Times are of the worker's clock: what was done again is known to five seconds, and to what the nodes' clocks differ.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

#: Seconds between the signs of life of an attempt.
ALIVE_SECONDS = 5.0
NOTICED = "its node was about to be taken away"
UNKNOWN = "a worker, its node or the driver was lost, or the run was stopped"


@dataclass(frozen=True)
class Attempt:
    """Times in seconds since 1970."""

    started: float
    alive: float  # when it last said so
    resumed: float | None = None  # when the checkpoint was taken that it started from; None: from nothing
    why: str | None = None  # it ended before training did
    workers: int | None = None  # where their number may change
    room: str | None = None  # Ray's placement group that it holds, in hexadecimal


class Attempts:
    """Those of the stage whose training folder is `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "attempts"
        self._ended: Path | None = None  # the newest that is known to have ended

    def begin(self, resumed: float | None, workers: int | None = None, room: str | None = None) -> Path:
        """Note a new attempt, and that the last one ended; the file that tells of it."""
        now = time.time()
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{len(self._paths()):04d}.json"
        _write(path, Attempt(now, now, resumed, workers=workers, room=room))
        return path

    def ended(self, why: str, *, alive: float | None = None) -> bool:
        """Note why the newest attempt ended, unless it knows better; and until when it went on, where that is known.

        Whether it had been given notice: said once for each attempt, for a next one may fail before it begins.
        """
        with contextlib.suppress(OSError):  # storage may be what failed; the note is not worth another failure
            paths = self._paths()
            if not paths or paths[-1] == self._ended:
                return False
            newest, self._ended = _read(paths[-1]), paths[-1]
            if newest.why is None:
                _write(paths[-1], replace(newest, why=why, alive=newest.alive if alive is None else alive))
            return newest.why == NOTICED
        return False

    def rooms(self) -> list[str]:
        """Placement groups that attempts held, whether they are still there or not."""
        return [room for path in self._paths() if (room := _read(path).room)]

    def facts(self) -> dict[str, Any]:
        """What the manifest should say: why each but the last ended, and how many seconds of it were done again."""
        attempts = [_read(path) for path in self._paths()]
        restarts = [
            {"why": before.why or _change(before, after), "recomputed_seconds": round(recomputed(before, after), 1)}
            for before, after in pairwise(attempts)
        ]
        seconds = sum(recomputed(before, after) for before, after in pairwise(attempts))
        return {"restarts": restarts, "recomputed_seconds": round(seconds, 1)}

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("*.json"))


def recomputed(before: Attempt, after: Attempt) -> float:
    """Seconds of `before` that no checkpoint held when `after` went on."""
    kept = before.started if after.resumed is None else max(before.started, after.resumed)
    return max(0.0, before.alive - kept)


def _change(before: Attempt, after: Attempt) -> str:
    """Why an attempt ended that did not fail: Ray Train ends one itself where there is room for more workers."""
    if before.workers is None or after.workers is None or after.workers <= before.workers:
        return UNKNOWN
    return f"there was room for {after.workers} workers instead of {before.workers}"


class Pulse:
    """An attempt's signs of life, from worker 0."""

    def __init__(self, path: Path) -> None:
        self.path, self.attempt = path, _read(path)

    def beat(self, *, at_once: bool = False, why: str | None = None) -> None:
        """Say that the attempt is alive, every five seconds at most unless `at_once`; or why it is about to end."""
        now = time.time()
        if not at_once and now - self.attempt.alive < ALIVE_SECONDS:
            return
        self.attempt = replace(self.attempt, alive=now, why=why or self.attempt.why)
        with contextlib.suppress(OSError):
            _write(self.path, self.attempt)


def _read(path: Path) -> Attempt:
    return Attempt(**json.loads(path.read_text()))


def _write(path: Path, attempt: Attempt) -> None:
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(asdict(attempt)))
    temporary.replace(path)
