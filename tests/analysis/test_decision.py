"""From finished stages to the model to ship, and what is said of it; predictions are real files of known AUROC."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pandas import DataFrame

from analysis.config import DecisionConfig
from analysis.decision import Decision, recommend
from analysis.decision_words import rows, sentences
from analysis.search import search_cost
from analysis.tables import Finished
from ssl_core.errors import InputError

HALF = 100  # images of a class


def predicted(folder: Path, wrong: int) -> None:
    """Validation predictions of AUROC 1 - wrong / 200: so many positives are called as surely as a negative is.

    The test arrays are objects, which nobody may open.
    """
    folder.mkdir(parents=True)
    labels = np.repeat([0, 1], HALF)
    p = np.where(labels == 1, 0.9, 0.2)
    p[HALF : HALF + wrong] = 0.2
    ids = np.array([f"image{i}" for i in range(2 * HALF)])
    arrays = {"ids": ids, "groups": ids, "labels": labels, "probabilities": p[:, None]}
    refused = {f"test_{name}": np.array([{}], dtype=object) for name in arrays}
    np.savez(folder / "predictions.npz", **{f"val_{k}": v for k, v in arrays.items()}, **refused)


def study(
    folder: Path,
    wrong: Mapping[str, Sequence[int]],
    seconds: Mapping[str, float] | None = None,
    *,
    accelerated: bool = True,
    fraction: float = 1.0,
) -> list[Finished]:
    """A pretraining of `seconds` and a fine-tuning of 10 s for each arm and seed; `wrong` as `predicted` takes it."""
    finished = []
    for arm, values in wrong.items():
        for seed, count in enumerate(values):
            labels, key = {"arm": arm, "seed": seed}, f"{arm}-{seed}-{fraction}"
            took, device = (seconds or {}).get(arm, 90.0), "GPU" if accelerated else "cpu"
            mode = "scratch" if arm == "supervised" else "full"
            predicted(folder / key, count)
            own = (took if accelerated else 0.0, 2**30, device)
            if mode == "full":
                finished.append(Finished("pretrain", key, labels, folder, (), took, *own))
            tuned = {**labels, "mode": mode, "label_fraction": fraction}
            own = (10.0 if accelerated else 0.0, 2**29, device)
            finished.append(Finished("finetune", key, tuned, folder / key, (), 10.0, *own))
    return finished


def decided(finished: Sequence[Finished], **changes: Any) -> Decision:
    config = DecisionConfig(**changes.pop("config", {}))
    return recommend(finished, config, metric="auroc", baseline="moco", **changes)


CLEAR = {"moco": [20, 24, 16], "mse": [10, 15, 6], "supervised": [60, 50, 70]}


def test_the_recommended_model_is_the_seed_of_the_chosen_arm_that_validates_best(tmp_path: Path) -> None:
    found = decided(study(tmp_path, CLEAR))
    assert found.ranking.of("mse").means["score"] == pytest.approx(1 - (10 + 15 + 6) / 600)
    assert (found.chosen.arm, found.chosen.seed, found.chosen.mode) == ("mse", 2, "full")
    assert found.chosen.value == pytest.approx(0.97)
    assert found.chosen.stage.key == "mse-2-1.0"
    assert found.models["supervised"].seed == 1
    assert found.models["supervised"].mode == "scratch"
    assert found.ranking.of("mse").means["accelerator_seconds"] == 100
    assert found.ranking.of("supervised").means["accelerator_seconds"] == 10


def test_seeds_that_validate_alike_go_by_number(tmp_path: Path) -> None:
    assert decided(study(tmp_path, {"moco": [9, 5, 5]})).chosen.seed == 1


def test_the_sentences_say_what_why_how_sure_and_what_else(tmp_path: Path) -> None:
    said = sentences(decided(study(tmp_path, CLEAR)), str)
    assert said[0] == (
        "Ship mse, all weights fine-tuned on 100% of the labels: validation AUROC 94.83 ± 1.30 "
        "(mean ± standard error over 3 seeds)."
    )
    assert said[1] == (
        "It has the best mean of 3 configurations, and no other comes within one standard error of the paired "
        "difference to it."
    )
    assert said[2].startswith("3 seeds can never be significant: the exact paired test needs at least 7 for 3 comp")
    assert said[3] == (
        "The nearest cheaper one is supervised, with 90% less accelerator time: it is 24.83 points worse, and would be "
        "chosen were that no more than one standard error, 4.19 points."
    )
    assert said[4].startswith("Of its 3 models that of seed 2 does best on validation (97.00)")
    assert "no test image" in said[-1]


def test_a_cheaper_one_within_the_error_is_recommended_with_both_its_price_and_the_margin(tmp_path: Path) -> None:
    wrong = {"mse": [10, 10, 10], "moco": [11, 9, 13]}
    found = decided(study(tmp_path, wrong, {"mse": 390.0, "moco": 90.0}))
    said = " ".join(sentences(found, str))
    assert found.chosen.arm == "moco"
    assert (
        "It is 0.50 points worse than the best mean (mse), within one standard error of that difference (0.58 points, "
        "paired by seed), and a model of it takes 75% less accelerator time: 1 min 40 s instead of 6 min 40 s." in said
    )
    assert "Were cost no matter (decision.objectives: [score]), it would be mse." in said
    assert decided(study(tmp_path / "x", wrong), config={"objectives": ("score",)}).chosen.arm == "mse"


def test_what_a_search_took_is_said_of_the_arms_that_it_found(tmp_path: Path) -> None:
    found = decided(study(tmp_path, {"moco": [20, 24], "trial_7": [10, 15]}))
    trials = DataFrame({"seconds": [100.0, None, 500.0], "accelerator_seconds": [0.0, None, 0.0]})
    cost = search_cost(trials, {7: "trial_7", 2: "moco"})
    (said,) = [s for s in sentences(found, str, cost) if "search" in s]
    assert said == (
        "What the search took to find trial_7 is in none of these costs: training its 3 trials took 10 min 0 s of "
        "wall time. It is paid once, and not again for another model with the same settings."
    )
    held = search_cost(trials.assign(accelerator_seconds=[50.0, None, 7.0]), {7: "trial_7"})
    assert "took 57 s of accelerator time" in " ".join(sentences(found, str, held))
    assert "search" not in " ".join(sentences(found, str, search_cost(trials, {2: "moco"})))
    assert "search" not in " ".join(sentences(found, str))


def test_with_seeds_enough_the_verdicts_are_said(tmp_path: Path) -> None:
    wrong = {"moco": [20, 22, 24, 21, 23, 25, 20], "mse": [10] * 7, "barlow": [9, 11] * 3 + [11]}
    said = sentences(decided(study(tmp_path, wrong, {"moco": 10.0, "barlow": 88.0})), str)
    assert said[2] == (
        "By the exact paired test over 7 seeds, Holm over 3 comparisons: mse is better than moco; no difference is "
        "shown between mse and barlow."
    )
    assert "; barlow comes within one standard error of it, but no such configuration saves more than 5%" in said[1]
    assert said[3].startswith("The nearest cheaper one is moco")  # barlow is cheaper, too, by too little to speak of


def test_one_seed_is_said_to_tell_nothing_of_chance(tmp_path: Path) -> None:
    said = " ".join(sentences(decided(study(tmp_path, {"moco": [20], "mse": [10]})), str))
    assert "validation AUROC 95.00 (one seed)" in said
    assert "One seed has no standard error" in said
    assert "1 seed can never be significant" in said


def test_on_a_cpu_the_cost_is_wall_time_and_it_says_so(tmp_path: Path) -> None:
    found = decided(study(tmp_path, CLEAR, accelerated=False))
    header, body = rows(found, str)
    assert "wall time" in header
    assert "accelerator time" not in header
    assert body[0][header.index("wall time")] == "1 min 40 s"
    assert any("made without an accelerator" in sentence for sentence in sentences(found, str))


def test_the_table_has_a_row_an_arm_and_marks_the_choice(tmp_path: Path) -> None:
    header, body = rows(decided(study(tmp_path, CLEAR)))
    assert [row[header.index("arm")] for row in body] == ["mse", "MoCo", "Supervised"]
    assert [row[0] for row in body] == ["1 ←", "2", "3"]
    assert body[0][header.index("AUROC (%)")] == "94.83 ± 1.30"
    assert [row[header.index("front")] for row in body] == ["yes", "no", "yes"]
    assert [row[-1] for row in body] == ["best mean", "needs more seeds", "needs more seeds"]
    assert [row[header.index("within 1 s.e.")] for row in body] == ["yes", "no", "no"]
    assert body[1][header.index("peak memory")] == "1,024 MiB"


def test_what_is_not_finished_is_named_and_the_rest_is_ranked(tmp_path: Path) -> None:
    planned = [(arm, seed) for arm in ("moco", "mse", "barlow") for seed in range(3)]
    found = decided(study(tmp_path, {"moco": [20, 24, 16], "mse": [10, 15]}), planned=planned)
    said = " ".join(sentences(found, str))
    assert found.missing == (("mse", 2), ("barlow", 0), ("barlow", 1), ("barlow", 2))
    assert (
        "4 models of this study are not finished (mse seed 2, barlow seed 0, barlow seed 1 and barlow seed 2)" in said
    )
    assert "Arms are compared over seeds 0 and 1, which all of them have." in said
    assert found.ranking.of("moco").means["score"] == pytest.approx(1 - 22 / 200)


def test_only_the_mode_and_fraction_asked_for_compete(tmp_path: Path) -> None:
    both = study(tmp_path / "a", CLEAR) + study(tmp_path / "b", {"moco": [1, 1, 1], "mse": [2, 2, 2]}, fraction=0.01)
    assert decided(both).label_fraction == 1.0
    few = decided(both, config={"fraction": 0.01})
    assert (few.chosen.arm, few.chosen.stage.key) == ("moco", "moco-0-0.01")
    assert len(few.ranking.configurations) == 2
    with pytest.raises(InputError, match=r"full or scratch at 6% of the labels is finished; there are models at 1%, 1"):
        decided(both, config={"fraction": 0.06})
    with pytest.raises(InputError, match="no model of mode linear is finished"):
        decided(both, config={"mode": "linear"})


def test_the_worst_class_may_rank(tmp_path: Path) -> None:
    found = decided(study(tmp_path, CLEAR), config={"objectives": ("worst_class",)})
    assert found.ranking.of("mse").means["worst_class"] == pytest.approx(1 - (10 + 15 + 6) / 300)  # sensitivity
    assert "validation worst class 89.67" in sentences(found, str)[0]


def test_everything_is_plain_json(tmp_path: Path) -> None:
    found = decided(study(tmp_path, {"moco": [20], "mse": [10]}), planned=[("moco", 1)])
    facts = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert facts["recommended"] == {
        "arm": "mse", "mode": "full", "label_fraction": 1.0, "seed": 0, "seed_value": 0.95,
        "stage": "finetune-mse-0-1.0", "key": "mse-0-1.0",
    }  # fmt: skip
    assert facts["missing"] == [{"arm": "moco", "seed": 1}]
    assert [row["arm"] for row in facts["ranking"]] == ["mse", "moco"]
    assert facts["ranking"][0]["error"] is None
    assert facts["ranking"][0]["accelerator_seconds"] == 100.0


def test_the_order_of_stages_changes_nothing(tmp_path: Path) -> None:
    finished = study(tmp_path, CLEAR)
    assert decided(finished[::-1]).as_json() == decided(finished).as_json()
