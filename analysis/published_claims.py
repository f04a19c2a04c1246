"""The paper's claims on its own Tables 1-5: the comparisons behind each, and the average gains of the abstract."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import groupby

from analysis.claims import LOSSES, Claim, direction
from analysis.published import DATASETS, Published, published


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Two published cells that a claim sets against each other, of one dataset, fraction, block and metric."""

    arm: Published
    against: Published
    excepted: bool  # the paper takes this comparison out of its claim

    @property
    def difference(self) -> Decimal | None:
        """Arm less against, as printed (scores in points); None where one of them could not be read."""
        if not (self.arm.printed and self.against.printed):
            return None
        return Decimal(self.arm.printed) - Decimal(self.against.printed)

    @property
    def ahead(self) -> int | None:
        """1: better, as claimed; -1: worse; 0: equal as printed; None: not legible."""
        if self.difference is None:
            return None
        return direction(self.arm.metric) * ((self.difference > 0) - (self.difference < 0))

    @property
    def apart(self) -> bool | None:
        """Whether the two printed intervals leave a gap between them; None where one is missing or malformed."""
        if not (sound(self.arm) and sound(self.against)):
            return None
        ends = [[Decimal(c.printed_low), Decimal(c.printed_high)] for c in (self.arm, self.against)]
        return ends[0][0] > ends[1][1] or ends[1][0] > ends[0][1]


@dataclass(frozen=True, kw_only=True)
class OwnSupport:
    """How a claim fares on the paper's own tables: in `held` of `of` cells; `failing` and equal ones are `of - held`.

    A cell is one comparison, for an `either` claim the better arm's. Excepted and illegible ones are not counted.
    """

    claim: Claim
    held: int
    of: int
    failing: tuple[Compared, ...]
    equal: tuple[Compared, ...]
    illegible: int
    overlapping: tuple[Compared, ...]  # of those that held: intervals that share values

    @property
    def outcome(self) -> str:
        """supported; partly: not in every cell, or significant by its words and not by its intervals; contradicted:
        in no more than half of the cells."""
        if 2 * self.held <= self.of:
            return "contradicted"
        whole = self.held == self.of and not (self.claim.significant and self.overlapping)
        return "supported" if whole else "partly"


@dataclass(frozen=True, kw_only=True)
class Gain:
    """The better loss over MoCo on one dataset, picked by its test score."""

    dataset: str
    arm: str
    points: float  # percentage points
    relative: float  # percent of MoCo's score


@dataclass(frozen=True, kw_only=True)
class AverageGain:
    """Over the paper's datasets, at one label fraction of Table 2."""

    label_fraction: float
    by_dataset: tuple[Gain, ...]

    @property
    def points(self) -> float:
        return sum(gain.points for gain in self.by_dataset) / len(self.by_dataset)

    @property
    def relative(self) -> float:
        """In percent: what the abstract calls an average gain."""
        return sum(gain.relative for gain in self.by_dataset) / len(self.by_dataset)


def sound(cell: Published) -> bool:
    """Whether the cell's interval is there and holds its value."""
    if not (cell.printed and cell.printed_low and cell.printed_high):
        return False
    return Decimal(cell.printed_low) <= Decimal(cell.printed) <= Decimal(cell.printed_high)


def compared(claim: Claim, cells: Sequence[Published]) -> list[Compared]:
    """Every comparison of the claim that the cells allow, in the order of the paper."""
    about = [cell for cell in cells if claim.about(cell.table, cell.label_fraction, cell.block)]
    others = {(c.dataset, c.label_fraction, c.block): c for c in about if c.arm == claim.against}
    found = []
    for cell in about:
        place = (cell.dataset, cell.label_fraction, cell.block)
        if cell.arm in claim.arms and place in others:
            found.append(Compared(arm=cell, against=others[place], excepted=place in claim.excepted))
    return found


def own_support(claim: Claim, cells: Sequence[Published] | None = None) -> OwnSupport:
    """The claim on `cells`, the paper's tables where not given."""
    found = [pair for pair in compared(claim, published() if cells is None else cells) if not pair.excepted]
    legible = [pair for pair in found if pair.ahead is not None]
    counted = list(_best_of_each_place(legible)) if claim.either else legible
    return OwnSupport(
        claim=claim,
        held=sum(pair.ahead == 1 for pair in counted),
        of=len(counted),
        failing=tuple(pair for pair in counted if pair.ahead == -1),
        equal=tuple(pair for pair in counted if pair.ahead == 0),
        illegible=len(found) - len(legible),
        overlapping=tuple(pair for pair in counted if pair.ahead == 1 and pair.apart is False),
    )


def average_gain(
    label_fraction: float, cells: Sequence[Published] | None = None, arms: Sequence[str] = LOSSES
) -> AverageGain:
    """What Table 2 gives for "an average performance gain": of the better of `arms` on each dataset."""
    scores = {
        (cell.dataset, cell.arm): Decimal(cell.printed)
        for cell in (published() if cells is None else cells)
        if cell.table == "label_efficiency" and cell.label_fraction == label_fraction
    }
    gains = []
    for dataset in DATASETS:
        base = scores[dataset, "moco"]
        arm = max(arms, key=lambda arm: scores[dataset, arm])
        gap = scores[dataset, arm] - base
        gains.append(Gain(dataset=dataset, arm=arm, points=float(gap), relative=float(100 * gap / base)))
    return AverageGain(label_fraction=label_fraction, by_dataset=tuple(gains))


def _best_of_each_place(pairs: Sequence[Compared]) -> Iterator[Compared]:
    """The better arm at each place."""

    def place(pair: Compared) -> tuple[str, float, int]:
        return (pair.arm.dataset, pair.arm.label_fraction, pair.arm.block or 0)

    for _, same in groupby(sorted(pairs, key=place), key=place):
        yield max(same, key=lambda pair: direction(pair.arm.metric) * (pair.difference or Decimal(0)))
