"""What a study took: its stages by kind, and what each arm's pretraining costs beside the baseline's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from analysis.names import arm_name
from analysis.packed import duration
from analysis.tables import Finished

#: Kinds of stages in words, in the order in which they run.
KINDS = {
    "data": "packing the dataset",
    "audit": "auditing the dataset",
    "pretrain": "pretraining",
    "score": "scoring trials on validation",
    "finetune": "fine-tuning",
    "features": "extracting features",
    "probe": "probing",
    "reuse": "comparing features",
    "ks": "comparing outputs",
}


@dataclass(frozen=True, kw_only=True)
class Spent:
    """Time of one kind of stages, of an arm's mean pretraining, or of all stages."""

    what: str  # as the page words it
    stages: int
    wall: float  # seconds
    accelerator: float  # seconds: wall times the accelerators held; 0 on a machine without any
    times: float | None = None  # an arm's cost as a multiple of the baseline's; None for the baseline and elsewhere


def by_kind(finished: Sequence[Finished]) -> list[Spent]:
    """A row a kind, and their total last; a stage shared by two arms ran once."""
    ran = {stage.name: stage for stage in finished}.values()
    rows = []
    for kind in dict.fromkeys([*KINDS, *(stage.kind for stage in ran)]):
        if those := [stage for stage in ran if stage.kind == kind]:
            rows.append(_spent(KINDS.get(kind, kind), those))
    return [*rows, _spent("all stages", list(ran))]


def by_arm(finished: Sequence[Finished], baseline: str | None) -> list[Spent]:
    """What one pretraining of each arm took, the mean over its finished seeds; `what` is the arm's key.

    Multiples of the baseline's are of accelerator time where both have any, else of wall time, over the seeds that both
    have.
    """
    runs: dict[str, dict[object, Finished]] = {}
    for stage in finished:
        if stage.kind == "pretrain" and stage.labels.get("arm") is not None:
            runs.setdefault(str(stage.labels["arm"]), {})[stage.labels.get("seed")] = stage
    rows = []
    for arm, mine in runs.items():
        wall, accelerator = ([getattr(s, f"{of}_seconds") for s in mine.values()] for of in ("wall", "accelerator"))
        times = None if arm == baseline else _times(mine, runs.get(baseline or "", {}))
        rows.append(Spent(what=arm, stages=len(mine), wall=fmean(wall), accelerator=fmean(accelerator), times=times))
    return rows


def sentence(finished: Sequence[Finished], baseline: str | None) -> str:
    """The summary's last: what the study took, and what the arms' pretraining takes more than the baseline's."""
    *_, total = by_kind(finished)
    if not total.stages:
        return ""
    held = f"{hours(total.accelerator)} of accelerator time" if total.accelerator else "no accelerator"
    one = total.stages == 1
    took = f"{'stage' if one else 'stages'} took {duration(total.wall)}{'' if one else ' one after the other'}"
    text = f"{'The one' if one else f'The {total.stages}'} finished {took} and {held}"
    arms = {each.what: each for each in by_arm(finished, baseline)}
    dearer = [f"{_more(each.times)} with {arm_name(arm)}" for arm, each in arms.items() if each.times]
    if baseline in arms and dearer:
        own = arms[baseline]
        took = f"{hours(own.accelerator)} of accelerator time" if own.accelerator else duration(own.wall)
        text += f"; a pretraining took {took} with {arm_name(own.what)}, {_listed(dearer)}"
    return f"{text}."


def hours(seconds: float) -> str:
    """Accelerator time as it is paid for: `3.2 hours`; below a tenth of an hour in minutes and seconds."""
    return f"{seconds / 3600:,.1f} hours" if seconds >= 360 else duration(seconds)


def _spent(what: str, stages: Sequence[Finished]) -> Spent:
    wall, accelerator = (sum(getattr(s, f"{of}_seconds") for s in stages) for of in ("wall", "accelerator"))
    return Spent(what=what, stages=len(stages), wall=wall, accelerator=accelerator)


def _times(mine: dict[object, Finished], other: dict[object, Finished]) -> float | None:
    common = mine.keys() & other.keys()
    for of in ("accelerator_seconds", "wall_seconds"):
        ours, theirs = (sum(getattr(runs[seed], of) for seed in common) for runs in (mine, other))
        if ours and theirs:
            return float(ours / theirs)
    return None


def _more(times: float) -> str:
    """`38% more`, `7% less`, `the same`, `2.3 times that`."""
    percent = round(100 * (times - 1))
    if times >= 2:
        return f"{times:.1f} times that"
    return "the same" if percent == 0 else f"{abs(percent)}% {'more' if percent > 0 else 'less'}"


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
