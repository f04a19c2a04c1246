"""What a user may set about the method: frozen, typed, checked once at construction. No torch is imported here.

Values without a source in their comment are `recommended` in protocol terms. Lists are tuples; a YAML reader may hand
in lists and strings, because `__pydantic_config__` forbids unknown keys wherever these classes are read from a file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from ssl_core.errors import ConfigError

BLOCKS = (1, 2, 3, 4)
#: Pixels a side of the pooled maps that the mse loss compares, blocks 1-4 (paper section 3.2.1).
MSE_GRID = {1: 16, 2: 16, 3: 4, 4: 4}

Arch = Literal["resnet18", "resnet34", "resnet50", "resnet101"]
Precision = Literal["auto", "float32", "bf16"]
Mode = Literal["linear", "full", "scratch"]
Metric = Literal["auroc", "f1", "f1_macro"]
Scale = float | tuple[float, ...] | Literal["auto"]

_STRICT: dict[str, Any] = {"extra": "forbid"}


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise ConfigError(message)


def _check_blocks(blocks: tuple[int, ...], scale: Scale, loss: str) -> None:
    unknown = [b for b in blocks if b not in BLOCKS]
    _require(not unknown, f"{loss}: block {unknown} does not exist; blocks are 1, 2, 3 and 4")
    _require(len(set(blocks)) == len(blocks), f"{loss}: a block is named twice in {list(blocks)}")
    if isinstance(scale, str):
        _require(scale == "auto", f"{loss}: scale {scale!r} is no number; write auto, one number, or one a block")
        return
    scales = scale if isinstance(scale, tuple) else (scale,)
    _require(
        not isinstance(scale, tuple) or len(scale) == len(blocks),
        f"{loss}: {len(scales)} scales for {len(blocks)} blocks; give one number, or one a block",
    )
    _require(all(0 <= s < float("inf") for s in scales), f"{loss}: scale {scale} must be finite and not negative")


def scale_of(scale: Scale, blocks: tuple[int, ...]) -> dict[int, float]:
    """Scale of each block's loss: `scale` holds one number for all of `blocks`, or one for each in their order.

    `auto` is to be settled first, by measuring (see `ssl_core.pretraining`).
    """
    if isinstance(scale, str):
        raise ConfigError("scale auto has no numbers before it is measured")
    return dict(zip(blocks, scale if isinstance(scale, tuple) else (scale,) * len(blocks), strict=True))


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """A torchvision ResNet without its classifier."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT
    arch: Arch = "resnet50"  # paper section 4.1
    stem: Literal["standard", "small"] = "standard"  # small: 3x3 stride 1, no max pooling, for images under about 40 px
    zero_init_residual: bool = True  # the same for every arm: the authors set it only where block losses are on


@dataclass(frozen=True, kw_only=True)
class MocoConfig:
    """Momentum contrast (paper section 3.1)."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT
    queue: int | Literal["auto"] = "auto"  # K, negative keys kept; auto: 65,536, or the most that queue_limit allows
    temperature: float = 0.07
    momentum: float = 0.996  # of the key encoder's moving average
    dim: int = 128  # of the embedding
    head: Literal["linear", "mlp"] = "mlp"  # MoCo v1, or v2's two layers
    mask: Literal["none", "image", "group"] = "group"  # negatives left out: keys of the same image, or of its group
    queue_limit: float | None = 0.5  # the queue's largest share of the training set; null allows any
    # Several workers: keys are encoded in another worker's batch, so that batch norm cannot give the positive away.
    # undone: keys and block maps come back in the order of their queries; embedding: the keys alone do (the authors');
    # none: each worker encodes its own keys. One worker has nothing to shuffle.
    shuffle_keys: Literal["undone", "embedding", "none"] = "undone"

    def __post_init__(self) -> None:
        if isinstance(self.queue, str):
            _require(self.queue == "auto", f"moco.queue {self.queue!r} is no number; write auto, or the number of keys")
        else:
            _require(self.queue >= 1, f"moco.queue {self.queue} must be at least 1")
        _require(self.temperature > 0, f"moco.temperature {self.temperature} must be above 0")
        _require(0 <= self.momentum <= 1, f"moco.momentum {self.momentum} must lie in [0, 1]")
        _require(self.dim >= 1, f"moco.dim {self.dim} must be at least 1")
        _require(
            self.queue_limit is None or self.queue_limit > 0,
            f"moco.queue_limit {self.queue_limit} must be above 0, or null for no limit",
        )


@dataclass(frozen=True, kw_only=True)
class MseConfig:
    """Mean squared error between the two views' block maps (paper section 3.2.1)."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT
    blocks: tuple[int, ...] = BLOCKS
    scale: Scale = "auto"  # the paper's number is 0.25; auto: each block's loss equals InfoNCE at the start (4.1)
    # grid: 16, 16, 4, 4 pixels a side, or the map's own side where that is less; gap: one pixel; auto: grid where both
    # views keep the image's geometry, gap where they are cropped
    pool: Literal["grid", "gap", "auto"] = "auto"

    def __post_init__(self) -> None:
        _check_blocks(self.blocks, self.scale, "mse")


@dataclass(frozen=True, kw_only=True)
class BarlowConfig:
    """Cross-correlation of the two views' projected block features against the identity (paper section 3.2.2)."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT
    blocks: tuple[int, ...] = BLOCKS
    scale: Scale = "auto"  # the paper's number is 5e-5; auto: each block's loss equals InfoNCE at the start (4.1)
    width: int = 2048  # d, of each of the projector's layers
    layers: int = 3  # linear layers of the projector; all but the last are followed by batch norm and ReLU
    lambd: float = 0.0051  # weight of the redundancy term
    centred: bool = True  # correlation of centred features; the paper's formula does not centre

    def __post_init__(self) -> None:
        _check_blocks(self.blocks, self.scale, "barlow")
        _require(self.width >= 1, f"barlow.width {self.width} must be at least 1")
        _require(self.layers >= 1, f"barlow.layers {self.layers} must be at least 1")
        _require(self.lambd >= 0, f"barlow.lambd {self.lambd} must not be negative")


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random views of an image; each sample draws its own parameters. Colour operations do nothing to grey images."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT
    crop: tuple[float, float] | None = None  # smallest and largest share of the area kept; null: no crop
    flip: float = 0.0  # probability of a horizontal flip
    rotate: float = 0.0  # degrees, drawn from [-rotate, rotate]
    jitter: float = 0.8  # probability of colour jitter
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    grey: float = 0.2  # probability
    blur: float = 0.5  # probability
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # pixels

    def __post_init__(self) -> None:
        for name in ("flip", "jitter", "grey", "blur"):
            _require(0 <= getattr(self, name) <= 1, f"augment.{name} {getattr(self, name)} must lie in [0, 1]")
        for name in ("brightness", "contrast", "saturation"):
            _require(0 <= getattr(self, name) < 1, f"augment.{name} {getattr(self, name)} must lie in [0, 1)")
        _require(0 <= self.hue <= 0.5, f"augment.hue {self.hue} must lie in [0, 0.5]")
        _require(0 <= self.rotate <= 180, f"augment.rotate {self.rotate} must lie in [0, 180] degrees")
        if self.crop is not None:
            _require(0 < self.crop[0] <= self.crop[1] <= 1, f"augment.crop {self.crop} must be 0 < low <= high <= 1")
        low, high = self.blur_sigma
        _require(0 < low <= high, f"augment.blur_sigma {self.blur_sigma} must be 0 < low <= high")


#: Views as they are: no random operation.
NO_AUGMENT = AugmentConfig(jitter=0.0, grey=0.0, blur=0.0)


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """One arm's pretraining. The total loss is InfoNCE + sum over blocks of scale x block loss (paper section 4.1)."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    moco: MocoConfig = field(default_factory=MocoConfig)
    mse: MseConfig | None = None
    barlow: BarlowConfig | None = None
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    epochs: int = 50
    batch_size: int = 256  # of all workers together
    learning_rate: float = 0.03  # SGD, at `learning_rate_batch` samples a batch
    learning_rate_batch: int | None = 256  # the rate grows with batch_size / this; null: taken as it is
    sgd_momentum: float = 0.9
    weight_decay: float = 1e-4
    decay_norms: bool = False  # whether norms and biases decay too
    # Several workers: batch norm over each worker's own share of the batch, or over all of it as one worker would
    batch_norm: Literal["worker", "sync"] = "worker"
    # samples of the global batch whose activations are in memory at once; null: all; auto: half as many whenever an
    # accelerator's memory does not suffice. Batch norm sees no more than these; all else is as if there were none.
    micro_batch: int | Literal["auto"] | None = None
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_epochs: float = 1.0
    normalise: bool = True  # by the training set's mean and standard deviation a channel
    precision: Precision = "auto"  # auto: bf16 where the processor or accelerator multiplies it natively
    # pure: nothing changes by it; moving: the key encoder steps and validation keys are queued, as in the authors' code
    validation: Literal["pure", "moving"] = "pure"
    # last: the encoder after `epochs`; best: of the lowest validation loss, block terms included (the authors');
    # saturated: of the epoch at which that loss has not fallen for `saturation` epochs, where training stops (paper)
    keep: Literal["last", "best", "saturated"] = "last"
    saturation: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        _require(self.epochs >= 1, f"epochs {self.epochs} must be at least 1")
        _require(self.saturation >= 1, f"saturation {self.saturation} must be at least 1 epoch")
        _require(self.batch_size >= 2, f"batch_size {self.batch_size} must be at least 2")
        if isinstance(self.micro_batch, str):
            _require(self.micro_batch == "auto", f"micro_batch {self.micro_batch!r}: write auto, a number, or null")
        elif self.micro_batch is not None:
            _require(
                2 <= self.micro_batch <= self.batch_size,
                f"micro_batch {self.micro_batch} must lie in [2, batch_size {self.batch_size}]",
            )
        _require(self.learning_rate > 0, f"learning_rate {self.learning_rate} must be above 0")
        _require(
            self.learning_rate_batch is None or self.learning_rate_batch >= 1,
            f"learning_rate_batch {self.learning_rate_batch} must be at least 1, or null",
        )
        _require(0 <= self.sgd_momentum < 1, f"sgd_momentum {self.sgd_momentum} must lie in [0, 1)")
        _require(self.weight_decay >= 0, f"weight_decay {self.weight_decay} must not be negative")
        _require(self.warmup_epochs >= 0, f"warmup_epochs {self.warmup_epochs} must not be negative")
        _require(self.seed >= 0, f"seed {self.seed} must not be negative")

    @property
    def blocks(self) -> tuple[int, ...]:
        """Blocks that any loss looks at, ascending."""
        chosen = {b for loss in (self.mse, self.barlow) if loss is not None for b in loss.blocks}
        return tuple(sorted(chosen))


@dataclass(frozen=True, kw_only=True)
class LabelsConfig:
    """Which training labels a label fraction takes (paper section 3.3)."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT
    draw: Literal["stratified", "random"] = "stratified"  # random: whatever comes, as the authors drew
    unit: Literal["image", "group"] = "image"  # group: all images of a drawn group (patient), never some of them
    missing: Literal["refuse", "warn"] = "refuse"  # where a fraction cannot hold a positive of every class
    per_arm: bool = False  # whether each arm draws anew (the authors'); else all arms of a seed see the same labels
    salt: str = ""  # set by the study: the arm's name where `per_arm`


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """One downstream training run (paper section 3.3). Its text says no more than that the best on validation is kept;
    the defaults are AdamW with a cosine, stopped early on the score that is reported."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    mode: Mode = "full"  # linear: frozen encoder in eval mode; full: all weights; scratch: full from random weights
    fraction: float = 1.0  # share of the training labels seen
    labels: LabelsConfig = field(default_factory=LabelsConfig)
    epochs: int = 50
    min_steps: int = 200  # small fractions train at least this many steps, or early stopping ends them
    batch_size: int = 64
    optimiser: Literal["adamw", "adam"] = "adamw"
    learning_rate: float = 1e-3
    schedule: Literal["cosine", "constant"] = "cosine"
    weight_decay: float = 1e-4
    frozen_norm: Literal["fixed", "moving"] = "fixed"  # linear: moving lets batch norm's statistics follow the data
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    small_augment: Literal["same", "flip"] = "same"  # below all labels; flip: a horizontal flip alone (the authors')
    evaluations: int = 20  # validation passes spread over the run
    patience: int | None = 8  # evaluations without a better score before stopping; null: never
    evaluate: Literal["best", "last"] = "best"  # whose weights are tested: the best on validation, or the last
    metric: Metric = "auroc"
    select: Literal["metric", "auroc", "f1", "f1_macro", "accuracy"] = "metric"  # best by which validation score
    drop_last: bool = (
        False  # whether the incomplete last batch of a validation or test split is left out (the authors')
    )
    bootstrap: int = 1000  # replicates of the test intervals
    resample: Literal["groups", "images"] = "groups"  # what a replicate draws
    # what the paper's interval formula, shown beside ours, takes the deviation of: the score, or with several labels
    # (the authors') all labels' scores thrown together
    paper_spread: Literal["score", "labels"] = "score"
    normalise: bool = True
    # of the training and the evaluations that select; the selected weights are scored, stored and served in float32
    precision: Precision = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        _require(0 < self.fraction <= 1, f"label fraction {self.fraction} must lie in (0, 1]")
        for name in ("epochs", "batch_size", "evaluations"):
            _require(getattr(self, name) >= 1, f"{name} {getattr(self, name)} must be at least 1")
        _require(self.patience is None or self.patience >= 1, f"patience {self.patience} must be at least 1, or null")
        for name in ("min_steps", "bootstrap", "seed", "weight_decay"):
            _require(getattr(self, name) >= 0, f"{name} {getattr(self, name)} must not be negative")
        _require(self.learning_rate > 0, f"learning_rate {self.learning_rate} must be above 0")
