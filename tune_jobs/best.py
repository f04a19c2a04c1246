"""`intermoco best`: which configuration to ship. Reads finished stages, computes nothing that a stage computes."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

from ssl_core.errors import InputError
from tune_jobs.coherence import label_fraction
from tune_jobs.findings import finished_stage
from tune_jobs.search.promotion import Promoted
from tune_jobs.store import Store

if TYPE_CHECKING:
    from analysis.decision import Decision


def decide(found: Promoted, store: Store) -> Decision:
    """The study's configurations ranked, a search's winners among them, and the model to ship.

    Raises InputError where no model of the mode and label fraction that `decision` names is finished.
    """
    from analysis.decision import MODES, recommend

    study = found.study
    fraction = label_fraction(study.decision, study.downstream)
    if fraction is None:
        raise InputError(f"decision.mode: this study trains no model in mode {study.decision.mode}; choose the other")
    modes = MODES[study.decision.mode]
    compared = [
        s for s in found.plan.of_kind("finetune")
        if s.labels["mode"] in modes and s.labels["label_fraction"] == fraction
    ]  # fmt: skip
    return recommend(
        [finished_stage(s, store) for s in found.plan.stages if s.kind in _READ and store.finished(s)],
        dataclasses.replace(study.decision, fraction=fraction),
        metric=study.downstream.metric,
        baseline=study.baseline,
        dataset=study.dataset.name or study.dataset.source,
        planned=[(s.labels["arm"], s.labels["seed"]) for s in compared],
    )


_READ = ("pretrain", "finetune")


def show(found: Promoted, decision: Decision, command: str, *, as_json: bool) -> None:
    """Print the table, the sentences and the command that promotes; with `as_json` one line of JSON after them."""
    from rich.console import Console
    from rich.table import Table

    from analysis.decision_words import rows, sentences
    from analysis.names import percent

    header, body = rows(decision, str)
    of = f"fine-tuned on {percent(decision.label_fraction)} of the labels"
    title = f"{found.study.study}: configurations by validation, {of}, mean ± standard error over seeds"
    table = Table(*header, box=None, title=title, title_justify="left")
    for row in body:
        table.add_row(*row)
    said = sentences(decision, str)
    promote = f"{command} --arm {decision.chosen.arm}"
    console = Console(markup=False, highlight=False)
    console.print(table)
    console.print()
    for sentence in said:
        console.print(sentence)
    print(f"\npromote it: {promote}")
    if as_json:
        facts: dict[str, Any] = {"study": found.study.study, **decision.as_json()}
        print(json.dumps({**facts, "sentences": said, "command": promote}, allow_nan=False))
