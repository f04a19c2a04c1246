"""What was studied, in words: dataset, losses of each arm, settings that arms share, and what limits the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from analysis.names import arm_name

SPLITS = {"train": "training", "val": "validation", "test": "test"}
_LOSSES = ("mse", "barlow")
_MOST_CLASSES = 30


def losses(config: Mapping[str, Any] | None) -> str:
    """An arm's training objective; `config` is its resolved pretraining, None for no pretraining."""
    if config is None:
        return "No pretraining: downstream training starts from random weights."
    parts = []
    if mse := config.get("mse"):
        whole = mse.get("pool") == "gap" or (mse.get("pool") == "auto" and _cropped(config))
        pooled = "pooled to one value a channel" if whole else "pooled to a coarse grid"
        parts.append(
            f"the mean squared error between the two views' features after {_blocks(mse)}, {pooled}, "
            f"{_weight(mse.get('scale'))}"
        )
    if barlow := config.get("barlow"):
        parts.append(
            f"the Barlow Twins loss, which brings the two views' cross-correlation close to the identity, after "
            f"{_blocks(barlow)}, {_weight(barlow.get('scale'))} "
            f"(projector {barlow.get('width')} wide, lambda {_plain(barlow.get('lambd'))})"
        )
    return f"InfoNCE plus {', plus '.join(parts)}." if parts else "InfoNCE alone: plain MoCo."


def differences(arms: Mapping[str, Mapping[str, Any] | None]) -> dict[str, dict[str, str]]:
    """Settings besides the losses in which pretrained arms differ: key to (arm to value). Empty in a clean ablation."""
    flat = _flat_arms(arms)
    keys = dict.fromkeys(key for settings in flat.values() for key in settings)
    return {
        key: {arm: _plain(settings.get(key)) for arm, settings in flat.items()}
        for key in keys
        if len({repr(settings.get(key)) for settings in flat.values()}) > 1
    }


def shared(arms: Mapping[str, Mapping[str, Any] | None]) -> dict[str, str]:
    """The settings that pretrained arms have in common, by their key in the study's YAML."""
    flat = _flat_arms(arms)
    apart = differences(arms)
    return {key: _plain(value) for key, value in next(iter(flat.values()), {}).items() if key not in apart}


def class_counts(dataset: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Images of each class in each split that the summary counts; of many classes the first ones and how many more."""
    counts = dataset.get("classes", {})
    names = [str(name) for name in dataset.get("class_names", ())]
    rows = [(name, [_whole(counts.get(split, {}).get(name)) for split in SPLITS]) for name in names[:_MOST_CLASSES]]
    if len(names) > _MOST_CLASSES:
        rows.append((f"and {len(names) - _MOST_CLASSES} more", ["" for _ in SPLITS]))
    return rows


def split_counts(dataset: Mapping[str, Any], key: str) -> list[str]:
    """`n` or `groups` of each split."""
    return [_whole(dataset.get(key, {}).get(split)) for split in SPLITS]


def images(dataset: Mapping[str, Any]) -> str:
    """`1,797 grey images of 32 by 32 pixels in 10 classes`."""
    total = sum(dataset.get("n", {}).values())
    colour = {1: "grey ", 3: "colour "}.get(dataset.get("channels", 0), "")
    size = f" of {dataset['size']} by {dataset['size']} pixels" if "size" in dataset else ""
    noun = "labels, any number of which may apply" if dataset.get("task") == "multilabel" else "classes"
    classes = f" in {len(dataset['class_names'])} {noun}" if dataset.get("class_names") else ""
    return f"{total:,} {colour}images{size}{classes}"


def has_groups(dataset: Mapping[str, Any]) -> bool:
    """Whether groups (patients, slides) hold several images each."""
    return bool(dataset.get("groups")) and dataset.get("groups") != dataset.get("n")


def caveats(
    dataset: Mapping[str, Any],
    arms: Mapping[str, Mapping[str, Any] | None],
    downstream: Mapping[str, Any] | None = None,
) -> list[tuple[str, str]]:
    """(heading, text) of what the numbers do and do not show; some depend on the dataset, the arms and `downstream`,
    the resolved fine-tuning."""
    downstream = downstream or {}
    by_group = has_groups(dataset) and downstream.get("resample") != "images"
    unit = "groups (such as patients)" if by_group else "images"
    labels = downstream.get("labels") or {}
    shared_labels = "first weights and batches" if labels.get("per_arm") else "label subset, first weights and batches"
    found = [
        (
            "Intervals and seeds answer different questions.",
            f"The 95% bootstrap interval resamples the {unit} of the test split within one run: how much another test "
            "set of this size would move its score. How much another training run would move it, only seeds tell. "
            "Seeds are therefore the unit of every comparison between arms, paired because arms of a seed share their "
            f"{shared_labels}.",
        ),
        _choice(downstream),
        (
            "One dataset is one dataset.",
            "Nothing here says how the arms compare on another modality, hospital, scanner or population.",
        ),
        (
            "CKA measures similarity, not quality.",
            "That features stayed as they were can mean that they were already useful, or that training barely moved "
            "them. Values marked † are uninformative: with that kernel, unrelated features would score as high. They "
            "are shown and not ranked. The authors' kernel saturates easily; prefer the debiased ones.",
        ),
        (
            "KS mixes performance with calibration.",
            "A model can be far from the reference because it ranks images worse or because it is more or less "
            "confident. Calibration error and Brier score stand beside it for that reason. A distance no larger than "
            "the noise floor, which is that between seeds of the reference, means no difference; where the reference "
            "has one seed, no distance is ranked.",
        ),
        (
            "The paper's interval is no confidence interval.",
            "Mean ± 1.96 sd / √replicates shrinks with the number of replicates. The CSV files hold it as paper_low "
            "and paper_high for comparison with the published tables, and nothing here is judged by it.",
        ),
    ]
    if has_groups(dataset) and not by_group:
        found.append(
            (
                "The intervals take images of one group for independent.",
                "Images of the same patient or slide resemble each other, so these intervals are narrower than they "
                "would be over groups.",
            )
        )
    if labels.get("per_arm"):
        found.append(
            (
                "Each arm saw labels of its own.",
                "Part of a difference between arms at a small label fraction is the luck of the draw. Verdicts there "
                "pair by seed, which stays a fair test, and not by label subset: the column paired_by says where.",
            )
        )
    if dataset.get("channels") == 1:
        found.append(
            (
                "The images are grey.",
                "Changes of saturation and hue and the conversion to grey do nothing to them; only brightness, "
                "contrast, blur and geometry make the two views differ.",
            )
        )
    for arm, width, batch, floor in _narrow_batches(arms):
        found.append(
            (
                f"{arm_name(arm)}: the projector is wider than the batch.",
                f"With {width} features and {batch} samples, the sum of squared off-diagonal correlations cannot fall "
                f"below about {floor:,} whatever the features are; part of that loss is a constant.",
            )
        )
    found.append(
        (
            "Not for clinical use.",
            "These models are research results. As the paper says, they should not be deployed without sufficient "
            "evaluation and proper regulatory approval, by the FDA or its counterpart elsewhere.",
        )
    )
    return found


def _choice(downstream: Mapping[str, Any]) -> tuple[str, str]:
    """On whose weights were tested."""
    test = "The KS reference is chosen on the validation split only; every score here is of the test split. "
    nested = "Label fractions are nested: the images of a smaller one lie within every larger one."
    if downstream.get("evaluate") == "last":
        return ("The last weights were tested, not the best on validation.", test + nested)
    return (
        "Models were chosen on validation.",
        "Early stopping and the KS reference look at the validation split only; every score here is of the test "
        f"split. {nested}",
    )


def _narrow_batches(arms: Mapping[str, Mapping[str, Any] | None]) -> list[tuple[str, int, int, int]]:
    """(arm, width d, batch N, floor) of arms whose Barlow term has a floor of about d^2 / (N - 1) - d, since d > N."""
    found = []
    for arm, config in arms.items():
        width = ((config or {}).get("barlow") or {}).get("width", 0)
        batch = (config or {}).get("batch_size", 0)
        if width > batch > 1:
            found.append((arm, width, batch, round(width**2 / (batch - 1) - width)))
    return found


def _flat_arms(arms: Mapping[str, Mapping[str, Any] | None]) -> dict[str, dict[str, Any]]:
    return {
        arm: {k: v for k, v in _flat(config).items() if k.split(".")[0] not in (*_LOSSES, "seed")}
        for arm, config in arms.items()
        if config is not None
    }


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _blocks(loss: Mapping[str, Any]) -> str:
    blocks = [str(b) for b in loss.get("blocks", ())]
    return (
        f"block {blocks[0]}"
        if len(blocks) == 1
        else f"blocks {', '.join(blocks[:-1])} and {blocks[-1]}"
        if blocks
        else "no block"
    )


def _weight(scale: Any) -> str:
    if scale == "auto":
        return "weighted so that each block's loss equals InfoNCE at the start"
    many = isinstance(scale, Sequence) and not isinstance(scale, str)
    return f"weighted {'/'.join(map(_plain, scale)) if many else _plain(scale)}"


def _cropped(config: Mapping[str, Any]) -> bool:
    augment = config.get("augment") or {}
    return bool(augment.get("crop")) and augment["crop"][0] < 1


def _plain(value: Any) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:g}"
        case list() | tuple():
            return ", ".join(map(_plain, value))
        case _:
            return str(value)


def _whole(count: Any) -> str:
    return "–" if count is None else f"{count:,}"
