"""Packing on Ray: shards as its tasks, and what a person sees of it meanwhile."""

from __future__ import annotations

import contextlib
import itertools
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from ssl_core.errors import StageError
from tune_jobs.watch import PLAIN_EVERY, duration

T = TypeVar("T")
R = TypeVar("R")

#: Starts Ray, or joins one, for as long as the context lasts.
Start = Callable[[], contextlib.AbstractContextManager[object]]

_RETRIES = 3  # of a task whose worker is lost
_AHEAD = 2  # tasks submitted for each CPU, so that none waits for the driver


class OnRay:
    """Maps a function over tasks, one in this process, several on a Ray that is started for them; a context manager."""

    def __init__(self, start: Start) -> None:
        self._start = start
        self._stack = contextlib.ExitStack()
        self._started = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def __call__(self, function: Callable[[T], R], tasks: Sequence[T], /) -> Iterable[R]:
        if len(tasks) < 2:
            return map(function, tasks)
        if not self._started:
            self._stack.enter_context(self._start())
            self._started = True
        return over_tasks(function, tasks)


def over_tasks(function: Callable[[T], R], tasks: Sequence[T]) -> Iterator[R]:
    """Results of `function` on Ray, as they come; each task takes one CPU, and is tried again where its worker is lost.

    Raises the first error of a task as it was raised there; StageError where workers go on being lost. Tasks that run
    then are cancelled.
    """
    import ray

    remote = ray.remote(num_cpus=1, max_retries=_RETRIES)(function)
    waiting = iter(tasks)
    running: list[Any] = []
    try:
        while True:
            most = _AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
            running += [remote.remote(task) for task in itertools.islice(waiting, max(0, most - len(running)))]
            if not running:
                return
            ready, running = ray.wait(running, num_returns=1)
            for ref in ready:
                yield _result(ref)
    finally:
        for ref in running:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.cancel(ref, force=True)


def _result(ref: Any) -> Any:
    import ray

    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if not isinstance(cause, Exception):
            raise
    except ray.exceptions.RayError as error:
        raise StageError(
            f"packing lost its workers {_RETRIES + 1} times ({str(error).splitlines()[0]}); give them more memory, and "
            "run again: finished shards are kept"
        ) from error
    raise cause


class Bar:
    """How far a walk over images is: a bar on a terminal, a line now and then anywhere else. Goes to stderr.

    A context manager; call it with images done, images in all and bytes read so far.
    """

    def __init__(self, what: str, *, console: Console | None = None) -> None:
        self.what = what
        self.console = console or Console(file=sys.stderr)
        self.first: tuple[int, int, float] | None = None  # images, bytes and time of the first call
        self.newest = (0, 0, 0)
        self._spoke = self._began = time.monotonic()
        self._bar = (
            Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.fields[words]}"),
                console=self.console,
                transient=True,
            )
            if self.console.is_terminal
            else None
        )

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
            self._bar.add_task(self.what, total=None, words="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
        if error is None and time.monotonic() - self._began >= PLAIN_EVERY:
            print(f"{self.what}: {self.words()}", file=self.console.file, flush=True)

    def __call__(self, done: int, total: int, read: int) -> None:
        now = time.monotonic()
        self.newest = (done, total, read)
        if self.first is None:
            self.first = (done, read, now)
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=done, total=total, words=self.words())
        elif now - self._spoke >= PLAIN_EVERY and done < total:
            self._spoke = now
            print(f"{self.what}: {self.words()}", file=self.console.file, flush=True)

    def words(self) -> str:
        """`12,000 of 112,120 images, 512 images/s, 84.0 MB/s, 3 min 15 s left`; at the end the time it took."""
        done, total, read = self.newest
        if self.first is None:
            return "no images"
        done_before, read_before, since = self.first
        seconds = max(time.monotonic() - since, 1e-9)
        rate = (done - done_before) / seconds
        words = [f"{done:,} of {total:,} images"]
        if done > done_before:
            words += [f"{rate:,.0f} images/s", f"{(read - read_before) / seconds / 1e6:,.1f} MB/s"]
            words += [f"{duration((total - done) / rate)} left" if done < total else f"in {duration(seconds)}"]
        return ", ".join(words)
