"""Linear probes: as good as scikit-learn's logistic regression, and blind to what they must not see."""

import json

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from analysis import probing
from analysis.config import ProbeConfig
from analysis.probing import probe
from ssl_core import metrics
from ssl_core.classifier import classification_loss
from ssl_core.config import LabelsConfig
from ssl_core.data.dataset import TEST, TRAIN, VAL
from ssl_core.data.labels import label_subset
from ssl_core.errors import DataError

N, C = 2400, 10
T = N // 3  # images in each split
STRENGTH = {1: 0.7, 2: 1.0, 3: 1.5, 4: 3.0}
FAST = {"bootstrap": 20, "epochs": 20, "batch_size": 100, "learning_rate": 0.03}
CONFIG = ProbeConfig(**FAST)


def write(folder, task="binary"):
    """Features of very different scales that predict the labels better with each block."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    signal = draw.normal(size=(N, C))
    weights = draw.normal(size=(C, 3))
    logits = 1.5 * signal @ weights
    if task == "binary":
        labels = (draw.random(N) < 1 / (1 + np.exp(-logits[:, 0]))).astype(np.int64)
    elif task == "multiclass":
        labels = (logits + draw.gumbel(size=(N, 3))).argmax(1)
    else:
        labels = (draw.random((N, 3)) < 1 / (1 + np.exp(-logits))).astype(np.uint8)
    for block, strength in STRENGTH.items():
        x = (strength * signal + draw.normal(size=(N, C))) * 10.0 ** np.arange(-4, 6) + 5
        np.save(folder / f"block{block}.npy", x.astype(np.float32))
    arrays = {
        "ids": np.array([f"image{i}" for i in range(N)]),
        "labels": labels,
        "splits": np.repeat([TRAIN, VAL, TEST], T).astype(np.int8),
        "groups": np.array([f"patient{i // 2}" for i in range(N)]),
    }
    for name, values in arrays.items():
        np.save(folder / f"{name}.npy", values)
    names = ["no", "yes"] if task == "binary" else ["a", "b", "c"]
    about = {"task": task, "class_names": names, "fingerprint": "f00d", "encoder": "0"}
    (folder / "features.json").write_text(json.dumps(about))
    return folder


@pytest.fixture
def features(tmp_path):
    return write(tmp_path / "features")


def predictions(workdir):
    with np.load(workdir / "predictions.npz", allow_pickle=False) as file:
        return dict(file)


def rewrite(folder, name, change):
    values = np.load(folder / f"{name}.npy")
    change(values)
    np.save(folder / f"{name}.npy", values)


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel"])
def test_probes_score_as_scikit_learns_logistic_regression_does(tmp_path, task):
    folder = write(tmp_path / task, task)
    rows = probe(CONFIG, folder, tmp_path)
    labels = np.load(folder / "labels.npy")
    train, _, test = np.arange(N).reshape(3, -1)
    for block in STRENGTH:
        x = np.load(folder / f"block{block}.npy").astype(np.float64)
        x = (x - x[train].mean(0)) / x[train].std(0)

        def auroc(y, x=x):
            fit = LogisticRegression(C=1e3).fit(x[train], y[train])
            p = fit.predict_proba(x[test])
            return roc_auc_score(y[test], p[:, 1] if p.shape[1] == 2 else p, multi_class="ovr")

        expected = np.mean([auroc(y) for y in labels.T]) if task == "multilabel" else auroc(labels)
        (found,) = [r["value"] for r in rows if (r["block"], r["metric"]) == (block, "auroc")]
        assert found == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel"])
def test_a_step_is_that_of_torchs_adamw_on_the_gradient_that_autograd_gives(task):
    torch.manual_seed(0)
    outputs, labels = 1 if task == "binary" else 3, torch.randint(2 if task != "multiclass" else 3, (40,))
    labels = torch.randint(2, (40, 3), dtype=torch.uint8) if task == "multilabel" else labels
    theirs, x = torch.nn.Linear(7, outputs), torch.randn(40, 7)
    ours = [p.detach().clone() for p in theirs.parameters()]
    steps = [probing._AdamW(p, decay) for p, decay in zip(ours, (0.1, 0.0), strict=True)]
    optimiser = torch.optim.AdamW(
        [{"params": [p], "weight_decay": s.weight_decay} for p, s in zip(theirs.parameters(), steps, strict=True)]
    )
    for step, rate in enumerate((0.1, 0.03, 0.2, 1e-3, 0.05), 1):
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.zero_grad()
        classification_loss(theirs(x), labels, task).backward()
        optimiser.step()
        error = probing.loss_gradient(torch.nn.functional.linear(x, *ours), labels, task)
        for one, gradient in zip(steps, (error.t() @ x, error.sum(dim=0)), strict=True):
            one.step(gradient, rate, step)
        for a, b in zip(ours, theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b.detach(), rtol=1e-5, atol=1e-7)


def test_rows_are_the_metrics_of_the_test_predictions(features, tmp_path):
    rows = probe(CONFIG, features, tmp_path)
    saved = predictions(tmp_path)
    test = np.arange(2 * T, N)
    np.testing.assert_array_equal(saved["test_ids"], np.load(features / "ids.npy")[test])
    np.testing.assert_array_equal(saved["test_groups"], np.load(features / "groups.npy")[test])
    np.testing.assert_array_equal(saved["test_labels"], np.load(features / "labels.npy")[test])
    assert saved["block1"].shape == saved["val_block1"].shape == (T, 1)
    assert [(r["block"], r["metric"]) for r in rows] == [(b, m) for b in STRENGTH for m in metrics.applicable("binary")]
    about = {"groups": saved["test_groups"], "metric": "auroc", "replicates": 20, "seed": 0}
    for block in STRENGTH:
        expected = metrics.rows(saved["test_labels"], saved[f"block{block}"], "binary", **about)
        cell = {"mode": "probe", "label_fraction": 1.0, "block": block}
        assert [r for r in rows if r["block"] == block] == [cell | row for row in expected]
    assert json.loads((tmp_path / "rows.json").read_text()) == rows


def test_the_same_call_gives_the_same_bits_and_a_block_does_not_depend_on_the_others(features, tmp_path):
    rows = probe(CONFIG, features, tmp_path)
    first = predictions(tmp_path)
    assert probe(CONFIG, features, tmp_path) == rows
    for name, values in predictions(tmp_path).items():
        np.testing.assert_array_equal(values, first[name])
    alone = probe(ProbeConfig(**FAST, blocks=(3,)), features, tmp_path)
    assert alone == [r for r in rows if r["block"] == 3]


def test_predictions_do_not_depend_on_the_other_test_images_nor_on_unlabelled_training_images(features, tmp_path):
    config = ProbeConfig(bootstrap=20, epochs=5, blocks=(2,), fraction=0.2)
    probe(config, features, tmp_path)
    before = predictions(tmp_path)["block2"]
    seen = label_subset(np.load(features / "labels.npy"), np.load(features / "splits.npy"), fraction=0.2, seed=0)

    def change(x):
        x[np.setdiff1d(np.arange(T), seen)] *= -50
        x[2 * T + 1 :] *= 7

    rewrite(features, "block2", change)
    probe(config, features, tmp_path)
    after = predictions(tmp_path)["block2"]
    assert after[0] == pytest.approx(before[0], rel=1e-5)
    assert abs(after[1:] - before[1:]).max() > 0.01


def test_labels_of_the_test_split_are_never_used(features, tmp_path):
    config = ProbeConfig(**FAST, blocks=(2,))
    probe(config, features, tmp_path)
    before = predictions(tmp_path)["block2"]
    rewrite(features, "labels", lambda y: y.__setitem__(slice(2 * T, N), 1 - y[2 * T :]))
    rows = probe(config, features, tmp_path)
    np.testing.assert_array_equal(predictions(tmp_path)["block2"], before)
    assert rows[0]["value"] < 0.4


def test_scale_and_offset_of_a_channel_do_not_matter(features, tmp_path):
    config = ProbeConfig(**FAST, blocks=(4,))
    probe(config, features, tmp_path)
    before = predictions(tmp_path)["block4"]

    def change(x):
        x *= 2.0 ** np.arange(C)
        x -= 3

    rewrite(features, "block4", change)
    probe(config, features, tmp_path)
    np.testing.assert_allclose(predictions(tmp_path)["block4"], before, atol=2e-3)


def test_the_epoch_is_selected_on_validation(features, tmp_path):
    config = ProbeConfig(bootstrap=20, epochs=20, batch_size=32, blocks=(1,))
    truth = np.load(features / "labels.npy")[T : 2 * T]
    probe(config, features, tmp_path)
    best = predictions(tmp_path)["val_block1"]
    rewrite(features, "labels", lambda y: y.__setitem__(slice(T, 2 * T), 1 - y[T : 2 * T]))
    probe(config, features, tmp_path)
    worst = predictions(tmp_path)["val_block1"]  # of the epoch that reversed labels prefer
    assert roc_auc_score(truth, best) > roc_auc_score(truth, worst)


def test_a_fraction_trains_on_the_published_subset(features, tmp_path):
    config = ProbeConfig(bootstrap=20, epochs=5, blocks=(4,), fraction=0.1, seed=3)
    rows = probe(config, features, tmp_path)
    assert {r["label_fraction"] for r in rows} == {0.1}
    seen = label_subset(np.load(features / "labels.npy"), np.load(features / "splits.npy"), fraction=0.1, seed=3)
    ids = np.load(features / "ids.npy")[seen].tolist()
    drawn = {"draw": "stratified", "unit": "image", "absent": []}
    assert json.loads((tmp_path / "samples.json").read_text()) == {"fraction": 0.1, "seed": 3, **drawn, "ids": ids}
    with pytest.raises(DataError):
        probe(ProbeConfig(fraction=0.001), features, tmp_path)


def test_labels_are_drawn_as_the_configuration_says(features, tmp_path, monkeypatch):
    drawn, asked = LabelsConfig(draw="random", unit="group", missing="warn", salt="arm"), []

    def subset(labels, splits, **how):
        asked.append(how)
        return np.flatnonzero((splits == TRAIN) & (labels == 1))

    monkeypatch.setattr(probing, "label_subset", subset)
    probe(ProbeConfig(bootstrap=2, epochs=1, blocks=(4,), fraction=0.1, seed=3, labels=drawn), features, tmp_path)
    (how,) = asked
    assert (how["fraction"], how["seed"], how["config"]) == (0.1, 3, drawn)
    np.testing.assert_array_equal(how["groups"], np.load(features / "groups.npy"))
    samples = json.loads((tmp_path / "samples.json").read_text())
    assert (samples["draw"], samples["unit"], samples["absent"]) == ("random", "group", ["class no"])


def test_a_group_is_labelled_as_a_whole_where_groups_are_the_unit(features, tmp_path):
    whole = LabelsConfig(unit="group")
    probe(ProbeConfig(bootstrap=2, epochs=1, blocks=(4,), fraction=0.1, labels=whole), features, tmp_path)
    ids = json.loads((tmp_path / "samples.json").read_text())["ids"]
    groups, count = np.unique([int(name.removeprefix("image")) // 2 for name in ids], return_counts=True)
    assert 1 < len(groups) < T / 2
    assert set(count) == {2}


def test_a_dead_channel_does_no_harm(features, tmp_path):
    rewrite(features, "block4", lambda x: x.__setitem__((slice(None), 0), 0))
    rows = probe(ProbeConfig(**FAST, blocks=(4,)), features, tmp_path)
    assert rows[0]["value"] > 0.7


def test_features_without_a_split_are_refused(features, tmp_path):
    rewrite(features, "splits", lambda s: s.__setitem__(slice(2 * T, N), VAL))
    with pytest.raises(DataError, match="holds no test images; extract the features of all splits"):
        probe(CONFIG, features, tmp_path)
