"""From a study's raw YAML values to the study: laid over its protocol, defaults filled in, everything checked once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from analysis.config import DecisionConfig, KsConfig, ProbeConfig, ReuseConfig
from ssl_core.config import AugmentConfig, EncoderConfig, FinetuneConfig, Precision, PretrainConfig
from ssl_core.data.config import DatasetConfig
from ssl_core.errors import ConfigError, nearest
from tune_jobs.coherence import (
    check_comparable,
    check_elastic,
    check_fractions,
    check_seeds,
    check_whole,
    label_fraction,
)
from tune_jobs.promotion.config import PromotionConfig
from tune_jobs.protocol import PROTOCOLS, Protocol, base
from tune_jobs.schema import build, merge, plain
from tune_jobs.search.config import SearchConfig
from tune_jobs.search.space import Space
from tune_jobs.study import PACKING, SCORE_SET, SET_BY_STUDY, SHARED, Downstream, Resources, Study, Tracking

#: Characters of a study's or an arm's name: it is the name of a folder, or of a run in MLflow.
LONGEST_NAME = 100
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_-]{{0,{LONGEST_NAME - 1}}}")
#: Folders of the output that all studies share.
RESERVED = ("stages", "mlartifacts")
#: What a trial is before its parameters are laid on it, by the loss that is on.
_BASES: Mapping[str, Mapping[str, Any]] = {
    "none": {},
    "mse": {"mse": {}},
    "barlow": {"barlow": {}},
    "both": {"mse": {}, "barlow": {}},
}

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class _File:
    """The YAML's top level. Sections whose defaults depend on others stay raw until they are merged."""

    study: str
    dataset: DatasetConfig
    question: str = ""
    protocol: Protocol = "recommended"
    seeds: tuple[int, ...] = (0, 1, 2)
    baseline: str | None = None
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    normalise: bool = True
    precision: Precision = "auto"  # of training; what was trained is evaluated in float32
    pretrain: dict[str, Any] = field(default_factory=dict)
    mse: dict[str, Any] = field(default_factory=dict)  # settings of every arm that has this loss
    barlow: dict[str, Any] = field(default_factory=dict)
    arms: dict[str, Any] = field(default_factory=dict)
    downstream: dict[str, Any] = field(default_factory=dict)
    probe: dict[str, Any] | None = field(default_factory=dict)
    reuse: dict[str, Any] | None = field(default_factory=dict)
    ks: dict[str, Any] | None = field(default_factory=dict)
    search: dict[str, Any] | None = None
    decision: DecisionConfig = field(default_factory=DecisionConfig)
    resources: Resources = field(default_factory=Resources)
    tracking: Tracking = field(default_factory=Tracking)
    promotion: PromotionConfig = field(default_factory=PromotionConfig)


def resolve(raw: Mapping[str, Any]) -> Study:
    """A study from the parsed YAML, laid over the protocol it names; ConfigError names the key and the remedy."""
    file, zero_init = _file(raw)
    if not _NAME.fullmatch(file.study):
        raise ConfigError(f"study: name {file.study!r} may hold letters, digits, - and _ alone, {LONGEST_NAME} at most")
    if file.study in RESERVED:
        raise ConfigError(f"study: the folder {file.study} of the output is not a study's; choose another name")
    check_seeds(file.seeds)
    shared = {
        "encoder": file.encoder,
        "augment": file.augment,
        "normalise": file.normalise,
        "precision": file.precision,
    }
    if not file.arms:
        raise ConfigError("arms: name at least one, e.g. `arms: {moco: {}, supervised: scratch}`")
    arms, apart, packed = {}, {}, {}
    for name, given in file.arms.items():
        arm = _arm_values(name, given)
        if own := arm.pop("downstream", None):
            apart[name] = _downstream(merge(file.downstream, own), shared, f"arms.{name}.downstream")
        if own := arm.pop("dataset", None):
            packed[name] = _repacked(file.dataset, own, f"arms.{name}.dataset")
        arms[name] = _arm(f"arms.{name}", arm, file, shared, zero_init)
    baseline = file.baseline or next(iter(arms))
    if baseline not in arms:
        raise ConfigError(f"baseline: no arm is called {baseline!r}{nearest(baseline, arms)}")
    downstream = _downstream(file.downstream, shared, "downstream")
    for name, own in apart.items():
        check_comparable(name, own, downstream)
    score = {"metric": downstream.metric, "bootstrap": downstream.bootstrap}
    unset = ("fraction", "seed", "labels")
    probe_fractions, probe = _section(ProbeConfig, file.probe, "probe", (1.0,), score, unset=unset)
    small = tuple(f for f in downstream.fractions if f < 1) or downstream.fractions
    reuse_fractions, reuse = _section(ReuseConfig, file.reuse, "reuse", small, {}, unset=("seed",))
    _, ks = _section(KsConfig, file.ks, "ks", (), {"metric": downstream.metric}, unset=())
    check_fractions("probe.fractions", probe_fractions)
    check_fractions("reuse.fractions", reuse_fractions, known=downstream.fractions)
    if ks is not None and 1.0 not in downstream.fractions:
        raise ConfigError(
            f"ks compares with a model trained on all labels: add 1.0 to downstream.fractions "
            f"{list(downstream.fractions)}, or set `ks: null`"
        )
    search = _search(file, shared, zero_init, downstream)
    label_fraction(file.decision, downstream)
    check_whole(
        "tracking.uri",
        file.tracking.uri,
        "leave it out and set MLFLOW_TRACKING_URI, or give the rest and MLFLOW_TRACKING_USERNAME and _PASSWORD",
    )
    check_whole(
        "search.storage",
        search.storage if search else None,
        "give the rest alone and the password by the database's own means, such as PGPASSFILE",
    )
    check_elastic(file.resources, {**arms, **({f"search {k}": v for k, v in search.bases.items()} if search else {})})
    return Study(
        study=file.study,
        question=file.question,
        protocol=file.protocol,
        dataset=file.dataset,
        seeds=file.seeds,
        baseline=baseline,
        encoder=file.encoder,
        arms=arms,
        downstream=downstream,
        tuned_apart={name: own for name, own in apart.items() if own != downstream},
        packed_apart={name: own for name, own in packed.items() if own != file.dataset},
        probe=probe,
        probe_fractions=probe_fractions,
        reuse=reuse,
        reuse_fractions=reuse_fractions,
        ks=ks,
        search=search,
        decision=file.decision,
        resources=file.resources,
        tracking=file.tracking,
        promotion=file.promotion,
    )


def _file(raw: Mapping[str, Any]) -> tuple[_File, bool]:
    """The top level over its protocol's settings, and whether residuals are zero-initialised by the arm's losses."""
    protocol = raw.get("protocol", "recommended")
    if protocol not in PROTOCOLS:
        raise ConfigError(f"protocol: there is no {protocol!r}{nearest(str(protocol), PROTOCOLS)}")
    dataset = raw.get("dataset")
    source = dataset.get("source") if isinstance(dataset, Mapping) else None
    values = merge(base(protocol, source), raw)
    encoder, by_losses = _zero_init(values.get("encoder"))
    return build(_File, values if encoder is None else {**values, "encoder": encoder}, ""), by_losses


def _zero_init(encoder: Any) -> tuple[Any, bool]:
    """`zero_init_residual: block_losses` is no setting of an encoder but a rule: true for arms that have any."""
    if not isinstance(encoder, Mapping) or encoder.get("zero_init_residual") != "block_losses":
        return encoder, False
    return {**encoder, "zero_init_residual": False}, True


def _arm_values(name: str, arm: Any) -> dict[str, Any]:
    where = f"arms.{name}"
    if not _NAME.fullmatch(str(name)):
        raise ConfigError(f"{where}: an arm's name may hold letters, digits, - and _ alone, {LONGEST_NAME} at most")
    if arm == "scratch":
        return {"scratch": True}
    if arm is not None and not isinstance(arm, dict):
        raise ConfigError(
            f"{where}: {arm!r} is no arm; write settings of its pretraining, {{}} for none of its own, "
            "or the word scratch for no pretraining"
        )
    return dict(arm or {})


def _arm(
    where: str, arm: dict[str, Any], file: _File, shared: Mapping[str, Any], zero_init: bool
) -> PretrainConfig | None:
    if arm.pop("scratch", False):
        if arm:
            raise ConfigError(f"{where}.{next(iter(arm))}: an arm without pretraining has downstream settings alone")
        return None
    values = merge(file.pretrain, arm)
    for loss, settings in (("mse", file.mse), ("barlow", file.barlow)):
        if isinstance(values.get(loss), Mapping):
            values[loss] = merge(settings, values[loss])
    own = arm.get("encoder")
    encoder, by_losses = _zero_init(own)
    if by_losses or (zero_init and not (isinstance(own, Mapping) and "zero_init_residual" in own)):
        has_losses = values.get("mse") is not None or values.get("barlow") is not None
        values["encoder"] = {**(encoder or {}), "zero_init_residual": has_losses}
    return build(PretrainConfig, values, where, shared=shared, unset=("seed",))


def _search(file: _File, shared: Mapping[str, Any], zero_init: bool, downstream: Downstream) -> SearchConfig | None:
    """What the study says of its search; its score is probed as the study probes, but for what it says itself."""
    if file.search is None:
        return None
    raw = dict(file.search)
    for key, example in (
        ("space", "{loss: [none, mse], ...}"),
        ("objectives", "[score]"),
        ("score", "{fraction: 0.01}"),
    ):
        if not raw.get(key):
            raise ConfigError(f"search.{key}: is missing; every search needs it, e.g. `{key}: {example}`")
    given = raw.pop("bases", None) or {}
    bases: dict[str, PretrainConfig] = {}
    for loss, default in _BASES.items():
        base = _arm(f"search.bases.{loss}", dict(given.get(loss, default)), file, shared, zero_init)
        assert base is not None  # nothing here says scratch
        bases[loss] = base
    score = dict(raw.pop("score"))
    if "fraction" not in score:
        raise ConfigError("search.score.fraction: name the label fraction that trials are judged at, e.g. 0.01")
    probed = {k: v for k, v in (file.probe or {}).items() if k not in ("fractions", "blocks", *SCORE_SET)}
    fixed = {"metric": downstream.metric, "labels": downstream.labels, "bootstrap": 0}
    raw["seeds"] = raw.get("seeds") or [max(file.seeds) + 1]
    typed = {
        "space": Space.read(raw.pop("space"), bases),
        "bases": bases,
        "score": build(ProbeConfig, {"blocks": [4], **probed, **score}, "search.score", shared=fixed, unset=SCORE_SET),
    }
    config = build(SearchConfig, raw, "search", shared=typed)
    if shared_seeds := sorted({*config.seeds} & {*file.seeds}):
        raise ConfigError(
            f"search.seeds: {shared_seeds} are seeds of the study too, so the winner would be judged by the luck it "
            f"won with; use others, e.g. [{max(file.seeds) + 1}]"
        )
    for number, start in enumerate(config.warm_starts):
        try:
            config.space.complete(start, bases)
        except ConfigError as error:
            raise ConfigError(f"search.warm_starts.{number}.{str(error).removeprefix('search.warm_starts.')}") from None
    return config


def _downstream(raw: Mapping[str, Any], shared: Mapping[str, Any], where: str) -> Downstream:
    raw = dict(raw)
    modes: dict[str, FinetuneConfig] = {}
    for mode in ("linear", "full"):
        section, given = raw.pop(mode, None) or {}, {**shared, "mode": mode}
        fixed = (*SET_BY_STUDY, *SHARED)
        modes[mode] = build(FinetuneConfig, section, f"{where}.{mode}", shared=given, unset=fixed)
    downstream = build(Downstream, raw, where, shared=modes)
    if downstream.labels.salt:
        raise ConfigError(f"{where}.labels.salt: is set by the study itself (per_arm)")
    check_fractions(f"{where}.fractions", downstream.fractions)
    check_fractions(f"{where}.linear_fractions", downstream.linear_fractions)
    return downstream


def _repacked(dataset: DatasetConfig, own: Any, where: str) -> DatasetConfig:
    """The study's images packed otherwise for one arm: the same images, labels and splits."""
    for key in own if isinstance(own, Mapping) else ():
        if key not in PACKING:
            raise ConfigError(
                f"{where}.{key}: arms are compared on the same images; only {', '.join(PACKING)} may be an arm's own"
            )
    return build(DatasetConfig, merge(plain(dataset), own) if isinstance(own, Mapping) else own, where)


def _section(
    cls: type[T],
    raw: Mapping[str, Any] | None,
    where: str,
    fractions: tuple[float, ...],
    shared: Mapping[str, Any],
    *,
    unset: tuple[str, ...],
) -> tuple[tuple[float, ...], T | None]:
    """An analysis' label fractions and config; null in the YAML leaves the analysis out."""
    if raw is None:
        return (), None
    raw = dict(raw)
    if fractions and "fractions" in raw:
        fractions = build(_Fractions, {"fractions": raw.pop("fractions")}, where).fractions
    return fractions, build(cls, raw, where, shared=shared, unset=unset, also=("fractions",) if fractions else ())


@dataclass(frozen=True, kw_only=True)
class _Fractions:
    fractions: tuple[float, ...]
