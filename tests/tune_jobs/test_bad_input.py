"""Bad input through the real command: one clear message, exit 2, nothing run, no Ray started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from studies import raw


def run(folder: Path, study: dict[str, Any], *words: str) -> tuple[int, str]:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study))
    done = subprocess.run(
        [sys.executable, "-m", "tune_jobs.cli", "ablate", str(path), "--output", str(folder / "runs"), *words],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    return done.returncode, done.stderr.strip()


def refused(folder: Path, study: dict[str, Any], *words: str, lines: int = 1) -> None:
    """The study ends with exit 2 and a message that holds every word; no stage but the dataset's and its audit."""
    status, message = run(folder, study)
    assert status == 2, message
    assert message.startswith("intermoco: ")
    assert len(message.splitlines()) == lines, message
    assert all(word in message for word in words), message
    stages = (folder / "runs" / "stages").glob("*/manifest.json")
    assert {p.parent.name.split("-")[0] for p in stages} <= {"data", "audit"}


def images(folder: Path, *, per_class: int = 12, classes: tuple[str, ...] = ("cat", "dog"), mode: str = "L") -> Path:
    rng = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            shape = (16, 16) if mode == "L" else (16, 16, 3)
            Image.fromarray(rng.integers(0, 255, shape, dtype=np.uint8)).save(folder / name / f"{i}.png")
    return folder


def npz(path: Path, **changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    arrays = {"images": rng.integers(0, 255, (60, 8, 8), dtype=np.uint8), "labels": np.arange(60) % 2, **changes}
    np.savez(path, **arrays)
    return {"source": "npz", "path": str(path)}


def test_a_missing_dataset(tmp_path: Path) -> None:
    refused(tmp_path, raw(dataset={"source": "npz", "path": str(tmp_path / "no.npz")}), "no.npz")
    refused(tmp_path, raw(dataset={"source": "folder", "path": str(tmp_path / "no")}), str(tmp_path / "no"))


def test_an_unreadable_dataset(tmp_path: Path) -> None:
    (tmp_path / "bad.npz").write_bytes(b"not a zip file")
    refused(tmp_path, raw(dataset={"source": "npz", "path": str(tmp_path / "bad.npz")}), "bad.npz")


def test_a_corrupt_image_is_named_with_its_path(tmp_path: Path) -> None:
    folder = images(tmp_path / "images")
    broken = folder / "dog" / "3.png"
    broken.write_bytes(broken.read_bytes()[:60])
    said = ("unreadable_images", "dog/3.png", "dataset.accept: [unreadable_images]")
    refused(tmp_path, raw(dataset={"source": "folder", "path": str(folder)}), *said, lines=3)


def test_a_leak_between_splits_is_named_and_stops_the_study(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (60, 8, 8), dtype=np.uint8)
    pixels[7] = pixels[55]  # a training image and a test image
    split = np.array(["train"] * 40 + ["val"] * 10 + ["test"] * 10)
    groups = np.array([f"patient {i}" for i in range(60)])
    groups[3] = groups[45]
    dataset = npz(tmp_path / "x.npz", images=pixels, split=split, group=groups)
    said = ("groups_across_splits", "patient 45", "duplicates_across_splits", "7", "55", "dataset.accept: [")
    refused(tmp_path, raw(dataset=dataset), *said, lines=4)
    refused(tmp_path, raw(dataset={**dataset, "accept": ["groups_across_splits"]}), "duplicates_across_splits", lines=3)


def test_images_of_several_sizes(tmp_path: Path) -> None:
    folder = images(tmp_path / "images")
    Image.new("L", (16, 18)).save(folder / "dog" / "3.png")
    refused(tmp_path, raw(dataset={"source": "folder", "path": str(folder)}), "3.png", "dataset.size")


def test_labels_of_one_class_in_a_split(tmp_path: Path) -> None:
    split = np.array(["train"] * 40 + ["val"] * 10 + ["test"] * 10)
    labels = np.r_[np.arange(50) % 2, np.zeros(10, int)]
    refused(tmp_path, raw(dataset=npz(tmp_path / "x.npz", split=split, labels=labels)), "test", "class")


def test_a_fraction_too_small_to_hold_each_class(tmp_path: Path) -> None:
    study = raw(dataset=npz(tmp_path / "x.npz"), arms={"supervised": "scratch"})
    study["downstream"]["fractions"] = [0.01, 1.0]
    study["reuse"] = None
    refused(tmp_path, study, "0.01", "class")


def test_a_queue_that_the_dataset_does_not_allow(tmp_path: Path) -> None:
    study = raw()
    study["pretrain"]["moco"] = {"queue": 65536}
    refused(tmp_path, study, "arms.moco", "65536", "1258", "629")


def test_a_batch_beyond_the_dataset(tmp_path: Path) -> None:
    study = raw()
    study["pretrain"]["batch_size"] = 2000
    refused(tmp_path, study, "arms.moco", "batch_size 2000", "1258")


def test_more_workers_than_the_cluster_has(tmp_path: Path) -> None:
    refused(tmp_path, raw(resources={"workers": 512}), "512 workers", "resources.workers")


def test_a_score_that_the_task_does_not_have(tmp_path: Path) -> None:
    study = raw()
    study["downstream"]["metric"] = "f1"
    refused(tmp_path, study, "f1_macro", "10 classes")


def test_an_address_where_no_cluster_is(tmp_path: Path) -> None:
    status, message = run(tmp_path, raw(arms={"supervised": "scratch"}), "--address", "127.0.0.1:9")
    assert status == 2, message
    assert "--address 127.0.0.1:9" in message.splitlines()[-1]


def test_a_report_of_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tune_jobs.cli", "report", "quickstart", "--output", str(tmp_path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "intermoco ablate" in done.stderr


@pytest.mark.parametrize("words", [["ablat"], ["ablate"], ["ablate", "quickstart", "--sett", "x"]])
def test_usage_errors_exit_2(words: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", "tune_jobs.cli", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
