"""Tune's searcher and scheduler over a search's ledger: Tune runs trials and remembers nothing, the ledger decides.

Imports Ray, so it is itself imported only where Ray runs: a local Ray reads its settings when it is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from tune_jobs.search.running import Running


class LedgerSearcher(Searcher):  # type: ignore[misc]  # ray has no types
    """Asks the ledger for trials."""

    def __init__(self, running: Running) -> None:
        super().__init__()
        self.running = running

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        with self.running.surfacing():
            config = self.running.suggest(trial_id)
        return str(Searcher.FINISHED) if config is None and not self.running.numbers else config

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        del result
        with self.running.surfacing():
            self.running.ended(trial_id, lost=error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger remembers."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the ledger remembers."""


class LedgerScheduler(FIFOScheduler):  # type: ignore[misc]  # ray has no types
    """Stops the trials that the ledger prunes."""

    def __init__(self, running: Running) -> None:
        super().__init__()
        self.running = running
        self.trials: dict[str, Trial] = {}

    def on_trial_add(self, _: Any, trial: Trial) -> None:
        self.trials[trial.trial_id] = trial

    def on_trial_result(self, _: Any, trial: Trial, result: Mapping[str, Any]) -> str:
        with self.running.surfacing():
            stop = self.running.reported(trial.trial_id, result)
        return str(TrialScheduler.STOP if stop else TrialScheduler.CONTINUE)

    def on_trial_error(self, _: Any, trial: Trial) -> None:
        with self.running.surfacing():
            self.running.died(trial.trial_id, last_error(trial))

    def choose_trial_to_run(self, _: Any) -> None:
        """Called at each step; Tune starts pending trials by itself, in their order."""
        # a trial whose process cannot be made or reset is ended by Tune without a word to the searcher
        for name, trial in list(self.trials.items()):
            if not trial.is_finished():
                continue
            del self.trials[name]
            if name in self.running.numbers:
                with self.running.surfacing():
                    self.running.died(name, last_error(trial))
                    self.running.ended(name, lost=True)


def last_error(trial: Trial) -> str:
    """One line of what last went wrong in a trial's process."""
    if not trial.error_file or not (file := Path(trial.error_file)).is_file():
        return "Tune says nothing"
    text = file.read_text().rpartition("Failure # ")[2].partition("\n")[2]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0] if lines else "Tune says nothing"
