"""With batch norm over the global batch several workers train as one does, through real process groups."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ssl_core.batch_norm import GlobalBatchNorm, synchronise
from ssl_core.config import EncoderConfig
from ssl_core.data.dataset import Dataset
from ssl_core.encoder import build_encoder
from tests.ssl_core.gloo import together
from tests.ssl_core.sync_worker import BF16, DEFECTS, STEPS, SYNC, trained, work

WORLDS = (2, 4)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, digits: Dataset) -> dict[int, Path]:
    """What two workers left, and four."""
    left = {}
    for world in WORLDS:
        left[world] = folder = tmp_path_factory.mktemp(f"workers{world}")
        digits.save(folder / "data")
        together(work, world, folder)
    return left


@pytest.fixture(scope="module")
def alone(digits: Dataset) -> dict[str, Tensor]:
    """What one worker has after a step."""
    return trained(SYNC, digits, 1)


def found(folder: Path, rank: int, name: str) -> dict[str, Tensor]:
    return torch.load(folder / f"found-{rank}.pt", weights_only=True)[name]  # type: ignore[no-any-return]


def compare(several: dict[str, Tensor], alone: dict[str, Tensor], tolerance: float) -> None:
    """Each tensor's difference, by its own size: an entry that is near 0 by cancellation holds rounding alone."""
    assert several.keys() == alone.keys()
    for name, value in alone.items():
        difference = float((several[name].double() - value.double()).norm())
        assert difference <= tolerance * float(value.double().norm()), f"{name} differs by {difference}"


@pytest.mark.parametrize("world", WORLDS)
def test_steps_of_training_are_those_of_one_worker(
    folders: dict[int, Path], digits: Dataset, alone: dict[str, Tensor], world: int
) -> None:
    """Terms, gradients, weights, batch norm's statistics, queue: all, where four share ten samples unevenly.

    After three steps terms, queue and statistics alone: one ReLU that rounding tips over changes a small gradient by
    percents, as it does where one worker starts from weights that are 1e-7 off.
    """
    later = trained(SYNC, digits, STEPS)
    smooth = [name for name in later if name.startswith(("term", "state queue")) or "running" in name]
    for rank in range(world):
        compare(found(folders[world], rank, "1 steps"), alone, 1e-5)
        after = found(folders[world], rank, f"{STEPS} steps")
        compare({name: after[name] for name in smooth}, {name: later[name] for name in smooth}, 1e-4)


@pytest.mark.parametrize("world", WORLDS)
def test_in_bf16_they_are_so_within_its_rounding(
    folders: dict[int, Path], digits: Dataset, alone: dict[str, Tensor], world: int
) -> None:
    rounded, several = trained(BF16, digits, 1), found(folders[world], 0, "bf16")
    for name in (n for n in rounded if n.startswith("term")):
        torch.testing.assert_close(several[name], rounded[name], rtol=0.03, atol=0.03)
    assert not torch.equal(rounded["term loss"], alone["term loss"])


@pytest.mark.parametrize("defect", [*DEFECTS, "block features left shuffled"])
def test_a_defect_is_seen(folders: dict[int, Path], alone: dict[str, Tensor], defect: str) -> None:
    with pytest.raises(AssertionError, match=r"gradient|queue|mse|state"):
        compare(found(folders[2], 0, defect), alone, 1e-5)


def test_alone_it_is_torchs_batch_norm_and_its_state_has_the_same_names() -> None:
    plain, wide = (build_encoder(EncoderConfig(arch="resnet18", stem="small"), 1, 0) for _ in range(2))
    synchronise(wide)
    assert not any(type(m) is nn.BatchNorm2d for m in wide.modules())
    assert sum(isinstance(m, GlobalBatchNorm) for m in wide.modules()) == 20
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(plain(images)[0], wide(images)[0])
    assert plain.state_dict().keys() == wide.state_dict().keys()
    for name, value in plain.state_dict().items():
        assert torch.equal(wide.state_dict()[name], value)
