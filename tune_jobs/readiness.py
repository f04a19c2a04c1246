"""What must hold before a study's first stage runs: data packed and audited, its promises checked. Finds bad input."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ssl_core.data.config import DatasetConfig
from ssl_core.errors import ConfigError
from ssl_core.feasibility import check_pretrain, settle_queue
from tune_jobs.audit import audited
from tune_jobs.packing import Start
from tune_jobs.plan import Plan, labels_of
from tune_jobs.prepare import packed
from tune_jobs.store import Store
from tune_jobs.study import Study

if TYPE_CHECKING:
    from ssl_core.data.audit import Audit
    from ssl_core.data.dataset import Dataset


@dataclass(frozen=True)
class Ready:
    """A study's data, packed and audited."""

    datasets: Mapping[DatasetConfig, Dataset]  # the study's own first
    audit: Audit
    made: tuple[str, ...]  # keys of the stages made just now

    @property
    def dataset(self) -> Dataset:
        return next(iter(self.datasets.values()))


def make_ready(store: Store, full: Plan, facts: Mapping[str, Any], *, on_ray: Start) -> Ready:
    """Pack and audit what is not packed and audited. Whether the audit stops the study is `enforce`'s to say.

    Raises DataError for what is wrong with the data as a whole.
    """
    made: list[str] = []
    opened: dict[DatasetConfig, Dataset] = {}
    for stage in full.of_kind("data"):
        config = full.datasets[stage.key]
        opened[config], new = packed(config, store, stage, facts, on_ray=on_ray)
        made += [stage.key] * new
    stage = next(full.of_kind("audit"))
    audit, new = audited(store, stage, next(iter(opened.values())), facts)
    return Ready(opened, audit, (*made, *[stage.key] * new))


def checked(study: Study, ready: Ready) -> list[str]:
    """What to tell the user before the study runs, each once; ConfigError or DataError for what it asks in vain."""
    return [*dict.fromkeys(note for config, data in ready.datasets.items() for note in check(study, config, data))]


def check(study: Study, config: DatasetConfig, dataset: Dataset) -> list[str]:
    """ConfigError or DataError for what the study's arms ask of a dataset in vain; else what to tell the user."""
    if study.downstream.metric == "f1" and dataset.task == "multiclass":
        raise ConfigError(
            f"downstream.metric: f1 is the F1 of the positive class, {dataset.name} has {len(dataset.class_names)} "
            "classes; use f1_macro or auroc"
        )
    arms = [arm for arm in study.arms if study.dataset_of(arm) == config]
    facts = dataset.summary
    return [*_unlabelled(study, arms, dataset), *warnings(study, arms, facts["n"]["train"], facts["channels"])]


def warnings(study: Study, arms: Sequence[str], n_train: int, channels: int) -> list[str]:
    """What to say of pretraining on `n_train` images, each once with the arms that it is said of.

    Raises ConfigError where it cannot be.
    """
    said: dict[str, list[str]] = {}
    for name in arms:
        arm = study.arms[name]
        if arm is not None:
            try:
                found = check_pretrain(arm, n_train, study.resources.workers, channels)
            except ConfigError as error:
                raise ConfigError(f"arms.{name}: {error}") from None
            for warning in found:
                said.setdefault(warning, []).append(name)
    everyone = [name for name in study.arms if study.arms[name] is not None]
    return [warning if names == everyone else f"arms.{', '.join(names)}: {warning}" for warning, names in said.items()]


def queues(study: Study, n_train: int) -> dict[str, int]:
    """Keys that each arm's queue holds, settled for so many training images."""
    arms = {name: settle_queue(arm, n_train).moco.queue for name, arm in study.arms.items() if arm is not None}
    return {name: int(keys) for name, keys in arms.items()}


def _unlabelled(study: Study, arms: Sequence[str], dataset: Dataset) -> Iterator[str]:
    """Every label fraction is drawn once, as it will be: DataError where it cannot hold what it must."""
    from ssl_core.data.labels import absent_outcomes, label_subset

    down = study.downstream
    fractions = sorted({*down.fractions, *down.linear_fractions, *study.probe_fractions})
    drawn = dict.fromkeys((labels_of(study.downstream_of(arm), arm), seed) for arm in arms for seed in study.seeds)
    for labels, seed in drawn:
        for fraction in fractions:
            rows = label_subset(
                dataset.labels, dataset.splits, fraction=fraction, seed=seed, config=labels, groups=dataset.groups
            )
            absent = absent_outcomes(dataset.labels, rows, dataset.class_names)
            if absent:
                arm = f", arm {labels.salt}" if labels.salt else ""
                yield f"label fraction {fraction:g}, seed {seed}{arm}: holds no {', '.join(absent)}"
