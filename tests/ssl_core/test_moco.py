"""The queue against a plain list, the moving average against its formula, and what flows where."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_core.checkpoint import state_digest
from ssl_core.config import AugmentConfig, BarlowConfig, EncoderConfig, MocoConfig, MseConfig, PretrainConfig
from ssl_core.encoder import build_encoder, global_average
from ssl_core.initialisation import seeded
from ssl_core.key_queue import NO_IMAGE, KeyQueue
from ssl_core.losses import Projector, barlow_loss, info_nce, mse_loss
from ssl_core.moco import Moco, block_scales, total_loss

ENCODER = EncoderConfig(arch="resnet18", stem="small")


def config(**changes: object) -> PretrainConfig:
    moco = changes.pop("moco", MocoConfig(queue=12, dim=8, momentum=0.9))
    return PretrainConfig(encoder=ENCODER, moco=moco, batch_size=4, **changes)  # type: ignore[arg-type]


def views(seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(4, 1, 8, 8, generator=rng), torch.rand(4, 1, 8, 8, generator=rng)


CODES = torch.arange(4)


@pytest.mark.parametrize(
    ("size", "batches"), [(8, [4] * 5), (7, [3] * 6), (5, [3, 1, 4]), (4, [4, 4]), (3, [7, 2, 8]), (1, [1, 2, 3])]
)
def test_the_queue_holds_the_last_keys_in_ring_order(size: int, batches: list[int]) -> None:
    queue, number = KeyQueue(size, 2, 0), 0
    keys, codes = [row.tolist() for row in queue.keys], [NO_IMAGE] * size
    for batch in batches:
        new = torch.arange(number, number + batch)
        queue.enqueue(torch.stack([new, -new], dim=1).float(), new)
        for _ in range(batch):  # the plain way: one after another
            keys[number % size], codes[number % size] = [float(number), -float(number)], number
            number += 1
        assert queue.keys.tolist() == keys
        assert queue.codes.tolist() == codes
    assert queue.pointer == number % size


def test_the_queue_starts_with_random_unit_vectors_of_no_image() -> None:
    queue = KeyQueue(50, 8, 0)
    torch.testing.assert_close(queue.keys.norm(dim=1), torch.ones(50))
    assert len(torch.unique(queue.keys, dim=0)) == 50
    assert set(queue.codes.tolist()) == {NO_IMAGE}
    assert torch.equal(queue.keys, KeyQueue(50, 8, 0).keys)
    assert not torch.equal(queue.keys, KeyQueue(50, 8, 1).keys)


def test_the_queues_place_travels_in_the_state() -> None:
    queue, other = KeyQueue(5, 2, 0), KeyQueue(5, 2, 1)
    queue.enqueue(torch.ones(3, 2), torch.arange(3))
    other.load_state_dict(queue.state_dict())
    for q in (queue, other):
        q.enqueue(torch.zeros(3, 2), torch.arange(3))
    assert other.keys.tolist() == queue.keys.tolist()
    assert other.pointer == 1


@pytest.mark.parametrize("momentum", [0.0, 0.9, 1.0])
def test_keys_follow_the_query_by_the_moving_average_formula(momentum: float) -> None:
    moco = Moco(config(moco=MocoConfig(queue=12, dim=8, momentum=momentum)), 1)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in moco.query.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=rng))
    before = [p.clone() for p in moco.key.parameters()]
    buffers = [b.clone() for b in moco.key.buffers()]
    moco.update_keys()
    for h, h0, g in zip(moco.key.parameters(), before, moco.query.parameters(), strict=True):
        torch.testing.assert_close(h, momentum * h0 + (1 - momentum) * g, rtol=1e-5, atol=1e-6)
    for buffer, kept in zip(moco.key.buffers(), buffers, strict=True):
        assert torch.equal(buffer, kept)


def test_query_and_key_start_equal_and_arms_of_a_seed_share_encoder_head_and_queue() -> None:
    plain = Moco(config(), 1)
    both = Moco(config(mse=MseConfig(), barlow=BarlowConfig(width=6)), 1)
    assert state_digest(plain.query.state_dict()) == state_digest(plain.key.state_dict())
    assert state_digest(plain.query.state_dict()) == state_digest(both.query.state_dict())
    assert torch.equal(plain.queue.keys, both.queue.keys)
    assert state_digest(plain.query.encoder.state_dict()) == state_digest(build_encoder(ENCODER, 1, 0).state_dict())
    fewer = Moco(config(barlow=BarlowConfig(width=6, blocks=(3,))), 1)
    with seeded(0, "projector", 3):
        expected = Projector(256, 6, 3)
    for moco in (both, fewer):  # a block's projector does not depend on which other blocks have one
        assert state_digest(moco.projectors["3"].state_dict()) == state_digest(expected.state_dict())


def test_the_head_is_one_layer_or_two() -> None:
    linear = Moco(config(moco=MocoConfig(queue=12, dim=8, head="linear")), 1)
    assert [tuple(p.shape) for p in linear.query.head.parameters()] == [(8, 512), (8,)]
    mlp = Moco(config(), 1)
    assert [tuple(p.shape) for p in mlp.query.head.parameters()] == [(512, 512), (512,), (8, 512), (8,)]


def test_terms_are_the_losses_of_what_g_and_h_see() -> None:
    arm = config(
        mse=MseConfig(blocks=(1, 4), scale=(0.5, 0.25)),
        barlow=BarlowConfig(blocks=(2,), width=6, scale=0.01, lambd=0.1),
    )
    moco, (view1, view2) = Moco(arm, 1).eval(), views()
    with torch.no_grad():  # g and h differ, so that swapping them shows
        for parameter in moco.key.parameters():
            parameter.mul_(1.1)
    moco.queue.enqueue(F.normalize(torch.randn(3, 8), dim=1), torch.tensor([0, 2, 9]))
    terms, keys = moco(view1, view2, CODES)

    g, maps_g = moco.query.encoder(view1, (1, 2, 4))
    h, maps_h = moco.key.encoder(view2, (1, 2, 4))
    q, k = F.normalize(moco.query.head(g), dim=1), F.normalize(moco.key.head(h), dim=1)
    mask = torch.zeros(4, 12, dtype=torch.bool)
    mask[0, 0] = mask[2, 1] = True  # queue entries 0 and 1 came from images 0 and 2
    za, zb = moco.projectors["2"](*(global_average(m[2]) for m in (maps_g, maps_h)))
    expected = {
        "info_nce": info_nce(q, k, moco.queue.keys, 0.07, mask),
        "mse_1": mse_loss(maps_g[1], maps_h[1], 1, "grid"),
        "mse_4": mse_loss(maps_g[4], maps_h[4], 4, "grid"),
        "barlow_2": barlow_loss(za, zb, 0.1, True),
    }
    expected["loss"] = (
        expected["info_nce"] + 0.5 * expected["mse_1"] + 0.25 * expected["mse_4"] + 0.01 * expected["barlow_2"]
    )
    assert list(terms) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, rtol=1e-6, atol=0, msg=lambda m, n=name: f"{n}: {m}")
    torch.testing.assert_close(keys, k, rtol=1e-6, atol=1e-7)
    assert block_scales(arm) == {"mse_1": 0.5, "mse_4": 0.25, "barlow_2": 0.01}
    torch.testing.assert_close(total_loss(terms, block_scales(arm)), terms["loss"])


@pytest.mark.parametrize(("mask", "masked"), [("none", False), ("image", True), ("group", True)])
def test_keys_of_the_same_code_are_no_negatives_unless_masking_is_off(mask: str, masked: bool) -> None:
    moco = Moco(config(moco=MocoConfig(queue=12, dim=8, mask=mask)), 1).eval()  # type: ignore[arg-type]
    view1, view2 = views()
    moco.queue.enqueue(moco(view1, view2, CODES)[1], CODES)
    same, other = (float(moco(view1, view2, codes)[0]["info_nce"].detach()) for codes in (CODES, CODES + 100))
    assert (same < other) == masked
    assert (same == other) == (not masked)


def test_gradient_reaches_g_and_projectors_but_never_h() -> None:
    moco, (view1, view2) = Moco(config(mse=MseConfig(scale=0.25), barlow=BarlowConfig(width=6, scale=1.0)), 1), views()
    terms, keys = moco(view1, view2, CODES)
    terms["loss"].backward()
    assert all(p.grad is not None for p in (*moco.query.parameters(), *moco.projectors.parameters()))
    assert all(p.grad is None for p in moco.key.parameters())
    assert not keys.requires_grad


def test_what_the_losses_give_back_to_maps_lies_channels_last_as_they_do() -> None:
    """Else adding it to what comes from above takes several times as long, and so does what follows below."""
    a, b = (torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last).requires_grad_() for _ in range(2))
    for loss in (mse_loss(a, b, 1, "grid"), mse_loss(a, b, 3, "gap"), global_average(a).square().sum()):
        (found,) = torch.autograd.grad(loss, a)
        assert found.is_contiguous(memory_format=torch.channels_last)


def test_the_projector_is_trained_through_the_keys_view_too() -> None:
    moco, (view1, view2) = Moco(config(barlow=BarlowConfig(blocks=(1,), width=6, scale=1.0)), 1).eval(), views()
    projector, weight = moco.projectors["1"], moco.projectors["1"].get_parameter("0.weight")
    a, b = (
        global_average(branch.encoder(view, (1,))[1][1]).detach()
        for branch, view in ((moco.query, view1), (moco.key, view2))
    )
    za, zb = projector(a, b)
    (both,) = torch.autograd.grad(barlow_loss(za, zb, 0.0051, True), weight, retain_graph=True)
    (found,) = torch.autograd.grad(moco(view1, view2, CODES)[0]["barlow_1"], weight)
    (one,) = torch.autograd.grad(barlow_loss(za, zb.detach(), 0.0051, True), weight)
    torch.testing.assert_close(found, both, rtol=1e-4, atol=1e-6)
    assert (found - one).norm() > 0.01 * found.norm()


def test_key_normalises_by_its_own_batch_and_keeps_its_own_statistics() -> None:
    moco, (view1, view2) = Moco(config(), 1), views()
    moco(view1, view1, CODES)
    for g, h in zip(moco.query.buffers(), moco.key.buffers(), strict=True):
        torch.testing.assert_close(h, g)  # equal weights and views: equal statistics
    moco(view1, view2, CODES)
    assert not torch.equal(moco.key.encoder.bn1.running_mean, moco.query.encoder.bn1.running_mean)


@pytest.mark.parametrize(("crop", "pool"), [((0.4, 1.0), "gap"), (None, "grid")])
def test_an_automatic_pooling_is_settled_by_the_crops(crop: tuple[float, float] | None, pool: str) -> None:
    losses = {}
    for setting in ("auto", "grid", "gap"):
        arm = config(mse=MseConfig(blocks=(1,), scale=1.0, pool=setting), augment=AugmentConfig(crop=crop))  # type: ignore[arg-type]
        losses[setting] = float(Moco(arm, 1)(*views(), CODES)[0]["mse_1"].detach())
    assert losses["auto"] == losses[pool]
    assert losses["grid"] != losses["gap"]


def test_one_worker_has_nothing_to_shuffle() -> None:
    found = []
    for shuffle in ("none", "undone", "embedding"):
        settings = MocoConfig(queue=12, dim=8, momentum=0.9, shuffle_keys=shuffle)  # type: ignore[arg-type]
        moco = Moco(config(moco=settings, mse=MseConfig(scale=1.0), barlow=BarlowConfig(width=6, scale=1.0)), 1)
        terms, keys = moco(*views(), CODES, 3)
        found.append(torch.cat([keys.flatten(), torch.stack(list(terms.values())).detach()]))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
