"""A search's trials as the tables that the report draws: reads the storage, computes nothing that a trial computes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tune_jobs.search.promotion import Promoted

if TYPE_CHECKING:
    from pandas import DataFrame

    from analysis.search import SearchCost, SearchFindings
    from tune_jobs.search.config import SearchConfig
    from tune_jobs.search.ledger import Ledger
    from tune_jobs.search.records import TrialRecord

#: Of a trial's outcome, what is a column of its own.
_MEASURED = ("score", "ece", "score_sd", "epochs", "seconds", "accelerator_seconds", "peak_memory")


def search_findings(found: Promoted) -> SearchFindings | None:
    """What the study's search has found so far; None where it never ran."""
    if found.ledger is None:
        return None
    import pandas as pd

    from analysis.search import SearchFindings

    search = found.study.search
    assert search is not None
    records = found.ledger.trials()
    importances, notes = _importances(found.ledger)
    return SearchFindings(
        trials=trial_rows(found, records),
        curves=pd.DataFrame(
            [(t.number, epoch, score) for t in records for epoch, score in t.curve.items()],
            columns=["trial", "epoch", "score"],
        ),
        importances=importances,
        objectives=search.objectives,
        metric=search.score.metric,
        fraction=search.score.fraction,
        block=search.score.blocks[0],
        logs=search.space.logs,
        promoted=found.arms,
        starts=found.starts,
        controls=found.controls,
        on=search.scheduler.on,
        duplicates=sum(t.state == "duplicate" for t in records),
        sampler=search.sampler.kind,
        scheduler=search.scheduler.kind,
        notes=notes,
    )


def cost(found: Promoted) -> SearchCost | None:
    """What the study's search took so far; None where it never ran."""
    if found.ledger is None:
        return None
    from analysis.search import search_cost

    return search_cost(trial_rows(found, found.ledger.trials()), found.arms)


def trial_rows(found: Promoted, records: list[TrialRecord]) -> DataFrame:
    """One row a trial that was not a repetition of an earlier one: `SearchFindings.trials`."""
    import pandas as pd

    search = found.study.search
    assert search is not None
    names = [parameter.name for parameter in search.space.parameters]
    rows = []
    for trial in records:
        if trial.state == "duplicate":
            continue
        measured = {**{name: trial.attrs.get(name) for name in _MEASURED}, **trial.values}
        rows.append(
            {
                "trial": trial.number,
                "state": trial.state,
                "start": trial.start,
                "arm": found.arms.get(trial.number),
                **measured,
                "saved_seconds": _saved(search, trial),
                "seeds": " ".join(map(str, search.seeds)),
                "pareto": trial.pareto,
                "duplicate_of": None,
                "stages": " ".join(trial.attrs.get("stages") or ()),
                "error": trial.error,
                **{f"params_{name}": trial.params.get(name) for name in names},
            }
        )
    columns = ["trial", "state", "start", "arm", *_MEASURED, "saved_seconds", "seeds", "pareto", "duplicate_of",
               "stages", "error", *(f"params_{name}" for name in names)]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def _saved(search: SearchConfig, trial: TrialRecord) -> float | None:
    """Training seconds that pruning spared: at the trial's own pace, what was left of its epochs and its seeds."""
    seconds, done = trial.attrs.get("seconds"), trial.attrs.get("epochs")
    if trial.state != "pruned" or not seconds or not done:
        return 0.0 if trial.state == "complete" else None
    planned = search.space.arm(trial.params, search.bases).epochs * len(search.seeds)
    return float(seconds / done * (planned - done))


def _importances(ledger: Ledger) -> tuple[DataFrame, list[str]]:
    import pandas as pd

    rows, notes = ledger.importances()
    columns = ["evaluator", "objective", "parameter", "importance", "trials"]
    return pd.DataFrame(rows, columns=columns), notes


def at_a_glance(ledger: Ledger, search: SearchConfig, count: int = 5) -> tuple[list[str], list[list[str]]]:
    """Header and rows for the terminal: the best trials, then what the search began with."""
    from analysis.search_words import described

    best = [suggestion.number for suggestion in ledger.best(count)]
    records = {trial.number: trial for trial in ledger.trials()}
    starts = [number for number, trial in records.items() if trial.start and number not in best]
    rows = []
    for trial in (records[number] for number in (*best, *starts)):
        values = [f"{trial.values[name]:.4g}" if name in trial.values else "" for name in search.objectives]
        rows.append([f"trial {trial.number}", trial.start or "", trial.state, *values, described(trial.params)])
    return ["", "start", "state", *search.objectives, "parameters"], rows
