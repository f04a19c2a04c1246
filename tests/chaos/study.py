"""The study that is disturbed, and what must come out of it again and again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.datasets import load_digits

from tune_jobs.store import MANIFEST, file_digest, read_manifest

NAME = "chaos"
IMAGES = 240


def write_images(path: Path) -> None:
    """A few of scikit-learn's digits, so that an epoch takes seconds on a busy machine."""
    digits = load_digits()
    images = np.round(digits.images[:IMAGES, :, :, None] * 15.9375).astype(np.uint8)  # from 0-16, (N, 8, 8, 1)
    np.savez(path, images=images, labels=digits.target[:IMAGES])


def values(workers: int, arms: int, images: Path) -> dict[str, Any]:
    """The study's YAML values: one or two pretrainings of seconds, by workers, and all that follows from them."""
    whole = arms > 1  # one arm alone is for a test that has a minute
    rates = {"epochs": 1, "min_steps": 2, "evaluations": 1}
    return {
        "study": NAME,
        "dataset": {"source": "npz", "path": str(images)},
        "seeds": [0],
        "encoder": {"arch": "resnet18", "stem": "small"},
        "augment": {"crop": [0.6, 1.0], "rotate": 15, "blur": 0.0},
        "pretrain": {
            "epochs": 4,
            "batch_size": 64,
            "moco": {"queue": 64},
            "precision": "float32",
            "batch_norm": "sync" if workers > 1 else "worker",
        },
        "arms": {"moco": {}} | ({"moco_mse": {"mse": {"blocks": [1, 4]}}} if whole else {}),
        "downstream": {"bootstrap": 20, "fractions": [0.06, 1.0] if whole else [1.0], "linear": rates, "full": rates},
        "probe": {"epochs": 2, "bootstrap": 20} if whole else None,
        "reuse": {"permutations": 2, "sets": 2} if whole else None,
        # as many restarts as it takes: how often a stage is tried again is not the question here
        "resources": {"workers": workers, "accelerators": 0, "checkpoint_seconds": 0.5, "restarts": 100},
        # nobody answers there, which costs a study nothing; sqlite below the root is refused on a cluster
        "tracking": {"uri": "http://127.0.0.1:9"},
    }


def tables(root: Path) -> dict[str, pd.DataFrame]:
    """The study's tables by name, without the columns that say how long something took."""
    found = {path.stem: pd.read_csv(path) for path in sorted((root / NAME / "tables").glob("*.csv"))}
    return {name: table[[c for c in table.columns if "seconds" not in c]] for name, table in found.items()}


def encoders(root: Path) -> dict[str, str]:
    """SHA-256 of every encoder, by its stage's folder, as the manifests say."""
    folders = sorted((root / "stages").glob("pretrain-*"))
    return {folder.name: read_manifest(folder)["files"]["encoder.pt"]["sha256"] for folder in folders}


def differences(root: Path, undisturbed: Path) -> list[str]:
    """In words, where a study's results are not those of the undisturbed one."""
    ours, theirs = tables(root), tables(undisturbed)
    found = [f"table {name} is there in one of both" for name in sorted(ours.keys() ^ theirs.keys())]
    found += [
        f"table {name} differs" for name in sorted(ours.keys() & theirs.keys()) if not ours[name].equals(theirs[name])
    ]
    if encoders(root) != encoders(undisturbed):
        found.append(f"encoders differ: {encoders(root)} for {encoders(undisturbed)}")
    return found


class Published:
    """Looks whether all that has its final name is whole."""

    def __init__(self, root: Path) -> None:
        self.stages, self._whole = root / "stages", set[str]()

    def amiss(self) -> list[str]:
        """In words, what is not as its manifest says. What was whole once is not read again."""
        found = []
        for folder in self.stages.glob("[!.]*"):
            if folder.name in self._whole:
                continue
            if not (folder / MANIFEST).is_file():
                found.append(f"{folder.name} has no manifest")
                continue
            files = read_manifest(folder)["files"]
            found += [f"{folder.name}/{f} differs" for f in files if file_digest(folder / f) != files[f]["sha256"]]
            self._whole.add(folder.name)
        return found
