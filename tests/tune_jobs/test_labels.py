"""The labels that a study's runs saw, as tables; made of finished stages whose only file is samples.json."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from studies import miniature

from ssl_core.config import LabelsConfig
from ssl_core.data.dataset import TRAIN, Dataset
from ssl_core.data.labels import label_subset
from ssl_core.errors import StageError
from tune_jobs.labels import write_labels
from tune_jobs.plan import Plan, plan
from tune_jobs.stage import Stage
from tune_jobs.store import Store
from tune_jobs.study import Study

Sees = Callable[[Stage, Dataset], list[str]]


def packed() -> Dataset:
    """300 tiny images of 90 patients and three classes, a third of the patients held out."""
    rng = np.random.default_rng(0)
    patient = rng.integers(90, size=300)
    return Dataset(
        name="toy",
        images=np.zeros((300, 2, 2, 1), np.uint8),
        labels=rng.choice(3, size=300, p=[0.6, 0.3, 0.1]),
        splits=(patient % 9 // 3 // 2 + (patient % 9 == 8)).astype(np.int8),
        groups=np.char.add("p", patient.astype(str)),
        ids=np.array([f"{i:03d}.png" for i in range(300)]),
        class_names=("well", "sick", "odd"),
        task="multiclass",
        mean=(0.5,),
        std=(0.2,),
        fingerprint="0" * 16,
    )


def as_configured(stage: Stage, dataset: Dataset) -> list[str]:
    rows = label_subset(
        dataset.labels,
        dataset.splits,
        fraction=stage.labels["label_fraction"],
        seed=stage.labels["seed"],
        config=LabelsConfig(**stage.config["labels"]),
        groups=dataset.groups,
    )
    return dataset.ids[rows].tolist()


def ran(
    tmp_path: Path, study: Study, sees: Sees = as_configured, keep: Callable[[Stage], bool] = lambda _: True
) -> Any:
    """(study, plan, store, dataset) with every fine-tuning and probe finished that `keep` keeps."""
    full, store, dataset = plan(study, "f" * 16), Store(tmp_path / "store"), packed()
    data = next(full.of_kind("data"))
    work = store.begin(data)
    dataset.save(work)
    store.publish(data, work, {})
    for stage in full.by_key.values():
        if stage.kind in ("finetune", "probe") and keep(stage):
            work = store.begin(stage)
            (work / "samples.json").write_text(json.dumps({"ids": sees(stage, dataset)}))
            store.publish(stage, work, {})
    return study, full, store, dataset


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def study(**labels: Any) -> Study:
    """Two seeds, three arms; fine-tuned at 10% and 100%, probed at 10%."""
    down = {"bootstrap": 20, "metric": "f1_macro", "fractions": [0.1, 1.0], "linear_fractions": [0.3], "labels": labels}
    return miniature(downstream=down, probe={"epochs": 1, "bootstrap": 20, "fractions": [0.1]}, ks=None)


def written(
    tmp_path: Path, given: tuple[Study, Plan, Store, Dataset]
) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    path = write_labels(*given[:3], tmp_path / "tables")
    assert path == tmp_path / "tables" / "labels.csv"
    return table(path), table(tmp_path / "tables" / "label_counts.csv")


@pytest.mark.parametrize("unit", ["image", "group"])
def test_every_fraction_below_one_and_seed_is_listed_once_for_all_arms(tmp_path: Path, unit: str) -> None:
    given = ran(tmp_path, study(unit=unit))
    dataset = given[3]
    ids, counts = written(tmp_path, given)
    assert list(ids[0]) == ["dataset", "seed", "label_fraction", "arm", "id"]
    assert {(r["dataset"], r["arm"]) for r in ids} == {("toy", "all")}
    assert {(r["label_fraction"], r["seed"]) for r in ids} == {(f, s) for f in ("0.1", "0.3") for s in ("0", "1")}
    for fraction in (0.1, 0.3):
        for seed in (0, 1):
            rows = label_subset(
                dataset.labels, dataset.splits, fraction=fraction, seed=seed,
                config=LabelsConfig(unit=unit), groups=dataset.groups,
            )  # fmt: skip
            listed = [r["id"] for r in ids if (r["label_fraction"], r["seed"]) == (str(fraction), str(seed))]
            assert listed == dataset.ids[rows].tolist()
            of = [r for r in counts if (r["label_fraction"], r["seed"]) == (str(fraction), str(seed))]
            found, train = np.bincount(dataset.labels[rows]), np.bincount(dataset.labels[dataset.rows(TRAIN)])
            assert [r["class"] for r in of] == ["well", "sick", "odd"]
            assert [int(r["count"]) for r in of] == found.tolist()
            assert [float(r["target"]) for r in of] == pytest.approx(fraction * train, abs=0.006)
            assert {r["n"] for r in of} == {str(len(rows))}
            assert {r["groups"] for r in of} == {str(len(np.unique(dataset.groups[rows])))}
            assert float(of[0]["largest_deviation"]) == pytest.approx(np.abs(found - fraction * train).max(), rel=1e-3)


def test_where_each_arm_draws_for_itself_each_is_listed(tmp_path: Path) -> None:
    ids, counts = written(tmp_path, ran(tmp_path, study(per_arm=True)))
    per_arm = {
        arm: [r["id"] for r in ids if (r["arm"], r["label_fraction"], r["seed"]) == (arm, "0.1", "0")]
        for arm in ("moco", "moco_mse", "supervised")
    }
    assert len({len(of) for of in per_arm.values()}) == 1
    assert len({tuple(of) for of in per_arm.values()}) == 3
    assert {r["arm"] for r in ids} == {r["arm"] for r in counts} == set(per_arm)


def test_an_arm_that_saw_other_labels_than_the_rest_is_refused(tmp_path: Path) -> None:
    def sees(stage: Stage, dataset: Dataset) -> list[str]:
        ids = as_configured(stage, dataset)
        odd = stage.labels["arm"] == "moco_mse" and stage.kind == "probe" and stage.labels["seed"] == 1
        return [*ids[1:], str(np.setdiff1d(dataset.ids[dataset.rows(TRAIN)], ids)[0])] if odd else ids

    with pytest.raises(StageError, match=r"probe moco_mse seed 1 .* 2 images are in one alone, e\.g\. \d+"):
        written(tmp_path, ran(tmp_path, study(), sees))


def test_the_order_in_samples_json_means_nothing(tmp_path: Path) -> None:
    ids, _ = written(
        tmp_path, ran(tmp_path, study(), lambda s, d: as_configured(s, d)[:: 1 if s.kind == "probe" else -1])
    )
    one = [r["id"] for r in ids if (r["label_fraction"], r["seed"]) == ("0.1", "0")]
    assert one == sorted(one)


def test_labels_of_images_that_do_not_train_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"saw labels of images that toy does not train on: 1, e\.g\. test\.png"):
        written(tmp_path, ran(tmp_path, study(), lambda s, d: [*as_configured(s, d), "test.png"]))


def test_a_test_image_among_the_labels_is_refused(tmp_path: Path) -> None:
    def sees(stage: Stage, dataset: Dataset) -> list[str]:
        return [*as_configured(stage, dataset), str(dataset.ids[dataset.splits != TRAIN][0])]

    with pytest.raises(StageError, match="does not train on"):
        written(tmp_path, ran(tmp_path, study(), sees))


def test_a_stage_without_its_samples_is_named(tmp_path: Path) -> None:
    given = ran(tmp_path, study())
    stage = next(s for s in given[1].of_kind("probe"))
    (given[2].path(stage) / "samples.json").write_text("{")
    with pytest.raises(
        StageError, match=r"samples\.json, the labels that probe moco seed 0 probe 10% saw, cannot be read"
    ):
        written(tmp_path, given)


def test_what_has_not_run_yet_is_left_out(tmp_path: Path) -> None:
    only = lambda s: (s.labels["arm"], s.labels["seed"]) == ("moco", 0)  # noqa: E731
    ids, _ = written(tmp_path, ran(tmp_path, study(), keep=only))
    assert {(r["arm"], r["seed"]) for r in ids} == {("all", "0")}
    ids, counts = written(tmp_path, ran(tmp_path / "none", study(), keep=lambda _: False))
    assert ids == counts == []
