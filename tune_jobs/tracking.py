"""MLflow as a projection of the finished stages: replayed whole by `sync`, or stage by stage while a study runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from ssl_core.errors import IntermocoError
from tune_jobs.plan import Plan
from tune_jobs.store import Store
from tune_jobs.study import Study
from tune_jobs.tracking_client import (
    TrackingError,
    Unreached,
    default_uri,
    mask,
    reached,
    reason,
    root_cause,
    ui_command,
    ui_page,
)
from tune_jobs.tracking_writer import Writer

__all__ = [
    "Follower",
    "Synced",
    "TrackingError",
    "default_uri",
    "follow",
    "mask",
    "reached",
    "sync",
    "ui_command",
    "ui_page",
]

T = TypeVar("T")
Contra = TypeVar("Contra", contravariant=True)

#: Seconds without a further try after a first failure; it doubles with each that follows, up to the longest.
FIRST_PAUSE, LONGEST_PAUSE = 4.0, 60.0


@dataclass(frozen=True)
class Synced:
    """What a replay found and did, in runs of stages or trials."""

    uri: str  # its password hidden
    created: int
    already_there: int


def sync(study: Study, plan: Plan, store: Store, *, uri: str, folder: Path) -> Synced:
    """Replay every finished stage of the plan, and the files in the study's `folder`, into MLflow at `uri`.

    Replaying twice changes nothing; what an interrupted replay left half-written is deleted and written anew. Raises
    StageError for a damaged stage, and Unreached in one line, password hidden, for whatever hinders MLflow.
    """
    try:
        writer = Writer(study, plan, store, uri)
        for stage in plan.stages:
            if store.finished(stage):
                writer.stage(stage)
        writer.summarise(live=False)
        writer.files(folder)
    except IntermocoError:
        raise
    except Exception as error:  # MLflow, its database drivers and its artifact stores raise many kinds
        raise Unreached(reason(error)) from error
    return Synced(mask(uri), writer.created, writer.already_there)


def follow(study: Study, plan: Plan, store: Store, *, uri: str) -> Follower[str]:
    """Who sends the study's stages to MLflow as they finish, by their keys."""
    return Follower(lambda: Writer(study, plan, store, uri), uri, "stages")


class Writes(Protocol[Contra]):
    """What brings finished things to MLflow, one by one."""

    def write(self, item: Contra) -> None: ...

    def summarise(self, *, live: bool) -> None: ...


class Follower(Generic[T]):
    """Sends things to MLflow as they finish, from a thread of its own: nothing waits for it or fails with it.

    `start` makes what writes them, anew after each failure; `things` is what an error calls them. One writer: `close`
    it before the next `sync` of the same study.
    """

    def __init__(self, start: Callable[[], Writes[T]], uri: str, things: str) -> None:
        self._start, self.uri, self.things = start, uri, things
        self._changed = threading.Condition()  # guards what follows
        self._waiting: list[T] = []  # what MLflow has not got yet
        self._error: Exception | None = None  # of the last try, if it failed
        self._pause, self._retry_at = FIRST_PAUSE, 0.0
        self._deadline: float | None = None  # set once, by close
        self._last = False  # whether the last try of all was made after a failure
        self._thread = threading.Thread(target=self._run, name="mlflow-follower", daemon=True)
        self._thread.start()

    def add(self, item: T) -> None:
        """Note what has finished, and return at once."""
        with self._changed:
            self._waiting.append(item)
            self._changed.notify()

    def close(self, timeout: float, settle: float = 0.0) -> str | None:
        """Send what is left, for at most `timeout` seconds; in words, what MLflow lacks and why, if it lacks anything.

        Where the last try failed there is one more, without a pause. `settle`: seconds to wait beyond for what is being
        written then, for a `sync` that follows: two writers would take each other's for half-written, and delete it.
        """
        with self._changed:
            self._deadline = time.monotonic() + timeout
            self._changed.notify()
        self._thread.join(timeout + settle)  # after the deadline it begins with nothing more
        with self._changed:
            if not self._waiting:
                return None
            place, behind = f"MLflow at {mask(self.uri)}", "run `intermoco sync STUDY` later"
            if self._error is None:
                return f"{place} was too slow to receive the last {len(self._waiting)} {self.things}; {behind}"
            found = "was not reachable" if isinstance(root_cause(self._error), OSError) else "is behind"
            return f"{place} {found}: {reason(self._error)}; {behind}"

    def _run(self) -> None:
        writer: Writes[T] | None = None
        while self._due():
            try:
                writer = writer or self._start()
                self._send(writer)
            except Exception as error:  # whatever it is, it waits for close(): it must not reach the study
                writer = None  # the next try looks at MLflow afresh
                with self._changed:
                    self._error, self._retry_at = error, time.monotonic() + self._pause
                    self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def _due(self) -> bool:
        """Wait until something is to be sent; False when the thread's work is over."""
        with self._changed:
            while self._deadline is None:
                pause = self._retry_at - time.monotonic()
                if self._waiting and pause <= 0:
                    return True
                self._changed.wait(pause if self._waiting else None)
            if self._last or not self._waiting or time.monotonic() >= self._deadline:
                return False
            self._last = self._error is not None
            return True

    def _send(self, writer: Writes[T]) -> None:
        with self._changed:
            items = list(self._waiting)
        for item in dict.fromkeys(items):
            if self._deadline is not None and time.monotonic() > self._deadline:
                return
            writer.write(item)
        writer.summarise(live=True)
        with self._changed:
            del self._waiting[: len(items)]
            self._error, self._pause = None, FIRST_PAUSE
