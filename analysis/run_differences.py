"""Of a study with one seed: the difference between two trained models, with what another test set would do to it.

Groups (patients) are resampled, the same ones for both models, so what is hard for both cancels. That is no statement
about the arms: another seed trains two other models, and only seeds tell how much that moves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pandas import DataFrame

from analysis.facts import Facts
from analysis.predictions import FILE, Predictions, read
from analysis.tables import Finished
from ssl_core.metrics import resampled_scores, score

NAME = "run_differences"
COLUMNS = (
    *("seed", "mode", "label_fraction", "metric", "arm", "against"),
    *("difference", "difference_low", "difference_high", "n", "groups", "replicates"),
)
CAVEAT = (
    "With one seed, a difference has an interval within the run only.",
    "The file tables/run_differences.csv holds the difference between each arm's model and the baseline's with its 95% "
    "bootstrap interval, groups resampled for both alike: how much another test set would move it. It says nothing of "
    "how much another training run would, and is no significance.",
)
_Cell = tuple[str, float]  # mode, label fraction


def add(
    tables: dict[str, DataFrame], finished: Sequence[Finished], facts: Facts, folder: Path
) -> list[tuple[str, str]]:
    """Put `run_differences` among the tables of a study with one seed, and return the caveat that goes with it.

    An earlier report's file in `folder` does not stay.
    """
    (folder / f"{NAME}.csv").unlink(missing_ok=True)
    table = run_differences(finished, facts)
    if table.empty:
        return []
    tables[NAME] = table
    return [CAVEAT]


def run_differences(finished: Sequence[Finished], facts: Facts) -> DataFrame:
    """Each arm's fine-tuned models against the baseline's on the study's score; empty with more seeds than one.

    difference: score(arm) - score(against) on the test images; difference_low, difference_high: 2.5th and 97.5th
    percentiles over `replicates` resamples of `groups` groups (images where the study resamples those), drawn once for
    both; NaN where too few of them hold every class. Models tested on other images than the baseline's are left out.
    Raises DataError where predictions cannot be read.
    """
    rows: list[dict[str, Any]] = []
    if len(facts.seeds) == 1:
        for cell, models in _cells(finished).items():
            rows += _compared(cell, models, facts)
    return DataFrame(rows, columns=list(COLUMNS))


def _cells(finished: Sequence[Finished]) -> dict[_Cell, dict[str, Path]]:
    """Folders of fine-tuned models by arm, by mode and label fraction; training from scratch is of mode full."""
    found: dict[_Cell, dict[str, Path]] = {}
    for stage in finished:
        if stage.kind == "finetune" and (stage.folder / FILE).is_file():
            mode = "full" if stage.labels["mode"] == "scratch" else str(stage.labels["mode"])
            cell = (mode, float(str(stage.labels["label_fraction"])))
            found.setdefault(cell, {})[str(stage.labels["arm"])] = stage.folder
    return found


def _compared(cell: _Cell, models: Mapping[str, Path], facts: Facts) -> Iterator[dict[str, Any]]:
    against = facts.compared_with
    if against is None or against not in models or len(models) < 2:
        return
    base = read(models[against], "test")
    base_score, base_scores = _scores(base, facts)
    by_image = facts.downstream.get("resample") == "images"
    for arm, folder in models.items():
        tested = base if arm == against else read(folder, "test")
        if arm == against or not _same_images(tested, base):
            continue
        value, scores = _scores(tested, facts)
        gaps = scores - base_scores
        low, high = np.percentile(gaps, [2.5, 97.5]).tolist() if len(gaps) == _replicates(facts) else (np.nan, np.nan)
        yield {
            "seed": facts.seeds[0],
            "mode": cell[0],
            "label_fraction": cell[1],
            "metric": facts.metric,
            "arm": arm,
            "against": against,
            "difference": value - base_score,
            "difference_low": low,
            "difference_high": high,
            "n": len(base.ids),
            "groups": len(base.ids) if by_image else len(np.unique(base.groups)),
            "replicates": len(gaps),
        }


def _same_images(a: Predictions, b: Predictions) -> bool:
    return np.array_equal(a.ids, b.ids) and np.array_equal(a.labels, b.labels)


def _replicates(facts: Facts) -> int:
    return max(2, int(facts.downstream.get("bootstrap", 1000)))


def _scores(tested: Predictions, facts: Facts) -> tuple[float, NDArray[np.float64]]:
    """The score on the test images and on each resample of them."""
    metric: Any = facts.metric
    about = (metric, tested.labels, tested.probabilities, tested.task)
    on_resamples = resampled_scores(
        *about,
        groups=tested.groups,
        replicates=_replicates(facts),
        seed=facts.seeds[0],
        resample=facts.downstream.get("resample", "groups"),
    )
    return score(*about), on_resamples
