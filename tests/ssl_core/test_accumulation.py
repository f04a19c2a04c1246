"""A step in pieces is the step: its gradients, terms and keys, from a part of the memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor

from ssl_core import checkpoint
from ssl_core.config import BarlowConfig, MseConfig, PretrainConfig
from ssl_core.data.dataset import Dataset
from ssl_core.encoder import Encoder
from ssl_core.errors import ConfigError, MemoryExhaustedError
from ssl_core.feasibility import check_pretrain
from ssl_core.initialisation import random_generator
from ssl_core.pretraining import Pretraining
from tests.ssl_core.pretraining_runs import CPU, Recorder, config, different, lines, run

ROWS = np.arange(16)


def arm(**changes: Any) -> PretrainConfig:
    losses = {"mse": MseConfig(blocks=(1, 4), scale=0.25), "barlow": BarlowConfig(blocks=(2, 3), width=6, scale=0.1)}
    return config(**{"batch_size": 16, **losses, **changes})


def step(arm: PretrainConfig, dataset: Dataset, *, training: bool = False) -> tuple[dict[str, Tensor], Pretraining]:
    """Terms, keys, gradients of a step, and batch norm's statistics after it, where h is unlike g."""
    made = Pretraining(arm, dataset, CPU)
    made.moco.train(training)
    with torch.no_grad():
        for parameter in made.moco.key.parameters():
            parameter.mul_(1.1)
    terms, keys, _ = made._backward(0, ROWS)
    found = {f"term {name}": term.detach() for name, term in terms.items()} | {"keys": keys}
    found |= {f"gradient {name}": p.grad for name, p in made.moco.named_parameters() if p.grad is not None}
    return found | {f"buffer {name}": b.clone() for name, b in made.moco.named_buffers()}, made


@pytest.mark.parametrize("micro", [4, 5, 8])
@pytest.mark.parametrize("losses", [{}, {"barlow": None}, {"mse": None, "barlow": None}])
def test_gradients_are_those_of_the_whole_batch(digits: Dataset, losses: dict[str, Any], micro: int) -> None:
    """Under fixed batch norm statistics, so that a piece's do not come in."""
    whole, _ = step(arm(**losses), digits)
    pieces, made = step(arm(**losses, micro_batch=micro), digits)
    assert made.pieces == -(-16 // micro)
    assert pieces.keys() == whole.keys()
    for name, value in whole.items():
        assert float((pieces[name] - value).double().norm()) <= 1e-5 * float(value.double().norm()), name
    assert ("term barlow_2" in whole) == (not losses)


def test_of_a_correlation_of_each_piece_the_gradient_is_another(digits: Dataset) -> None:
    """What the second pass is for."""
    whole, _ = step(arm(mse=None), digits)
    made = Pretraining(arm(mse=None), digits, CPU)
    made.moco.eval()
    with torch.no_grad():
        for parameter in made.moco.key.parameters():
            parameter.mul_(1.1)
    views = made.batches.views(ROWS, made.config.augment, random_generator(made.config.seed, "views", 0), 2)
    for part in (slice(0, 8), slice(8, 16)):
        terms, _ = made.moco(views[0][part], views[1][part], made.codes[ROWS][part])
        (terms["loss"] / 2).backward()
    name = "gradient query.encoder.layer2.1.bn2.weight"  # with zero_init_residual the block's others have none
    found = made.moco.get_parameter(name.removeprefix("gradient ")).grad
    assert found is not None
    assert float((found - whole[name]).norm()) > 0.01 * float(whole[name].norm())


def test_batch_norm_moves_once_a_piece_and_not_in_the_first_pass(digits: Dataset) -> None:
    found, _ = step(arm(micro_batch=4), digits, training=True)
    assert int(found["buffer query.encoder.bn1.num_batches_tracked"]) == 4
    assert int(found["buffer key.encoder.bn1.num_batches_tracked"]) == 4


def held(arm: PretrainConfig, dataset: Dataset) -> int:
    """The most bytes that the graph of a step's backward pass holds at once."""
    holds, most = 0, 0

    class Held:
        def __init__(self, x: Tensor) -> None:
            nonlocal holds, most
            self.x, self.size = x, x.numel() * x.element_size()
            holds += self.size
            most = max(most, holds)

        def __del__(self) -> None:
            nonlocal holds
            holds -= self.size

    with torch.autograd.graph.saved_tensors_hooks(Held, lambda packed: packed.x):
        step(arm, dataset, training=True)
    return most


def test_memory_falls_with_the_piece(digits: Dataset) -> None:
    """What the graph holds besides the activations, the weights, does not."""
    whole, half, quarter = (held(arm(micro_batch=m), digits) for m in (None, 8, 4))
    assert whole - half > 1.9 * (half - quarter) > 0


@contextlib.contextmanager
def memory_for(samples: int) -> Iterator[None]:
    """An encoder that runs out of memory where a batch holds more samples, once there are gradients to be."""
    forward = Encoder.forward

    def limited(self: Encoder, x: Tensor, *blocks: Any) -> Any:
        if torch.is_grad_enabled() and len(x) > samples:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")
        return forward(self, x, *blocks)

    with patch.object(Encoder, "forward", limited):
        yield


def test_auto_halves_until_it_fits_and_then_is_the_run_of_that_size(digits: Dataset, tmp_path: Path) -> None:
    """To the bit, batch norm's statistics included: what failed left nothing."""
    folders = {name: tmp_path / name for name in ("auto", "given")}
    with memory_for(4):
        for name, micro in (("auto", "auto"), ("given", 4)):
            folders[name].mkdir()
            run(arm(micro_batch=micro, epochs=1), digits, folders[name], Recorder())
    ends = [checkpoint.load(folder / "checkpoint.pt") for folder in folders.values()]
    assert different(ends[0]["moco"], ends[1]["moco"]) == []
    assert [row["micro_batch"] for row in lines(folders["auto"] / "metrics.jsonl")] == [4.0]


def test_what_does_not_fit_says_what_helps(digits: Dataset, tmp_path: Path) -> None:
    for micro, said in ((None, "micro_batch to 8 or auto"), (8, "micro_batch to 4 or auto")):
        with memory_for(3), pytest.raises(MemoryExhaustedError, match=said):
            run(arm(micro_batch=micro, epochs=1), digits, tmp_path, Recorder())
    with memory_for(1), pytest.raises(MemoryExhaustedError, match="lower batch_size"):
        run(arm(micro_batch="auto", epochs=1), digits, tmp_path, Recorder())


@pytest.mark.parametrize(
    ("micro", "workers", "message"),
    [("auto", 2, "is for one worker"), (3, 2, "micro_batch 3 is too small for 2 workers; use 4 or more")],
)
def test_what_cannot_be_is_refused(micro: Any, workers: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_pretrain(arm(micro_batch=micro), 40, workers)
