"""MedMNIST's files are read without its package, and fetched through it where it is installed."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ssl_core.data import medmnist
from ssl_core.data.config import DatasetConfig
from ssl_core.data.medmnist import listing
from ssl_core.errors import DataError
from tests.ssl_core.data import trees

INFO = {
    "pneumoniamnist": {"python_class": "PneumoniaMNIST", "label": {"1": "pneumonia", "0": "normal"}},
    "organmnist3d": {"python_class": "OrganMNIST3D", "label": {"0": "liver", "1": "kidney"}},
}


@pytest.fixture(autouse=True)
def _not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "medmnist", None)


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """A package that "downloads" into tmp_path/cache; returns what it is asked for."""
    asked: list[dict[str, Any]] = []

    def download(**how: Any) -> None:
        asked.append(how)
        print("Downloading")
        trees.medmnist_file(
            cache / ("pneumoniamnist.npz" if how["size"] == 28 else f"pneumoniamnist_{how['size']}.npz")
        )

    cache = tmp_path / "cache"
    fake = SimpleNamespace(INFO=INFO, info=SimpleNamespace(DEFAULT_ROOT=str(cache)), PneumoniaMNIST=download)
    monkeypatch.setitem(sys.modules, "medmnist", fake)
    return asked


def local(path: Path, **settings: Any) -> DatasetConfig:
    return DatasetConfig(source="medmnist", path=str(path), **settings)


@pytest.mark.parametrize("rgb", [False, True])
def test_a_local_file_has_its_own_splits(tmp_path: Path, rgb: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(medmnist, "_CHUNK_BYTES", 1000)  # several a split
    path = tmp_path / "pneumoniamnist_64.npz"
    trees.medmnist_file(path, rgb=rgb)
    found = listing(local(path))
    with np.load(path) as arrays:
        images = np.concatenate([arrays[f"{split}_images"] for split in ("train", "val", "test")])
        labels = np.concatenate([arrays[f"{split}_labels"] for split in ("train", "val", "test")])
    assert found.pixels is not None
    assert (found.pixels() == images.reshape(60, 28, 28, 3 if rgb else 1)).all()
    assert found.labels.tolist() == labels[:, 0].tolist()
    assert found.given is not None
    assert found.given.tolist() == [0] * 30 + [1] * 15 + [2] * 15
    assert found.ids[[0, 29, 30, 59]].tolist() == ["train/00", "train/29", "val/00", "test/14"]
    assert (found.class_names, found.task, found.channels) == (("0", "1"), "binary", 3 if rgb else 1)
    assert found.groups is None
    assert dict(found.tables) == {"npz": path}
    assert any("no patient ids" in note for note in found.notes)


def test_several_labels_are_multilabel(tmp_path: Path) -> None:
    trees.medmnist_file(tmp_path / "chestmnist.npz", labels=3)
    found = listing(local(tmp_path / "chestmnist.npz"))
    assert (found.class_names, found.task, found.labels.dtype) == (("0", "1", "2"), "multilabel", np.uint8)
    assert found.labels[5].tolist() == [1, 0, 1]


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(("file", "settings"), [("pneumoniamnist_128", {}), ("renamed", {"flag": "pneumoniamnist"})])
def test_classes_have_the_packages_names(tmp_path: Path, file: str, settings: dict[str, str]) -> None:
    trees.medmnist_file(tmp_path / f"{file}.npz")
    found = listing(local(tmp_path / f"{file}.npz", **settings))
    assert found.class_names == ("normal", "pneumonia")


@pytest.mark.parametrize(("size", "side"), [(None, 28), (28, 28), (32, 64), (224, 224), (299, 224)])
def test_the_package_fetches_the_side_that_size_needs(
    package: list[dict[str, Any]], size: int | None, side: int, capsys: pytest.CaptureFixture[str]
) -> None:
    config = DatasetConfig(source="medmnist", flag="pneumoniamnist", size=size)
    assert listing(config).class_names == ("normal", "pneumonia")
    assert [how["size"] for how in package] == [side]
    listing(config)  # it is there now
    assert len(package) == 1
    assert capsys.readouterr().out == ""


def test_without_the_package_a_flag_names_the_extra() -> None:
    with pytest.raises(
        DataError, match=r"needs the medmnist package; install it with pip install 'intermoco\[medmnist"
    ):
        listing(DatasetConfig(source="medmnist", flag="pneumoniamnist"))


def test_what_the_package_cannot_fetch_is_named(package: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**how: Any) -> None:
        raise RuntimeError("no route to host")

    monkeypatch.setattr(sys.modules["medmnist"], "PneumoniaMNIST", fail)
    with pytest.raises(DataError, match=r"could not download it \(no route to host\); download pneumoniamnist_64.npz"):
        listing(DatasetConfig(source="medmnist", flag="pneumoniamnist", size=64))
    with pytest.raises(DataError, match=r"flag pneumonamnist: no such dataset; did you mean pneumoniamnist\?"):
        listing(DatasetConfig(source="medmnist", flag="pneumonamnist"))
    with pytest.raises(DataError, match=r"organmnist3d holds volumes \(3D\)"):
        listing(DatasetConfig(source="medmnist", flag="organmnist3d"))


def arrays(**changes: Any) -> dict[str, np.ndarray]:
    found: dict[str, Any] = {}
    for split in ("train", "val", "test"):
        found[f"{split}_images"] = np.zeros((4, 28, 28), dtype=np.uint8)
        found[f"{split}_labels"] = np.array([[0], [1], [0], [1]], dtype=np.uint8)
    return {k: v for k, v in (found | changes).items() if v is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val_images": None}, r"no array 'val_images', so it is no file of MedMNIST.*known: .*train_images"),
        ({"val_labels": None}, r"'val_labels' cannot be read"),
        ({"train_images": np.zeros((4, 28, 28, 28), dtype=np.uint8)}, r"shape \(4, 28, 28, 28\).*Volumes \(3D\)"),
        ({"train_images": np.zeros((4, 28, 28))}, r"'train_images' is float64"),
        ({"test_labels": np.array([[0], [1]], dtype=np.uint8)}, r"'test_labels' is uint8 of shape \(2, 1\)"),
        ({"test_labels": np.zeros((4, 2), dtype=np.uint8)}, r"labels a row differ between splits"),
        ({f"{s}_labels": np.zeros((4, 1), dtype=np.uint8) for s in ("train", "val", "test")}, r"holds one class"),
        ({f"{s}_labels": np.full((4, 2), 2, dtype=np.uint8) for s in ("train", "val", "test")}, r"a label is 2"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "breastmnist.npz", **arrays(**changes))
    with pytest.raises(DataError, match=message):
        listing(local(tmp_path / "breastmnist.npz"))


def test_a_file_that_is_missing_cut_short_or_of_volumes_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"does not exist; name an .npz file of MedMNIST"):
        listing(local(tmp_path / "breastmnist.npz"))
    with pytest.raises(DataError, match=r"organmnist3d holds volumes"):
        listing(local(tmp_path / "organmnist3d_64.npz"))
    trees.medmnist_file(tmp_path / "whole.npz")
    content = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "breastmnist.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"cannot be read as .npz"):
        listing(local(tmp_path / "breastmnist.npz"))
