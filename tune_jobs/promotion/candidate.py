"""Which fine-tuned model is to be shipped: one stage of the study, with those of its arm's other seeds."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from ssl_core.config import Metric
from ssl_core.errors import DataError, InputError, StageError, nearest
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
    """What `intermoco best` recommends, or of the arm and seed asked for what it compares.

    Raises InputError where there is no such arm or seed, or nothing of it is finished.
    """
    from tune_jobs.best import decide

    study = found.study
    if arm is not None and arm not in study.arms:
        raise InputError(f"--arm {arm}: study {study.study} has no such arm{nearest(arm, study.arms)}")
    if seed is not None and seed not in study.seeds:
        raise InputError(f"--seed {seed}: study {study.study} has the seeds {', '.join(map(str, study.seeds))}")
    decision = decide(found, store)
    model = decision.chosen if arm is None else decision.models.get(arm)
    if model is None:
        raise InputError(f"--arm {arm}: none of its models is finished in {store.root}; run the study on")
    why = f"intermoco best recommends {model.arm}" if arm is None else f"arm {model.arm} was asked for"
    siblings = {
        int(s.labels["seed"]): s
        for s in found.plan.of_kind("finetune")
        if (s.labels["arm"], s.labels["mode"]) == (model.arm, model.mode)
        and s.labels["label_fraction"] == decision.label_fraction
        and store.finished(s)
    }
    chosen = model.seed if seed is None else seed
    if chosen not in siblings:
        raise InputError(f"--seed {seed}: its model of {model.arm} is not finished in {store.root}; run the study on")
    why += f"; seed {chosen} " + ("is its best on validation" if seed is None else "was asked for")
    stage = siblings[chosen]
    return Candidate(stage, found.plan.by_key[stage.inputs["data"]], siblings, why)


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


def champions_standing(tags: Mapping[str, str], store: Store) -> Standing | str:
    """How the champion's arm does, from the stages that its version's tags name (`lineage.tags`).

    Where that cannot be known: why, in words.
    """
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
