"""Study to stages: a pure function. What depends on what, and nothing about how or where it runs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ssl_core.config import LabelsConfig, Mode, PretrainConfig
from ssl_core.data.config import DatasetConfig
from tune_jobs.stage import Demand, Stage
from tune_jobs.study import Downstream, Resources, Study

#: Splits of which features are kept: all for probing, the test split for comparing a model before and after.
ALL_SPLITS, TEST_SPLIT = [0, 1, 2], [2]


@dataclass(frozen=True)
class Plan:
    """The stages of a study, inputs before the stages that need them. A key may occur under several labels."""

    stages: tuple[Stage, ...]
    datasets: Mapping[str, DatasetConfig] = field(default_factory=dict)  # by the key of the stage that packs it

    @cached_property
    def by_key(self) -> Mapping[str, Stage]:
        """Each distinct stage once, under the labels it was first planned with."""
        unique: dict[str, Stage] = {}
        for stage in self.stages:
            unique.setdefault(stage.key, stage)
        return unique

    def of_kind(self, kind: str) -> Iterator[Stage]:
        return (s for s in self.stages if s.kind == kind)


def plan(study: Study, fingerprint: str | Mapping[DatasetConfig, str]) -> Plan:
    """Every stage of the study on the dataset with this fingerprint, or one for each way of packing it (`datasets`)."""
    prints = dict.fromkeys(datasets(study), fingerprint) if isinstance(fingerprint, str) else fingerprint
    data = {config: data_stage(config, prints[config]) for config in datasets(study)}
    return Plan(tuple(_stages(study, data)), {stage.key: config for config, stage in data.items()})


def datasets(study: Study) -> list[DatasetConfig]:
    """The study's dataset, then the ways in which arms have it packed otherwise."""
    return list(dict.fromkeys([study.dataset, *(study.dataset_of(arm) for arm in study.arms)]))


def data_stage(dataset: DatasetConfig, fingerprint: str) -> Stage:
    """Packing of a dataset. Its path is no part of the identity: the fingerprint stands for the content."""
    return Stage(kind="data", config={"fingerprint": fingerprint, "name": dataset.name or dataset.source})


def _stages(study: Study, packed: Mapping[DatasetConfig, Stage]) -> Iterator[Stage]:
    yield from packed.values()
    yield Stage(kind="audit", config={}, inputs={"data": packed[study.dataset].key})
    reference_pool: list[Stage] = []
    for seed in study.seeds:
        for arm, config in study.arms.items():
            labels, data = {"arm": arm, "seed": seed}, packed[study.dataset_of(arm)]
            if config is None:
                for fraction in study.downstream.fractions:
                    stage = _finetune(study, labels, "scratch", fraction, data, None)
                    reference_pool.append(stage)
                    yield stage
                continue
            encoder = pretrain_stage(dataclasses.replace(config, seed=seed), study.resources, data.key, labels)
            yield encoder
            for fraction in study.downstream.linear_fractions:
                yield _finetune(study, labels, "linear", fraction, data, encoder)
            before = None
            if study.probe or study.reuse:
                before = _features(study, labels, "pretrained", encoder, data, ALL_SPLITS)
                yield before
                yield from _probes(study, labels, before, encoder, data)
            for fraction in study.downstream.fractions:
                tuned = _finetune(study, labels, "full", fraction, data, encoder)
                reference_pool.append(tuned)
                yield tuned
                if before and study.reuse and fraction in study.reuse_fractions:
                    after = _features(study, labels, f"full {100 * fraction:g}%", tuned, data, TEST_SPLIT)
                    yield after
                    yield _reuse(study, labels, fraction, before, after)
    if study.ks:
        yield _ks(study, reference_pool)


def pretrain_stage(
    config: PretrainConfig, resources: Resources, data: str, labels: Mapping[str, Any] | None = None
) -> Stage:
    """Pretraining under `config`, its seed in it, on the dataset whose stage has the key `data`."""
    values, workers = as_config(config), resources.workers
    if workers > 1 and config.batch_norm == "worker":
        values["workers"] = workers  # batch norm sees a worker's share of the batch, so the result differs
    demand = pretrain_demand(resources)
    return Stage(kind="pretrain", config=values, inputs={"data": data}, labels=labels or {}, demand=demand)


def _finetune(
    study: Study, labels: Mapping[str, Any], mode: Mode, fraction: float, data: Stage, pretrained: Stage | None
) -> Stage:
    arm, downstream = study.arms[labels["arm"]], study.downstream_of(labels["arm"])
    template = downstream.linear if mode == "linear" else downstream.full
    config = dataclasses.replace(
        template,
        encoder=arm.encoder if arm else study.encoder,
        mode=mode,
        fraction=fraction,
        seed=labels["seed"],
        labels=labels_of(downstream, labels["arm"]),
        metric=downstream.metric,
        bootstrap=downstream.bootstrap,
        resample=downstream.resample,
        paper_spread=downstream.paper_spread,
    )
    inputs = {"data": data.key} | ({"encoder": pretrained.key} if pretrained else {})
    labels = {**labels, "mode": mode, "label_fraction": fraction}
    demand = downstream_demand(study.resources, shares=mode == "linear")
    return Stage(kind="finetune", config=as_config(config), inputs=inputs, labels=labels, demand=demand)


def labels_of(downstream: Downstream, arm: str) -> LabelsConfig:
    """How an arm draws its labels: as all do, unless the study lets each draw for itself."""
    labels = downstream.labels
    return dataclasses.replace(labels, salt=arm) if labels.per_arm else labels


def _features(
    study: Study,
    labels: Mapping[str, Any],
    of: str,
    weights: Stage,
    data: Stage,
    splits: list[int],
    moved: Mapping[str, Any] | None = None,
) -> Stage:
    """`moved`: how a pass over the training images moves batch norm's statistics first; None: they stay."""
    norm = {"norm": "fixed"} if moved is None else {"norm": "moving", **moved}
    return Stage(
        kind="features",
        config={"splits": splits, **norm},
        inputs={"data": data.key, weights.kind: weights.key},
        labels={**labels, "of": of},
        demand=downstream_demand(study.resources, shares=True),
    )


def _probes(study: Study, labels: Mapping[str, Any], features: Stage, encoder: Stage, data: Stage) -> Iterator[Stage]:
    """Probes are linear runs: where those let batch norm's statistics move, the probes' features have moved too."""
    if study.probe is None:
        return
    downstream = study.downstream_of(labels["arm"])
    if downstream.linear.frozen_norm == "moving":
        moved = {"norm_batch": downstream.linear.batch_size, "seed": labels["seed"]}
        features = _features(study, labels, "statistics moved", encoder, data, ALL_SPLITS, moved)
        yield features
    drawn = labels_of(downstream, labels["arm"])
    for fraction in study.probe_fractions:
        yield Stage(
            kind="probe",
            config=as_config(dataclasses.replace(study.probe, fraction=fraction, labels=drawn, seed=labels["seed"])),
            inputs={"features": features.key},
            labels={**labels, "mode": "probe", "label_fraction": fraction},
            demand=_cpu(study),
        )


def _reuse(study: Study, labels: Mapping[str, Any], fraction: float, before: Stage, after: Stage) -> Stage:
    assert study.reuse is not None
    config = as_config(dataclasses.replace(study.reuse, seed=labels["seed"]))
    return Stage(
        kind="reuse",
        config={**config, "label_fraction": fraction},
        inputs={"before": before.key, "after": after.key},
        labels={**labels, "mode": "full", "label_fraction": fraction},
        demand=_cpu(study),
    )


def _ks(study: Study, models: list[Stage]) -> Stage:
    """One stage for the study: the reference is chosen among all arms and seeds that are tested on the same images."""
    own = as_config(study.downstream.full)
    models = [m for m in models if _tested_on(m.config) == _tested_on(own)]
    config = {**as_config(study.ks), "models": [{**m.labels, "input": m.key} for m in models]}
    return Stage(kind="ks", config=config, inputs={m.key: m.key for m in models}, demand=_cpu(study))


def _tested_on(finetuning: Mapping[str, Any]) -> int | None:
    """What decides which test images are scored: with `drop_last` the batch size, else all are."""
    return finetuning["batch_size"] if finetuning["drop_last"] else None


def demand_of(resources: Resources) -> Demand:
    """What a stage of one worker asks for."""
    accelerators = resources.accelerators
    return Demand(
        cpus=resources.cpus,
        accelerators=None if accelerators == "auto" else accelerators,
        restarts=resources.restarts,
    )


def downstream_demand(resources: Resources, *, shares: bool) -> Demand:
    """What a fine-tuning or an extraction of features asks for. A lone worker that trains no encoder shares."""
    demand = dataclasses.replace(demand_of(resources), workers=resources.downstream_workers)
    if not shares or demand.workers > 1:
        return demand
    share, given = resources.accelerator_share, demand.accelerators
    return dataclasses.replace(demand, share=share, accelerators=None if given is None else min(given, share))


def pretrain_demand(resources: Resources) -> Demand:
    """What a pretraining asks for."""
    return dataclasses.replace(
        demand_of(resources),
        workers=resources.workers,
        least_workers=resources.least_workers,
        checkpoint_seconds=resources.checkpoint_seconds,
    )


def _cpu(study: Study) -> Demand:
    return Demand(cpus=study.resources.cpus)


def as_config(config: Any) -> dict[str, Any]:
    """A configuration dataclass as a stage's config: plain JSON values."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain
