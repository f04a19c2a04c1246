"""What the paper claims of its block losses, as data: each claim with the comparisons that it implies.

The claims about performance, reuse, early blocks and distance are those of the abstract and of section 4. A claim is
held against the paper's own tables by `published_claims`, against a study's by `study_claims`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from analysis.significance import LOWER_IS_BETTER

#: The paper's arms with a block loss, by their kind (see `beside.kind`).
LOSSES = ("moco_mse", "moco_barlow")

#: Where a comparison stands: the paper's dataset, the label fraction, the block or None.
Place = tuple[str, float, int | None]

#: What a study's comparison says of a claim, the most in its favour first.
Outcome = Literal["supported", "not shown", "needs more seeds", "contradicted", "uninformative", "not measured"]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Each of `arms` is better than `against` in every cell of `table` at these fractions and blocks.

    `either`: in each cell one of the arms is enough, as the paper words it. `significant`: the paper calls the
    differences significant. `excepted`: cells that the paper itself takes out, which neither help nor harm the claim.
    Better is higher, for a distance lower.
    """

    key: str
    title: str
    says: str  # the paper's sentence in short
    section: str
    table: str  # one of `published.TABLES`
    fractions: tuple[float, ...]
    blocks: tuple[int, ...] = ()
    arms: tuple[str, ...] = LOSSES
    against: str = "moco"
    either: bool = False
    significant: bool = False
    excepted: frozenset[Place] = frozenset()

    def about(self, table: str, label_fraction: float, block: int | None) -> bool:
        """Whether the claim speaks of this cell of a table, whatever the dataset and the arm."""
        places = self.blocks if self.blocks else (None,)
        return table == self.table and round(label_fraction, 6) in self.fractions and block in places


def direction(metric: str) -> int:
    """The sign of a difference in this metric that is for the better."""
    return -1 if metric in LOWER_IS_BETTER else 1


CLAIMS = (
    Claim(
        key="gain_1",
        title="Gain with 1% of the labels",
        says="Fine-tuned on 1% of the labels, both losses do significantly better than MoCo, on average by 5%.",
        section="abstract, 4.3.2",
        table="label_efficiency",
        fractions=(0.01,),
        significant=True,
    ),
    Claim(
        key="gain_6",
        title="Gain with 6% of the labels",
        says="Fine-tuned on 6% of the labels, both losses do significantly better than MoCo, on average by 2%.",
        section="4.3.2",
        table="label_efficiency",
        fractions=(0.06,),
        significant=True,
    ),
    Claim(
        key="gain_100",
        title="Gain with all labels",
        says="Fine-tuned on all labels, both losses do better than MoCo, except on the chest X-rays.",
        section="Table 2",
        table="label_efficiency",
        fractions=(1.0,),
        excepted=frozenset({("cxr14", 1.0, None)}),
    ),
    Claim(
        key="linear",
        title="Gain with the encoder frozen",
        says="With a linear classifier, MoCo + MSE does significantly better than MoCo, except on the chest X-rays.",
        section="4.3.1",
        table="linear",
        fractions=(1.0,),
        arms=("moco_mse",),
        significant=True,
        excepted=frozenset({("cxr14", 1.0, None)}),
    ),
    Claim(
        key="reuse",
        title="Higher feature reuse",
        says="In almost all blocks, both losses leave features that fine-tuning changes less than those of MoCo.",
        section="abstract, 4.4.1",
        table="reuse",
        fractions=(0.01, 0.06),
        blocks=(1, 2, 3, 4),
    ),
    Claim(
        key="early_blocks",
        title="Informative features earlier",
        # Table 4's block 4 is Table 1 again, and no early block.
        says="Probed block by block, either loss does better than MoCo, except in block 1 on the chest X-rays.",
        section="abstract, 4.4.2",
        table="probing",
        fractions=(1.0,),
        blocks=(1, 2, 3),
        either=True,
        excepted=frozenset({("cxr14", 1.0, 1)}),
    ),
    Claim(
        key="ks",
        title="Lower KS distance",
        says="Fine-tuned on few labels, both losses come closer than MoCo to the best model trained on all labels, "
        "except with 6% on the chest X-rays.",
        section="abstract, 4.4.3",
        table="ks",
        fractions=(0.01, 0.06),
        excepted=frozenset({("cxr14", 0.06, None)}),
    ),
    Claim(
        key="pretraining",
        title="Pretraining helps at all",
        says="Fine-tuned, every pretrained model does better than training from random weights.",
        section="4.3.2",
        table="label_efficiency",
        fractions=(0.01, 0.06, 1.0),
        arms=("moco", *LOSSES),
        against="supervised",
    ),
)
