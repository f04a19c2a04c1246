"""The pretraining loop, run: resumable to the bit, honest about what it does, and with no trace of validation."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssl_core import checkpoint
from ssl_core.config import NO_AUGMENT, MocoConfig, MseConfig
from ssl_core.data.dataset import TRAIN, Dataset
from ssl_core.encoder import load_encoder
from ssl_core.errors import CheckpointError, ConfigError, NonFiniteError
from ssl_core.initialisation import random_generator
from ssl_core.moco import Moco
from ssl_core.pretraining import Pretraining
from ssl_core.seeding import generator
from tests.ssl_core.pretraining_runs import CPU, LOOKS, TIMINGS, Recorder, config, different, lines, run, timeless


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, digits: Dataset) -> tuple[Path, Recorder]:
    """A run of four epochs that nothing stopped."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    workdir, recorder = tmp_path_factory.mktemp("whole"), Recorder()
    run(config(), digits, workdir, recorder)
    torch.set_num_threads(threads)
    return workdir, recorder


def test_two_epochs_and_two_after_a_resume_equal_four_to_the_bit(
    whole: tuple[Path, Recorder], digits: Dataset, tmp_path: Path
) -> None:
    workdir, uninterrupted = whole
    first, second = Recorder(stop_at=2 * LOOKS), Recorder()
    with pytest.raises(KeyboardInterrupt):
        run(config(), digits, tmp_path, first)
    assert not (tmp_path / "encoder.pt").exists()
    (tmp_path / "metrics.jsonl").write_text("half a line of an epoch that was los")
    digits.save(tmp_path / "data")
    run(config(), Dataset.open(tmp_path / "data"), tmp_path, second)  # memory-mapped this time

    assert checkpoint.digest(tmp_path / "encoder.pt") == checkpoint.digest(workdir / "encoder.pt")
    ended, expected = (checkpoint.load(d / "checkpoint.pt") for d in (tmp_path, workdir))
    for part in ("moco", "optimiser", "epoch", "config"):
        assert different(ended[part], expected[part]) == []
    assert timeless(lines(tmp_path / "metrics.jsonl")) == timeless(uninterrupted.rows)
    assert timeless(first.rows + second.rows) == timeless(uninterrupted.rows)


def test_a_resumed_run_that_is_complete_only_writes_its_results(
    whole: tuple[Path, Recorder], digits: Dataset, tmp_path: Path
) -> None:
    workdir, _ = whole
    (tmp_path / "checkpoint.pt").write_bytes((workdir / "checkpoint.pt").read_bytes())
    recorder = Recorder()
    run(config(), digits, tmp_path, recorder)
    assert recorder.rows == recorder.checkpoints == []
    for name in ("encoder.pt", "metrics.jsonl"):
        assert (tmp_path / name).read_bytes() == (workdir / name).read_bytes()


def test_every_term_is_a_metric_and_they_add_up(whole: tuple[Path, Recorder]) -> None:
    workdir, recorder = whole
    rows = lines(workdir / "metrics.jsonl")
    assert rows == recorder.rows
    terms = {"info_nce", "mse_1", "mse_2", "mse_3", "mse_4", "barlow_4", "loss"}
    ratios = {f"ratio_{t}" for t in terms - {"info_nce", "loss"}}
    others = {"step", "epoch", "kept_epoch", "learning_rate", *TIMINGS}
    others |= {f"scale_{t}" for t in terms - {"info_nce", "loss"}}
    for i, row in enumerate(rows):
        assert set(row) == terms | {f"val_{t}" for t in terms} | ratios | others
        assert (row["step"], row["epoch"], row["kept_epoch"]) == (2 * (i + 1), i + 1, i + 1)
        assert (row["scale_mse_3"], row["scale_barlow_4"]) == (0.25, 5e-5)
        for prefix in ("", "val_"):
            mse = sum(row[f"{prefix}mse_{b}"] for b in (1, 2, 3, 4))
            total = row[f"{prefix}info_nce"] + 0.25 * mse + 5e-5 * row[f"{prefix}barlow_4"]
            assert row[f"{prefix}loss"] == pytest.approx(total, rel=1e-6)
        assert row["ratio_mse_2"] == pytest.approx(0.25 * row["mse_2"] / row["info_nce"])
    rate = 0.03 * 16 / 256
    assert rows[0]["learning_rate"] == pytest.approx(rate)  # warm-up is one epoch
    assert rows[1]["learning_rate"] == pytest.approx(rate * (1 + np.cos(np.pi / 6)) / 2)


def test_the_encoder_is_left_with_its_preprocessing(whole: tuple[Path, Recorder], digits: Dataset) -> None:
    encoder, channels, mean, std = load_encoder(whole[0] / "encoder.pt")
    assert (encoder.config, channels, mean, std) == (config().encoder, 1, digits.mean, digits.std)
    state = checkpoint.load(whole[0] / "checkpoint.pt")["moco"]
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, state[f"query.encoder.{name}"])


def test_without_normalising_the_encoder_says_so(digits: Dataset, tmp_path: Path) -> None:
    run(config(epochs=1, mse=None, barlow=None, normalise=False), digits, tmp_path, Recorder())
    assert load_encoder(tmp_path / "encoder.pt")[2:] == ((0.0,), (1.0,))


@pytest.mark.parametrize(
    ("seconds", "saved"), [(0, [(0, 1), (0, 2), (1, 2), (1, 3), (1, 4), (2, 4)]), (1000, [(2, 4)])]
)
def test_checkpoints_come_when_due_and_at_the_end(
    digits: Dataset, tmp_path: Path, seconds: float, saved: list[tuple[int, int]]
) -> None:
    recorder = Recorder()
    run(config(epochs=2, mse=None, barlow=None), digits, tmp_path, recorder, seconds)
    assert recorder.checkpoints == saved


def test_another_configurations_or_a_damaged_checkpoint_is_refused(
    whole: tuple[Path, Recorder], digits: Dataset, tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint.pt"
    content = (whole[0] / "checkpoint.pt").read_bytes()
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt was written with moco\.queue = 20, this run has 10"):
        run(config(moco=MocoConfig(queue=10, dim=8)), digits, tmp_path, Recorder())
    with pytest.raises(CheckpointError, match="dataset = 'toy', this run has 'other'"):
        run(config(), dataclasses.replace(digits, fingerprint="other"), tmp_path, Recorder())
    path.write_bytes(content[:-1000])
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt is truncated or damaged"):
        run(config(), digits, tmp_path, Recorder())


def test_validation_changes_no_state_and_repeats_itself(digits: Dataset) -> None:
    training = Pretraining(config(), digits, CPU)
    training.train_epoch()
    before = copy.deepcopy((dict(training.moco.state_dict()), training.optimiser.state_dict()))
    random_state = torch.get_rng_state()
    values = training.validate()
    after = (dict(training.moco.state_dict()), training.optimiser.state_dict())
    assert different(list(before), list(after)) == []
    assert {"queue.keys", "queue.codes", "queue._extra_state"} <= after[0].keys()
    assert {"query.encoder.bn1.running_mean", "key.encoder.bn1.num_batches_tracked"} <= after[0].keys()
    assert torch.equal(torch.get_rng_state(), random_state)
    assert training.validate() == values
    training.train_epoch()
    assert different(list(before), list(after)) != []  # the comparison sees what training changes


def test_validation_looks_at_every_image_of_its_split_once(digits: Dataset) -> None:
    """Of 16 images in batches of at most 6, the mean over images equals that of one batch of all of them."""
    plain = config(mse=MseConfig(scale=0.25), barlow=None, augment=NO_AUGMENT)
    few, one = (Pretraining(dataclasses.replace(plain, batch_size=b), digits, CPU) for b in (6, 16))
    for training in (few, one):  # h unlike g, else the views of a sample agree
        with torch.no_grad():
            for parameter in training.moco.key.parameters():
                parameter.mul_(1.1)
    for name, value in one.validate().items():
        assert few.validate()[name] == pytest.approx(value, rel=1e-5)


def test_an_epoch_sees_whole_batches_of_distinct_training_images_in_a_seeded_order(digits: Dataset) -> None:
    training = Pretraining(config(moco=MocoConfig(queue=20, dim=8, mask="image"), mse=None, barlow=None), digits, CPU)
    for epoch in range(2):
        training.train_epoch()
        order = generator(0, "order", epoch).permutation(digits.rows(TRAIN))[:32]  # 40 images, batches of 16
        queue = training.moco.queue
        in_order = torch.roll(queue.codes, -queue.pointer)  # oldest first
        assert in_order.tolist() == order[-20:].tolist()


def test_two_epochs_are_the_plain_loop(digits: Dataset) -> None:
    """Forward, gradient step on g and projectors, moving average of h, queue: written out with torch's plain SGD."""
    training = Pretraining(config(learning_rate=1.0, weight_decay=0.1), digits, CPU)
    for _ in range(2):
        training.train_epoch()

    moco = Moco(config(), 1)
    trained = {n: p for n, p in moco.named_parameters() if not n.startswith("key.")}
    momentum = {n: torch.zeros_like(p) for n, p in trained.items()}
    codes = torch.from_numpy(np.unique(digits.groups, return_inverse=True)[1])
    base = 1.0 * 16 / 256
    rates = [base / 2, base, base * (1 + np.cos(0 / 6)) / 2, base * (1 + np.cos(np.pi / 6)) / 2]
    for step in range(4):
        order = generator(0, "order", step // 2).permutation(digits.rows(TRAIN))
        rows = order[:16] if step % 2 == 0 else order[16:32]
        rng = random_generator(0, "views", step)
        view1, view2 = training.batches.views(rows, config().augment, rng, 2)
        terms, keys = moco(view1, view2, codes[rows])
        gradients = torch.autograd.grad(terms["loss"], list(trained.values()))
        with torch.no_grad():
            for (name, p), gradient in zip(trained.items(), gradients, strict=True):
                decay = 0.1 if p.ndim > 1 else 0.0
                momentum[name] = 0.9 * momentum[name] + gradient + decay * p
                p -= rates[step] * momentum[name]
            for h, g in zip(moco.key.parameters(), moco.query.parameters(), strict=True):
                h.copy_(0.996 * h + 0.004 * g)
        moco.queue.enqueue(keys, codes[rows])
    expected, found = moco.state_dict(), training.moco.state_dict()
    for name in expected.keys() - {"queue._extra_state"}:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    start = dict(Moco(config(), 1).key.named_parameters())
    moved = {name: (h - start[name]).norm() for name, h in training.moco.key.named_parameters()}
    wanted = {name: (h - start[name]).norm() for name, h in moco.key.named_parameters()}
    for name in ("encoder.conv1.weight", "encoder.bn1.bias", "head.2.weight"):
        assert moved[name].item() == pytest.approx(wanted[name].item(), rel=0.02)
        assert moved[name] > 0


def test_images_of_a_group_share_a_code_and_groups_are_told_apart(digits: Dataset) -> None:
    codes = Pretraining(config(), digits, CPU).codes.numpy()
    assert len(codes) == len(digits)
    same_code, same_group = codes[:, None] == codes, digits.groups[:, None] == digits.groups
    assert (same_code == same_group).all()


def test_a_non_finite_loss_stops_with_step_and_term(digits: Dataset) -> None:
    training = Pretraining(config(), digits, CPU)
    training.train_epoch()
    with torch.no_grad():
        training.moco.projectors["4"].get_parameter("0.weight").fill_(torch.nan)
    with pytest.raises(NonFiniteError, match="barlow_4 is nan at step 2"):
        training.train_epoch()


@pytest.mark.parametrize("changes", [{"batch_size": 41}, {"moco": MocoConfig(queue=21)}])
def test_a_configuration_that_does_not_fit_the_dataset_is_refused(digits: Dataset, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="40 training images"):
        Pretraining(config(**changes), digits, CPU)


def test_training_images_of_one_group_leave_no_negatives(digits: Dataset) -> None:
    one = dataclasses.replace(digits, groups=np.where(digits.splits == TRAIN, "a", digits.groups))
    with pytest.raises(ConfigError, match=r"one group.*set moco\.mask to image"):
        Pretraining(config(), one, CPU)


def test_bf16_trains_to_finite_terms_near_those_of_float32(digits: Dataset) -> None:
    exact, reduced = (
        Pretraining(config(precision=p, epochs=1), digits, CPU).train_epoch() for p in ("float32", "bf16")
    )
    assert exact["info_nce"] != reduced["info_nce"]
    for name in ("info_nce", "mse_1", "barlow_4"):
        assert reduced[name] == pytest.approx(exact[name], rel=0.1)
