"""The validation table: scikit-learn's scores of the validation arrays, and no sight of a test array."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, f1_score, recall_score, roc_auc_score

from analysis.calibration import ece
from analysis.tables import COLUMNS, Finished
from analysis.validation import class_table, validation_table
from ssl_core.errors import DataError, StageError

N = 90


def arrays(task: str, seed: int = 0, shuffled: bool = False) -> dict[str, np.ndarray]:
    """One split of a model that knows something of its labels."""
    draw = np.random.default_rng(seed)
    labels = {"binary": np.arange(N) % 3 % 2, "multiclass": np.arange(N) % 4 % 3}.get(task)
    if labels is None:
        labels = np.stack([np.arange(N) % 2, np.arange(N) % 5 == 0, np.arange(N) % 3 == 0], axis=1).astype(np.uint8)
    signal = {"binary": labels[..., None], "multiclass": np.eye(3)[labels % 3] if labels.ndim == 1 else None}.get(
        task, labels
    )
    noisy = np.exp(signal + draw.normal(size=signal.shape) - 0.3)
    p = noisy / (noisy.sum(1, keepdims=True) if task == "multiclass" else 1 + noisy)
    ids = np.array([f"image{i}" for i in range(N)])
    order = draw.permutation(N) if shuffled else np.arange(N)
    return {"ids": ids[order], "groups": ids[order], "labels": labels[order], "probabilities": p[order]}


def stage(
    folder: Path, val: dict[str, np.ndarray], *, mode: str = "full", kind: str = "finetune", **labels: Any
) -> Any:
    """A finished stage whose test arrays are refused by whoever opens them: objects, which take unpickling."""
    folder.mkdir(parents=True, exist_ok=True)
    refused = {f"test_{name}": np.array([{}], dtype=object) for name in val}
    np.savez(folder / "predictions.npz", val_score=0.5, **{f"val_{k}": v for k, v in val.items()}, **refused)
    labels = {"arm": "moco", "seed": 0, "mode": mode, "label_fraction": 1.0} | labels
    return Finished(kind, folder.name, labels, folder, [{"metric": "auroc", "value": 0.1}])


def measured(table: Any) -> dict[str, float]:
    return dict(zip(table["metric"], table["value"], strict=True))


def test_binary_measures_equal_scikit_learns(tmp_path: Path) -> None:
    val = arrays("binary")
    y, p = val["labels"], val["probabilities"][:, 0]
    found = measured(validation_table("toy", [stage(tmp_path / "a", val)]))
    recalls = recall_score(y, p > 0.5, average=None)
    assert recalls[0] != recalls[1]
    assert found == pytest.approx({
        "auroc": roc_auc_score(y, p), "f1": f1_score(y, p > 0.5), "f1_macro": f1_score(y, p > 0.5, average="macro"),
        "ece": ece(y, val["probabilities"], "binary"), "brier": brier_score_loss(y, p), "worst_class": recalls.min(),
    }, abs=1e-12)  # fmt: skip


def test_multiclass_measures_equal_scikit_learns(tmp_path: Path) -> None:
    val = arrays("multiclass")
    y, p = val["labels"], val["probabilities"]
    found = measured(validation_table("toy", [stage(tmp_path / "a", val)]))
    assert found == pytest.approx({
        "auroc": roc_auc_score(y, p, multi_class="ovr"), "f1_macro": f1_score(y, p.argmax(1), average="macro"),
        "ece": ece(y, p, "multiclass"), "brier": ((p - np.eye(3)[y]) ** 2).sum(1).mean(),
        "worst_class": recall_score(y, p.argmax(1), average=None).min(),
    }, abs=1e-12)  # fmt: skip


def test_of_many_labels_the_worst_is_the_one_of_lowest_auroc(tmp_path: Path) -> None:
    val = arrays("multilabel")
    y, p = val["labels"], val["probabilities"]
    found = measured(validation_table("toy", [stage(tmp_path / "a", val)]))
    each = [roc_auc_score(y[:, k], p[:, k]) for k in range(3)]
    assert found["worst_class"] == pytest.approx(min(each), abs=1e-12)
    assert found["auroc"] == pytest.approx(np.mean(each), abs=1e-12)


def test_the_table_is_tidy_and_says_whose_each_row_is(tmp_path: Path) -> None:
    val = arrays("binary")
    one = stage(tmp_path / "a", val, mode="linear", seed=3)
    other = Finished("finetune", "a", {**one.labels, "arm": "twin"}, one.folder)  # two arms share it
    scratch = stage(tmp_path / "b", val, mode="scratch", arm="supervised")
    table = validation_table("toy", [one, other, scratch, Finished("pretrain", "c", {}, tmp_path / "none")])
    assert tuple(table.columns) == COLUMNS
    assert set(zip(table["arm"], table["mode"], table["stage"], strict=True)) == {
        ("moco", "linear", "finetune-a"),
        ("twin", "linear", "finetune-a"),
        ("supervised", "scratch", "finetune-b"),
    }
    assert (table["n"] == N).all()
    assert set(table["seed"]) == {3, 0}
    assert table[["block", "low", "high"]].isna().all(axis=None)
    assert len(validation_table("toy", [])) == 0
    with pytest.raises(StageError, match="measured 2 times"):
        validation_table("toy", [one, one])


def test_the_order_of_images_does_not_matter(tmp_path: Path) -> None:
    plain = measured(validation_table("toy", [stage(tmp_path / "a", arrays("multiclass"))]))
    mixed = measured(validation_table("toy", [stage(tmp_path / "b", arrays("multiclass", shuffled=True))]))
    assert mixed == pytest.approx(plain, abs=1e-12)


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel"])
def test_test_arrays_may_be_anything_for_they_are_not_opened(tmp_path: Path, task: str) -> None:
    val = arrays(task)
    refused = stage(tmp_path / "a", val)
    with np.load(refused.folder / "predictions.npz") as file, pytest.raises(ValueError, match="allow_pickle"):
        file["test_probabilities"]
    expected = validation_table("toy", [refused])
    nan = {f"test_{k}": np.full(v.shape, np.nan) if v.dtype.kind == "f" else v for k, v in val.items()}
    np.savez(refused.folder / "predictions.npz", val_score=0.5, **{f"val_{k}": v for k, v in val.items()}, **nan)
    assert validation_table("toy", [refused]).equals(expected)
    _break_test_arrays(refused.folder / "predictions.npz")
    assert validation_table("toy", [refused]).equals(expected)
    assert len(class_table("toy", [refused]))


def _break_test_arrays(path: Path) -> None:
    """Flip a byte of each test array: its check sum is wrong from then on."""
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.filename.startswith("test_"):
                data[info.header_offset + 30 + len(info.filename) + info.file_size // 2 + 64] ^= 0xFF
    path.write_bytes(bytes(data))
    with np.load(path) as file, pytest.raises(zipfile.BadZipFile):
        file["test_probabilities"]


def test_a_class_without_an_image_makes_its_measures_nan_and_leaves_the_others(tmp_path: Path) -> None:
    val = arrays("multiclass")
    seen = val["labels"] != 2
    val = {name: each[seen] for name, each in val.items()}
    found = measured(validation_table("toy", [stage(tmp_path / "a", val)]))
    assert {m for m, v in found.items() if np.isnan(v)} == {"auroc", "f1_macro", "worst_class"}
    classes = class_table("toy", [stage(tmp_path / "a", val)], ["cat", "dog", "fox"])
    fox = classes[classes["class_name"] == "fox"]
    assert fox["value"].isna().all()
    assert (fox["positives"] == 0).all()
    assert classes.loc[classes["class_name"] != "fox", "value"].notna().all()


def test_each_class_has_its_recall_its_auroc_and_its_number_of_images(tmp_path: Path) -> None:
    val = arrays("binary")
    y, p = val["labels"], val["probabilities"][:, 0]
    table = class_table("toy", [stage(tmp_path / "a", val)], ["healthy", "ill"])
    recall = table[table["metric"] == "recall"].set_index("class_name")
    assert recall["value"].to_dict() == pytest.approx(
        {"healthy": (p[y == 0] <= 0.5).mean(), "ill": (p[y == 1] > 0.5).mean()}
    )
    assert recall["positives"].to_dict() == {"healthy": (y == 0).sum(), "ill": (y == 1).sum()}
    assert table.loc[table["metric"] == "auroc", "value"].tolist() == pytest.approx([roc_auc_score(y, p)] * 2)
    assert (table["n"] == N).all()


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    broken = stage(tmp_path / "a", arrays("binary"))
    (broken.folder / "predictions.npz").write_bytes(b"PK\x03\x04 not whole")
    with pytest.raises(DataError, match=r"a/predictions.npz cannot be read"):
        validation_table("toy", [broken])
