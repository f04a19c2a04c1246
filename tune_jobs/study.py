"""A study: one question, one YAML file, resolved into one frozen, validated value before anything runs."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from analysis.config import KsConfig, ProbeConfig, ReuseConfig
from ssl_core.config import AugmentConfig, EncoderConfig, FinetuneConfig, Metric, Precision, PretrainConfig
from ssl_core.data.config import DatasetConfig
from ssl_core.errors import ConfigError, nearest

PRESETS = Path(__file__).parent / "presets"
_STRICT: dict[str, Any] = {"extra": "forbid"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What stages ask of the cluster. Changes no result and no identity (but `workers` above 1, see the plan)."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT
    workers: int = 1  # Ray Train workers of one pretraining
    cpus: int = 1  # of a worker, and of every other stage
    accelerators: float | Literal["auto"] = "auto"  # of a worker; auto: one where the cluster has any
    checkpoint_seconds: float = 60.0  # between a pretraining's checkpoints, taken at an epoch's end

    def __post_init__(self) -> None:
        for name in ("workers", "cpus"):
            if getattr(self, name) < 1:
                raise ConfigError(f"resources.{name} {getattr(self, name)} must be at least 1")
        if self.accelerators != "auto" and self.accelerators < 0:
            raise ConfigError(f"resources.accelerators {self.accelerators} must not be negative")
        if self.checkpoint_seconds < 0:
            raise ConfigError(f"resources.checkpoint_seconds {self.checkpoint_seconds} must not be negative")


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """Where MLflow is. Without a uri: SQLite below the output folder."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT
    uri: str | None = None
    experiment: str | None = None  # the study's name where not given


@dataclass(frozen=True, kw_only=True)
class Downstream:
    """Fine-tuning: which label fractions, in which modes, with which settings."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT
    metric: Metric = "auroc"
    bootstrap: int = 1000
    fractions: tuple[float, ...] = (0.01, 0.06, 1.0)  # modes full and scratch (paper Table 2)
    linear_fractions: tuple[float, ...] = (1.0,)  # mode linear (paper Table 1)
    linear: FinetuneConfig = field(default_factory=lambda: FinetuneConfig(mode="linear"))
    full: FinetuneConfig = field(default_factory=FinetuneConfig)  # scratch trains as full does


@dataclass(frozen=True, kw_only=True)
class Study:
    """Everything a study is, resolved. An arm is its pretraining, or None for `scratch`: no pretraining."""

    study: str
    question: str = ""
    dataset: DatasetConfig
    seeds: tuple[int, ...]
    baseline: str
    encoder: EncoderConfig
    arms: Mapping[str, PretrainConfig | None]
    downstream: Downstream
    probe: ProbeConfig | None
    probe_fractions: tuple[float, ...]
    reuse: ReuseConfig | None
    reuse_fractions: tuple[float, ...]
    ks: KsConfig | None
    resources: Resources
    tracking: Tracking

    def to_yaml(self) -> str:
        """The study with every default written out; reading it back gives an equal study."""
        return yaml.safe_dump(_plain(self), sort_keys=False, allow_unicode=True, width=110)


@dataclass(frozen=True, kw_only=True)
class _File:
    """The YAML's top level. Sections whose defaults depend on others stay raw until they are merged."""

    study: str
    dataset: DatasetConfig
    question: str = ""
    seeds: tuple[int, ...] = (0, 1, 2)
    baseline: str | None = None
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    precision: Precision = "auto"
    pretrain: dict[str, Any] = field(default_factory=dict)
    arms: dict[str, Any] = field(default_factory=dict)
    downstream: dict[str, Any] = field(default_factory=dict)
    probe: dict[str, Any] | None = field(default_factory=dict)
    reuse: dict[str, Any] | None = field(default_factory=dict)
    ks: dict[str, Any] | None = field(default_factory=dict)
    resources: Resources = field(default_factory=Resources)
    tracking: Tracking = field(default_factory=Tracking)


def load(source: str, overrides: Sequence[str] = ()) -> Study:
    """The study that `source` names (a YAML file, or a packaged preset), with `key.path=value` overrides applied.

    Raises ConfigError for an unknown study or key (naming the nearest valid ones) and for an impossible value.
    """
    raw = _read(source)
    for override in overrides:
        _override(raw, override)
    return resolve(raw)


def resolve(raw: Mapping[str, Any]) -> Study:
    """A study from the parsed YAML; ConfigError names the key and the remedy."""
    file = _build(_File, dict(raw), "")
    if not _NAME.fullmatch(file.study):
        raise ConfigError(f"study: name {file.study!r} may hold letters, digits, - and _ alone")
    _check_seeds(file.seeds)
    shared = {"encoder": file.encoder, "augment": file.augment, "precision": file.precision}
    arms = {name: _arm(name, arm, file.pretrain, shared) for name, arm in file.arms.items()}
    if not arms:
        raise ConfigError("arms: name at least one, e.g. `arms: {moco: {}, supervised: scratch}`")
    baseline = file.baseline or next(iter(arms))
    if baseline not in arms:
        raise ConfigError(f"baseline: no arm is called {baseline!r}{nearest(baseline, arms)}")
    downstream = _downstream(file.downstream, shared)
    score = {"metric": downstream.metric, "bootstrap": downstream.bootstrap}
    probe_fractions, probe = _section(ProbeConfig, file.probe, "probe", (1.0,), score, unset=("fraction", "seed"))
    small = tuple(f for f in downstream.fractions if f < 1) or downstream.fractions
    reuse_fractions, reuse = _section(ReuseConfig, file.reuse, "reuse", small, {}, unset=("seed",))
    _, ks = _section(KsConfig, file.ks, "ks", (), {"metric": downstream.metric}, unset=())
    _check_fractions("probe.fractions", probe_fractions)
    _check_fractions("reuse.fractions", reuse_fractions, known=downstream.fractions)
    if ks is not None and 1.0 not in downstream.fractions:
        raise ConfigError(
            f"ks compares with a model trained on all labels: add 1.0 to downstream.fractions "
            f"{list(downstream.fractions)}, or set `ks: null`"
        )
    return Study(
        study=file.study,
        question=file.question,
        dataset=file.dataset,
        seeds=file.seeds,
        baseline=baseline,
        encoder=file.encoder,
        arms=arms,
        downstream=downstream,
        probe=probe,
        probe_fractions=probe_fractions,
        reuse=reuse,
        reuse_fractions=reuse_fractions,
        ks=ks,
        resources=file.resources,
        tracking=file.tracking,
    )


def _read(source: str) -> dict[str, Any]:
    path = Path(source)
    if path.suffix not in {".yaml", ".yml"} and not path.is_file():
        presets = {p.stem: p for p in PRESETS.glob("*.yaml")}
        if source not in presets:
            raise ConfigError(f"study {source!r} is neither a YAML file nor a packaged study{nearest(source, presets)}")
        path = presets[source]
    try:
        raw = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"study {source}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"study {source}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"study {source}: expected keys and values at the top level, found {type(raw).__name__}")
    return raw


def _override(raw: dict[str, Any], override: str) -> None:
    """Apply one `--set key.path=value`; the value is read as YAML."""
    path, equals, text = override.partition("=")
    if not equals or not path.strip():
        raise ConfigError(f"--set {override!r}: write key=value, e.g. --set seeds=[0,1,2] or --set pretrain.epochs=10")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r}: the value is not valid YAML") from error
    *parents, last = path.strip().split(".")
    node = raw
    for depth, key in enumerate(parents):
        child = node.get(key)
        if child is None:
            child = node[key] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"--set {override!r}: {'.'.join(parents[: depth + 1])} is {child!r}, it holds no keys")
        node = child
    node[last] = value


def _arm(name: str, arm: Any, base: Mapping[str, Any], shared: Mapping[str, Any]) -> PretrainConfig | None:
    where = f"arms.{name}"
    if not _NAME.fullmatch(str(name)):
        raise ConfigError(f"{where}: an arm's name may hold letters, digits, - and _ alone")
    if arm == "scratch":
        return None
    if arm is not None and not isinstance(arm, dict):
        raise ConfigError(
            f"{where}: {arm!r} is no arm; write settings of its pretraining, {{}} for none of its own, "
            "or the word scratch for no pretraining"
        )
    return _build(PretrainConfig, _merge(base, arm or {}), where, shared=shared, unset=("seed",))


def _downstream(raw: Mapping[str, Any], shared: Mapping[str, Any]) -> Downstream:
    raw = dict(raw)
    fixed = ("mode", "fraction", "seed", "encoder", "metric", "bootstrap")
    modes: dict[str, FinetuneConfig] = {}
    for mode in ("linear", "full"):
        section, given = raw.pop(mode, None) or {}, {**shared, "mode": mode}
        modes[mode] = _build(FinetuneConfig, section, f"downstream.{mode}", shared=given, unset=fixed)
    downstream = _build(Downstream, raw, "downstream", shared=modes)
    _check_fractions("downstream.fractions", downstream.fractions)
    _check_fractions("downstream.linear_fractions", downstream.linear_fractions)
    return downstream


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
        fractions = _build(_Fractions, {"fractions": raw.pop("fractions")}, where).fractions
    return fractions, _build(cls, raw, where, shared=shared, unset=unset, also=("fractions",) if fractions else ())


@dataclass(frozen=True, kw_only=True)
class _Fractions:
    fractions: tuple[float, ...]


def _check_fractions(where: str, fractions: tuple[float, ...], known: tuple[float, ...] | None = None) -> None:
    for fraction in fractions:
        if not 0 < fraction <= 1:
            raise ConfigError(f"{where}: {fraction} must lie in (0, 1]; 0.01 is one percent of the training labels")
        if known is not None and fraction not in known:
            raise ConfigError(f"{where}: {fraction} is not among downstream.fractions {list(known)}; add it there")
    if len(set(fractions)) < len(fractions):
        raise ConfigError(f"{where}: a fraction is named twice in {list(fractions)}")


def _check_seeds(seeds: tuple[int, ...]) -> None:
    if not seeds:
        raise ConfigError("seeds: name at least one, e.g. `seeds: [0, 1, 2]`")
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ConfigError(f"seeds: {list(seeds)} must be distinct and not negative")


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`; mappings merge key by key, everything else replaces."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def _build(
    cls: type[T],
    raw: Mapping[str, Any],
    where: str,
    *,
    shared: Mapping[str, Any] | None = None,
    unset: tuple[str, ...] = (),
    also: tuple[str, ...] = (),
) -> T:
    """`cls` from raw YAML values laid over `shared` ones. `unset` names fields that the study sets, not its author."""
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{where}: expected keys and values, found {raw!r}")
    _check_keys(cls, raw, where, unset=unset, also=also)
    values = {
        key: _merge(_plain(value), raw[key])
        if isinstance(raw.get(key), dict) and dataclasses.is_dataclass(value)
        else raw.get(key, value)
        for key, value in (shared or {}).items()
    }
    try:
        return TypeAdapter(cls).validate_python({**raw, **values})
    except ValidationError as error:
        first = error.errors()[0]
        # a dataclass in a union reports its own name as a step of the path: not a key that the author wrote
        path = [str(step) for step in first["loc"] if str(step)[:1].islower() or str(step).isdigit()]
        key = ".".join([*([where] if where else []), *path])
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, ConfigError):
            text = str(cause).removeprefix(f"{path[-1]}: ") if path else str(cause)
            raise ConfigError(f"{key}: {text}" if key else text) from None
        if first["type"] == "missing":
            raise ConfigError(f"{key}: is missing; every study needs it") from None
        message = first["msg"][:1].lower() + first["msg"][1:]
        raise ConfigError(f"{key}: {message}, found {first['input']!r}") from None


def _check_keys(
    cls: Any, raw: Mapping[Any, Any], where: str, *, unset: tuple[str, ...] = (), also: tuple[str, ...] = ()
) -> None:
    """ConfigError at the first key that `cls`, or a section within it, does not have; names the nearest it has."""
    hints = typing.get_type_hints(cls)
    fields = {f.name for f in dataclasses.fields(cls)} - set(unset) | set(also)
    prefix = f"{where}." if where else ""
    for key, value in raw.items():
        if key in unset:
            raise ConfigError(f"{prefix}{key}: is set by the study itself (seeds, fractions, shared sections)")
        if key not in fields:
            raise ConfigError(f"{prefix}{key}: no such key{nearest(str(key), fields)}")
        section = _dataclass_of(hints.get(key))
        if section is not None and isinstance(value, Mapping):
            _check_keys(section, value, f"{prefix}{key}")


def _dataclass_of(hint: Any) -> Any:
    """The dataclass that a field's type is, or is optionally; None for any other type."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return next((o for o in options if dataclasses.is_dataclass(o)), None)


def _plain(value: Any) -> Any:
    """Dataclasses as mappings and tuples as lists, ready for YAML."""
    match value:
        case Study():
            return _plain_study(value)
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        case Mapping():
            return {k: _plain(v) for k, v in value.items()}
        case tuple() | list():
            return [_plain(v) for v in value]
        case _:
            return value


def _plain_study(study: Study) -> dict[str, Any]:
    """The resolved study in the schema of its YAML: what the study sets itself is left out again."""

    def without(config: Any, *names: str) -> dict[str, Any]:
        return {k: v for k, v in _plain(config).items() if k not in names}

    down = study.downstream
    fixed = ("mode", "fraction", "seed", "encoder", "metric", "bootstrap")
    return {
        "study": study.study,
        "question": study.question,
        "dataset": _plain(study.dataset),
        "seeds": list(study.seeds),
        "baseline": study.baseline,
        "encoder": _plain(study.encoder),
        "arms": {name: "scratch" if arm is None else without(arm, "seed") for name, arm in study.arms.items()},
        "downstream": {
            "metric": down.metric,
            "bootstrap": down.bootstrap,
            "fractions": list(down.fractions),
            "linear_fractions": list(down.linear_fractions),
            "linear": without(down.linear, *fixed),
            "full": without(down.full, *fixed),
        },
        "probe": study.probe and {**without(study.probe, "fraction", "seed"), "fractions": list(study.probe_fractions)},
        "reuse": study.reuse and {**without(study.reuse, "seed"), "fractions": list(study.reuse_fractions)},
        "ks": study.ks and _plain(study.ks),
        "resources": _plain(study.resources),
        "tracking": _plain(study.tracking),
    }
