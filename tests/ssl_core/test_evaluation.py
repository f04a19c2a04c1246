"""An evaluation at each epoch's end is heard by the reporter alone: the run is the same to the bit without it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from ssl_core import checkpoint, devices
from ssl_core.data.dataset import Dataset
from ssl_core.encoder import Encoder
from ssl_core.pretraining import pretrain
from tests.ssl_core.pretraining_runs import CPU, LOOKS, Recorder, config, different, lines, timeless

SETTINGS = config(epochs=3, barlow=None)


class Meddler:
    """An evaluation that does to the encoder whatever it should not, and to the random state besides."""

    def __init__(self, reporter: Recorder) -> None:
        self.reporter = reporter
        self.seen: list[tuple[int, bool, int, int]] = []

    def __call__(self, encoder: Encoder, epoch: int) -> Mapping[str, float]:
        reporter = self.reporter
        self.seen.append((epoch, encoder.training, len(reporter.rows), len(reporter.checkpoints)))
        encoder.train()
        encoder(torch.randn(4, 1, 8, 8))
        for parameter in encoder.parameters():
            parameter.data.zero_()
            parameter.requires_grad_(False)
        return {"score": 0.5 + epoch, "loss_of_nobody": 1.0}


def test_a_run_is_the_same_to_the_bit_whatever_an_evaluation_does(digits: Dataset, tmp_path: Path) -> None:
    plain, evaluated = Recorder(), Recorder(stop_at=2 * LOOKS)
    meddler = Meddler(evaluated)
    for name in ("plain", "evaluated"):
        (tmp_path / name).mkdir()
    pretrain(SETTINGS, digits, tmp_path / "plain", plain, checkpoint_seconds=1000, device="cpu")
    for _ in range(2):  # stopped after two epochs, then gone on with
        try:
            pretrain(
                SETTINGS,
                digits,
                tmp_path / "evaluated",
                evaluated,
                checkpoint_seconds=1000,
                device="cpu",
                evaluate=meddler,
            )
        except KeyboardInterrupt:
            continue

    digests = [checkpoint.digest(tmp_path / name / "encoder.pt") for name in ("evaluated", "plain")]
    assert digests[0] == digests[1]
    ours, theirs = (checkpoint.load(tmp_path / name / "checkpoint.pt") for name in ("evaluated", "plain"))
    assert (
        different({**ours, "history": timeless(ours["history"])}, {**theirs, "history": timeless(theirs["history"])})
        == []
    )
    assert timeless(lines(tmp_path / "evaluated" / "metrics.jsonl")) == timeless(plain.rows)
    # called once an epoch, in eval mode, before the epoch's metrics are reported and its checkpoint is made
    assert meddler.seen == [(1, False, 0, 0), (2, False, 1, 0), (3, False, 2, 1)]
    assert [(row["score"], row["loss_of_nobody"]) for row in evaluated.rows] == [(1.5, 1.0), (2.5, 1.0), (3.5, 1.0)]
    own = [{k: v for k, v in row.items() if k not in ("score", "loss_of_nobody")} for row in evaluated.rows]
    assert timeless(own) == timeless(plain.rows)


def test_an_evaluation_sees_the_encoder_of_its_epoch(digits: Dataset, tmp_path: Path) -> None:
    states: list[str] = []

    def evaluate(encoder: Encoder, epoch: int) -> Mapping[str, float]:
        states.append(checkpoint.state_digest(encoder.state_dict()))
        return {}

    pretrain(config(epochs=2, mse=None, barlow=None), digits, tmp_path, Recorder(), device="cpu", evaluate=evaluate)
    assert len(set(states)) == 2
    left = checkpoint.load(tmp_path / "encoder.pt")["state"]
    assert checkpoint.state_digest(left) == states[-1]


def test_peak_memory_is_that_of_the_work_and_not_of_what_went_before() -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("only Linux tells")
    large = devices.PeakMemory(CPU)
    before = large.read()
    torch.ones(64 << 20)  # 256 MiB
    small = devices.PeakMemory(CPU)
    peak, after = large.read(), small.read()
    assert before is not None
    assert peak is not None
    assert after is not None
    assert after < before + (64 << 20)
    torch.ones(64 << 20)
    raised = small.read()
    assert raised is not None
    assert raised - after > 200 << 20


def test_where_the_system_does_not_tell_the_peak_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path, text: str) -> None:
        raise PermissionError(path)

    monkeypatch.setattr(Path, "write_text", refused)
    assert devices.PeakMemory(CPU).read() is None


def test_numbers_that_are_kept_are_not_rounded_to_tf32() -> None:
    """By an accelerator's convolutions, as long as the forward pass lasts; training may."""
    assert torch.backends.cudnn.allow_tf32
    with devices.autocast(torch.device("cuda"), "float32"):
        assert torch.backends.cudnn.allow_tf32
    with devices.inference(torch.device("cuda"), "float32"):
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32
