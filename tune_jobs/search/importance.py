"""Which parameters mattered: Optuna's fANOVA and PED-ANOVA over the completed trials."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial

from tune_jobs.search.storage import directions
from tune_jobs.search.views import Snapshot

#: Completed trials without which nothing is said, and without which it is said with a warning.
FEWEST, FEW = 5, 20
#: Of the completed trials, PED-ANOVA looks at the best tenth, but at no fewer than these.
_TOP, _TOP_TRIALS = 0.1, 5


def importances(trials: Sequence[FrozenTrial], objectives: Sequence[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of evaluator, objective, parameter, importance and trials, and what has to be said with them.

    Importances of an evaluator for an objective sum to 1. `trials`: completed ones in which the parameter was active.
    fANOVA knows only parameters that were active in every completed trial; the notes name the others.
    """
    done = [t for t in trials if t.state == TrialState.COMPLETE]
    if len(done) < FEWEST:
        return [], [f"Importances need {FEWEST} completed trials; there are {len(done)}."]
    active = {name: sum(name in t.params for t in done) for t in done for name in t.params}
    notes = [f"Importances rest on {len(done)} completed trials: a hint, no measurement."] if len(done) < FEW else []
    always = [name for name in active if active[name] == len(done)]
    if dropped := sorted(active.keys() - set(always)):
        notes.append(f"fANOVA leaves out what was not active in every completed trial: {', '.join(dropped)}.")
    rows = []
    for at, objective in enumerate(objectives):
        study = _study(done, objective, at)
        for evaluator, found in (("fanova", _fanova(study, always)), ("ped_anova", _ped_anova(study, len(done)))):
            if found is None:
                notes.append(f"{evaluator}: {objective} is the same in all completed trials.")
                continue
            rows += [
                {
                    "evaluator": evaluator,
                    "objective": objective,
                    "parameter": name,
                    "importance": value,
                    "trials": active[name],
                }
                for name, value in sorted(found.items(), key=lambda item: (-item[1], item[0]))
            ]
    return rows, notes


def _study(done: Sequence[FrozenTrial], objective: str, at: int) -> Study:
    """The completed trials as a study of this objective alone."""
    alone = []
    for t in done:
        trial = create_trial(params=t.params, distributions=t.distributions, value=t.values[at])
        trial.number = trial._trial_id = t.number
        alone.append(trial)
    return Snapshot("importance", 0, directions([objective]), alone, {}).study()


def _fanova(study: Study, always: list[str]) -> dict[str, float] | None:
    if len({t.value for t in study.get_trials(deepcopy=False)}) < 2:
        return None
    return _shares(FanovaImportanceEvaluator(seed=0).evaluate(study, params=sorted(always)))


def _ped_anova(study: Study, count: int) -> dict[str, float] | None:
    if len({t.value for t in study.get_trials(deepcopy=False)}) < 2:
        return None
    top = min(max(_TOP, _TOP_TRIALS / count), 0.5)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Some regimes for parameter", category=UserWarning)
        return _shares(PedAnovaImportanceEvaluator(target_quantile=top).evaluate(study))


def _shares(found: dict[str, float]) -> dict[str, float]:
    total = sum(found.values())
    return {name: value / total for name, value in found.items()} if total > 0 else {}
