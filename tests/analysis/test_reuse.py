"""Feature reuse over folders of features: the right images, the right kernels, and refusals."""

import json

import numpy as np
import pytest

from analysis import cka, reuse
from analysis.config import ReuseConfig
from ssl_core.data.dataset import TEST
from ssl_core.errors import DataError
from ssl_core.seeding import generator

N, WIDTHS = 90, {1: 6, 2: 8, 3: 10, 4: 12}
FAST = ReuseConfig(permutations=5, sets=4, set_size=20)


def write(folder, seed=0, *, like=None, noise=0.3, **changes):
    """A features folder of random blocks, or of noisy linear maps of another's."""
    folder.mkdir()
    draw = np.random.default_rng(seed)
    for block, c in WIDTHS.items():
        x = draw.normal(size=(N, c)) + 1
        if like is not None:
            x = np.load(like / f"block{block}.npy") @ draw.normal(size=(c, c)) + noise * x
        np.save(folder / f"block{block}.npy", x.astype(np.float32))
    arrays = {
        "ids": np.array([f"image{i}" for i in range(N)]),
        "labels": np.arange(N) % 2,
        "splits": (np.arange(N) % 3).astype(np.int8),
        "groups": np.array([f"image{i}" for i in range(N)]),
    }
    for name, values in arrays.items():
        np.save(folder / f"{name}.npy", changes.get(name, values))
    about = {"task": "binary", "class_names": ["a", "b"], "fingerprint": "f00d", "encoder": str(seed)}
    (folder / "features.json").write_text(json.dumps(about | {k: v for k, v in changes.items() if k in about}))
    return folder


@pytest.fixture
def pair(tmp_path):
    before = write(tmp_path / "before")
    return before, write(tmp_path / "after", 1, like=before)


def compare(config, before, after, tmp_path):
    return reuse.compare(config, before, after, tmp_path, label_fraction=0.06)


def test_every_block_and_kernel_has_a_row_equal_to_its_cka_on_the_test_images(pair, tmp_path):
    rows = compare(FAST, *pair, tmp_path)
    metrics = ["cka_linear", "cka_rbf", "cka_authors"]
    assert [(r["block"], r["metric"]) for r in rows] == [(b, m) for b in WIDTHS for m in metrics]
    assert {r["label_fraction"] for r in rows} == {0.06}
    test = np.arange(2, N, 3)
    for row in rows:
        x, y = (np.load(folder / f"block{row['block']}.npy")[test] for folder in pair)
        draw = generator(0, "reuse", row["metric"].removeprefix("cka_"), row["block"])
        match row["metric"]:
            case "cka_linear":
                expected = cka.linear(x, y, permutations=5, rng=draw)
            case "cka_rbf":
                expected = cka.rbf(x, y, bandwidth=0.8, permutations=5, rng=draw)
            case "cka_authors":
                expected = cka.authors(x, y, sigma=0.8, sets=4, set_size=20, permutations=5, rng=draw)
        for name in ("value", "low", "high", "n", "null", "null_high", "off_diagonal", "uninformative"):
            assert row[name] == getattr(expected, name), name
        assert row["n"] == (20 if row["metric"] == "cka_authors" else 30)
    assert json.loads((tmp_path / "rows.json").read_text()) == rows


def test_an_encoder_is_entirely_reused_by_itself(pair, tmp_path):
    for row in compare(FAST, pair[0], pair[0], tmp_path):
        assert row["value"] == pytest.approx(1, abs=1e-9)


def test_only_the_test_split_counts(pair, tmp_path):
    rows = compare(FAST, *pair, tmp_path)
    for folder in pair:
        x = np.load(folder / "block2.npy")
        x[np.load(folder / "splits.npy") != TEST] = 1e3
        np.save(folder / "block2.npy", x)
    assert compare(FAST, *pair, tmp_path) == rows


def test_the_same_call_gives_the_same_rows_and_a_kernel_does_not_depend_on_the_others(pair, tmp_path):
    rows = compare(FAST, *pair, tmp_path)
    assert compare(FAST, *pair, tmp_path) == rows
    alone = ReuseConfig(permutations=5, sets=4, set_size=20, kernels=("authors",))
    assert compare(alone, *pair, tmp_path) == [r for r in rows if r["metric"] == "cka_authors"]


def test_a_large_test_set_is_drawn_from_with_the_seed(pair, tmp_path):
    few = ReuseConfig(permutations=5, kernels=("linear",), max_images=10)
    rows = compare(few, *pair, tmp_path)
    assert {r["n"] for r in rows} == {10}
    other = ReuseConfig(permutations=5, kernels=("linear",), max_images=10, seed=1)
    assert compare(other, *pair, tmp_path)[0]["value"] != rows[0]["value"]
    assert compare(few, *pair, tmp_path) == rows


def test_a_dead_block_is_undefined_and_flagged_and_the_file_is_still_json(pair, tmp_path):
    np.save(pair[1] / "block4.npy", np.zeros((N, 12), np.float32))
    rows = {(r["block"], r["metric"]): r for r in compare(FAST, *pair, tmp_path)}
    dead = rows[4, "cka_linear"]
    assert (dead["value"], dead["null"], dead["uninformative"]) == (None, None, True)
    assert rows[4, "cka_authors"]["uninformative"]
    assert "NaN" not in (tmp_path / "rows.json").read_text()


def test_a_folder_of_the_test_split_alone_compares_as_one_of_all_splits(pair, tmp_path):
    """A pretrained encoder's features hold all splits, for probing; a fine-tuned one's the test split alone."""
    alone = tmp_path / "alone"
    alone.mkdir()
    test = np.load(pair[1] / "splits.npy") == TEST
    for file in pair[1].glob("*.npy"):
        np.save(alone / file.name, np.load(file)[test])
    (alone / "features.json").write_text((pair[1] / "features.json").read_text())
    assert compare(FAST, pair[0], alone, tmp_path) == compare(FAST, *pair, tmp_path)


def test_other_images_or_another_order_or_dataset_are_refused(pair, tmp_path):
    ids = np.load(pair[0] / "ids.npy")
    order = np.arange(N)
    order[[2, 5]] = [5, 2]  # two test images change places
    swapped = write(tmp_path / "swapped", ids=ids[order])
    with pytest.raises(DataError, match=r"before and .*swapped differ in their images at row 0: image2 against image5"):
        compare(FAST, pair[0], swapped, tmp_path)
    other = write(tmp_path / "other", fingerprint="beef")
    with pytest.raises(DataError, match="different datasets"):
        compare(FAST, pair[0], other, tmp_path)


def test_too_few_test_images_are_refused(tmp_path):
    splits = np.zeros(N, np.int8)
    splits[:3] = TEST
    folder = write(tmp_path / "few", splits=splits)
    with pytest.raises(DataError, match="holds 3 test images; CKA needs at least 4"):
        compare(FAST, folder, folder, tmp_path)
