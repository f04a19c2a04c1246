"""What the benchmark calls equal is equal: both ways of its rows, on few images."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from analysis import cka
from ssl_core.metrics import resampled_scores, resamples
from tests.benchmarks.all_images import features, measured
from tests.benchmarks.evaluation import Probing, dense_cka, labelled_scores, sets_of


@pytest.mark.parametrize("sets", [3, 9])  # of 40 of 120 images: fewer pairs than all the images have, and more
def test_cka_of_random_sets_equals_the_dense_definition(sets):
    x, y = features(120, 30)
    values, null = [], np.zeros(2)
    for rows, orders in sets_of(120, sets, 40, 2):
        values.append(dense_cka(x[rows], y[rows], 3.0))
        null += [dense_cka(x[rows], y[rows[order]], 3.0) / sets for order in orders]
    about = {"sets": sets, "set_size": 40, "permutations": 2, "rng": np.random.default_rng(0)}
    found = cka.authors(x, y, sigma=3.0, **about)
    assert found.value == pytest.approx(np.mean(values), abs=1e-9)
    assert (found.low, found.high) == pytest.approx(np.percentile(values, [2.5, 97.5]), abs=1e-9)
    assert (found.null, found.null_high) == pytest.approx((null.mean(), np.percentile(null, 95)), abs=1e-9)


def test_bootstrapped_macro_auroc_equals_scikit_learns_in_a_loop():
    labels, p = labelled_scores(1500, 3)
    labels[:9] = 1
    p = p.round(2)  # many ties
    found = resampled_scores("auroc", labels, p, "multilabel", groups=np.arange(1500), replicates=12, seed=0)
    expected = [roc_auc_score(labels[draw], p[draw]) for draw in resamples(1500, 12, 0)]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_both_ways_of_probing_read_the_same_features_and_ours_scores_no_worse(tmp_path):
    way = Probing(tmp_path, (160, 40, 160), fractions=(0.5, 1.0), epochs=10, side=32)
    way.ours()
    theirs = way.scores_of_sgd()
    assert len(way.scores) == len(theirs) == 8
    assert np.mean(way.scores) > max(0.6, np.mean(theirs) - 0.02)
    assert way.images_of_sgd() == 10 * 4 * (80 + 160)
    assert way.through_the_network(64).shape == (1, 512)  # the weights after one epoch of 64 images


def test_a_process_tells_its_own_peak_memory():
    found = measured("rbf", 2000, 64)
    assert 0 < found["seconds"] < 60
    assert 2 * 8 * 2000**2 / 2**30 < found["peak_GiB"] < 0.5  # two matrices in float64, and little else
