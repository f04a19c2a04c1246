"""The audit finds what is wrong with a packed dataset, names it, and says nothing of what is right."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ssl_core.data.audit import Audit, audit, queue_findings, stopping
from ssl_core.data.config import ACCEPTABLE
from ssl_core.data.dataset import TEST, TRAIN, VAL, Dataset
from ssl_core.data.evidence import Finding
from ssl_core.data.likeness import describe
from ssl_core.errors import DataError

N, SIDE = 60, 40


def pictures(n: int = N, side: int = SIDE, seed: int = 0) -> NDArray[np.uint8]:
    """(n, side, side, 1) smooth random fields, all different."""
    rng = np.random.default_rng(seed)
    wave = np.arange(12)
    basis = np.cos(np.pi * wave[:, None] * (np.arange(side) + 0.5) / side)
    parts = rng.normal(size=(n, 12, 12)) / np.sqrt(1 + wave[:, None] ** 2 + wave**2)
    return np.clip(128 + 15 * (basis.T @ parts @ basis), 0, 255).astype(np.uint8)[..., None]


def sound(**changes: Any) -> Dataset:
    """60 images of 30 patients, 40 / 10 / 10, two classes: nothing is wrong with them."""
    fields: dict[str, Any] = {
        "name": "sound",
        "images": pictures(),
        "labels": np.arange(N) // 2 % 2,
        "splits": np.repeat([TRAIN, VAL, TEST], [40, 8, 12]).astype(np.int8),
        "groups": np.array([f"p{i // 2:02d}" for i in range(N)]),
        "ids": np.array([f"{i:02d}.png" for i in range(N)]),
        "class_names": ("healthy", "ill"),
        "task": "binary",
        "mean": (0.5,),
        "std": (0.2,),
        "fingerprint": "f",
    }
    return Dataset(**{**fields, **changes})


def written(data: Dataset, folder: Path, *, unreadable: tuple[tuple[str, str], ...] = (), **columns: Any) -> Path:
    """What packing leaves for the audit; `columns` replace those of the inventory."""
    folder.mkdir(exist_ok=True)
    pixels = np.asarray(data.images)
    inventory = {
        "width": np.full(len(data), data.size),
        "height": np.full(len(data), data.size),
        "bits": np.full(len(data), 8),
        "low": pixels.min(axis=(1, 2, 3)),
        "high": pixels.max(axis=(1, 2, 3)),
    }
    np.savez(folder / "likeness.npz", **describe(pixels))
    np.savez(folder / "inventory.npz", **{**inventory, **columns})
    listed = [{"id": name, "reason": reason} for name, reason in unreadable]
    (folder / "unreadable.json").write_text(json.dumps(listed), encoding="utf-8")
    return folder


def found(data: Dataset, folder: Path, **packed: Any) -> dict[str, Finding]:
    return {f.name: f for f in audit(data, written(data, folder, **packed)).findings}


def test_nothing_stops_a_sound_dataset_and_only_what_is_so_is_noted(tmp_path: Path) -> None:
    data = sound()
    findings = found(data, tmp_path)
    assert set(findings) == {"grey_images", "few_positives"}
    assert findings["few_positives"].examples == ("healthy in val (4)", "ill in val (4)")


def test_a_group_in_two_splits_stops_and_is_named(tmp_path: Path) -> None:
    data = sound()
    data.groups[45] = "p03"  # a training patient, now in val
    data.groups[59] = "p03"
    finding = found(data, tmp_path)["groups_across_splits"]
    assert finding.severity == "stops"
    assert finding.count == 1
    assert finding.examples == ("p03 (train and val and test)",)
    assert "1 group (patients) with 4 images is in more than one split" in finding.text


def test_an_exact_copy_in_two_splits_stops_and_differing_labels_are_told_apart(tmp_path: Path) -> None:
    data = sound()
    data.images[50] = data.images[4]
    data.images[51] = data.images[7]
    findings = found(data, tmp_path)
    finding = findings["duplicates_across_splits"]
    assert finding.severity == "stops"
    assert finding.count == 2
    assert set(finding.examples) == {"04.png (train) = 50.png (test)", "07.png (train) = 51.png (test)"}
    assert data.labels[[4, 50, 7, 51]].tolist() == [0, 1, 1, 1]
    assert "In 1 of them the copies have different labels" in finding.text
    assert "near_duplicates_across_splits" not in findings  # said once
    assert "duplicates_within_split" not in findings


def test_a_near_copy_in_two_splits_stops_and_both_are_named(tmp_path: Path) -> None:
    data = sound()
    data.images[55] = np.clip(data.images[10] * 1.03 + 4, 0, 255).astype(np.uint8)
    findings = found(data, tmp_path)
    assert {name for name, f in findings.items() if f.severity == "stops"} == {"near_duplicates_across_splits"}
    finding = findings["near_duplicates_across_splits"]
    assert finding.count == 1
    assert finding.examples == ("10.png (train) ~ 55.png (test)",)


def test_a_near_copy_is_found_behind_many_exact_ones(tmp_path: Path) -> None:
    data = sound()
    data.images[:30] = data.images[10]
    data.images[55] = np.clip(data.images[10] * 1.03 + 4, 0, 255).astype(np.uint8)
    finding = found(data, tmp_path)["near_duplicates_across_splits"]
    assert finding.count == 1
    assert finding.examples == ("00.png (train) ~ 55.png (test)",)


def test_a_near_copy_of_the_other_splits_exact_copy_is_found(tmp_path: Path) -> None:
    data = sound()
    data.images[50] = data.images[4]
    data.images[8] = np.clip(data.images[4] * 1.03 + 4, 0, 255).astype(np.uint8)  # of 4 in its own split, of 50 across
    finding = found(data, tmp_path)["near_duplicates_across_splits"]
    assert finding.examples == ("08.png (train) ~ 50.png (test)",)


def test_unreadable_images_stop_with_their_reasons(tmp_path: Path) -> None:
    lost = tuple((f"lost{i}.png", "missing" if i else "truncated") for i in range(7))
    finding = found(sound(), tmp_path, unreadable=lost)["unreadable_images"]
    assert finding.severity == "stops"
    assert finding.count == 7
    assert finding.examples[0] == "lost0.png: truncated"
    assert len(finding.examples) == 5
    assert "missing (6), truncated (1)" in finding.text
    assert "lost4.png: missing and 2 more" in finding.text


def test_a_copy_in_its_own_split_is_no_leak_and_of_its_own_group_nothing_at_all(tmp_path: Path) -> None:
    data = sound()
    data.images[1] = data.images[0]  # one patient, one split, one label
    assert set(found(data, tmp_path)) == {"grey_images", "few_positives"}
    data.images[4] = data.images[0]  # another patient
    findings = found(data, tmp_path)
    assert not stopping(audit(data, tmp_path), ())
    assert findings["duplicates_within_split"].count == 1
    assert findings["duplicates_within_split"].examples == ("00.png (train) = 04.png (train)",)
    assert "2 copies too many" in findings["duplicates_within_split"].text
    assert "contradicting_labels" not in findings


def test_equal_pixels_with_different_labels_are_a_note_of_their_own(tmp_path: Path) -> None:
    data = sound()
    data.images[[1, 2]] = data.images[0]  # 0 and 1 agree, 2 does not
    finding = found(data, tmp_path)["contradicting_labels"]
    assert finding.count == 1
    assert finding.examples == ("00.png (train) = 02.png (train)",)


def test_labels_of_several_columns_contradict_too(tmp_path: Path) -> None:
    labels = np.stack([np.arange(N) % 2, np.arange(N) // 2 % 2], axis=1).astype(np.uint8)
    data = sound(labels=labels, task="multilabel")
    data.images[4] = data.images[0]  # rows 0 and 4: equal labels
    assert "contradicting_labels" not in found(data, tmp_path)
    data.images[1] = data.images[0]
    assert found(data, tmp_path)["contradicting_labels"].count == 1


def test_constant_images_are_a_note_and_no_copies_of_each_other(tmp_path: Path) -> None:
    data = sound()
    data.images[[3, 44, 58]] = 0
    findings = found(data, tmp_path)
    assert findings["constant_images"].count == 3
    assert findings["constant_images"].examples == ("03.png", "44.png", "58.png")
    assert findings["not_compared"].count == 3
    assert not [f for f in findings.values() if f.severity == "stops"]


def test_images_of_8_pixels_are_not_compared_by_likeness(tmp_path: Path) -> None:
    data = sound(images=pictures(side=8))
    findings = found(data, tmp_path)
    assert not [f for f in findings.values() if f.severity == "stops"]
    assert findings["not_compared"].count == findings["tiny_images"].count == N
    assert findings["tiny_images"].text.startswith("All 60 images are stored")


def test_large_originals_packed_to_16_pixels_are_not_compared_either(tmp_path: Path) -> None:
    side = np.full(N, 500)
    findings = found(sound(images=pictures(side=16)), tmp_path, width=side, height=side)
    assert findings["not_compared"].count == N
    assert "tiny_images" not in findings


def test_scikit_learns_digits_have_no_near_duplicates(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    images = (load_digits().images * 15.9).astype(np.uint8)[..., None]  # (1797, 8, 8, 1)
    n = len(images)
    data = sound(
        images=images,
        labels=np.arange(n) % 2,
        splits=(np.arange(n) % 3).astype(np.int8),
        groups=np.arange(n).astype(str),
        ids=np.arange(n).astype(str),
    )
    assert not [f for f in found(data, tmp_path).values() if f.severity == "stops"]


def test_small_and_deep_originals_are_noted(tmp_path: Path) -> None:
    stored = np.full(N, 40)
    stored[:3] = 9  # enlarged more than 4 times to 40
    stored[3] = 31
    bits = np.full(N, 8)
    bits[5:7] = 16
    findings = found(sound(), tmp_path, height=stored, bits=bits)
    assert findings["upsampled_images"].count == 3
    assert findings["tiny_images"].count == 4
    assert findings["deep_images"].examples == ("05.png", "06.png")


def test_absent_and_rare_classes_are_named_with_their_split(tmp_path: Path) -> None:
    labels = np.zeros(N, dtype=np.int64)
    labels[[0, 41, 42]] = 1
    findings = found(sound(labels=labels), tmp_path)
    assert findings["absent_classes"].examples == ("ill in test",)
    assert findings["few_positives"].examples == ("ill in train (1)", "ill in val (2)")
    assert findings["class_imbalance"].count == 39
    every = np.stack([np.ones(N), np.arange(N) % 2], axis=1).astype(np.uint8)
    findings = found(sound(labels=every, task="multilabel"), tmp_path)
    assert findings["absent_classes"].examples[0] == "negatives of healthy in train"


def test_a_group_that_holds_most_of_a_split_and_no_groups_at_all(tmp_path: Path) -> None:
    data = sound()
    data.groups[48:55] = "p50"
    finding = found(data, tmp_path)["dominant_group"]
    assert finding.examples == ("p50",)
    assert "7 of the 12 images in test" in finding.text
    findings = found(sound(groups=sound().ids), tmp_path)
    assert findings["no_groups"].count == N
    assert "dominant_group" not in findings


def test_the_queue_is_set_beside_an_epoch() -> None:
    findings = {f.name: f for f in queue_findings(40, {"moco": 20, "moco_mse": 20, "long": 64})}
    assert (
        findings["queue_share"].text
        == "The queue of moco, moco_mse holds 20 keys, 50% of an epoch of 40 training images."
    )
    assert findings["queue_beyond_epoch"].examples == ("long",)
    assert "160% of an epoch" in findings["queue_beyond_epoch"].text


def test_the_order_of_rows_does_not_matter(tmp_path: Path) -> None:
    data = sound()
    data.images[50] = data.images[4]
    data.images[55] = np.clip(data.images[10] * 1.03 + 4, 0, 255).astype(np.uint8)
    data.groups[45] = "p03"
    order = np.random.default_rng(0).permutation(N)
    keys = ("images", "labels", "splits", "groups", "ids")
    shuffled = dataclasses.replace(data, **{key: getattr(data, key)[order] for key in keys})
    straight, other = found(data, tmp_path), found(shuffled, tmp_path)
    assert len([f for f in straight.values() if f.severity == "stops"]) == 3
    for name, finding in straight.items():
        assert (finding.count, len(finding.examples)) == (other[name].count, len(other[name].examples))
        if finding.severity == "stops":
            assert set(finding.examples) == set(other[name].examples)


def test_what_is_accepted_does_not_stop(tmp_path: Path) -> None:
    data = sound()
    data.images[50] = data.images[4]
    data.groups[45] = "p03"
    result = audit(data, written(data, tmp_path, unreadable=(("x.png", "truncated"),)))
    names = [f.name for f in stopping(result, ())]
    assert names == ["groups_across_splits", "duplicates_across_splits", "unreadable_images"]
    assert set(names) <= set(ACCEPTABLE)
    assert [f.name for f in stopping(result, names[:2])] == ["unreadable_images"]
    assert [f.severity for f in result.findings][: len(names)] == ["stops"] * len(names)  # first of all


def test_the_audit_survives_json(tmp_path: Path) -> None:
    data = sound()
    data.groups[45] = "p03"
    result = audit(data, written(data, tmp_path))
    assert Audit.from_json(json.loads(json.dumps(result.as_json()))) == result
    assert result.groups["test"] == {"images": 12, "groups": 6, "largest": 2}


def test_files_of_other_rows_are_an_error(tmp_path: Path) -> None:
    written(sound(), tmp_path, bits=np.full(N - 1, 8))
    with pytest.raises(DataError, match=r"\[59, 60\] images, the dataset holds 60"):
        audit(sound(), tmp_path)


def test_a_hundred_thousand_rows_are_grouped_in_seconds(tmp_path: Path) -> None:
    n = 100_000
    data = sound(
        images=np.broadcast_to(np.zeros((1, 4, 4, 1), np.uint8), (n, 4, 4, 1)),
        labels=np.arange(n) % 2,
        splits=(np.arange(n) // 4 % 3).astype(np.int8),
        groups=(np.arange(n) // 4).astype(str),
        ids=np.arange(n).astype(str),
    )
    data.groups[4] = data.groups[0]
    np.savez(
        tmp_path / "likeness.npz",
        digest=np.random.default_rng(0).integers(0, 256, size=(n, 16)).astype(np.uint8),
        thumb=np.broadcast_to(np.zeros((1, 32, 32), np.uint8), (n, 32, 32)),
    )
    four, zero = np.full(n, 4), np.zeros(n)
    np.savez(tmp_path / "inventory.npz", width=four, height=four, bits=four, low=zero, high=four)
    (tmp_path / "unreadable.json").write_text("[]", encoding="utf-8")
    start = time.process_time()
    assert [f.name for f in stopping(audit(data, tmp_path), ())] == ["groups_across_splits"]
    assert time.process_time() - start < 10
