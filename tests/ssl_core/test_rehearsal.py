"""What a rehearsed fine-tuning says of whole runs, beside what runs of known costs take."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import Tensor

from ssl_core import rehearsal
from ssl_core.config import Precision
from ssl_core.data.dataset import Dataset
from ssl_core.finetuning import Finetuning
from ssl_core.rehearsal import rehearse_finetuning
from tests.ssl_core.finetuning_runs import CPU, config, pretrained_encoder, run


@pytest.mark.parametrize(
    ("mode", "precision"), [("scratch", "bf16"), ("scratch", "float32"), ("linear", "bf16"), ("linear", "float32")]
)
def test_a_whole_run_takes_what_its_rehearsal_says(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, precision: Precision
) -> None:
    """A clock that only steps and embeddings move, by what each costs; of 16 images to score, 4 are tried."""
    clock = SimpleNamespace(now=0.0)
    step, embed = Finetuning.train_step, Finetuning._embed

    def costly_step(self: Finetuning, number: int, rows: Any) -> Tensor:
        clock.now += 0.25 + 0.5 * len(rows)
        return step(self, number, rows)

    def costly_embedding(self: Finetuning, rows: Any, of: Precision) -> Tensor:
        clock.now += len(rows) * (0.125 if of == "bf16" else 0.0625)
        return embed(self, rows, of)

    monkeypatch.setattr(Finetuning, "train_step", costly_step)
    monkeypatch.setattr(Finetuning, "_embed", costly_embedding)
    monkeypatch.setattr(rehearsal, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    monkeypatch.setattr(rehearsal, "SAMPLED", 1)
    settings = {"mode": mode, "precision": precision, "batch_size": 4, "epochs": 2, "evaluations": 3, "patience": None}
    found = rehearse_finetuning(config(**settings), digits, CPU, [3, 4])
    assert found.step_seconds == {3: 1.75, 4: 2.25}

    encoder = pretrained_encoder(tmp_path / "encoder.pt", digits) if mode == "linear" else None
    for fraction, images in ((0.08, 3), (1.0, 40)):
        few = config(**settings, fraction=fraction, min_steps=7)
        began = clock.now
        (tmp_path / str(images)).mkdir()
        run(few, digits, tmp_path / str(images), encoder)
        assert found.seconds(few, images) == clock.now - began
