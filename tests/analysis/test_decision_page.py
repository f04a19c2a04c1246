"""The section on what to ship: the arm that validation recommends, its command; why nothing can be ranked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from analysis.decision import recommend
from analysis.decision_page import section
from analysis.tables import Finished
from ssl_core.errors import DataError
from tests.analysis import report_fixture as fixture


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> list[Finished]:
    return fixture.study(tmp_path_factory.mktemp("stages"))


def test_the_recommended_arm_is_marked_named_and_promoted(finished: list[Finished]) -> None:
    facts = fixture.facts()
    assert facts.decision is not None
    decision = recommend(finished, facts.decision, metric="auroc", baseline="moco")
    shown = section(facts, finished)
    assert shown is not None
    assert shown.table is not None
    (row,) = [row for row in shown.table.groups[""] if "←" in row[0]]
    assert shown.command == f"{facts.promote} --arm {decision.chosen.arm}"
    assert f"Ship {row[1]}," in shown.sentences[0]
    assert len(shown.table.groups[""]) == len(fixture.ARMS)
    assert shown.command in shown.markdown()


def test_where_nothing_can_be_ranked_the_page_says_why(finished: list[Finished]) -> None:
    shown = section(fixture.facts(), [stage for stage in finished if stage.kind == "pretrain"])
    assert shown is not None
    assert shown.table is None
    assert shown.sentences[0].startswith("No model of mode full or scratch is finished")
    assert section(fixture.facts(decision=None), finished) is None


def test_damaged_predictions_are_an_error_and_no_sentence(tmp_path: Path) -> None:
    stages = fixture.study(tmp_path, arms=("moco",), seeds=(0,))
    broken = next(stage for stage in stages if stage.kind == "finetune" and stage.labels["label_fraction"] == 1.0
                  and stage.labels["mode"] == "full")  # fmt: skip
    np.savez(broken.folder / "predictions.npz", val_ids=np.array(["a"]))
    with pytest.raises(DataError, match="cannot be read"):
        section(fixture.facts(arms=("moco",)), stages)
