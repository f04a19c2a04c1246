"""A dataset in each distributor's layout goes the whole way: packed, audited, pretrained on, fine-tuned."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ssl_core.config import (
    BarlowConfig,
    EncoderConfig,
    FinetuneConfig,
    LabelsConfig,
    MocoConfig,
    MseConfig,
    PretrainConfig,
)
from ssl_core.data.audit import audit, stopping
from ssl_core.data.config import DatasetConfig
from ssl_core.data.packing import pack
from ssl_core.finetuning import finetune
from ssl_core.pretraining import pretrain
from tests.ssl_core.data import trees

ENCODER = EncoderConfig(arch="resnet18", stem="small")


class Quiet:
    def metrics(self, values: object) -> None:
        pass

    def checkpoint(self, path: Path) -> None:
        pass

    def urgent(self) -> bool:
        return False


def cxr14(root: Path) -> DatasetConfig:
    trees.cxr14_tree(root)
    return DatasetConfig(source="cxr14", path=str(root), size=16)


def eyepacs(root: Path) -> DatasetConfig:
    trees.eyepacs_tree(root)
    return DatasetConfig(source="eyepacs", path=str(root), size=16)


def idc(root: Path) -> DatasetConfig:
    trees.idc_tree(root)
    return DatasetConfig(source="idc", path=str(root), size=16, crop=15, validation=0.1, test=0.2)


def manifest(root: Path) -> DatasetConfig:
    trees.manifest_tree(root)
    return DatasetConfig(source="manifest", path=str(root / "manifest.csv"), size=16)


@pytest.mark.parametrize("layout", [cxr14, eyepacs, idc, manifest])
def test_a_tree_packs_audits_and_trains(layout: Callable[[Path], DatasetConfig], tmp_path: Path) -> None:
    torch.set_num_threads(1)
    config = layout(tmp_path / "tree")
    dataset = pack(config, tmp_path / "packed")
    found = audit(dataset, tmp_path / "packed")
    (stop,) = stopping(found, ())  # the truncated file, and nothing else
    assert stop.name == "unreadable_images"
    assert stop.count == 1
    assert stopping(found, ["unreadable_images"]) == []
    named = json.loads((tmp_path / "packed" / "unreadable.json").read_text())[0]["id"]
    assert named in stop.text
    assert named not in dataset.ids

    pretrain(
        PretrainConfig(
            encoder=ENCODER,
            moco=MocoConfig(dim=16),
            mse=MseConfig(blocks=(1, 4)),
            barlow=BarlowConfig(blocks=(3,), width=8),
            epochs=1,
            batch_size=8,
        ),
        dataset,
        tmp_path,
        Quiet(),
    )
    rows = finetune(
        FinetuneConfig(
            encoder=ENCODER,
            mode="linear",
            fraction=0.5,
            labels=LabelsConfig(unit="group", missing="warn"),
            epochs=1,
            min_steps=4,
            evaluations=1,
            bootstrap=20,
        ),
        dataset,
        tmp_path,
        Quiet(),
        encoder=tmp_path / "encoder.pt",
    )
    assert rows[0]["n"] == len(dataset.rows(2))
    assert np.isfinite(rows[0]["value"])
