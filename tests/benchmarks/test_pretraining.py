"""The plain step is the same step: what it is raced against is also what it must equal."""

from __future__ import annotations

import torch

from ssl_core.config import BLOCKS, BarlowConfig, EncoderConfig, MocoConfig, MseConfig, PretrainConfig
from ssl_core.moco import Moco
from ssl_core.pretraining import Pretraining
from tests.benchmarks.plain import PlainMoco, PlainTraining
from tests.benchmarks.pretraining import AUGMENT, CPU, Fixed, images

BATCH = 8
CONFIG = PretrainConfig(
    encoder=EncoderConfig(arch="resnet18"), moco=MocoConfig(queue=3 * BATCH, dim=16, momentum=0.9, queue_limit=None),
    mse=MseConfig(scale=0.25, pool="grid"), barlow=BarlowConfig(width=12, scale=5e-3), augment=AUGMENT,
    batch_size=BATCH, epochs=2, learning_rate=0.05, learning_rate_batch=None, warmup_epochs=0, schedule="constant",
    precision="float32",
)  # fmt: skip


def test_a_step_equals_the_plain_one_in_losses_gradients_and_queue() -> None:
    dataset = images(BATCH, side=32)  # blocks see 8, 4, 2 and 1 px
    run, plain = Pretraining(CONFIG, dataset, CPU), PlainTraining(CONFIG, dataset)
    start_alike(plain.model, run.moco)
    generator = torch.Generator().manual_seed(0)
    for step in range(2):  # in the second h is no longer g, and the queue holds keys of the same images
        rows = run._order()
        codes, views = run._codes_of(rows), run.batches.views(rows, AUGMENT, generator, 2)
        run.batches, batches = Fixed(views), run.batches
        found = run.train_epoch()
        run.batches = batches
        expected = plain.step(*(view.contiguous() for view in views), codes)
        assert set(expected) == {
            "info_nce",
            "loss",
            *(f"{loss}_{b}" for loss in ("mse", "barlow") for b in BLOCKS),
        }
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
        ours = {_plain_name(name): parameter.grad for name, parameter in run.moco.named_parameters()}
        for name, parameter in plain.model.named_parameters():
            if parameter.requires_grad:
                apart = (parameter.grad - ours[name]).norm()
                assert apart <= 1e-4 * parameter.grad.norm(), f"step {step}, {name}: {apart} of {parameter.grad.norm()}"
        torch.testing.assert_close(run.moco.queue.keys, plain.model.queue.T, rtol=0, atol=1e-5)
        torch.testing.assert_close(run.moco.queue.codes, plain.model.queue_codes)


def start_alike(plain: PlainMoco, moco: Moco) -> None:
    """Give the plain model the weights and the queue of ours."""
    state = {_plain_name(name): value for name, value in moco.state_dict().items() if not name.startswith("queue")}
    plain.load_state_dict(state | {"queue": moco.queue.keys.T, "queue_codes": moco.queue.codes})


def _plain_name(name: str) -> str:
    for ours, theirs in (("query.", "encoder_q."), ("key.", "encoder_k."), (".encoder.", "."), (".head.", ".fc.")):
        name = name.replace(ours, theirs)
    return name
