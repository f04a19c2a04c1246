"""Which figures a study allows, each with its words."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd
from matplotlib.figure import Figure
from pandas import DataFrame

from analysis import effects, figures, reliability, search_figures, search_space_figures
from analysis.facts import Facts
from analysis.search import MAXIMISED, SearchFindings, ranked
from analysis.search_axis import varied
from analysis.tables import Finished

_STROKES = (
    "Upright strokes are the 95% bootstrap interval of one run, the mean over seeds: what the test set leaves open."
)


@dataclass(frozen=True)
class Picture:
    """A figure with its words; `draw(narrow)` gives it for a screen's or for a phone's width."""

    name: str
    alt: str  # what it shows, for a reader who cannot see it
    reading: str  # how to read it
    draw: Callable[[bool], Figure]


def pictures(
    tables: Mapping[str, DataFrame],
    finished: Sequence[Finished],
    *,
    arms: Sequence[str],
    metric: str,
    class_names: Sequence[str] = (),
) -> list[Picture]:
    """The figures that this much of the study allows. Reads its stages' metrics.jsonl, curves.csv and samples.json."""
    scores, reuse, probing = tables["label_efficiency"], tables["reuse"], tables["probing"]
    found = []
    if _has(scores, metric):
        seen = labelled_images(finished)
        found.append(
            Picture(
                "label_efficiency",
                figures.label_efficiency_alt(scores, metric=metric),
                "Higher is better, and further left means fewer labels. Open circles are single seeds, filled marks "
                "their mean; arms whose circles overlap have not been told apart. " + _STROKES,
                lambda narrow: figures.label_efficiency(scores, metric=metric, arms=arms, seen=seen, narrow=narrow),
            )
        )
    if reuse["value"].notna().any():
        found.append(
            Picture(
                "reuse",
                figures.reuse_alt(reuse),
                "A point near 1 means that fine-tuning left the block's features as they were. Grey bands show what "
                "unrelated features reach: a point in its band says nothing about reuse, and is drawn hollow where it "
                "is flagged as uninformative.",
                lambda narrow: figures.reuse(reuse, arms=arms, narrow=narrow),
            )
        )
    if _has(probing, metric):
        found.append(
            Picture(
                "probing",
                figures.probing_alt(probing, metric=metric),
                "An arm whose line is high on the left has informative features early in the network. " + _STROKES,
                lambda narrow: figures.probing(probing, metric=metric, arms=arms, narrow=narrow),
            )
        )
    curves = figures.representative(_curves(finished))
    if len(curves):
        output = int(curves["output"].iloc[0])
        # one output of two classes is the probability of the second
        names = class_names[1:] if len(class_names) == 2 else class_names
        label = names[output] if output < len(names) else f"output {output}"
        found.append(
            Picture(
                "distributions",
                figures.distributions_alt(curves),
                "Each panel sets a model's outputs (colour) beside the reference's (grey). The dark bar is the KS "
                f"distance: where the two are furthest apart. Shown is seed {curves['seed'].iloc[0]} and, of several "
                "outputs, the one with the median gap; the table averages over outputs and seeds.",
                lambda narrow: figures.distributions(curves, arms=arms, output=label, narrow=narrow),
            )
        )
    bins = reliability.measured(finished, arms)
    if len(bins):
        found.append(
            Picture(
                "reliability",
                reliability.reliability_alt(bins, tables["ks"]),
                "A point below the line means that the model promises more than it keeps. Strokes span the seeds; "
                f"bins of fewer than {reliability.FEWEST} images are left out. Of several classes, the probability is "
                "that of the answer given; several labels are pooled. ECE is Table 5’s.",
                lambda narrow: reliability.reliability(bins, tables["ks"], arms=arms, narrow=narrow),
            )
        )
    histories = _histories(finished)
    if histories:
        found.append(
            Picture(
                "losses",
                figures.losses_alt(histories),
                "Curves that have levelled off were trained long enough; InfoNCE may rise while the queue fills. A "
                "lower loss is no better encoder: arms minimise different sums. One line a seed; block losses are "
                "shown before their weight.",
                lambda narrow: figures.losses(histories, arms=arms, narrow=narrow),
            )
        )
    return found


def effects_picture(tables: Mapping[str, DataFrame], facts: Facts) -> Picture | None:
    """What the arms' pretraining adds to the baseline; None where nothing was compared. `tables` hold `verdicts`."""
    baseline, arms = facts.compared_with, list(facts.arms)
    pretrained = [arm for arm, config in facts.arms.items() if config is not None and arm != baseline]
    found = effects.groups(tables, metric=facts.metric, baseline=baseline or "", arms=pretrained or arms)
    if not found or baseline is None:
        return None
    shown = len({row.arm for rows in found.values() for row in rows})
    more = f" Shown are the first {shown} arms; the table has the others." if len(pretrained or arms) > shown else ""
    return Picture(
        "effects",
        effects.effects_alt(found, metric=facts.metric, baseline=baseline),
        "Right of zero is better than the baseline. A line that crosses zero, or a hollow mark, settles nothing; an "
        f"arrow means that the interval goes on beyond the axis. The numbers are in the table of verdicts.{more}",
        lambda narrow: effects.effects(found, metric=facts.metric, baseline=baseline, arms=arms, narrow=narrow),
    )


def search_pictures(search: SearchFindings) -> list[Picture]:
    """The figures that a search's trials allow so far."""
    first, space = search_figures, search_space_figures
    names, found = len(varied(search)), len(ranked(search))
    made = [
        (
            found,
            *("search_history", first.history_alt, first.history),
            "A line that stays level while trials go on was found early, or the search has run dry. The line can only "
            "improve with more trials, whatever the parameters do.",
        ),
        (
            len(search.importances),
            *("search_importances", space.importances_alt, space.importances),
            "Long bars are parameters worth setting with care in this space; short ones did little within the ranges "
            "that were searched, on the trials that completed.",
        ),
        (
            found and names,
            *("search_slices", space.slices_alt, space.slices),
            "A point is a completed trial at its value of the parameter, all others differing too; a tick at the foot "
            "is one that was stopped early. Many ticks and few points: the scheduler gave up on those values.",
        ),
        (
            found > 1 and names > 1,
            *("search_parallel", space.parallel_alt, space.parallel),
            "Follow a line downwards for one trial’s settings; its last point is its value. Where the coloured lines "
            "meet, the best trials agree; where they part, the parameter was not what made them good.",
        ),
        (
            len(search.curves),
            *("search_curves", first.curves_alt, first.curves),
            "Lines that cross after the point where others were stopped show what stopping early cannot see.",
        ),
        (
            found and len(search.objectives) > 1,
            *("search_pareto", first.pareto_alt, first.pareto),
            f"{'Up' if search.main in MAXIMISED else 'Down'} and to the left is better. Each filled point is the best "
            "that was found at its price; which of them is worth it is not a question for a search.",
        ),
    ]
    return [
        Picture(name, alt(search), reading, partial(_drawn, draw, search))
        for there, name, alt, draw, reading in made
        if there
    ]


def _drawn(draw: Callable[..., Figure], search: SearchFindings, narrow: bool) -> Figure:
    return draw(search, narrow=narrow)


def labelled_images(finished: Sequence[Finished]) -> dict[float, int]:
    """Labelled images that fine-tuning saw at each fraction, from samples.json; the same for every arm and seed."""
    seen: dict[float, int] = {}
    for stage in finished:
        fraction, path = stage.labels.get("label_fraction"), stage.folder / "samples.json"
        if stage.kind == "finetune" and isinstance(fraction, float | int) and fraction not in seen and path.is_file():
            seen[float(fraction)] = len(json.loads(path.read_text())["ids"])
    return seen


def _curves(finished: Sequence[Finished]) -> DataFrame:
    """Distribution functions of the ks stage; empty without one."""
    paths = [stage.folder / "curves.csv" for stage in finished if stage.kind == "ks"]
    parts = [pd.read_csv(path) for path in paths if path.is_file()]
    columns = ["arm", "seed", "label_fraction", "output", "x", "cdf", "reference_cdf"]
    return pd.concat(parts, ignore_index=True) if parts else DataFrame(columns=columns)


def _histories(finished: Sequence[Finished]) -> dict[tuple[str, int], DataFrame]:
    """metrics.jsonl of each pretraining that has InfoNCE, by arm and seed."""
    found = {}
    for stage in finished:
        path = stage.folder / "metrics.jsonl"
        if stage.kind == "pretrain" and path.is_file():
            history = pd.read_json(path, lines=True)
            if {"epoch", "info_nce"} <= set(history):
                found[str(stage.labels["arm"]), int(str(stage.labels["seed"]))] = history
    return found


def _has(table: DataFrame, metric: str) -> bool:
    return bool((table["value"].notna() & (table["metric"] == metric)).any())
