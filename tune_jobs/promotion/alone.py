"""Run as a script, in a process that has torch and mlflow alone: what a packaged model says of some images.

    python -I alone.py MODEL IMAGES.npz ANSWERS.npz

IMAGES.npz holds `images` [N, H, W, C] uint8 and `files`, the bytes of each of some image files. ANSWERS.npz gets a row
of probabilities for each. Nothing of this package may be imported but what the model brings along.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

ABSENT = ("ray", "optuna", "tune_jobs", "analysis")
OWN = "ssl_core"
BATCH = 64


class _Absent(MetaPathFinder):
    def find_spec(self, fullname: str, *_: Any) -> ModuleSpec | None:
        if fullname.partition(".")[0] in ABSENT:
            raise ImportError(f"{fullname} is not there where a model is served")
        return None


def main(model: Path, images: Path, answers: Path) -> None:
    sys.meta_path.insert(0, _Absent())
    import mlflow
    import numpy as np

    loaded = mlflow.pyfunc.load_model(str(model))
    with np.load(images, allow_pickle=False) as file:
        pixels = file["images"]
        files = [file[name].tobytes() for name in sorted(file.files) if name.startswith("file")]
    given = {"images": [_npy(image) for image in pixels], "files": files}
    said = {name: _said(loaded, contents) for name, contents in given.items()}
    for name, module in list(sys.modules.items()):
        place = getattr(module, "__file__", None)
        if name.partition(".")[0] == OWN and place and not Path(place).resolve().is_relative_to(model.resolve()):
            raise ImportError(f"{name} came from {place}, not from the model: its code has to be inside")
    np.savez(answers, **said)


def _said(model: Any, contents: Sequence[bytes]) -> Any:
    """[N, classes] probabilities of images that are the bytes of files, some at a time."""
    import numpy as np
    import pandas as pd

    parts = [contents[i : i + BATCH] for i in range(0, len(contents), BATCH)]
    answers = [model.predict(pd.DataFrame({"image": part})).to_numpy() for part in parts]
    return np.concatenate(answers) if answers else np.empty((0, 0))


def _npy(image: Any) -> bytes:
    """Pixels as an .npy file's bytes."""
    import numpy as np

    buffer = io.BytesIO()
    np.save(buffer, image, allow_pickle=False)
    return buffer.getvalue()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
