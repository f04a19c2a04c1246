"""A finished fine-tuning as an MLflow model: weights, preprocessing, code and signature in one folder, no pickle.

MLmodel                     signature, requirements, what to run
artifacts/model.pt          the weights, as they were evaluated
artifacts/preprocessing.json
code/ssl_core/              all the code that it needs beside torch, torchvision, numpy, pillow and mlflow
served.py                   how MLflow calls it
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import io
import json
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ssl_core.data.form import Form
from ssl_core.errors import DataError

PREPROCESSING = "preprocessing.json"

#: What the server needs. pydicom only reads DICOM; where it is not installed here, it is not asked for there.
_PACKAGES = ("mlflow", "torch", "torchvision", "numpy", "pandas", "pillow")
_OPTIONAL = ("pydicom",)

_ADVICE = re.compile("Any type hint is inferred as AnyType|Add type hints to the|Operation with range is")


def save_model(folder: Path, *, tuned: Path, data: Path, temperature: float = 1.0) -> None:
    """Write an MLflow model to `folder`, which must not exist, from a finished fine-tuning and its packed dataset.

    Args:
        tuned: folder of the finetune stage, with `model.pt`.
        data: folder of the data stage that it was trained on, whose `dataset.json` says how images were packed.
        temperature: what logits are divided by before they become probabilities; 1 leaves them.

    Raises DataError where the dataset does not say how it was packed; ConfigError or CheckpointError where the two
    do not fit together.
    """
    with _quiet():
        import mlflow.pyfunc
        from mlflow.models import Model, ModelSignature
        from mlflow.types import ColSpec, DataType, Schema

    from ssl_core.predictor import Predictor

    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    form = form_of(data)
    predictor = Predictor.load(tuned / "model.pt", form, temperature=temperature)  # it fits, before anything is written
    facts = {
        "form": dataclasses.asdict(form),
        "side": predictor.side,
        "mean": list(predictor.mean),
        "std": list(predictor.std),
        "task": predictor.task,
        "class_names": list(predictor.class_names),
        "precision": predictor.precision,
        "temperature": temperature,
        "max_pixels": predictor.max_pixels,
    }
    signature = ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, "image")]),
        outputs=Schema([ColSpec(DataType.double, name) for name in predictor.class_names]),
    )
    with tempfile.TemporaryDirectory() as scratch, _quiet():
        said = Path(scratch) / PREPROCESSING
        said.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        mlflow.pyfunc.save_model(
            folder,
            python_model=str(_served()),
            artifacts={"model": str(tuned / "model.pt"), "preprocessing": str(said)},
            code_paths=[str(_method(Path(scratch)))],
            signature=signature,
            input_example=example(predictor.side, form.channels),
            pip_requirements=requirements(),
            metadata={"temperature": temperature, "precision": predictor.precision, "task": predictor.task},
            mlflow_model=Model(),
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without MLflow's warnings about its own code, and about hints that would put a signature in place of ours."""
    with warnings.catch_warnings(record=True) as heard:  # its own filters go before any that would be set here
        warnings.simplefilter("always")
        yield
    for said in heard:
        if not _ADVICE.search(str(said.message)):
            warnings.warn_explicit(said.message, said.category, said.filename, said.lineno)


def form_of(data: Path) -> Form:
    """The form in which a data stage's images were packed; where they were packed as stored, their size is it."""
    try:
        facts = json.loads((data / "dataset.json").read_text(encoding="utf-8"))
        said: dict[str, Any] = dict(facts["details"]["form"])
        size: int = facts["summary"]["size"]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{data} does not say how its images were packed ({error!r}); remove this folder and run the study again: "
            "only the packing is repeated"
        ) from error
    if said["size"] is None and said["crop"] is None:
        said["size"] = size
    if isinstance(said["intensity"], list):
        said["intensity"] = tuple(said["intensity"])
    return Form(**said)


def example(side: int, channels: int) -> Any:
    """A request with one image: a grey ramp. A real one would ship a patient's image with every copy of the model."""
    import numpy as np
    import pandas as pd
    from PIL import Image

    ramp = np.linspace(0, 255, side).round().astype(np.uint8)[None, :].repeat(side, axis=0)  # (S, S)
    buffer = io.BytesIO()
    Image.fromarray(ramp if channels == 1 else np.stack([ramp] * 3, axis=-1)).save(buffer, format="PNG")
    return pd.DataFrame({"image": [base64.b64encode(buffer.getvalue()).decode()]})


def requirements() -> list[str]:
    """The packages that the server needs, at the versions that run here; without a build's local label (`+cpu`)."""
    wanted = [f"{name}=={version(name).partition('+')[0]}" for name in _PACKAGES]
    for name in _OPTIONAL:
        try:
            wanted.append(f"{name}=={version(name)}")
        except PackageNotFoundError:
            continue
    return wanted


def _served() -> Path:
    return Path(__file__).with_name("served.py")


def _method(scratch: Path) -> Path:
    """A copy of the package `ssl_core` without what Python compiled of it: the same code gives the same model."""
    import ssl_core

    source = Path(ssl_core.__file__).parent
    copied = scratch / "ssl_core"
    shutil.copytree(source, copied, ignore=shutil.ignore_patterns("__pycache__"))
    return copied
