"""The gates before a model becomes champion: pure functions, each a sentence with pass or fail.

All of them look at validation images alone: the test set is for the model card, which judges nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from analysis.names import metric_name
from ssl_core.data.dataset import Task

if TYPE_CHECKING:
    from ssl_core.data.evidence import Finding

#: How far a reloaded model's probabilities may lie from those that it was evaluated by, on the same kind of device.
TOLERANCE = 1e-6
#: What `--force` may let pass. The bounds of others are settings of the study, and the rest say what is broken.
FORCEABLE = ("champion",)


@dataclass(frozen=True)
class Gate:
    """One question and its answer. `numbers` are what the sentence says, for programs."""

    name: str
    passed: bool
    sentence: str
    numbers: Mapping[str, Any] = field(default_factory=dict)

    @property
    def forceable(self) -> bool:
        return self.name in FORCEABLE


@dataclass(frozen=True)
class Standing:
    """How an arm does on the validation images: one score a seed, all in one metric on one dataset."""

    name: str  # as a person knows it
    metric: str
    fingerprint: str  # of the dataset
    images: str  # digest of the validation images' ids and labels
    scores: Mapping[int, float]


def beats_champion(candidate: Standing, champion: Standing | str | None) -> Gate:
    """Whether the candidate's arm is better than the champion's with a verdict, paired by seed.

    champion: its standing; why it cannot be known; or None where there is no champion.
    """
    match champion:
        case None:
            return Gate("champion", True, "there is no champion yet, so there is none to beat")
        case str():
            return _incomparable(champion)
    for what, ours, theirs in (
        ("other data", candidate.fingerprint, champion.fingerprint),
        ("other validation images", candidate.images, champion.images),
        ("another metric", metric_name(candidate.metric), metric_name(champion.metric)),
    ):
        if ours != theirs:
            return _incomparable(f"{champion.name} was evaluated on {what} ({theirs[:16]}, here {ours[:16]})")
    return _compared(candidate, champion)


def _incomparable(why: str) -> Gate:
    return Gate(
        "champion",
        False,
        f'the champion cannot be compared with: {why}; evaluate both in one study, or give --force --reason "..."',
    )


def _compared(candidate: Standing, champion: Standing) -> Gate:
    import pandas as pd

    from analysis.significance import verdicts

    rows = [
        {"arm": arm, "seed": seed, "metric": of.metric, "value": value}
        for arm, of in (("champion", champion), ("candidate", candidate))
        for seed, value in of.scores.items()
    ]
    judged = verdicts(pd.DataFrame(rows), "champion")
    metric = metric_name(candidate.metric)
    if judged.empty or not judged["n"].iloc[0]:
        return _incomparable(f"{champion.name} and {candidate.name} have no seed in common")
    row = judged.iloc[0]
    effect, low, high, n, p = (float(row[name]) for name in ("effect", "low", "high", "n", "p"))
    numbers = {"effect": effect, "low": _or_none(low), "high": _or_none(high), "seeds": int(n), "p": p}
    interval = "" if math.isnan(low) else f" (95% interval {low:+.4f} to {high:+.4f})"
    sentence = (
        f"{candidate.name} against {champion.name}, the champion, on validation: {metric} {effect:+.4f}{interval} over "
        f"{int(n)} paired seed{'s' * (n > 1)}, exact p {p:.3g}: {row['verdict']}"
    )
    passed = row["verdict"] == "better"
    return Gate("champion", passed, sentence if passed else f'{sentence}; else give --force --reason "..."', numbers)


def calibration(ece: float, bound: float, images: int) -> Gate:
    """The expected calibration error on validation, of the probabilities that would be served."""
    passed = ece <= bound  # NaN does not pass
    said = f"calibration error (ECE) {ece:.4f} on {images:,} validation images, {bound:g} is allowed"
    remedy = "" if passed else "; promotion.temperature: true scales the probabilities, promotion.ece is the bound"
    return Gate("calibration", passed, said + remedy, {"ece": _or_none(ece), "bound": bound, "n": images})


def worst_class(values: Sequence[float], names: Sequence[str], floor: float, task: Task) -> Gate:
    """The class (label) that fares worst on validation: by recall, multi-label by AUROC."""
    word, measure = ("label", "AUROC") if task == "multilabel" else ("class", "recall")
    unknown = [name for name, value in zip(names, values, strict=True) if math.isnan(value)]
    if unknown:
        said = f"{word} {', '.join(unknown)} has no validation image, so nothing vouches for it; move some there"
        return Gate("worst class", False, said, {"value": None, "floor": floor, "class": unknown[0]})
    worst = min(range(len(values)), key=values.__getitem__)
    value, passed = values[worst], values[worst] >= floor
    remedy = "" if passed else "; promotion.worst_class is the floor"
    said = f"worst {word} {names[worst]}: {measure} {value:.4f} on validation, at least {floor:g} is asked for{remedy}"
    return Gate("worst class", passed, said, {"value": value, "floor": floor, "class": names[worst]})


def leaks(stopping: Sequence[Finding] | None, accepted: Sequence[Finding]) -> Gate:
    """stopping: what the audit found that stops a study and is not accepted; None where there is no audit."""
    if stopping is None:
        return Gate("leaks", False, "the data was not audited; run `intermoco data` on the study", {"found": None})
    names = [finding.name for finding in stopping]
    numbers = {"found": names, "accepted": [finding.name for finding in accepted]}
    if stopping:
        said = "; ".join(f"{finding.name}: {finding.text}" for finding in stopping)
        return Gate("leaks", False, f"{said}; mend the data, or accept it by name: dataset.accept", numbers)
    if accepted:
        said = ", ".join(finding.name for finding in accepted)
        return Gate("leaks", True, f"the audit found {said}, which the study accepts by name (dataset.accept)", numbers)
    return Gate("leaks", True, "the audit found nothing that stops a study", numbers)


def weights(recorded: Mapping[str, str], found: Mapping[str, str]) -> Gate:
    """Whether the files that the model is made of are those that were evaluated: SHA-256 by name."""
    differing = sorted(name for name in {*recorded, *found} if recorded.get(name) != found.get(name))
    numbers = {"recorded": dict(recorded), "found": dict(found)}
    if differing:
        name = differing[0]
        said = (
            f"{name} has the digest {found.get(name, 'nothing')[:16]}, the manifest of its evaluation says "
            f"{recorded.get(name, 'nothing')[:16]}: it was changed since; remove the stage and run the study again"
        )
        return Gate("weights", False, said, numbers)
    names = " and ".join(sorted(recorded))
    return Gate("weights", True, f"{names} have the digests that the manifest of their evaluation says", numbers)


@dataclass(frozen=True)
class Reloaded:
    """What a packaged model said in a process of its own, against the stored probabilities."""

    images: int
    difference: float  # the largest of any probability
    evaluated: str  # device of the evaluation, as its manifest says
    device: str  # of the reload
    tolerance: float = TOLERANCE
    error: str | None = None  # why it said nothing
    sources: tuple[int, float] | None = None  # original files tried too, and the largest difference there


def reloads(found: Reloaded) -> Gate:
    """Whether the packaged model, loaded anew without Ray, predicts what the evaluation stored."""
    numbers = {
        "images": found.images,
        "difference": _or_none(found.difference),
        "tolerance": found.tolerance,
        "device": found.device,
        "sources": found.sources and {"files": found.sources[0], "difference": _or_none(found.sources[1])},
    }
    if found.error is not None:
        said = f"the packaged model could not be tried in a process of its own: {found.error}"
        return Gate("reload", False, said, numbers)
    tried = [(found.difference, found.images, "validation images")] if found.images or not found.sources else []
    tried += [(found.sources[1], found.sources[0], "original files")] if found.sources else []
    passed = all(d <= found.tolerance for d, _, _ in tried) and any(n for _, n, _ in tried)
    where = "" if found.device == found.evaluated else f"; evaluated on {found.evaluated}, reloaded on {found.device}"
    said = (
        "loaded anew in a process of its own without Ray: largest difference from the stored probabilities "
        f"{', '.join(f'{d:.2g} on {n:,} {what}' for d, n, what in tried)} ({found.tolerance:.2g} is allowed{where})"
    )
    if not passed:
        said += "; these weights are not those that were evaluated, or the package does other preprocessing"
    return Gate("reload", passed, said, numbers)


def _or_none(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None
