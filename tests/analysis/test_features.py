"""Features of a real small encoder: equal to a forward pass by hand, state untouched, memory bounded."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from analysis import features
from analysis.features import Features, extract, require_same_ids
from ssl_core.checkpoint import digest
from ssl_core.config import EncoderConfig
from ssl_core.data.dataset import TEST, TRAIN, VAL, Dataset
from ssl_core.encoder import Encoder, build_encoder, load_encoder, save_encoder
from ssl_core.errors import DataError, NonFiniteError
from ssl_core.seeding import generator

MEAN, STD = (0.4,), (0.2,)


@pytest.fixture(scope="module")
def dataset():
    draw = np.random.default_rng(0)
    n = 12
    return Dataset(
        name="toy",
        images=draw.integers(0, 256, (n, 32, 32, 1), dtype=np.uint8),
        labels=np.arange(n) % 3,
        splits=np.array([TRAIN, TEST, VAL] * 4, dtype=np.int8),
        groups=np.array([f"patient{i // 2}" for i in range(n)]),
        ids=np.array([f"image{i}" for i in range(n)]),
        class_names=("a", "b", "c"),
        task="multiclass",
        mean=MEAN,
        std=STD,
        fingerprint="f00d",
    )


@pytest.fixture(scope="module")
def encoder_file(tmp_path_factory):
    """An encoder whose batch norm statistics are not the initial ones."""
    net = build_encoder(EncoderConfig(arch="resnet18"), 1, seed=0).train()
    with torch.no_grad():
        net(torch.randn(8, 1, 32, 32, generator=torch.Generator().manual_seed(0)))
    path = tmp_path_factory.mktemp("encoder") / "encoder.pt"
    save_encoder(path, net, MEAN, STD)
    return path


def by_hand(path, dataset, rows):
    net = load_encoder(path)[0].eval()
    pixels = torch.from_numpy(dataset.images[rows]).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        maps = net((pixels - MEAN[0]) / STD[0], (1, 2, 3, 4))[1]
    return {b: m.mean(dim=(2, 3)).numpy() for b, m in maps.items()}


def test_features_are_the_pooled_maps_of_a_forward_pass_in_eval_mode(encoder_file, dataset, tmp_path):
    extract(encoder_file, dataset, tmp_path, batch_size=7)
    found = Features.open(tmp_path)
    for block, expected in by_hand(encoder_file, dataset, np.arange(12)).items():
        assert found.blocks[block].dtype == np.float32
        assert found.blocks[block].shape == (12, {1: 64, 2: 128, 3: 256, 4: 512}[block])
        np.testing.assert_allclose(found.blocks[block], expected, rtol=1e-4, atol=1e-5)


def test_ids_labels_groups_splits_and_origin_travel_with_the_features(encoder_file, dataset, tmp_path):
    extract(encoder_file, dataset, tmp_path)
    found = Features.open(tmp_path)
    for name in ("ids", "labels", "groups", "splits"):
        np.testing.assert_array_equal(getattr(found, name), getattr(dataset, name))
    assert (found.task, found.class_names, found.fingerprint) == ("multiclass", ("a", "b", "c"), "f00d")
    assert found.encoder == digest(encoder_file)
    assert json.loads((tmp_path / "features.json").read_text())["task"] == "multiclass"


def test_only_the_asked_splits_are_extracted_in_the_datasets_order(encoder_file, dataset, tmp_path):
    extract(encoder_file, dataset, tmp_path, splits=(TEST, VAL))
    rows = np.flatnonzero(dataset.splits != TRAIN)
    found = Features.open(tmp_path)
    np.testing.assert_array_equal(found.ids, dataset.ids[rows])
    np.testing.assert_allclose(found.blocks[4], by_hand(encoder_file, dataset, rows)[4], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found.rows(TEST), np.flatnonzero(dataset.splits[rows] == TEST))


def test_features_do_not_depend_on_the_batch_nor_on_reduced_precision_around(encoder_file, dataset, tmp_path):
    folders = [tmp_path / name for name in ("whole", "single", "mixed")]
    for folder in folders:
        folder.mkdir()
    extract(encoder_file, dataset, folders[0])
    extract(encoder_file, dataset, folders[1], batch_size=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        extract(encoder_file, dataset, folders[2])
    whole, single, mixed = map(Features.open, folders)
    for block in (1, 2, 3, 4):
        np.testing.assert_allclose(whole.blocks[block], single.blocks[block], rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(whole.blocks[block], mixed.blocks[block])


def test_the_encoder_is_the_same_afterwards(encoder_file, dataset, tmp_path, monkeypatch):
    used = []
    forward = Encoder.forward
    monkeypatch.setattr(Encoder, "forward", lambda self, *a: (used.append(self), forward(self, *a))[1])
    before = digest(encoder_file)
    extract(encoder_file, dataset, tmp_path)
    assert digest(encoder_file) == before
    assert not used[0].training
    for name, value in load_encoder(encoder_file)[0].state_dict().items():
        assert torch.equal(value, used[0].state_dict()[name]), name


def moved_by_hand(path, dataset, size, seed=0):
    """The encoder after its statistics have followed the training images once, and in which batches."""
    net = load_encoder(path)[0].train()
    order = generator(seed, "moving statistics").permutation(dataset.rows(TRAIN))
    parts = np.array_split(order, -(-len(order) // size))
    for rows in parts:
        pixels = torch.from_numpy(dataset.images[rows]).permute(0, 3, 1, 2).float() / 255
        with torch.no_grad():
            net((pixels - MEAN[0]) / STD[0])
    return net.eval(), [len(part) for part in parts]


def test_a_moving_norm_follows_the_training_images_once_and_nothing_else_moves(
    encoder_file, dataset, tmp_path, monkeypatch
):
    passes, used = [], []
    forward = Encoder.forward

    def spy(self, x, *args):
        passes.append((self.training, len(x)))
        used.append(self)
        return forward(self, x, *args)

    expected, sizes = moved_by_hand(encoder_file, dataset, 3)
    monkeypatch.setattr(Encoder, "forward", spy)
    before = digest(encoder_file)
    extract(encoder_file, dataset, tmp_path, norm="moving", norm_batch=3)
    assert digest(encoder_file) == before
    assert sizes == [2, 2]  # even, where batches of three would leave one image to count as much as three
    assert passes == [(True, 2), (True, 2), (False, 12)]
    assert used[0] is used[-1]

    weights = dict(load_encoder(encoder_file)[0].named_parameters())
    assert all(torch.equal(parameter, weights[name]) for name, parameter in used[0].named_parameters())
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(used[0].state_dict()[name], value, rtol=1e-5, atol=1e-6, msg=name)

    found = Features.open(tmp_path)
    save_encoder(tmp_path / "expected.pt", expected, MEAN, STD)
    still = by_hand(encoder_file, dataset, np.arange(12))
    for block, wanted in by_hand(tmp_path / "expected.pt", dataset, np.arange(12)).items():
        np.testing.assert_allclose(found.blocks[block], wanted, rtol=1e-3, atol=1e-4)
        assert abs(wanted - still[block]).max() > 0.05
    assert json.loads((tmp_path / "features.json").read_text())["norm"] == "moving"


def test_a_moving_norm_is_repeatable_seeded_and_blind_to_the_images_held_out(encoder_file, dataset, tmp_path):
    def moved(name, data=dataset, seed=0):
        (tmp_path / name).mkdir()
        extract(encoder_file, data, tmp_path / name, norm="moving", norm_batch=2, seed=seed)
        found = Features.open(tmp_path / name)
        return np.array(found.blocks[4][found.rows(TRAIN)])

    first = moved("first")
    np.testing.assert_array_equal(moved("again"), first)
    assert abs(moved("seed", seed=2) - first).max() > 1e-3
    images = dataset.images.copy()
    images[dataset.splits != TRAIN] = 0
    np.testing.assert_allclose(moved("other", replace(dataset, images=images)), first, rtol=1e-5, atol=1e-5)


def test_large_images_come_in_smaller_batches(encoder_file, dataset, tmp_path, monkeypatch):
    sizes = []
    forward = Encoder.forward
    monkeypatch.setattr(Encoder, "forward", lambda self, x, *a: (sizes.append(len(x)), forward(self, x, *a))[1])
    monkeypatch.setattr(features, "BATCH_PIXELS", 5 * 32 * 32)
    extract(encoder_file, dataset, tmp_path)
    assert sizes == [5, 5, 2]


def test_images_of_other_channels_than_the_encoders_are_refused(dataset, tmp_path):
    path = tmp_path / "colour.pt"
    save_encoder(path, build_encoder(EncoderConfig(arch="resnet18"), 3, seed=0), MEAN * 3, STD * 3)
    with pytest.raises(DataError, match="takes images of 3 channels, dataset toy has 1"):
        extract(path, dataset, tmp_path)


def test_features_that_are_not_finite_name_the_block_and_the_image(encoder_file, dataset, tmp_path):
    net = load_encoder(encoder_file)[0]
    with torch.no_grad():
        net.layer3[0].bn1.weight[0] = float("inf")
    path = tmp_path / "encoder.pt"
    save_encoder(path, net, MEAN, STD)
    with pytest.raises(NonFiniteError, match="block 3 of image image0 is NaN or infinite"):
        extract(path, dataset, tmp_path)


def test_a_folder_without_features_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"holds no features .*features.json is missing"):
        Features.open(tmp_path)


def test_ids_that_differ_are_refused_with_the_first_difference():
    ids = np.array(["a", "b", "c"])
    require_same_ids(ids, ids.copy(), "left", "right")
    with pytest.raises(DataError, match=r"left and right differ in their images at row 1: b against c"):
        require_same_ids(ids, ids[[0, 2, 1]], "left", "right")
    with pytest.raises(DataError, match=r"at row 2: c against no image \(3 and 2 rows\)"):
        require_same_ids(ids, ids[:2], "left", "right")
