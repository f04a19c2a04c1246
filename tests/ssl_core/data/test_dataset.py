"""A packed dataset comes back from its folder as it went in, and says of itself what it holds."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from ssl_core.data import dataset as module
from ssl_core.data.dataset import TEST, TRAIN, VAL, Dataset, pixel_statistics, shard_digests
from ssl_core.data.sharding import channel_sums
from ssl_core.data.shards import Shards
from ssl_core.errors import DataError


def small(**changes: object) -> Dataset:
    rng = np.random.default_rng(0)
    fields = {
        "name": "tiny",
        "images": rng.integers(256, size=(8, 4, 4, 3), dtype=np.uint8),
        "labels": np.array([0, 1, 1, 0, 1, 1, 0, 1]),
        "splits": np.array([TRAIN, TEST, TRAIN, VAL, VAL, TRAIN, TEST, TEST], dtype=np.int8),
        "groups": np.array(["p1", "p4", "p1", "p3", "p3", "p2", "p4", "p5"]),
        "ids": np.array([f"scan {i} é" for i in range(8)]),
        "class_names": ("well", "sick"),
        "task": "binary",
        "mean": (0.1, 0.2, 0.3),
        "std": (0.4, 0.5, 0.6),
        "fingerprint": "f" * 64,
        "split_origin": "made, seed 0, group-aware",
        "details": {"source": "npz", "notes": ["a note"]},
    }
    return Dataset(**(fields | changes))


def test_a_saved_dataset_opens_as_it_was_with_its_images_on_disk(tmp_path: Path) -> None:
    before = small()
    before.save(tmp_path / "new" / "folder")
    after = Dataset.open(tmp_path / "new" / "folder")
    assert isinstance(after.images, Shards)
    for field in dataclasses.fields(Dataset):
        a, b = getattr(before, field.name), getattr(after, field.name)
        if field.name == "images":
            a, b = a[:], b[:]
        if isinstance(a, np.ndarray):
            assert a.dtype == b.dtype
            assert (a == b).all()
        else:
            assert a == b


def test_shards_of_the_folder_stay_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARD_BYTES", 4 * 4 * 3 * 3)  # three images
    before = small()
    before.save(tmp_path)
    there = sorted((tmp_path / "images").iterdir())
    assert [p.name for p in there] == ["00000.npy", "00001.npy", "00002.npy"]
    times = [path.stat().st_mtime_ns for path in there]
    Dataset.open(tmp_path).save(tmp_path)
    assert [path.stat().st_mtime_ns for path in there] == times
    assert (Dataset.open(tmp_path).images[:] == before.images).all()


def test_digests_of_the_shards_are_those_of_their_files(tmp_path: Path) -> None:
    small().save(tmp_path)
    file = tmp_path / "images" / "00000.npy"
    assert shard_digests(tmp_path) == {"images/00000.npy": hashlib.sha256(file.read_bytes()).hexdigest()}


def test_rows_of_a_split_ascend_and_cover_the_dataset() -> None:
    data = small()
    assert data.rows(TRAIN).tolist() == [0, 2, 5]
    assert data.rows(VAL).tolist() == [3, 4]
    assert data.rows(TEST).tolist() == [1, 6, 7]
    assert (len(data), data.channels, data.size) == (8, 3, 4)


def test_outputs_are_one_for_two_classes_else_one_a_class_or_label() -> None:
    assert small().n_outputs == 1
    assert small(task="multiclass", class_names=("a", "b", "c")).n_outputs == 3
    assert small(task="multilabel", labels=np.zeros((8, 2), np.uint8)).n_outputs == 2


def test_the_summary_counts_images_groups_and_classes_of_every_split(tmp_path: Path) -> None:
    data = small()
    data.save(tmp_path)
    expected = {
        "name": "tiny",
        "n": {"train": 3, "val": 2, "test": 3},
        "groups": {"train": 2, "val": 1, "test": 2},
        "classes": {
            "train": {"well": 1, "sick": 2},
            "val": {"well": 1, "sick": 1},
            "test": {"well": 1, "sick": 2},
        },
        "channels": 3,
        "size": 4,
        "task": "binary",
        "class_names": ["well", "sick"],
        "fingerprint": "f" * 64,
        "splits": "made, seed 0, group-aware",
        "source": "npz",
        "notes": ["a note"],
    }
    assert data.summary == expected
    assert json.loads((tmp_path / "dataset.json").read_text())["summary"] == expected


def test_the_summary_counts_positives_of_every_label() -> None:
    labels = np.array([[1, 0], [1, 1], [0, 1], [1, 1], [0, 0], [1, 0], [0, 0], [0, 1]], dtype=np.uint8)
    counts = small(task="multilabel", labels=labels).summary["classes"]
    assert counts == {
        "train": {"well": 2, "sick": 1},
        "val": {"well": 1, "sick": 1},
        "test": {"well": 1, "sick": 2},
    }


def test_arrays_of_different_lengths_are_refused() -> None:
    with pytest.raises(DataError, match="'groups': 7"):
        small(groups=np.array(["p"] * 7))


@pytest.mark.parametrize("broken", ["images/00000.npy", "shards.json", "labels.npy", "dataset.json"])
@pytest.mark.parametrize("how", ["missing", "cut"])
def test_a_folder_with_a_broken_file_is_refused_by_name(tmp_path: Path, broken: str, how: str) -> None:
    small().save(tmp_path)
    file = tmp_path / broken
    if how == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(DataError, match=f"{tmp_path}.*pack it again"):
        Dataset.open(tmp_path)


@pytest.mark.parametrize("name", ["{other}/images/00000.npy", "../other/images/00000.npy", "images/../../other/0.npy"])
def test_images_of_another_folder_are_not_a_datasets(tmp_path: Path, name: str) -> None:
    small().save(tmp_path / "own")
    small().save(tmp_path / "other")
    (tmp_path / "other" / "0.npy").write_bytes((tmp_path / "other" / "images" / "00000.npy").read_bytes())
    path = tmp_path / "own" / "shards.json"
    listed = json.loads(path.read_text())
    listed["files"][0]["file"] = name.format(other=tmp_path / "other")
    path.write_text(json.dumps(listed))
    with pytest.raises(DataError, match=r"lies elsewhere\); remove it and pack it again"):
        Dataset.open(tmp_path / "own")


def test_arrays_that_would_run_code_are_not_loaded(tmp_path: Path) -> None:
    small().save(tmp_path)
    np.save(tmp_path / "groups.npy", np.array([object()] * 8), allow_pickle=True)
    with pytest.raises(DataError, match="cannot be read"):
        Dataset.open(tmp_path)


@pytest.mark.parametrize("chunk", [1, 100, 1 << 20])
def test_pixel_statistics_are_those_of_the_chosen_images_whatever_the_chunk(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CHUNK_BYTES", chunk)
    images = np.random.default_rng(0).integers(256, size=(20, 5, 5, 3), dtype=np.uint8)
    rows = np.array([0, 3, 4, 11, 19])
    mean, std = pixel_statistics(images, rows)
    chosen = images[rows].astype(np.float64) / 255
    assert mean == pytest.approx(tuple(chosen.mean(axis=(0, 1, 2))), abs=1e-12)
    assert std == pytest.approx(tuple(chosen.std(axis=(0, 1, 2))), abs=1e-12)
    shuffled, _ = pixel_statistics(images[:, ::-1, ::-1], rows[::-1])
    assert shuffled == mean


@pytest.mark.parametrize("shape", [(300, 40, 1), (5, 70_000, 1), (290, 17, 3)])
def test_sums_of_pixels_are_exact_however_large_and_bright_the_image(shape: tuple[int, int, int]) -> None:
    drawn = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    images = np.stack([np.full(shape, 255, dtype=np.uint8), drawn])
    total, squares = channel_sums(images)
    wide = images.reshape(2, -1, shape[2]).astype(np.int64)
    np.testing.assert_array_equal(total, wide.sum(axis=1))
    np.testing.assert_array_equal(squares, (wide**2).sum(axis=1))


def test_a_constant_channel_normalises_to_zero() -> None:
    images = np.random.default_rng(0).integers(256, size=(6, 3, 3, 3), dtype=np.uint8)
    images[..., 1] = 55
    mean, std = pixel_statistics(images, np.arange(6))
    assert mean[1] == 55 / 255
    assert std[1] == 1.0
    assert std[0] < 0.5
