"""A fine-tuned model as one file that runs without this code: ONNX, or a `torch.export` program (.pt2).

The graph takes pixels in their form, uint8 [B, S, S, C] with B of any size, to probabilities float32 [B, K], K as in
the stored predictions: 1 for two classes (of the second one). Normalisation and temperature are inside, all in float32.
Resizing is not: `ssl_core.data.form` does it, and another library's resize gives other pixels.

A file gets its name only after it was loaded anew and has answered on a whole split within 1e-4 of the evaluation,
which is in float32 too, whatever the training's precision. Where it does not, the file is held to what the same weights
answer here. If it is right by that, the evaluation is what differs (other weights, another machine, or bf16, in which
earlier versions evaluated), and the distance has to be allowed by name (`evaluated_within`).
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ssl_core.augment import normalise, prepare
from ssl_core.classifier import Classifier, probabilities
from ssl_core.data.dataset import Task
from ssl_core.data.shards import Shards
from ssl_core.errors import ConfigError, DataError, ExportError
from ssl_core.predictor import BATCH, Predictor
from ssl_core.temperature import tempered

#: Pixels in their form, uint8 [n, S, S, C], of a whole split, and the probabilities [n, K] that its evaluation stored.
Check = tuple[NDArray[np.uint8] | Shards, NDArray[np.float64]]
Run = Callable[[NDArray[np.uint8]], NDArray[np.float32]]

TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far an exported file's probabilities are from others, at most, over `images`."""

    images: int
    from_evaluated: float
    from_float32: float | None  # of the same weights in float32; None: not asked, as the evaluated ones are met


class Program(nn.Module):
    """Pixels uint8 [B, S, S, C] -> probabilities float32 [B, K]."""

    def __init__(
        self, model: Classifier, mean: tuple[float, ...], std: tuple[float, ...], task: Task, temperature: float
    ) -> None:
        super().__init__()
        self.model, self.mean, self.std, self.task, self.temperature = model, mean, std, task, temperature

    def forward(self, images: Tensor) -> Tensor:
        images = normalise(prepare(images.permute(0, 3, 1, 2)), self.mean, self.std)
        logits: Tensor = self.model(images) / self.temperature
        return logits.softmax(dim=1) if self.task == "multiclass" else logits.sigmoid()


def export_onnx(predictor: Predictor, path: Path, check: Check, *, evaluated_within: float = TOLERANCE) -> Agreement:
    """Write an ONNX file: input `images`, output `probabilities`, class names and the like in its metadata.

    Needs the extra `deploy`. Raises ExportError, and leaves no file, where what onnxruntime makes of the file is
    further than 1e-4 from the model in float32, or than `evaluated_within` from the evaluated probabilities in `check`.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  # torch asks for it when it is too late to say so well
    except ImportError as error:
        raise ConfigError(f"ONNX needs the package {error.name}: install intermoco[deploy]") from None
    program, example, shapes = _traced(predictor, check)
    written = torch.onnx.export(
        program,
        (example,),
        input_names=["images"],
        output_names=["probabilities"],
        dynamic_shapes=shapes,
        dynamo=True,
        verbose=False,
    )
    assert written is not None
    written.model.metadata_props.update(facts(predictor))

    def load(file: Path) -> Run:
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        return lambda pixels: np.asarray(session.run(["probabilities"], {"images": pixels})[0])

    with _aside(path) as file:
        written.save(str(file), external_data=False)
        return _checked(predictor, load(file), check, evaluated_within, path)


def export_program(predictor: Predictor, path: Path, check: Check, *, evaluated_within: float = TOLERANCE) -> Agreement:
    """Write a `torch.export` program: `torch.export.load(path).module()(images)`; class names in its file `facts`.

    Raises ExportError as `export_onnx` does.
    """
    program, example, shapes = _traced(predictor, check)
    exported = torch.export.export(program, (example,), dynamic_shapes=shapes)

    def load(file: Path) -> Run:
        loaded = torch.export.load(file).module()
        return lambda pixels: np.asarray(loaded(torch.from_numpy(pixels)).detach().numpy())

    with _aside(path) as file:
        torch.export.save(exported, file, extra_files={"facts": json.dumps(facts(predictor), ensure_ascii=False)})
        return _checked(predictor, load(file), check, evaluated_within, path)


def facts(predictor: Predictor) -> dict[str, str]:
    """What a file says of itself, as text; `form` is how images become its input, JSON."""
    return {
        "class_names": json.dumps(list(predictor.class_names), ensure_ascii=False),
        "task": predictor.task,
        "temperature": str(predictor.temperature),
        "form": json.dumps(dataclasses.asdict(predictor.form)),
    }


def _traced(predictor: Predictor, check: Check) -> tuple[Program, Tensor, dict[str, Any]]:
    """The graph's module on the CPU, an input to trace it with, and which of its dimensions is dynamic."""
    images, stored = check
    shape = (predictor.side, predictor.side, predictor.form.channels)
    if len(images) != len(stored) or len(stored) == 0 or tuple(images.shape[1:]) != shape:
        raise DataError(
            f"{tuple(images.shape)} pixels and {len(stored)} predictions to check with; give a split's images "
            f"(n, {', '.join(map(str, shape))}) and their stored probabilities"
        )
    model = _on_cpu(predictor).model
    program = Program(model, predictor.mean, predictor.std, predictor.task, predictor.temperature).eval()
    for parameter in program.parameters():
        parameter.requires_grad_(False)
    example = torch.zeros((2, *shape), dtype=torch.uint8)
    return program, example, {"images": {0: torch.export.Dim("batch", min=1)}}


def _on_cpu(predictor: Predictor) -> Predictor:
    """The same weights in float32 on the CPU, a copy."""
    model = copy.deepcopy(predictor.model).cpu().to(memory_format=torch.contiguous_format)
    return dataclasses.replace(predictor, model=model, device=torch.device("cpu"), precision="float32")


def _checked(predictor: Predictor, run: Run, check: Check, evaluated_within: float, path: Path) -> Agreement:
    """How far the file's answers are off; ExportError where that is too far."""
    images, stored = check
    answers = _batched(run, images)
    n = len(stored)
    from_evaluated = _distance(answers, tempered(stored, predictor.temperature, predictor.task))
    if from_evaluated <= TOLERANCE:
        return Agreement(images=n, from_evaluated=from_evaluated, from_float32=None)
    plain = _on_cpu(predictor)
    logits = torch.from_numpy(_batched(lambda pixels: plain.logits(pixels).numpy(), images))
    expected = probabilities(logits.double() / predictor.temperature, predictor.task).numpy()
    from_float32 = _distance(answers, expected)
    if from_float32 > TOLERANCE:
        raise ExportError(
            f"{path} was not written: on {n} images its probabilities are up to {from_float32:.2g} from the model's, "
            f"above {TOLERANCE:g}; export with the torch version that the model was trained with"
        )
    if from_evaluated > evaluated_within:
        raise ExportError(
            f"{path} was not written: on {n} images its probabilities are up to {from_evaluated:.2g} from the "
            f"evaluated ones, above {evaluated_within:g}. The graph is right ({from_float32:.2g} from what the weights "
            "answer here): other weights were evaluated, or on a machine that computes otherwise; fine-tune again, or "
            "allow the difference (evaluated_within)"
        )
    return Agreement(images=n, from_evaluated=from_evaluated, from_float32=from_float32)


def _batched(run: Callable[[NDArray[np.uint8]], NDArray[Any]], images: NDArray[np.uint8] | Shards) -> NDArray[Any]:
    parts = [run(np.ascontiguousarray(images[i : i + BATCH])) for i in range(0, len(images), BATCH)]
    return np.concatenate(parts)


def _distance(a: NDArray[Any], b: NDArray[Any]) -> float:
    """The greatest difference; infinite where shapes differ or a number is none."""
    if a.shape != b.shape or not np.isfinite(a).all():
        return float("inf")
    return float(np.abs(a.astype(np.float64) - b).max())


@contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """A name to write under, of the same suffix; renamed to `path` where all went well, else removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield file
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
        file.replace(path)
    finally:
        file.unlink(missing_ok=True)
