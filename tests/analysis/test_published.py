"""The paper's numbers: transcribed whole, consistent with each other, and giving what its text computes from them."""

from collections import Counter
from itertools import product

import pytest

from analysis.published import DATASETS, KS_REFERENCE, TABLES, published

ARMS = ("moco", "moco_mse", "moco_barlow")
#: Table 3's column Performance, which the files leave out: 1% and 6% of the labels, MoCo, MSE and Barlow Twins.
PERFORMANCE = {
    ("cxr14", 0.01): ("59.2", "61.4", "62.9"),
    ("cxr14", 0.06): ("69.8", "70.5", "70.0"),
    ("eyepacs", 0.01): ("88.1", "93.6", "92.5"),
    ("eyepacs", 0.06): ("92.4", "95.1", "94.0"),
    ("idc", 0.01): ("82.8", "85.1", "84.4"),
    ("idc", 0.06): ("82.8", "84.6", "84.5"),
}


def cells(table, **wanted):
    return [c for c in published() if c.table == table and all(getattr(c, k) == v for k, v in wanted.items())]


def cell(table, **wanted):
    (found,) = cells(table, **wanted)
    return found


def test_every_cell_is_there_once():
    assert Counter(c.table for c in published()) == {
        "linear": 3 * 4,
        "label_efficiency": 3 * 3 * 4,
        "reuse": 3 * 3 * 2 * 4,
        "probing": 3 * 3 * 4,
        "ks": 3 * 2 * 4,
    }
    keys = [(c.table, c.dataset, c.arm, c.mode, c.label_fraction, c.block, c.metric) for c in published()]
    assert len(keys) == len(set(keys))
    assert {c.dataset for c in published()} == set(DATASETS)
    assert [c.number for c in published()] == sorted(c.number for c in published())


@pytest.mark.parametrize(
    ("table", "dataset", "arm", "fraction", "block", "printed"),
    [
        ("linear", "cxr14", "moco", 1.0, None, ("74.4", "73.9", "75.0")),
        ("linear", "idc", "moco_mse", 1.0, None, ("82.5", "82.2", "82.9")),
        ("label_efficiency", "cxr14", "moco_barlow", 0.01, None, ("62.9", "62.3", "63.5")),
        ("label_efficiency", "eyepacs", "supervised", 0.06, None, ("69.1", "69.0", "69.2")),
        ("label_efficiency", "idc", "moco_barlow", 1.0, None, ("86.4", "86.1", "86.7")),
        ("reuse", "cxr14", "moco", 0.06, 3, ("0.66", "", "")),
        ("reuse", "eyepacs", "moco_mse", 0.06, 4, ("0.12", "", "")),
        ("reuse", "idc", "moco", 0.01, 3, ("0.98", "", "")),
        ("probing", "cxr14", "moco_mse", 1.0, 3, ("69.2", "68.70", "69.7")),
        ("probing", "eyepacs", "moco_barlow", 1.0, 2, ("68.6", "68.5", "68.7")),
        ("ks", "idc", "moco_mse", 0.01, None, ("0.082", "", "")),
        ("ks", "eyepacs", "supervised", 0.01, None, ("0.60", "", "")),
    ],
)
def test_cells_are_as_printed(table, dataset, arm, fraction, block, printed):
    found = cell(table, dataset=dataset, arm=arm, label_fraction=fraction, block=block)
    assert (found.printed, found.printed_low, found.printed_high) == printed


def test_scores_are_in_our_units_and_other_measures_as_they_are():
    score = cell("linear", dataset="cxr14", arm="moco")
    assert (score.value, score.low, score.high) == (0.744, 0.739, 0.75)
    similarity = cell("reuse", dataset="idc", arm="moco", label_fraction=0.01, block=3)
    assert (similarity.value, similarity.low, similarity.high) == (0.98, None, None)
    assert {c.metric for c in published() if c.dataset == "idc"} == {"f1", "cka", "ks"}
    assert {c.metric for c in published() if c.dataset != "idc"} == {"auroc", "cka", "ks"}
    assert all(0 <= c.value <= 1 for c in published() if c.value is not None)


def test_the_only_interval_that_leaves_out_its_value_is_the_malformed_one():
    odd = [c for c in published() if c.printed_low and not c.low <= c.value <= c.high]
    assert [(c.table, c.dataset, c.arm, c.block) for c in odd] == [("probing", "idc", "moco_barlow", 1)]
    assert (odd[0].printed_low, odd[0].printed_high) == ("90.7", "81.4")
    assert "malformed" in odd[0].note


def test_what_cannot_be_read_is_empty_and_says_so():
    missing = {(c.dataset, c.arm, c.label_fraction) for c in published() if c.value is None}
    assert missing == {
        ("cxr14", "moco_barlow", 0.06),
        ("cxr14", "supervised", 0.06),
        ("eyepacs", "moco_barlow", 0.06),
        ("eyepacs", "supervised", 0.06),
        ("idc", "supervised", 0.06),
    }
    assert all(c.table == "ks" and "not legible" in c.note for c in published() if c.value is None)
    assert all((c.value is None) == (c.printed == "") for c in published())


def test_the_tables_agree_where_they_repeat_each_other():
    for dataset in DATASETS:
        linear, full = (cell(t, dataset=dataset, arm="supervised", label_fraction=1.0) for t in TABLES[:2])
        assert (linear.printed, linear.low, linear.high) == (full.printed, full.low, full.high)
        for arm in ARMS:
            last, linear = cell("probing", dataset=dataset, arm=arm, block=4), cell("linear", dataset=dataset, arm=arm)
            assert (last.printed, last.low, last.high) == (linear.printed, linear.low, linear.high)
    for (dataset, fraction), printed in PERFORMANCE.items():
        row = [cell("label_efficiency", dataset=dataset, arm=arm, label_fraction=fraction).printed for arm in ARMS]
        assert tuple(row) == printed


@pytest.mark.parametrize(("fraction", "points", "relative"), [(0.01, 3.83, 5.09), (0.06, 1.73, 2.03)])
def test_table_2_gives_the_average_gains_that_the_abstract_speaks_of(fraction, points, relative):
    gains, shares = [], []
    for dataset in DATASETS:
        of = {
            arm: 100 * cell("label_efficiency", dataset=dataset, arm=arm, label_fraction=fraction).value for arm in ARMS
        }
        better = max(of["moco_mse"], of["moco_barlow"])
        gains.append(better - of["moco"])
        shares.append(100 * (better / of["moco"] - 1))
    assert round(sum(gains) / 3, 2) == points
    assert round(sum(shares) / 3, 2) == relative


def test_the_two_claims_that_fail_on_the_papers_own_tables_fail_here_too():
    distance = {c.arm: c.value for c in cells("ks", dataset="idc", label_fraction=0.01)}
    assert distance["moco"] < distance["moco_mse"]
    fallen = 0
    for dataset, fraction in product(DATASETS, (0.01, 0.06)):
        block = {c.arm: c.value for c in cells("reuse", dataset=dataset, label_fraction=fraction, block=3)}
        fallen += sum(block[arm] < block["moco"] for arm in ("moco_mse", "moco_barlow"))
    assert fallen == 7


def test_the_reference_of_table_5_is_the_best_arm_on_all_labels():
    for dataset, arm in KS_REFERENCE.items():
        found = cells("label_efficiency", dataset=dataset, label_fraction=1.0)
        assert max(found, key=lambda c: c.value).arm == arm
