"""What is wrong with a packed dataset, before a study spends days on it: leaks between splits, and what else to know.

`audit` reads only what packing left beside the pixels, sorts rows and never compares all with all. Findings that stop
a study are those of `ssl_core.data.config.ACCEPTABLE`; every other is a note.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ssl_core.data.dataset import SPLITS, TRAIN, Dataset
from ssl_core.data.evidence import EXAMPLES, Finding, Packed, comparable, counted, listed, stop
from ssl_core.data.leaks import duplicates_across, duplicates_within, groups_across, near_duplicates_across
from ssl_core.data.likeness import THUMB

__all__ = ["Audit", "Finding", "audit", "queue_findings", "stopping"]

FEW_POSITIVES = 5  # images of a class in a split below which its score is mostly chance
IMBALANCE = 10.0  # times that the commonest class outnumbers the rarest, from where it is worth a word
UPSAMPLED = 4.0  # times that a stored side was enlarged, above which most packed pixels are invented


@dataclass(frozen=True, kw_only=True)
class Audit:
    """All findings, those that stop a study first, and the counts that a reader wants beside them."""

    findings: tuple[Finding, ...] = ()
    classes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # split -> class -> images (positives)
    groups: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # split -> images, groups, largest group

    def as_rows(self) -> list[dict[str, Any]]:
        """The findings as JSON-able dicts: name, count, examples, severity, text."""
        return [finding.as_row() for finding in self.findings]

    def as_json(self) -> dict[str, Any]:
        """Everything, JSON-able; `from_json` reads it."""
        return {
            "findings": self.as_rows(),
            "classes": {split: dict(counts) for split, counts in self.classes.items()},
            "groups": {split: dict(counts) for split, counts in self.groups.items()},
        }

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Audit:
        findings = tuple(Finding(**{**row, "examples": tuple(row["examples"])}) for row in facts["findings"])
        return cls(findings=findings, classes=facts["classes"], groups=facts["groups"])


def stopping(audit: Audit, accept: Sequence[str]) -> list[Finding]:
    """The findings that stop a study whose YAML accepts those named in `accept`."""
    return [f for f in audit.findings if f.severity == "stops" and f.name not in accept]


def audit(dataset: Dataset, folder: Path) -> Audit:
    """Audit the dataset packed in `folder`.

    Raises DataError where `folder` lacks what packing leaves for the audit, or holds it for other rows.
    """
    packed = Packed.open(dataset, folder)
    found = (
        groups_across(dataset),
        duplicates_across(packed),
        near_duplicates_across(packed),
        _unreadable(packed),
        *duplicates_within(packed),
        *_classes(dataset),
        *_stored(packed),
        *_groups(dataset),
    )
    findings = [f for f in found if f is not None]
    return Audit(
        findings=tuple(sorted(findings, key=lambda f: f.severity != "stops")),
        classes=dataset.summary["classes"],
        groups=_group_counts(dataset),
    )


def _unreadable(packed: Packed) -> Finding | None:
    count = len(packed.unreadable)
    if not count:
        return None
    examples = tuple(f"{name}: {reason}" for name, reason in packed.unreadable[:EXAMPLES])
    reasons = Counter(reason for _, reason in packed.unreadable).most_common(3)
    common = f" Reasons: {', '.join(f'{reason} ({n})' for reason, n in reasons)}." if count > EXAMPLES else ""
    return stop(
        "unreadable_images",
        count,
        examples,
        f"{counted(count, 'listed image')} could not be read and {'is' if count == 1 else 'are'} left out: "
        f"{listed(examples, count)}.{common} Fetch or repair the files, or take them off the list.",
    )


def _classes(dataset: Dataset) -> Iterable[Finding]:
    counts = dataset.summary["classes"]
    sizes = dataset.summary["n"]
    word = "positive" if dataset.task == "multilabel" else "image"
    absent = [f"{name} in {split}" for split, of in counts.items() for name, n in of.items() if n == 0]
    if dataset.task == "multilabel":
        absent += [
            f"negatives of {name} in {split}"
            for split, of in counts.items()
            for name, n in of.items()
            if n == sizes[split]
        ]
    if absent:
        yield Finding(
            name="absent_classes",
            count=len(absent),
            examples=tuple(absent[:EXAMPLES]),
            text=f"There is no {word} of {listed(absent)}, so no score is defined there. Move groups between the "
            "splits, or merge or drop the class.",
        )
    few = [
        f"{name} in {split} ({n})" for split, of in counts.items() for name, n in of.items() if 0 < n < FEW_POSITIVES
    ]
    if few:
        yield Finding(
            name="few_positives",
            count=len(few),
            examples=tuple(few[:EXAMPLES]),
            text=f"Fewer than {FEW_POSITIVES} {word}s stand behind {listed(few)}: a score there is mostly chance. "
            "Read its interval, or merge the class.",
        )
    train = {name: n for name, n in counts[SPLITS[TRAIN]].items() if n}
    if train:
        rare, common = min(train, key=lambda k: train[k]), max(train, key=lambda k: train[k])
        ratio = train[common] / train[rare]
        if ratio >= IMBALANCE:
            yield Finding(
                name="class_imbalance",
                count=round(ratio),
                examples=(rare, common),
                text=f"In train, {common} ({train[common]}) is {ratio:.0f} times as common as {rare} ({train[rare]}): "
                "accuracy says little; report AUROC, or F1 of each class.",
            )


def _stored(packed: Packed) -> Iterable[Finding]:
    size = packed.dataset.size
    found = (
        (
            "constant_images",
            packed.constant,
            "hold one value in every pixel, so there is nothing to learn from. Check the files and, for more than 8 "
            "bits, dataset.intensity.",
        ),
        (
            "upsampled_images",
            packed.stored * UPSAMPLED < size,
            f"are stored so small that packing enlarged them more than {UPSAMPLED:g} times to {size} px: most of their "
            "pixels are invented. Lower dataset.size, or leave such images out.",
        ),
        (
            "tiny_images",
            packed.stored < THUMB,
            f"are stored with a side below {THUMB} px: little of an anatomy is left. Take larger originals where there "
            "are any.",
        ),
        (
            "deep_images",
            packed.bits > 8,
            "have more than 8 bits a channel and were packed to 8: check in a few that dataset.intensity keeps what "
            "matters.",
        ),
        (
            "not_compared",
            ~comparable(packed),
            f"are constant, flat or below {THUMB} px a side, too little to tell a near duplicate from a different "
            "image: among them only exact copies were looked for.",
        ),
    )
    for name, which, text in found:
        if which.any():
            count = int(which.sum())
            examples = tuple(str(i) for i in packed.dataset.ids[np.flatnonzero(which)[:EXAMPLES]])
            every = "All" if count == len(packed.dataset) else f"{count} of"
            told = f"{every} {len(packed.dataset)} images {text}"
            yield Finding(
                name=name,
                count=count,
                examples=examples,
                text=told if every == "All" else f"{told} E.g. {listed(examples)}.",
            )
    if packed.dataset.channels == 1:
        yield Finding(
            name="grey_images",
            count=len(packed.dataset),
            text="The images are grey: of the colour operations only brightness and contrast do anything; hue, "
            "saturation and conversion to grey do nothing.",
        )


def _groups(dataset: Dataset) -> Iterable[Finding]:
    if len(np.unique(dataset.groups)) == len(dataset):
        yield Finding(
            name="no_groups",
            count=len(dataset),
            text="Every image is its own group, so images of one patient in two splits cannot be found and intervals "
            "may be too narrow. Name the patient (group) of each image if there is one.",
        )
        return
    for split, counts in _group_counts(dataset).items():
        if counts["images"] and 2 * counts["largest"] > counts["images"]:
            names, sizes = np.unique(dataset.groups[dataset.rows(SPLITS.index(split))], return_counts=True)
            name = str(names[sizes.argmax()])
            yield Finding(
                name="dominant_group",
                count=counts["largest"],
                examples=(name,),
                text=f"Group {name} holds {counts['largest']} of the {counts['images']} images in {split}: a score "
                "there is that of one patient. Check the group column, or add groups.",
            )


def queue_findings(n_train: int, queues: Mapping[str, int]) -> Iterable[Finding]:
    """What share of an epoch of `n_train` images each arm's queue holds; `queues` are settled numbers of keys."""
    for keys in sorted(set(queues.values()), reverse=True):
        arms = [arm for arm, k in queues.items() if k == keys]
        share = f"{keys / n_train:.0%} of an epoch of {n_train} training images"
        stale = ": an image's own old key becomes one of its negatives. Lower moco.queue to half of them."
        yield Finding(
            name="queue_beyond_epoch" if keys > n_train else "queue_share",
            count=keys,
            examples=tuple(arms[:EXAMPLES]),
            text=f"The queue of {listed(arms)} holds {keys} keys, {share}{stale if keys > n_train else '.'}",
        )


def _group_counts(dataset: Dataset) -> dict[str, dict[str, int]]:
    counts = {}
    for number, split in enumerate(SPLITS):
        _, sizes = np.unique(dataset.groups[dataset.rows(number)], return_counts=True)
        counts[split] = {"images": int(sizes.sum()), "groups": len(sizes), "largest": int(sizes.max(initial=0))}
    return counts
