"""Each source packs to what its files say; bad data is refused with one sentence that names the value."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from ssl_core.data import planning
from ssl_core.data.config import DatasetConfig
from ssl_core.data.dataset import TEST, TRAIN, VAL, Dataset
from ssl_core.data.packing import fingerprint, pack
from ssl_core.errors import ConfigError, DataError

N = 60


def arrays(**changes: Any) -> dict[str, np.ndarray]:
    """An archive of 60 grey images of 15 patients, two classes."""
    rng = np.random.default_rng(0)
    found = {
        "images": rng.integers(256, size=(N, 6, 6), dtype=np.uint8),
        "labels": np.arange(N) % 2,
        "patient": np.array([f"p{i // 4}" for i in range(N)]),
        "official": np.repeat(["train", "val", "test"], N // 3),
    }
    return {k: v for k, v in (found | changes).items() if v is not None}


@pytest.fixture
def npz(tmp_path: Path) -> Callable[..., DatasetConfig]:
    def write(settings: dict[str, Any] | None = None, **changes: Any) -> DatasetConfig:
        np.savez(tmp_path / "data.npz", **arrays(**changes))
        return DatasetConfig(source="npz", path=str(tmp_path / "data.npz"), **(settings or {}))

    return write


def write_image(path: Path, value: int = 100, mode: str = "L", size: tuple[int, int] = (6, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    bands = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(value).integers(256, size=(size[1], size[0], bands), dtype=np.uint8)
    if mode in ("RGBA", "LA"):
        pixels[..., -1] = 255
    Image.fromarray(pixels[..., 0] if bands == 1 else pixels, mode="L" if mode == "P" else None).convert(mode).save(
        path
    )


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder of two classes, 12 grey PNG images each."""
    for c, name in enumerate(("benign", "malignant")):
        for i in range(12):
            write_image(tmp_path / "tree" / name / f"{i:02d}.png", value=100 * c + i)
    return tmp_path / "tree"


def folder(root: Path, **settings: Any) -> DatasetConfig:
    return DatasetConfig(source="folder", path=str(root), **settings)


# digits


def test_digits_are_scikit_learns_at_full_range(tmp_path: Path) -> None:
    data = pack(DatasetConfig(source="digits"), tmp_path)
    values, labels = load_digits(return_X_y=True)
    images = data.images[:]
    assert images.shape == data.images.shape == (1797, 8, 8, 1)
    assert np.abs(images.reshape(1797, 64) - values * 255 / 16).max() <= 0.5
    assert (images.min(), images.max()) == (0, 255)
    assert (data.labels == labels).all()
    assert (data.name, data.task, data.n_outputs) == ("digits", "multiclass", 10)
    assert data.summary["splits"] == "made, seed 0"
    assert len(np.unique(data.ids)) == 1797
    assert (data.groups == data.ids).all()
    chosen = images[data.rows(TRAIN)] / 255
    assert data.mean == pytest.approx((chosen.mean(),), abs=1e-12)
    assert data.std == pytest.approx((chosen.std(),), abs=1e-12)
    for split, share in {TRAIN: 0.7, VAL: 0.15, TEST: 0.15}.items():
        counts = np.bincount(labels[data.rows(split)], minlength=10)
        assert np.abs(counts - share * np.bincount(labels)).max() < 2


def test_images_are_resized_bilinearly(tmp_path: Path) -> None:
    plain = pack(DatasetConfig(source="digits"), tmp_path / "a")
    large = pack(DatasetConfig(source="digits", size=32), tmp_path / "b")
    assert large.size == 32
    for i in (0, 1000):
        expected = Image.fromarray(plain.images[i][..., 0]).resize((32, 32), Image.Resampling.BILINEAR)
        assert (large.images[i][..., 0] == np.asarray(expected)).all()


def test_what_pack_returns_is_what_open_reads(tmp_path: Path, tree: Path) -> None:
    packed = pack(folder(tree), tmp_path / "out")
    opened = Dataset.open(tmp_path / "out")
    assert (packed.images[:] == opened.images[:]).all()
    assert packed.summary == opened.summary
    assert (packed.mean, packed.std) == (opened.mean, opened.std)


def test_configuring_and_fingerprinting_import_nothing_heavy() -> None:
    code = (
        "import sys; from ssl_core.data.packing import fingerprint; from ssl_core.data.config import DatasetConfig; "
        "fingerprint(DatasetConfig(source='digits')); "
        "sys.exit(', '.join(m for m in ('sklearn', 'PIL', 'torch', 'scipy', 'pandas') if m in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# npz


def test_an_archive_is_packed_as_its_keys_say(npz: Callable[..., DatasetConfig], tmp_path: Path) -> None:
    names, files = np.array(["well", "sick"]), np.array([f"scan-{i}.png" for i in range(N)])
    config = npz(
        {"group_key": "patient", "split_key": "official", "ids_key": "files", "class_names_key": "words", "name": "xr"},
        files=files,
        words=names,
    )
    data, given = pack(config, tmp_path / "out"), arrays()
    assert (data.images[:][..., 0] == given["images"]).all()
    assert (data.labels == given["labels"]).all()
    assert data.labels.dtype == np.int64
    assert (data.groups == given["patient"]).all()
    assert (data.ids == files).all()
    assert data.splits.tolist() == [TRAIN] * 20 + [VAL] * 20 + [TEST] * 20
    assert (data.name, data.class_names, data.task) == ("xr", ("well", "sick"), "binary")
    assert data.summary["splits"] == "given"


def test_usual_keys_are_taken_where_they_are_there(npz: Callable[..., DatasetConfig], tmp_path: Path) -> None:
    given = arrays()
    config = npz(
        split=given["official"], group=given["patient"], ids=np.arange(N), class_names=np.array(["well", "sick"])
    )
    data = pack(config, tmp_path / "out")
    assert data.summary["splits"] == "given"
    assert (data.groups == given["patient"]).all()
    assert data.ids.tolist() == [str(i) for i in range(N)]
    assert data.class_names == ("well", "sick")


@pytest.mark.parametrize(
    "words",
    [
        [0, 1, 2],
        ["train", "val", "test"],
        ["Training", "VALID", "testing"],
        [b"train", b"val", b"test"],
        ["0", "1", "2"],
    ],
)
def test_splits_may_be_numbers_or_words(npz: Callable[..., DatasetConfig], tmp_path: Path, words: list) -> None:
    data = pack(npz(split=np.repeat(words, N // 3)), tmp_path / "out")
    assert data.splits.tolist() == [TRAIN] * 20 + [VAL] * 20 + [TEST] * 20


def test_made_splits_keep_patients_whole(npz: Callable[..., DatasetConfig], tmp_path: Path) -> None:
    data = pack(npz({"group_key": "patient", "split_seed": 3}), tmp_path / "out")
    assert data.summary["splits"] == "made, seed 3, group-aware"
    assert sum(data.summary["groups"].values()) == 15
    assert sum(data.summary["n"].values()) == N


def test_a_split_that_is_not_given_is_carved_out_of_train_by_patients(
    npz: Callable[..., DatasetConfig], tmp_path: Path
) -> None:
    official = np.repeat(["train", "train", "test"], N // 3)
    data = pack(npz({"group_key": "patient", "split_key": "official"}, official=official), tmp_path / "out")
    assert (data.splits[official == "test"] == TEST).all()
    assert TEST not in data.splits[official == "train"]
    assert abs((data.splits == VAL).sum() - 0.15 * 40) <= 2
    assert not set(data.groups[data.rows(VAL)]) & set(data.groups[data.rows(TRAIN)])
    assert data.summary["splits"] == "given; val made, seed 0, group-aware"


def test_a_given_validation_split_is_left_alone_where_only_test_is_made(
    npz: Callable[..., DatasetConfig], tmp_path: Path
) -> None:
    official = np.repeat(["train", "train", "val"], N // 3)
    data = pack(npz({"group_key": "patient", "split_key": "official"}, official=official), tmp_path / "out")
    assert ((data.splits == VAL) == (official == "val")).all()
    assert abs((data.splits == TEST).sum() - 0.15 * 40) <= 2
    assert data.summary["splits"] == "given; test made, seed 0, group-aware"


def test_the_split_seed_changes_made_splits(npz: Callable[..., DatasetConfig], tmp_path: Path) -> None:
    a, b, c = (pack(npz({"split_seed": s}), tmp_path / name).splits for s, name in ((1, "a"), (1, "b"), (2, "c")))
    assert (a == b).all()
    assert (a != c).any()


def test_patients_named_in_bytes_are_read_as_utf8(npz: Callable[..., DatasetConfig], tmp_path: Path) -> None:
    patients = np.array([f"Zoë {i // 4}".encode() for i in range(N)])
    data = pack(npz({"group_key": "patient"}, patient=patients), tmp_path / "out")
    assert data.groups[5] == "Zoë 1"


def test_columns_of_labels_are_several_labels_and_one_column_is_classes(
    npz: Callable[..., DatasetConfig], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    several = rng.integers(2, size=(N, 3))
    data = pack(npz(labels=several, class_names=np.array(["a", "b", "c"])), tmp_path / "a")
    assert (data.task, data.n_outputs, data.labels.dtype) == ("multilabel", 3, np.uint8)
    assert (data.labels == several).all()
    data = pack(npz(labels=rng.integers(3, size=(N, 1)).astype(np.uint8)), tmp_path / "b")
    assert (data.task, data.labels.shape, data.class_names) == ("multiclass", (N,), ("0", "1", "2"))


def test_words_as_labels_name_their_classes(npz: Callable[..., DatasetConfig], tmp_path: Path) -> None:
    words = np.array(["well", "sick"])[np.arange(N) % 2]
    data = pack(npz(labels=words), tmp_path / "out")
    assert data.class_names == ("sick", "well")
    assert [data.class_names[i] for i in data.labels] == words.tolist()


def test_colour_archives_keep_three_channels(npz: Callable[..., DatasetConfig], tmp_path: Path) -> None:
    images = np.random.default_rng(1).integers(256, size=(N, 5, 7, 3), dtype=np.uint8)
    data = pack(npz({"size": 4}, images=images), tmp_path / "out")
    assert data.images.shape == (N, 4, 4, 3)
    expected = Image.fromarray(images[9]).resize((4, 4), Image.Resampling.BILINEAR)
    assert (data.images[9] == np.asarray(expected)).all()
    assert len(data.mean) == 3


def nan_labels() -> np.ndarray:
    labels = np.arange(N) % 2.0
    labels[[3, 5]] = np.nan
    return labels


@pytest.mark.parametrize(
    ("settings", "changes", "said"),
    [
        ({"labels_key": "label"}, {}, r"no array 'label' \(dataset.labels_key\); did you mean labels\?.*known: images"),
        ({"images_key": "x"}, {}, "no array 'x'.*known: images, labels, official, patient"),
        ({"group_key": "patients"}, {}, "no array 'patients'.*did you mean patient"),
        ({"split_key": "split"}, {}, "no array 'split'"),
        ({}, {"images": np.zeros((N, 4, 4))}, "'images' is float64; scale it to 0..255"),
        ({}, {"images": np.zeros((N, 3, 4, 4), np.uint8)}, r"shape \(60, 3, 4, 4\); expected"),
        ({}, {"images": np.zeros((N, 4, 5), np.uint8)}, "4 x 5 pixels; set dataset.size"),
        ({}, {"images": np.zeros((0, 4, 4), np.uint8)}, r"shape \(0, 4, 4, 1\)"),
        ({}, {"labels": np.arange(N - 1) % 2}, "'labels' has 59 rows for 60 images"),
        ({}, {"labels": nan_labels()}, "NaN or infinite in 2 rows"),
        ({}, {"labels": np.arange(N) / 2}, "no whole numbers"),
        ({}, {"labels": np.arange(N) % 2 + 1}, "values 1 to 2; expected 0 to 1"),
        ({}, {"labels": np.arange(N) % 3 - 1}, "values -1 to 1"),
        ({}, {"labels": np.zeros(N, int)}, "one class; at least two"),
        ({}, {"labels": np.full((N, 2), 2)}, "values 2 to 2; expected 0 to 1"),
        ({}, {"labels": np.zeros((N, 2, 2), int)}, r"shape \(60, 2, 2\)"),
        ({}, {"labels": np.arange(N) % 3, "class_names": np.array(["a", "b"])}, "values 0 to 2; expected 0 to 1"),
        (
            {},
            {"labels": np.ones((N, 3), int), "class_names": np.array(["a", "b"])},
            "3 columns, 'class_names' names a, b",
        ),
        ({}, {"class_names": np.array(["a", "a"])}, "as many different names"),
        ({}, {"labels": np.ones((N, 2), int), "class_names": np.array(["a", "b", "b"])}, "2 columns, .* names a, b, b"),
        (
            {},
            {"ids": np.array(["x"] * 2 + ["y"] * 2 + [f"{i}" for i in range(N - 4)])},
            "2 ids .* e.g. x, y; ids must be",
        ),
        ({"group_key": "g"}, {"g": np.full(N, np.nan)}, "'g' is NaN in 60 rows"),
        ({"group_key": "g"}, {"g": np.array([""] + ["a"] * (N - 1))}, "'g' is empty in 1 rows"),
        ({"group_key": "g"}, {"g": np.array(["a"] * 3)}, r"'g' has shape \(3,\); expected one value for 60"),
        (
            {"split_key": "s"},
            {"s": np.array(["train", "held-out"])[np.arange(N) % 2]},
            "'held-out'; expected train, val",
        ),
        ({"split_key": "s"}, {"s": np.array(["test", "val"])[np.arange(N) % 2]}, "hold val, test and no train"),
        ({"split_key": "official"}, {"labels": np.repeat([0, 1, 1], 20)}, "split train has no image of class 1"),
        ({}, {"labels": np.array([1] * 2 + [0] * 58)}, "class 1 occurs in 2 groups"),
    ],
)
def test_a_bad_archive_is_refused_with_its_value(
    npz: Callable[..., DatasetConfig], tmp_path: Path, settings: dict, changes: dict, said: str
) -> None:
    with pytest.raises(DataError, match=said) as refused:
        pack(npz(settings, **changes), tmp_path / "out")
    assert "\n" not in str(refused.value)


def test_arrays_of_python_objects_are_not_unpickled(npz: Callable[..., DatasetConfig], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'patient' cannot be read .* save it again as a plain array"):
        pack(npz({"group_key": "patient"}, patient=np.array(["a", 1] * 30, dtype=object)), tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "does not exist"), (b"", "no .npz"), (b"hello", "no .npz"), ("half", "cut short"), ("npy", "no .npz")],
)
def test_a_file_that_is_no_archive_is_refused_by_name(
    npz: Callable[..., DatasetConfig], tmp_path: Path, content: Any, said: str
) -> None:
    config, path = npz(), tmp_path / "data.npz"
    match content:
        case None:
            path.unlink()
        case "half":
            path.write_bytes(path.read_bytes()[:1000])
        case "npy":
            np.save(tmp_path / "x.npy", np.zeros(3))
            path.write_bytes((tmp_path / "x.npy").read_bytes())
        case _:
            path.write_bytes(content)
    with pytest.raises(DataError, match=f"{path}.*{said}"):
        pack(config, tmp_path / "out")


def test_an_array_damaged_inside_the_archive_is_refused_by_name(
    npz: Callable[..., DatasetConfig], tmp_path: Path
) -> None:
    config, path = npz(), tmp_path / "data.npz"
    damaged = bytearray(path.read_bytes())
    damaged[600:700] = bytes(100)
    path.write_bytes(bytes(damaged))
    with pytest.raises(DataError, match="array 'images' cannot be read"):
        pack(config, tmp_path / "out")


# folder


def test_class_folders_become_classes_and_paths_become_ids(tree: Path, tmp_path: Path) -> None:
    data = pack(folder(tree), tmp_path / "out")
    assert data.class_names == ("benign", "malignant")
    assert data.images.shape == (24, 6, 6, 1)
    assert data.ids[0] == "benign/00.png"
    for i in range(24):
        assert data.ids[i].startswith(data.class_names[data.labels[i]])
        assert (data.images[i][..., 0] == np.asarray(Image.open(tree / str(data.ids[i])))).all()
    assert data.summary["splits"] == "made, seed 0"


def test_images_of_several_shards_stay_with_their_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "SHARD_BYTES", 36 * 7)  # seven images
    for i in range(60):
        write_image(tmp_path / "tree" / "ab"[i % 2] / f"{i:03d}.png", value=i)
    data = pack(folder(tmp_path / "tree"), tmp_path / "out")
    assert len(list((tmp_path / "out" / "images").iterdir())) == 9
    for image, name in zip(data.images[:], data.ids, strict=True):
        assert (image[..., 0] == np.asarray(Image.open(tmp_path / "tree" / str(name)))).all()


def test_split_folders_give_the_splits(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        for i, name in enumerate(("a", "b", "c")):
            write_image(tmp_path / "tree" / split / name / "1.png", value=i)
    (tmp_path / "tree" / ".hidden").mkdir()
    (tmp_path / "tree" / "train" / "a" / "notes.txt").write_text("not an image")
    data = pack(folder(tmp_path / "tree"), tmp_path / "out")
    assert data.summary["n"] == {"train": 3, "val": 3, "test": 3}
    assert [str(data.ids[i]).split("/")[0] for i in data.rows(VAL)] == ["val"] * 3
    assert data.summary["splits"] == "given"


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("1", 1), ("LA", 1), ("RGB", 3), ("RGBA", 3), ("P", 3)])
def test_grey_stays_grey_and_colour_stays_colour(tree: Path, tmp_path: Path, mode: str, channels: int) -> None:
    for path in tree.rglob("*.png"):
        write_image(path, value=len(path.name), mode=mode)
    data = pack(folder(tree), tmp_path / "out")
    assert data.channels == channels
    expected = np.asarray(Image.open(tree / "benign" / "00.png").convert("RGB" if channels == 3 else "L"))
    assert (data.images[0] == expected.reshape(6, 6, channels)).all()


def test_photographs_are_turned_upright(tree: Path, tmp_path: Path) -> None:
    turned = Image.open(tree / "benign" / "00.png")
    exif = turned.getexif()
    exif[0x0112] = 3  # stored upside down
    expected = np.asarray(turned)[::-1, ::-1]
    turned.save(tree / "benign" / "00.png", exif=exif)
    assert (pack(folder(tree), tmp_path / "out").images[0][..., 0] == expected).all()


def test_images_of_several_sizes_are_resized(tree: Path, tmp_path: Path) -> None:
    write_image(tree / "benign" / "03.png", size=(12, 9))
    data = pack(folder(tree, size=5), tmp_path / "out")
    expected = Image.open(tree / "benign" / "03.png").resize((5, 5), Image.Resampling.BILINEAR)
    assert data.images.shape == (24, 5, 5, 1)
    assert (data.images[3][..., 0] == np.asarray(expected)).all()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda p: cut(p), "is cut short"),
        (lambda p: p.write_bytes(b""), "is empty"),
        (lambda p: p.write_text("no image"), "is no image of a known format"),
        (
            lambda p: Image.new("L", (6, 6)).save(
                p, format="TIFF", save_all=True, append_images=[Image.new("L", (6, 6))]
            ),
            "holds 2 frames",
        ),
        (lambda p: (p.unlink(), p.symlink_to("nowhere.png")), "is missing"),
    ],
)
def test_an_image_that_cannot_be_read_is_left_out_and_listed(
    tree: Path, tmp_path: Path, change: Callable, reason: str
) -> None:
    change(tree / "benign" / "05.png")
    data = pack(folder(tree), tmp_path / "out")
    left_out = json.loads((tmp_path / "out" / "unreadable.json").read_text())
    assert [entry["id"] for entry in left_out] == ["benign/05.png"]
    assert left_out[0]["reason"].startswith(reason)
    assert data.summary["unreadable"] == 1
    assert len(data) == len(data.images) == 23
    assert "benign/05.png" not in data.ids
    for i in range(23):
        assert str(data.ids[i]).startswith(data.class_names[data.labels[i]])
        assert (data.images[i][..., 0] == np.asarray(Image.open(tree / str(data.ids[i])))).all()


def test_a_folder_of_unreadable_images_is_refused(tree: Path, tmp_path: Path) -> None:
    for path in tree.rglob("*.png"):
        path.write_text("no image")
    for config in (folder(tree), folder(tree, size=6, channels=1)):
        with pytest.raises(DataError, match=r"none of the 24 images can be read, e.g. .*benign/00.png is no image"):
            pack(config, tmp_path / "out")


def test_grey_images_among_colour_ones_fill_all_channels(tree: Path, tmp_path: Path) -> None:
    write_image(tree / "malignant" / "05.png", mode="RGB")
    data = pack(folder(tree), tmp_path / "out")
    assert data.channels == 3
    assert (data.images[0] == np.asarray(Image.open(tree / "benign" / "00.png"))[..., None]).all()
    assert data.summary["notes"] == ["23 of 24 images are grey; they fill all three channels"]


def test_images_of_several_sizes_are_refused_by_name_where_no_size_is_set(tree: Path, tmp_path: Path) -> None:
    write_image(tree / "malignant" / "05.png", size=(6, 7))
    with pytest.raises(DataError, match=r"sizes: .*benign/00.png is 6 x 6, .*malignant/05.png is 6 x 7 pixels; set"):
        pack(folder(tree), tmp_path / "out")


def test_images_that_are_not_square_need_a_size_or_a_crop(tmp_path: Path) -> None:
    for i in range(24):
        write_image(tmp_path / "tree" / "ab"[i % 2] / f"{i:02d}.png", value=i, size=(8, 6))
    with pytest.raises(DataError, match=r"a/00.png is 8 x 6 pixels; set dataset.size"):
        pack(folder(tmp_path / "tree"), tmp_path / "out")
    with pytest.raises(DataError, match=r"dataset.crop 7: images are 8 x 6 pixels"):
        pack(folder(tmp_path / "tree", crop=7), tmp_path / "out")
    data = pack(folder(tmp_path / "tree", crop=4), tmp_path / "out")
    expected = np.asarray(Image.open(tmp_path / "tree" / "a" / "00.png"))[1:5, 2:6]
    assert (data.images[0][..., 0] == expected).all()


def move(root: Path, old: str, new: str) -> None:
    (root / new).parent.mkdir(parents=True, exist_ok=True)
    (root / old).rename(root / new)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda r: (r / "normal").mkdir(),
            "class folder .*normal is empty: it has no .*.png.* files; fill it or remove it",
        ),
        (lambda r: write_text(r / "normal" / "a.txt"), r"class folder .*normal is empty.*\(it holds .txt\)"),
        (lambda r: move(r, "malignant", "benign/deep"), "class folder .*benign holds the folder 'deep'"),
        (lambda r: move(r, "malignant", "../away"), "one class, 'benign'; at least two"),
        (lambda r: move(r, "malignant", "train/malignant"), "holds the splits train beside 'benign'"),
        (lambda r: [move(r, c, f"test/{c}") for c in ("benign", "malignant")], "hold test and no train"),
        (lambda r: r.rename(r.with_name("elsewhere")), "tree does not exist; name a folder"),
    ],
)
def test_a_folder_that_is_laid_out_otherwise_is_refused(
    tree: Path, tmp_path: Path, change: Callable, said: str
) -> None:
    change(tree)
    with pytest.raises(DataError, match=said):
        pack(folder(tree), tmp_path / "out")


def write_text(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("x")


def test_a_folder_without_class_folders_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    write_image(tmp_path / "tree" / "1.png")
    with pytest.raises(DataError, match="has no subfolders; sort its images"):
        fingerprint(folder(tmp_path / "tree"))


# fingerprints


def test_a_fingerprint_depends_on_content_and_on_nothing_else(tree: Path, tmp_path: Path) -> None:
    before = fingerprint(folder(tree))
    moved = tree.rename(tmp_path / "moved")
    os.utime(moved / "benign" / "00.png", (1, 1))
    assert fingerprint(folder(moved, name="another name")) == before
    write_image(moved / "benign" / "00.png", value=77)
    assert fingerprint(folder(moved)) != before


def test_a_fingerprint_follows_an_image_to_another_class(tree: Path) -> None:
    (tree / "malignant" / "11.png").unlink()
    before = fingerprint(folder(tree))
    (tree / "benign" / "11.png").rename(tree / "malignant" / "11.png")
    assert fingerprint(folder(tree)) != before


def test_a_fingerprint_follows_the_name_of_a_class(tree: Path) -> None:
    before = fingerprint(folder(tree))
    (tree / "benign").rename(tree / "harmless")
    assert fingerprint(folder(tree)) != before


@pytest.mark.parametrize(
    "setting",
    [
        {"size": 9},
        {"crop": 4},
        {"channels": 3},
        {"intensity": "full"},
        {"intensity": (0, 9)},
        {"validation": 0.2},
        {"test": 0.2},
        {"split_seed": 1},
        {"labels_key": "other"},
    ],
)
def test_settings_that_shape_what_is_packed_change_the_fingerprint(
    npz: Callable[..., DatasetConfig], setting: dict
) -> None:
    other = arrays()["labels"]
    assert fingerprint(npz(other=other)) != fingerprint(npz(setting, other=other))


def test_the_packed_dataset_carries_the_fingerprint(npz: Callable[..., DatasetConfig], tmp_path: Path) -> None:
    config = npz()
    assert pack(config, tmp_path / "out").fingerprint == fingerprint(config)


def age(path: Path, seconds: float = 60) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


def test_unchanged_files_are_not_read_again(npz: Callable[..., DatasetConfig], tmp_path: Path) -> None:
    config, cache, file = npz(), tmp_path / "digests.json", tmp_path / "data.npz"
    age(file)
    before = fingerprint(config, cache=cache)
    assert before == fingerprint(config)
    known = json.loads(cache.read_text())
    assert list(known) == [str(file.resolve())]
    known[str(file.resolve())]["sha256"] = "0" * 64  # what is in the cache is what is used
    cache.write_text(json.dumps(known))
    assert fingerprint(config, cache=cache) != before
    age(file, 30)  # until the file looks changed
    assert fingerprint(config, cache=cache) == before


def test_a_file_written_just_now_is_not_remembered(npz: Callable[..., DatasetConfig], tmp_path: Path) -> None:
    config, cache = npz(), tmp_path / "digests.json"
    fingerprint(config, cache=cache)
    assert not cache.exists()


def test_a_damaged_cache_costs_only_time(npz: Callable[..., DatasetConfig], tmp_path: Path) -> None:
    config, cache = npz(), tmp_path / "digests.json"
    age(tmp_path / "data.npz")
    cache.write_text('{"/x": {"si')
    assert fingerprint(config, cache=cache) == fingerprint(config)
    assert json.loads(cache.read_text())


# configuration


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"source": "digits", "path": "x"}, "digits lie inside scikit-learn"),
        ({"source": "npz"}, "name the .npz file"),
        ({"source": "folder"}, "name the folder"),
        (
            {"source": "folder", "path": "x", "group_key": "p"},
            "dataset.group_key is a setting of npz; leave it out for folder",
        ),
        ({"source": "digits", "size": 0}, "dataset.size 0"),
        ({"source": "digits", "validation": 0.0}, "dataset.validation 0.0"),
        ({"source": "digits", "validation": 0.5, "test": 0.5}, "together below 1"),
        ({"source": "digits", "split_seed": -1}, "dataset.split_seed -1"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        DatasetConfig(**settings)
