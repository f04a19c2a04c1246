"""Small synthetic trees in the layout of each distributor, for tests of listing, packing and training.

Sizes, bit depths and pixel formats are mixed, and one training image of each tree is cut short. What an image shows
depends on its label, so that training on it means something, and every class is in every split.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FINDINGS = (  # as NIH spells them
    *("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax"),
    *("Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia"),
)

_SIDES = (32, 40, 48)


# drawing


def texture(rng: np.random.Generator, side: int) -> NDArray[np.int64]:
    """Smooth noise 0..100 (side, side) that no other image has, so that the audit takes no two for copies."""
    coarse = Image.fromarray(rng.integers(0, 100, size=(7, 7), dtype=np.uint8))
    return np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC)).astype(np.int64).clip(0, 100)


def draw(rng: np.random.Generator, side: int, marks: Iterable[int], *, cells: int = 4) -> NDArray[np.uint8]:
    """Grey (side, side) with a bright square in each cell of `marks`, counted along the rows of a grid."""
    pixels = texture(rng, side) + rng.integers(0, 20, size=(side, side))
    step = side // cells
    for mark in marks:
        y, x = (mark // cells) * step, (mark % cells) * step
        pixels[y : y + step, x : x + step] += 120
    return pixels.astype(np.uint8)


def coloured(rng: np.random.Generator, side: int, label: int) -> NDArray[np.uint8]:
    """(side, side, 3): a disc that is reddish for label 0, bluish for label 1."""
    pixels = texture(rng, side)[..., None] + rng.integers(0, 20, size=(side, side, 3))
    y, x = np.mgrid[:side, :side] - side / 2
    pixels[x**2 + y**2 < (side / 2.5) ** 2] += np.array([120, 30, 10] if label == 0 else [30, 30, 120])
    return pixels.astype(np.uint8)


def save(pixels: NDArray[np.uint8], path: Path, form: str = "plain") -> None:
    """Write `pixels`, grey or RGB, as `form`: plain, rgba, palette, 16-bit (of the grey values), wide or truncated."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    match form:
        case "rgba":
            image = image.convert("RGBA")
        case "palette":
            image = image.convert("P") if image.mode == "L" else image.quantize(64)
        case "16-bit":
            image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
        case "wide":
            image = image.resize((image.width + 9, image.height))
    stream = io.BytesIO()
    image.save(stream, format={".png": "PNG", ".tif": "TIFF", ".bmp": "BMP"}.get(path.suffix, "JPEG"))
    content = stream.getvalue()
    path.write_bytes(content[: len(content) // 2] if form == "truncated" else content)


def _write(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


# trees


def cxr14_tree(root: Path, patients: int = 30, seed: int = 0, *, folders: int = 3) -> None:
    """Three x-rays a patient, two with two findings each and one without; the last third of the patients tests.

    `folders` folders images_001/images ... , or images/ where 0. 00000001_002.png, of a training patient, is truncated.
    """
    rng = np.random.default_rng(seed)
    rows: list[tuple[object, ...]] = []
    lists: dict[str, list[str]] = {"train_val_list.txt": [], "test_list.txt": []}
    for p in range(patients):
        tests = p >= patients - max(7, patients // 3)
        deal = p - (patients - max(7, patients // 3)) if tests else p
        of_patient = [(4 * deal + k) % len(FINDINGS) for k in range(4)]
        for visit, found in enumerate((of_patient[:2], of_patient[2:], [])):
            name = f"{p + 1:08d}_{visit:03d}.png"
            folder = f"images_{p % folders + 1:03d}/images" if folders else "images"
            form = "truncated" if (p, visit) == (0, 2) else _FORMS.get((p, visit), "plain")
            save(draw(rng, _SIDES[(p + visit) % 3], found), root / folder / name, form)
            words = "|".join(FINDINGS[f] for f in sorted(found)) or "No Finding"
            rows.append((name, words, visit, p + 1, "058Y", "M", "PA", 2682, 2749, 0.143, 0.143))
            lists["test_list.txt" if tests else "train_val_list.txt"].append(name)
    columns = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position"
    sizes = "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"  # NIH quotes none of these commas
    _write(root / "Data_Entry_2017.csv", f"{columns},{sizes}".split(","), rows)
    for file, names in lists.items():
        (root / file).write_text("\n".join(names))  # NIH's end without a newline


_FORMS = {(1, 0): "rgba", (2, 0): "palette", (3, 0): "16-bit", (4, 1): "wide"}


def cxr14_lists(root: Path, folder: Path) -> None:
    """Lists as the paper's code publishes them, of a `cxr14_tree`: every third patient of train_val validates."""
    with (root / "Data_Entry_2017.csv").open(encoding="utf-8") as file:
        findings = {row["Image Index"]: row["Finding Labels"].split("|") for row in csv.DictReader(file)}
    tests = set((root / "test_list.txt").read_text().split())
    lines: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for name, found in findings.items():
        split = "test" if name in tests else "val" if int(name[:8]) % 3 == 0 else "train"
        lines[split].append(" ".join([name, *("1" if f in found else "0" for f in FINDINGS)]))
    folder.mkdir(parents=True, exist_ok=True)
    for split, of_split in lines.items():
        (folder / f"cxr14_{split}.txt").write_text("\n".join(of_split))


def eyepacs_tree(root: Path, patients: int = 30, seed: int = 0, *, solution: bool = True) -> None:
    """Two eyes a patient, levels 0 to 4 in turn; every third patient tests. train/1_left.jpeg is truncated.

    Without `solution` the test images have no labels, as Kaggle shipped them at first.
    """
    rng = np.random.default_rng(seed)
    labels: dict[str, list[tuple[object, ...]]] = {"train": [], "test": []}
    for p in range(1, patients + 1):
        part = "test" if p % 3 == 0 else "train"
        for eye, name in enumerate((f"{p}_left", f"{p}_right")):
            level = (p // 3 + p + 2 * eye) % 5
            pixels = coloured(rng, _SIDES[p % 3], int(level >= 2))
            save(pixels, root / part / f"{name}.jpeg", "truncated" if name == "1_left" else _EYES.get(p, "plain"))
            labels[part].append((name, level) if part == "train" else (name, level, ("Public", "Private")[p % 2]))
    _write(root / "trainLabels.csv", ("image", "level"), labels["train"])
    if solution:
        _write(root / "retinopathy_solution.csv", ("image", "level", "Usage"), labels["test"])


_EYES = {2: "wide", 3: "wide"}


def idc_tree(root: Path, patients: int = 20, seed: int = 0, *, nested: bool = False) -> None:
    """Six patches a patient, half of them positive; the first of patient 10001 is truncated."""
    rng = np.random.default_rng(seed)
    for p in range(patients):
        patient = str(10001 + p)
        for i in range(6):
            label = i % 2
            name = f"{patient}_idx5_x{50 * i + 1}_y{50 * p + 1}_class{label}.png"
            side = 48 if i == 5 else 50  # the published ones are smaller at a slide's edge
            form = "truncated" if (p, i) == (0, 0) else _PATCHES.get((p, i), "plain")
            folder = root / "IDC_regular_ps50_idx5" if nested else root
            save(coloured(rng, side, label), folder / patient / str(label) / name, form)


_PATCHES = {(1, 0): "rgba", (2, 0): "palette", (3, 0): "wide"}


def idc_lists(root: Path, folder: Path) -> None:
    """Lists as the paper's code publishes them, of an `idc_tree`: the last 30% of patients validate or test."""
    patients = sorted(p.name for p in root.iterdir() if p.is_dir())
    third = max(1, len(patients) * 3 // 20)
    for split, chosen in {"val": patients[-2 * third : -third], "test": patients[-third:]}.items():
        paths = [p.relative_to(root).as_posix() for name in chosen for p in sorted((root / name).glob("*/*.png"))]
        _write(folder / f"idc_{split}.csv", ("img_path", "labels"), [(path, path.split("/")[1]) for path in paths])


def manifest_tree(root: Path, images: int = 60, seed: int = 0, *, several: bool = False, splits: bool = True) -> None:
    """<root>/manifest.csv with path, label (or the labels a, b and c where `several`), group, and split if `splits`.

    Four images a group, in PNG, JPEG, TIFF and BMP by turns; images/000.png is truncated.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(images):
        label, marks = i % 3, [k for k in range(3) if i >> k & 1]
        name = f"images/{i:03d}{('.png', '.jpg', '.tif', '.bmp')[i % 4]}"
        form = "truncated" if i == 0 else ("plain", "rgba", "palette", "16-bit")[i // 4 % 4] if i % 4 == 0 else "plain"
        save(draw(rng, _SIDES[i % 3], marks if several else [label]), root / name, form)
        split = [("train", "val", "train", "test")[i // 4 % 4]] if splits else []
        rows.append((name, *([int(k in marks) for k in range(3)] if several else [f"stage {label}"]), i // 4, *split))
    labels = ("a", "b", "c") if several else ("label",)
    _write(root / "manifest.csv", ("path", *labels, "group", *(["split"] if splits else [])), rows)


def medmnist_file(path: Path, images: int = 60, seed: int = 0, *, labels: int = 1, rgb: bool = False) -> None:
    """An .npz as the medmnist package ships it: two classes, or several labels; 28 px a side."""
    rng = np.random.default_rng(seed)
    arrays: dict[str, NDArray[np.generic]] = {}
    for split, n in {"train": images - images // 2, "val": images // 4, "test": images // 2 - images // 4}.items():
        known = np.array([[i >> k & 1 for k in range(labels)] for i in range(n)], dtype=np.uint8)  # (n, L)
        if rgb:
            drawn = [coloured(rng, 28, int(row[0])) for row in known]
        else:
            drawn = [draw(rng, 28, np.flatnonzero(row)) for row in known]
        arrays |= {f"{split}_images": np.stack(drawn), f"{split}_labels": known}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)
