"""`keep` and `validation`: which encoder is left, what validation moves, and that a resume changes neither."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssl_core import checkpoint
from ssl_core.config import MocoConfig
from ssl_core.data.dataset import VAL, Dataset
from ssl_core.encoder import load_encoder
from ssl_core.initialisation import random_generator
from ssl_core.pretraining import Pretraining, best_epoch, saturated
from tests.ssl_core.pretraining_runs import CPU, LOOKS, Recorder, config, different, lines, run, timeless

PLAIN: dict[str, Any] = {"mse": None, "barlow": None}


class Keeper(Recorder):
    """Remembers the encoder of every epoch, too."""

    def __init__(self) -> None:
        super().__init__()
        self.encoders: list[dict[str, torch.Tensor]] = []

    def checkpoint(self, path: Path) -> None:
        state = checkpoint.load(path)["moco"]
        prefix = "query.encoder."
        self.encoders.append({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        super().checkpoint(path)

    def urgent(self) -> bool:
        super().urgent()
        return self.looks % LOOKS == 0


@pytest.fixture
def val_losses(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[float]], None]:
    """Sets the validation loss after each epoch."""

    def script(losses: list[float]) -> None:
        validate = Pretraining.validate

        def scripted(self: Pretraining) -> dict[str, float]:
            return {**validate(self), "val_loss": losses[self.epoch - 1]}

        monkeypatch.setattr(Pretraining, "validate", scripted)

    return script


@pytest.mark.parametrize(
    ("keep", "losses", "epochs", "kept"),
    [
        ("last", [3, 1, 2, 4, 2], 5, 5),
        ("best", [3, 1, 2, 4, 1], 5, 2),
        ("saturated", [3, 1, 2, 4, 0], 4, 4),  # two epochs without a lower loss
        ("saturated", [3, 1, 2, 0, 4], 5, 5),
    ],
)
def test_the_encoder_that_is_kept(
    digits: Dataset, tmp_path: Path, val_losses: Any, keep: Any, losses: list[float], epochs: int, kept: int
) -> None:
    val_losses(losses)
    arm, keeper = config(keep=keep, saturation=2, epochs=5, **PLAIN), Keeper()
    run(arm, digits, tmp_path / "whole", keeper)
    rows = lines(tmp_path / "whole/metrics.jsonl")
    assert [row["epoch"] for row in rows] == list(range(1, epochs + 1))
    assert rows[-1]["kept_epoch"] == kept
    assert rows[0]["kept_epoch"] == 1
    encoder = load_encoder(tmp_path / "whole/encoder.pt")[0].state_dict()
    assert different(encoder, keeper.encoders[kept - 1]) == []
    rate = 0.03 * 16 / 256  # the schedule is that of five epochs, the first of them warm-up, however many there are
    assert rows[-1]["learning_rate"] == pytest.approx(rate * (1 + np.cos(np.pi * (2 * epochs - 3) / 8)) / 2)

    if kept == 5:
        return
    halves = tmp_path / "halves"
    with pytest.raises(KeyboardInterrupt):
        run(arm, digits, halves, Recorder(stop_at=3 * LOOKS))
    for _ in range(2):  # the second call finds the run complete, and leaves the same
        run(arm, digits, halves, Recorder())
        assert timeless(lines(halves / "metrics.jsonl")) == timeless(rows)
        assert (halves / "encoder.pt").read_bytes() == (tmp_path / "whole/encoder.pt").read_bytes()


def test_the_lowest_loss_is_the_total_with_its_block_terms(digits: Dataset, tmp_path: Path) -> None:
    run(config(keep="best"), digits, tmp_path, Recorder())
    rows = lines(tmp_path / "metrics.jsonl")
    total = [row["val_info_nce"] + 0.25 * sum(row[f"val_mse_{b}"] for b in (1, 2, 3, 4)) for row in rows]
    total = [t + 5e-5 * row["val_barlow_4"] for t, row in zip(total, rows, strict=True)]
    assert rows[-1]["kept_epoch"] == 1 + int(np.argmin(total))


def test_best_and_saturated_are_functions_of_the_losses() -> None:
    assert [best_epoch([3.0, 1.0, 2.0, 1.0][:n]) for n in (1, 2, 3, 4)] == [1, 2, 2, 2]
    assert not saturated([], 1)
    assert [saturated([3.0, 1.0, 2.0, 1.0, 0.0][:n], 2) for n in (1, 2, 3, 4, 5)] == [False, False, False, True, False]


def moving(**changes: Any) -> Any:
    moco = MocoConfig(queue=12, dim=8, momentum=0.9, mask="image")
    return config(validation="moving", learning_rate=1.0, moco=moco, **PLAIN | changes)


def test_a_moving_validation_steps_h_and_queues_validation_keys(digits: Dataset) -> None:
    """Of 16 validation images in batches of 6, 5 and 5: h takes three steps, the last 12 keys stay."""
    training = Pretraining(moving(batch_size=6), digits, CPU)
    training.train_epoch()
    moco, rows = training.moco, digits.rows(VAL)
    g = [p.detach().clone() for p in moco.query.parameters()]
    h = [p.detach().clone() for p in moco.key.parameters()]
    buffers = [b.clone() for part in (moco.query, moco.key) for b in part.buffers()]
    training.validate()

    for old, new, target in zip(h, moco.key.parameters(), g, strict=True):
        torch.testing.assert_close(new, 0.9**3 * old + (1 - 0.9**3) * target, rtol=1e-4, atol=1e-6)
    assert max(float((old - new).abs().max()) for old, new in zip(h, moco.key.parameters(), strict=True)) > 1e-4
    assert all(torch.equal(p, old) for p, old in zip(moco.query.parameters(), g, strict=True))
    after = [b for part in (moco.query, moco.key) for b in part.buffers()]
    assert all(torch.equal(a, b) for a, b in zip(buffers, after, strict=True))  # batch norm stays
    in_order = torch.roll(moco.queue.codes, -moco.queue.pointer)
    assert in_order.tolist() == rows[-12:].tolist()

    view1, view2 = training.batches.views(rows[-5:], training.config.augment, random_generator(0, "val-views", 2), 2)
    with torch.no_grad():
        for p, old, target in zip(moco.key.parameters(), h, g, strict=True):
            p.copy_(0.9**2 * old + (1 - 0.9**2) * target)  # h as the last batch met it
        keys = moco(view1, view2, torch.from_numpy(rows[-5:]))[1]
    newest = torch.roll(moco.queue.keys, -moco.queue.pointer, 0)[-5:]
    torch.testing.assert_close(newest, keys, rtol=1e-3, atol=1e-4)


def test_a_moving_validation_is_resumed_to_the_bit(digits: Dataset, tmp_path: Path) -> None:
    arm = moving(keep="best", epochs=3)
    run(arm, digits, tmp_path / "whole", Recorder())
    with pytest.raises(KeyboardInterrupt):
        run(arm, digits, tmp_path / "halves", Recorder(stop_at=2 * LOOKS))
    run(arm, digits, tmp_path / "halves", Recorder())
    whole, halves = (checkpoint.load(tmp_path / d / "checkpoint.pt") for d in ("whole", "halves"))
    for part in ("moco", "optimiser", "epoch", "best"):
        assert different(whole[part], halves[part]) == []
    assert timeless(lines(tmp_path / "halves/metrics.jsonl")) == timeless(lines(tmp_path / "whole/metrics.jsonl"))
