"""The encoder against torchvision's ResNet, and its files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchvision.models import resnet18, resnet50

from ssl_core import checkpoint
from ssl_core.checkpoint import state_digest
from ssl_core.config import EncoderConfig
from ssl_core.encoder import build_encoder, global_average, load_encoder, save_encoder
from ssl_core.errors import CheckpointError, DataError

SMALL = EncoderConfig(arch="resnet18", stem="small")
STANDARD = EncoderConfig(arch="resnet18", stem="standard")


@pytest.mark.parametrize(("arch", "make"), [("resnet18", resnet18), ("resnet50", resnet50)])
def test_embedding_and_maps_are_torchvisions(arch: str, make: object) -> None:
    encoder = build_encoder(EncoderConfig(arch=arch), 3, 0).eval()  # type: ignore[arg-type]
    oracle = make(weights=None).eval()  # type: ignore[operator]
    assert oracle.load_state_dict(encoder.state_dict(), strict=False).missing_keys == ["fc.weight", "fc.bias"]
    maps = {}
    for b in (1, 2, 3, 4):
        getattr(oracle, f"layer{b}").register_forward_hook(lambda _m, _x, out, b=b: maps.__setitem__(b, out))
    oracle.fc = torch.nn.Identity()
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = oracle(x)
        embedding, found = encoder(x, (1, 2, 3, 4))
    torch.testing.assert_close(embedding, expected, rtol=1e-6, atol=1e-6)
    for b in (1, 2, 3, 4):
        assert torch.equal(found[b], maps[b])
        assert found[b].shape[1] == encoder.widths[b]
    torch.testing.assert_close(embedding, global_average(found[4]), rtol=0, atol=0)
    assert embedding.shape == (2, encoder.dim)


@pytest.mark.parametrize(("config", "channels", "sides"), [(SMALL, 1, (16, 8, 4, 2)), (STANDARD, 1, (4, 2, 1, 1))])
def test_the_small_stem_keeps_the_side_of_small_images(
    config: EncoderConfig, channels: int, sides: tuple[int, ...]
) -> None:
    _, maps = build_encoder(config, channels, 0).eval()(torch.rand(2, channels, 16, 16), (1, 2, 3, 4))
    assert tuple(maps[b].shape[2] for b in (1, 2, 3, 4)) == sides
    assert all(maps[b].shape[2] == maps[b].shape[3] for b in maps)


def test_only_the_maps_asked_for_are_kept() -> None:
    encoder = build_encoder(SMALL, 1, 0).eval()
    x = torch.rand(2, 1, 8, 8)
    assert encoder(x)[1] == {}
    assert sorted(encoder(x, (4, 2))[1]) == [2, 4]


def test_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = state_digest(build_encoder(SMALL, 1, 0).state_dict())
    torch.manual_seed(2)
    assert state_digest(build_encoder(SMALL, 1, 0).state_dict()) == first
    assert state_digest(build_encoder(SMALL, 1, 1).state_dict()) != first


def test_building_and_loading_leave_the_global_random_state_as_it_was(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    save_encoder(tmp_path / "encoder.pt", build_encoder(SMALL, 1, 0), (0.5,), (0.25,))
    load_encoder(tmp_path / "encoder.pt")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("zero", [True, False])
def test_residual_branches_start_at_zero_where_asked(zero: bool) -> None:
    encoder = build_encoder(EncoderConfig(arch="resnet18", stem="small", zero_init_residual=zero), 3, 0)
    assert all((not block.bn2.weight.any()) == zero for block in (*encoder.layer1, *encoder.layer4))


def test_images_of_two_channels_are_refused() -> None:
    with pytest.raises(DataError, match="2 channels"):
        build_encoder(SMALL, 2, 0)


def test_a_saved_encoder_comes_back_with_its_preprocessing(tmp_path: Path) -> None:
    encoder = build_encoder(SMALL, 3, 0)
    encoder(torch.rand(4, 3, 8, 8))  # moves batch norm's statistics
    save_encoder(tmp_path / "encoder.pt", encoder, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    loaded, channels, mean, std = load_encoder(tmp_path / "encoder.pt")
    assert (loaded.config, channels, mean, std) == (SMALL, 3, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert not loaded.training
    assert state_digest(loaded.state_dict()) == state_digest(encoder.state_dict())


def test_a_file_that_is_no_encoder_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    with pytest.raises(CheckpointError, match=r"other\.pt does not exist"):
        load_encoder(path)
    checkpoint.save(path, {"config": {"arch": "resnet18"}})
    with pytest.raises(CheckpointError, match=r"other\.pt holds no encoder"):
        load_encoder(path)
