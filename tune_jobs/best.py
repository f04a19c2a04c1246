"""`intermoco best`: which configuration to ship. Reads finished stages, computes nothing that a stage computes."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from typing import TYPE_CHECKING, Any

from ssl_core.errors import InputError
from tune_jobs.coherence import label_fraction
from tune_jobs.findings import finished_stage
from tune_jobs.search.promotion import Promoted
from tune_jobs.store import Store

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

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
_WIDE = 160  # columns of a line that goes into a file or a pipe
#: Columns that a narrow terminal leaves out, the first of them first; --json has them.
_SPARE = ("within 1 s.e.", "peak memory", "mode", "front")


def show(found: Promoted, decision: Decision, command: str, *, as_json: bool) -> None:
    """Print the table, the sentences and the command that promotes; with `as_json` one line of JSON after them."""
    from rich.console import Console

    from analysis.decision_words import rows, sentences
    from analysis.names import percent
    from tune_jobs.search.findings import cost

    header, body = rows(decision, str)
    of = f"fine-tuned on {percent(decision.label_fraction)} of the labels"
    title = f"{found.study.study}: configurations by validation, {of}, mean ± standard error over seeds"
    said = sentences(decision, str, cost(found))
    promote = f"{command} --arm {decision.chosen.arm}"
    known = sys.stdout.isatty() or "COLUMNS" in os.environ
    console = Console(markup=False, highlight=False, width=None if known else _WIDE)
    console.print(_fitted(header, body, title, console))
    console.print()
    for sentence in said:
        console.print(sentence)
    print(f"\npromote it: {promote}")
    if as_json:
        facts: dict[str, Any] = {"study": found.study.study, **decision.as_json()}
        print(json.dumps({**facts, "sentences": said, "command": promote}, allow_nan=False))


def _fitted(header: list[str], body: list[list[str]], title: str, console: Console) -> Table:
    """The table with as many columns as find room: an arm's name is there to be typed, so nothing is cut."""
    from rich.table import Table

    left = list(range(len(header)))
    for spare in ("", *_SPARE):
        left = [i for i in left if header[i] != spare]
        table = Table(box=None, title=title, title_justify="left")
        for i in left:
            table.add_column("\n".join(header[i].split()))
        for row in body:
            table.add_row(*(row[i] for i in left))
        if console.measure(table, options=console.options.update_width(1000)).maximum <= console.width:
            break
    return table
