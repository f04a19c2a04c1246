"""Which fine-tuned model is to be shipped: one stage of the study, with those of its arm's other seeds."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ssl_core.config import Metric
from ssl_core.errors import DataError, InputError, StageError, nearest
from tune_jobs.plan import Plan
from tune_jobs.promotion.gates import Standing
from tune_jobs.search.promotion import Promoted
from tune_jobs.stage import Stage
from tune_jobs.store import Store

_KEY = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class Candidate:
    """A finished fine-tuning, and its arm's others of the same mode and label fraction."""

    stage: Stage
    data: Stage
    siblings: Mapping[int, Stage]  # by seed, this one among them; those that are finished
    why: str  # it is this one

    @property
    def arm(self) -> str:
        return str(self.stage.labels["arm"])

    @property
    def seed(self) -> int:
        return int(self.stage.labels["seed"])

    @property
    def metric(self) -> Metric:
        return cast(Metric, self.stage.config["metric"])

    @property
    def name(self) -> str:
        return f"{self.arm} ({self.stage.labels['mode']}, {100 * self.stage.labels['label_fraction']:g}% of the labels)"


def choose(found: Promoted, store: Store, *, arm: str | None, seed: int | None) -> Candidate:
    """The stage of the arm and seed asked for, at the largest label fraction; what is left open is recommended.

    Raises InputError where there is no such arm or seed, StageError where its stage is not finished.
    """
    study, full = found.study, found.plan
    if arm is not None and arm not in study.arms:
        raise InputError(f"--arm {arm}: study {study.study} has no such arm{nearest(arm, study.arms)}")
    if seed is not None and seed not in study.seeds:
        raise InputError(f"--seed {seed}: study {study.study} has the seeds {', '.join(map(str, study.seeds))}")
    stages = _shippable(full)
    finished = [s for s in stages if store.finished(s)]
    fitting = [s for s in finished if arm in (None, s.labels["arm"]) and seed in (None, s.labels["seed"])]
    if not fitting:
        asked = " ".join([*([f"arm {arm}"] if arm else []), *([f"seed {seed}"] if seed is not None else [])])
        raise StageError(
            f"no fine-tuning {f'of {asked} ' if asked else ''}is finished in {store.root}; run the study first, with "
            "the same --output and --set"
        )
    scores = {s.key: validation_score(store.path(s), s.config["metric"]) for s in finished}
    if arm is None:
        arm = _best_arm(fitting, scores)
        why = f"arm {arm} has the highest mean score on validation"
    else:
        why = f"arm {arm} was asked for"
    of_arm = [s for s in fitting if s.labels["arm"] == arm]
    stage = max(of_arm, key=lambda s: scores[s.key])  # the first among equals
    why += f"; seed {stage.labels['seed']} " + ("was asked for" if seed is not None else "is its best on validation")
    siblings = {s.labels["seed"]: s for s in finished if s.labels["arm"] == arm and _setting(s) == _setting(stage)}
    return Candidate(stage, data_of(full, stage), siblings, why)


def _shippable(full: Plan) -> list[Stage]:
    """Fine-tunings of all weights on the largest fraction of the labels."""
    tuned = [s for s in full.of_kind("finetune") if s.labels["mode"] != "linear"]
    largest = max(s.labels["label_fraction"] for s in tuned)
    return [s for s in tuned if s.labels["label_fraction"] == largest]


def _best_arm(stages: Sequence[Stage], scores: Mapping[str, float]) -> str:
    by_arm: dict[str, list[float]] = {}
    for stage in stages:
        by_arm.setdefault(str(stage.labels["arm"]), []).append(scores[stage.key])
    return max(by_arm, key=lambda arm: sum(by_arm[arm]) / len(by_arm[arm]))


def _setting(stage: Stage) -> tuple[Any, ...]:
    return stage.labels["mode"], stage.labels["label_fraction"]


def data_of(full: Plan, stage: Stage) -> Stage:
    """The stage that packed a fine-tuning's images."""
    return full.by_key[stage.inputs["data"]]


def validation_score(folder: Path, metric: Metric) -> float:
    """Of a finished fine-tuning's validation predictions."""
    from analysis.predictions import read
    from ssl_core.metrics import score

    found = read(folder, "val")
    return score(metric, found.labels, found.probabilities, found.task)


def standing(candidate: Candidate, store: Store) -> Standing:
    """How the candidate's arm does on validation, from its finished seeds."""
    folders = {seed: store.path(stage) for seed, stage in sorted(candidate.siblings.items())}
    return _standing(candidate.name, candidate.metric, candidate.data.config["fingerprint"], folders)


def told(candidate: Candidate) -> dict[str, str]:
    """The tags by which a later promotion finds how this candidate stands (`champions_standing`)."""
    keys = {str(seed): stage.key for seed, stage in sorted(candidate.siblings.items())}
    return {
        "intermoco.candidate": candidate.name,
        "intermoco.metric": candidate.metric,
        "intermoco.fingerprint": candidate.data.config["fingerprint"],
        "intermoco.seeds": json.dumps(keys),
    }


def champions_standing(tags: Mapping[str, str], store: Store) -> Standing | str:
    """How the champion's arm does, from the stages that its version's tags name; or why that cannot be known."""
    try:
        name, metric, fingerprint, seeds = (
            tags[f"intermoco.{key}"] for key in ("candidate", "metric", "fingerprint", "seeds")
        )
        keys = {int(seed): str(key) for seed, key in json.loads(seeds).items()}
    except (KeyError, ValueError, AttributeError):
        return "its version has no tags that lead to a study's stages"
    folders = {}
    for seed, key in keys.items():
        if not _KEY.fullmatch(key):  # it becomes a path, and anyone may write tags
            return f"its tag intermoco.seeds names {key!r}, which is no stage"
        try:
            folders[seed] = store.find("finetune", key)
        except StageError:
            return f"{name} seed {seed}, stage finetune-{key}, is not in {store.stages}"
    try:
        return _standing(name, cast(Metric, metric), fingerprint, folders)
    except DataError as error:
        return str(error)


def _standing(name: str, metric: Metric, fingerprint: str, folders: Mapping[int, Path]) -> Standing:
    scores = {seed: validation_score(folder, metric) for seed, folder in folders.items()}
    images = {_images(folder) for folder in folders.values()}
    if len(images) > 1:
        raise DataError(f"seeds of {name} were scored on different validation images; run the study again")
    return Standing(name, metric, fingerprint, images.pop() if images else "", scores)


def _images(folder: Path) -> str:
    """Digest of the validation images that a fine-tuning was scored on, and their labels."""
    from analysis.predictions import read

    found = read(folder, "val")
    sha = hashlib.sha256("\n".join(found.ids.tolist()).encode())
    sha.update(found.labels.astype("int64").tobytes())
    return sha.hexdigest()
