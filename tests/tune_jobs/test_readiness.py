"""What happens before a study's first stage: packed, audited, enforced, checked; and what the verb `data` tells."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from studies import raw

from ssl_core.errors import ConfigError, DataError
from tune_jobs.audit import accepted, enforce, opened
from tune_jobs.inspection import inspect
from tune_jobs.prepare import planned
from tune_jobs.readiness import Ready, checked, make_ready, queues, warnings
from tune_jobs.resolution import resolve
from tune_jobs.store import Store
from tune_jobs.study import Study


def leaky(folder: Path, **settings: Any) -> dict[str, Any]:
    """120 images of two classes, two to a patient; patient 1 is in train and in test."""
    rng = np.random.default_rng(0)
    groups = np.array([f"patient {i // 2}" for i in range(120)])
    groups[110] = "patient 1"
    arrays = {
        "images": rng.integers(0, 255, (120, 16, 16), dtype=np.uint8),
        "labels": np.arange(120) // 2 % 2,
        "group": groups,
        "split": np.array(["train"] * 80 + ["val"] * 20 + ["test"] * 20),
    }
    np.savez(folder / "x.npz", **arrays)
    return {"source": "npz", "path": str(folder / "x.npz"), **settings}


def study(dataset: dict[str, Any], **changes: Any) -> Study:
    changes.setdefault("pretrain", {"epochs": 1, "batch_size": 16})
    return resolve(raw(dataset=dataset, **changes))


def ready(of: Study, store: Store) -> Ready:
    return make_ready(store, planned(of, store), {}, on_ray=contextlib.nullcontext)


def test_a_leak_stops_until_it_is_accepted_by_name_and_is_then_told(tmp_path: Path) -> None:
    store, strict = Store(tmp_path / "runs"), study(leaky(tmp_path))
    first = ready(strict, store)
    with pytest.raises(DataError, match=r"groups_across_splits: 1 group .*patient 1 \(train and test\)") as caught:
        enforce(strict, first.audit)
    assert "dataset.accept: [groups_across_splits]" in str(caught.value)
    assert accepted(strict, first.audit) == ()

    lenient = study(leaky(tmp_path, accept=["groups_across_splits"]))
    again = ready(lenient, store)
    enforce(lenient, again.audit)
    (sentence,) = accepted(lenient, again.audit)
    assert "patient 1 (train and test)" in sentence
    assert len(first.made) == 2
    assert again.made == ()  # accepting changes no identity: nothing is packed or audited again
    assert again.audit == first.audit == opened(store, next(planned(lenient, store).of_kind("audit")))


def test_an_arm_at_another_size_has_its_own_packed_images(tmp_path: Path) -> None:
    arms = {"moco": {}, "small": {"dataset": {"size": 8}}}
    made = ready(study(leaky(tmp_path), arms=arms), Store(tmp_path / "runs"))
    assert [data.size for data in made.datasets.values()] == [16, 8]
    assert made.dataset.size == 16
    assert (next(iter(made.datasets.values())).ids == list(made.datasets.values())[1].ids).all()
    assert len(made.made) == 3


def test_a_fraction_without_a_class_is_refused_or_noted_as_asked(tmp_path: Path) -> None:
    def with_labels(**labels: str) -> Study:
        down = {**raw()["downstream"], "fractions": [0.01, 1.0], "labels": labels}
        return study(leaky(tmp_path), downstream=down)

    store = Store(tmp_path / "runs")
    strict = with_labels()
    with pytest.raises(DataError, match=r"label fraction 0.01 keeps 1 of 80 training images, too few"):
        checked(strict, ready(strict, store))
    lenient = with_labels(missing="warn")
    notes = checked(lenient, ready(lenient, store))
    assert [n for n in notes if n.startswith("label fraction 0.01, seed 0: holds no class")]
    whole = with_labels(unit="group", missing="warn")
    assert [n for n in checked(whole, ready(whole, store)) if n.startswith("label fraction 0.01, seed 1: holds no")]


def test_a_warning_of_all_arms_is_said_once_and_one_of_some_names_them() -> None:
    arms = {"moco": {}, "wide": {"barlow": {"width": 64}}, "narrow": {"barlow": {"width": 8}}, "supervised": "scratch"}
    of = resolve(raw(arms=arms, pretrain={"epochs": 1, "batch_size": 16}))
    said = warnings(of, list(arms), 1000, 1)
    assert [w for w in said if "grey" in w and not w.startswith("arms.")]
    assert [w for w in said if w.startswith("arms.wide: barlow.width 64 exceeds batch_size 16")]
    assert not [w for w in said if "narrow" in w]
    with pytest.raises(ConfigError, match=r"arms.moco: batch_size 16 exceeds the 12 training images"):
        warnings(of, list(arms), 12, 1)


def test_queues_are_settled_for_the_training_set() -> None:
    of = resolve(raw(arms={"moco": {}, "own": {"moco": {"queue": 7}}, "supervised": "scratch"}))
    assert queues(of, 1000) == {"moco": 256, "own": 7}


def test_data_tells_counts_findings_and_what_fractions_take(tmp_path: Path) -> None:
    down = {**raw()["downstream"], "labels": {"unit": "group"}}
    of = study(leaky(tmp_path, name="clinic"), downstream=down)
    seen = inspect(of, Store(tmp_path / "runs"), None)
    facts = seen.as_json()
    assert facts["n"] == {"train": 80, "val": 20, "test": 20}
    assert facts["name"] == "clinic"
    assert facts["packing"]["images"] == 120
    assert "packed  120 images" in seen.packing
    assert {part["fraction"] for part in facts["fractions"]} == {0.06, 1.0}
    small = next(part for part in facts["fractions"] if part["fraction"] == 0.06)
    assert small["n"] == 2 * small["groups"] == sum(small["classes"].values())  # whole patients
    assert [line for line in seen.findings if line.startswith("STOPS  groups_across_splits")]
    assert [line for line in seen.findings if "queue_share" in line]
