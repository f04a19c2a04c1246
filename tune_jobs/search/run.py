"""Runs a search's trials on Ray Tune. All that Tune writes is scratch: the ledger and the stage store remember."""

from __future__ import annotations

import logging
import math
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from ssl_core.errors import InputError, StageError
from tune_jobs.search.running import RESTARTS, Book, Running, TrialWatcher
from tune_jobs.stage import Demand

#: A process may take so long to leave a stopped trial before the next one is refused.
LEAVE_SECONDS = 60
#: The driver of a trial with several workers holds next to nothing, but stays beside the search's own driver.
DRIVER = {"node:__internal_head__": 0.001}
ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",  # the newer output prints a headline even where it is told to be silent
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no CSV, JSON or TensorBoard files
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is a KeyboardInterrupt, not a quiet end
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",  # nobody restores Tune's own state
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # the ledger is told
    "TUNE_RESULT_BUFFER_LENGTH": "1",  # each evaluation may end its trial
}


def run_trials(
    ledger: Book,
    trainable: Callable[[dict[str, Any]], None],
    *,
    demand: Demand,
    concurrent: int | Literal["auto"],
    folder: Path,
    watcher: TrialWatcher,
) -> None:
    """Run trials until the ledger has no more. Needs Ray to be initialised.

    `trainable(config)` trains one trial and reports through ray.tune.report. `folder` is scratch that all nodes reach;
    it is removed. InputError where one trial does not fit the cluster; StageError where trial after trial fails.
    """
    import ray
    from ray import tune

    from tune_jobs.search.searcher import LedgerScheduler, LedgerSearcher

    cluster = ray.cluster_resources()
    cpus, accelerators = cluster.get("CPU", 0.0), cluster.get("GPU", 0.0)
    settled = demand.on(accelerators)
    running = Running(ledger, watcher, capacity(settled, cpus, accelerators, concurrent))
    folder = folder.absolute()
    _empty(folder)
    try:
        with _environment(ENVIRONMENT), _silence("ray.tune", "ray.train", "ray.air"):
            tune.run(
                tune.with_resources(process(trainable), resources(settled)),
                name="trials",
                storage_path=str(folder),
                num_samples=-1,
                search_alg=LedgerSearcher(running),
                scheduler=LedgerScheduler(running),
                max_failures=RESTARTS,
                raise_on_failed_trial=False,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: f"trial-{trial.config['number']}",
                verbose=0,
            )
    except Exception:
        if running.error is not None:
            raise running.error from None
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if running.error is not None:
        raise running.error
    if running.open:
        raise StageError(f"Tune ended before trials {sorted(running.open)}; run the search again, it goes on")


def _empty(folder: Path) -> None:
    """Make the folder anew, for this user alone: Tune may unpickle what lies there. A link there is not followed."""
    if folder.is_symlink():
        folder.unlink()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, parents=True)


def resources(demand: Demand) -> dict[str, float]:
    """What the process of one trial holds; the workers of a trial with several hold theirs themselves."""
    if demand.workers > 1:
        return dict(DRIVER)
    return {"cpu": demand.cpus} | ({"gpu": demand.accelerators} if demand.accelerators else {})


def capacity(demand: Demand, cpus: float, accelerators: float, concurrent: int | Literal["auto"]) -> int:
    """Trials at a time on a cluster of so many CPUs and accelerators; InputError where not even one fits."""
    settled = demand.on(accelerators)
    asked = {"cpus": settled.workers * settled.cpus, "accelerators": settled.workers * (settled.accelerators or 0.0)}
    there = {"cpus": cpus, "accelerators": accelerators}
    # a sum of tenths may miss the whole number that it is
    fits = [math.floor(there[name] / value + 1e-6) for name, value in asked.items() if value > 0]
    most = min(fits, default=1)
    if most < 1:
        raise InputError(
            f"a trial needs {settled.workers} workers with {asked['cpus']:g} CPUs and {asked['accelerators']:g} "
            f"accelerators in all, the cluster has {cpus:g} and {accelerators:g}; "
            "lower resources.workers, resources.cpus or resources.accelerators"
        )
    return most if concurrent == "auto" else min(concurrent, most)


def process(trainable: Callable[[dict[str, Any]], None]) -> Any:
    """Tune's class for a process that trains one trial after the other with `trainable`.

    Told to stop, it first lets its trial leave in good order: tidy up, and end its workers where it has several.
    """
    from ray.tune.trainable import wrap_function

    def trial(config: dict[str, Any]) -> None:
        from ray import tune

        from tune_jobs.failures import one_line

        try:
            trainable(config)
        except Exception as error:  # of the trial's own code: to try it again would give the same
            tune.report({"event": "failed", "error": one_line(error)})

    class Process(wrap_function(trial)):  # type: ignore[misc]  # ray has no types
        def __init__(self, *arguments: Any, **named: Any) -> None:
            os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
            os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = str(LEAVE_SECONDS)
            self.left = threading.Event()
            self.left.set()
            super().__init__(*arguments, **named)

        def _trainable_func(self, config: dict[str, Any]) -> Any:
            self.left.clear()
            try:
                return super()._trainable_func(config)
            finally:
                self.left.set()

        def cleanup(self) -> None:
            try:
                super().cleanup()
            finally:
                self.left.wait(LEAVE_SECONDS)

    return Process


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """The variables for the body; what they were is put back."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _silence(*names: str) -> Iterator[None]:
    """Nothing of these loggers reaches the terminal: what counts is raised, or told to the ledger."""
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
