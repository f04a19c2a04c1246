"""The terminal's table of scores, where there are none."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from analysis.tables import COLUMNS
from tune_jobs.findings import scores_at_a_glance


def test_a_study_that_evaluated_nothing_has_an_empty_table(tmp_path: Path) -> None:
    for name in ("linear", "label_efficiency"):
        pd.DataFrame(columns=list(COLUMNS)).to_csv(tmp_path / f"{name}.csv", index=False)
    assert scores_at_a_glance(tmp_path, "auroc") == (["mode", "labels"], [])
