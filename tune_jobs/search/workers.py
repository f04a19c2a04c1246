"""A trial with several workers: Ray Train runs them, the trial's process hears from them and decides.

Each epoch's metrics come from worker 0 through a mailbox, and the workers wait until the trial has taken them. So an
evaluation is in its curve before the checkpoint that holds its epoch, and a trial that is stopped ends its workers
itself and in good order, before its process ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tune_jobs.search.curve import Evaluations
from tune_jobs.stage import Demand, Stage
from tune_jobs.store import Store
from tune_jobs.work import Evaluator, Report


def pretrain_with_workers(
    stage: Stage,
    store: Store,
    data: Path,
    work: Path,
    demand: Demand,
    progress: Report,
    evaluations: Evaluations | None,
    evaluator: Evaluator | None,
) -> dict[str, Any]:
    """Pretrain with `demand.workers` Ray Train workers, from their last checkpoint; leave the stage's files in `work`.

    In this process, `progress` receives each epoch's metrics and `evaluations` what worker 0 found on the way, after
    those of the epochs in the checkpoint. What they raise, SystemExit included, ends the workers and is raised here
    when these are gone and have given back what they held. Returns what the manifest should say.
    """
    import ray

    from tune_jobs.train import train

    def heard(kind: str, value: Any) -> None:
        if kind == "metrics":
            progress(value)
            if evaluations:
                evaluations.add(value)
        elif evaluations:
            evaluations.replay(value)

    mailbox = ray.remote(num_cpus=0)(Mailbox).remote()
    post = Post(mailbox)
    try:
        return train(
            stage,
            store,
            data,
            work,
            demand,
            post.metrics,
            evaluator=evaluator,
            resumed=post.resumed,
            fit=partial(_fit, mailbox=mailbox, heard=heard),
        )
    finally:
        ray.kill(mailbox)


def _fit(trainer: Any, *, mailbox: Any, heard: Callable[[str, Any], None]) -> Any:
    """Run the trainer to its end, and hear here what its workers say meanwhile."""
    import ray

    error: BaseException | None = None

    def ended(_: Future[Any]) -> None:
        mailbox.send.remote(None)

    with ThreadPoolExecutor(1, "trainer") as pool:
        fit = pool.submit(trainer.fit)
        fit.add_done_callback(ended)
        while (letter := ray.get(mailbox.take.remote())) is not None:
            try:
                if error is None:
                    heard(*letter)
            except BaseException as raised:
                error = raised
            ray.get(mailbox.answer.remote(error is None))
    if error is not None:
        raise error
    return fit.result()


@dataclass(frozen=True)
class Post:
    """Worker 0's side of a mailbox: returns when the trial has taken what was sent; Stop where it wants no more."""

    mailbox: Any

    def resumed(self, epochs: int) -> None:
        self._send("resumed", epochs)

    def metrics(self, values: Mapping[str, float]) -> None:
        self._send("metrics", dict(values))

    def _send(self, kind: str, value: Any) -> None:
        import ray

        from tune_jobs.train import Stop

        if not ray.get(self.mailbox.send.remote((kind, value))):
            raise Stop


class Mailbox:
    """An actor between the workers and the trial, which cannot be called itself while it runs."""

    def __init__(self) -> None:
        self._letters: asyncio.Queue[tuple[Any, asyncio.Future[bool]]] = asyncio.Queue()
        self._open: asyncio.Future[bool] | None = None

    async def send(self, letter: Any) -> bool:
        """Leave a letter; whether to go on, as soon as the trial says so."""
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._letters.put_nowait((letter, answer))
        return await answer

    async def take(self) -> Any:
        """The next letter, when there is one; the next `answer` is to it."""
        letter, self._open = await self._letters.get()
        return letter

    async def answer(self, go_on: bool) -> None:
        assert self._open is not None
        self._open.set_result(go_on)
