"""What does not fit together in the paper's Tables 1-5: with its own text, with its formula, and with each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import pairwise

from analysis.claims import CLAIMS, LOSSES, Claim
from analysis.names import SCORES, arm_name, percent
from analysis.published import DATASETS, Published, published
from analysis.published_claims import Compared, average_gain, compared, own_support, sound

#: Half of the last digit of a printed score, and so how far the end of an interval may be rounded.
_ROUNDING = Decimal("0.05")
_Cells = Sequence[Published]


@dataclass(frozen=True, kw_only=True)
class Flag:
    """Something in a published table that a reader should know; `cell` is where, None for a whole table."""

    kind: str
    number: int  # of the table in the paper
    cell: Published | None
    text: str
    claim: str | None = None  # key of the claim in `CLAIMS` that it speaks of


def check(cells: _Cells | None = None) -> list[Flag]:
    """Everything that is found in `cells`, the paper's tables where not given; by table, in the order of the paper.

    Kinds, of cells that do not show what the text claims: `against the claim`, `equal`, `not significant`, `larger gain
    with all labels`, `worse than MoCo` (with a gap between the intervals, where the abstract has it similar at least),
    `later block more similar`, `average of the better loss`; of intervals: `malformed interval`, `off-centre interval`
    (the paper's formula is symmetric), `implied spread`; of cells beside each other: `fewer labels, better score`,
    `repeated cell`, `tables disagree`; and `not legible`.
    """
    given = published() if cells is None else tuple(cells)
    checks: tuple[Callable[[_Cells], Iterator[Flag]], ...] = (
        *(_claim_check(claim) for claim in CLAIMS),
        _better_loss,
        _small_gains_larger,
        _similar_at_least,
        _early_blocks_similar,
        _intervals,
        _implied_spread,
        _fewer_labels_better,
        _repeated,
        _disagreeing,
        _illegible,
    )
    found = [flag for each in checks for flag in each(given)]
    return sorted(found, key=lambda flag: flag.number)


def _flag(kind: str, cell: Published, text: str, claim: str | None = None) -> Flag:
    return Flag(kind=kind, number=cell.number, cell=cell, text=f"{_where(cell)}: {text}", claim=claim)


def _where(cell: Published) -> str:
    """`idc at 1%, block 3`."""
    block = "" if cell.block is None else f", block {cell.block}"
    fraction = "" if cell.table in ("linear", "probing") else f" at {percent(cell.label_fraction)}"
    return f"{cell.dataset}{fraction}{block}"


def _pair(pair: Compared) -> str:
    return f"{arm_name(pair.arm.arm)} {pair.arm.printed}, {arm_name(pair.against.arm)} {pair.against.printed}"


def _claim_check(claim: Claim) -> Callable[[_Cells], Iterator[Flag]]:
    def flags(cells: _Cells) -> Iterator[Flag]:
        own = own_support(claim, cells)
        for pair in own.failing:
            yield _flag("against the claim", pair.arm, _pair(pair), claim.key)
        for pair in own.equal:
            yield _flag("equal", pair.arm, _pair(pair), claim.key)
        for pair in own.overlapping if claim.significant else ():
            yield _flag("not significant", pair.arm, f"{_pair(pair)}; the printed intervals overlap", claim.key)

    return flags


def _better_loss(cells: _Cells) -> Iterator[Flag]:
    """The abstract's averages take the better loss of each dataset, which its test score picked."""
    for fraction in (0.01, 0.06):
        best = average_gain(fraction, cells)
        each = ", ".join(f"{arm_name(arm)} {average_gain(fraction, cells, [arm]).relative:.2f}%" for arm in LOSSES)
        text = (
            f"{percent(fraction)} of the labels: the average gain of {best.relative:.2f}% ({best.points:.2f} points) "
            f"takes the loss that did better on the test images of each dataset; one loss for all datasets gives {each}"
        )
        yield Flag(kind="average of the better loss", number=2, cell=None, text=text)


def _small_gains_larger(cells: _Cells) -> Iterator[Flag]:
    """Abstract and section 5: the gains are larger with few labels."""
    for dataset in DATASETS:
        for arm in LOSSES:
            gain = {
                pair.arm.label_fraction: pair
                for claim in CLAIMS[:3]
                for pair in compared(claim, cells)
                if (pair.arm.dataset, pair.arm.arm) == (dataset, arm) and pair.difference is not None
            }
            whole = gain.get(1.0)
            for fraction in (0.01, 0.06):
                if whole and (few := gain.get(fraction)) and (few.difference or 0) < (whole.difference or 0):
                    text = (
                        f"{arm_name(arm)} gains {few.difference} points over MoCo, with all labels {whole.difference}"
                    )
                    yield _flag("larger gain with all labels", few.arm, text)


def _similar_at_least(cells: _Cells) -> Iterator[Flag]:
    """Abstract: both losses "either outperform standard MoCo, or achieve similar performances"."""
    for claim in CLAIMS:
        if claim.table in ("linear", "label_efficiency") and claim.against == "moco":
            for pair in compared(replace(claim, arms=LOSSES), cells):
                if pair.ahead == -1 and pair.apart:
                    text = f"{_pair(pair)}, with a gap between the printed intervals"
                    yield _flag("worse than MoCo", pair.arm, text)


def _early_blocks_similar(cells: _Cells) -> Iterator[Flag]:
    """Section 4.4.1: features of earlier blocks are more similar than those of later ones, for every method."""
    for before, after in pairwise(cell for cell in cells if cell.table == "reuse"):
        same = [(c.dataset, c.arm, c.label_fraction) for c in (before, after)]
        if same[0] == same[1] and Decimal(after.printed) > Decimal(before.printed):
            text = f"{arm_name(after.arm)} {after.printed}, block {before.block} {before.printed}"
            yield _flag("later block more similar", after, text)


def _intervals(cells: _Cells) -> Iterator[Flag]:
    for cell in cells:
        if not (cell.printed and cell.printed_low and cell.printed_high):
            continue
        value, low, high = (Decimal(text) for text in (cell.printed, cell.printed_low, cell.printed_high))
        printed = f"{arm_name(cell.arm)} {cell.printed} ({cell.printed_low}-{cell.printed_high})"
        if low > high:
            yield _flag("malformed interval", cell, f"{printed}: its lower end lies above its upper end")
        elif not sound(cell):
            yield _flag("malformed interval", cell, f"{printed}: the value lies outside its interval")
        elif abs(value - (low + high) / 2) > 2 * _ROUNDING:
            text = f"{printed}: mean ± 1.96 sd / √replicates lies evenly about its mean"
            yield _flag("off-centre interval", cell, text)


def _implied_spread(cells: _Cells) -> Iterator[Flag]:
    """The formula's own arithmetic: sd over replicates = half width x sqrt(1000) / 1.96."""
    halves = [(Decimal(c.printed_high) - Decimal(c.printed_low)) / 2 for c in cells if sound(c) and c.metric in SCORES]
    if halves:
        widest = max(halves)
        text = (
            f"the widest printed interval, ± {widest} points, means by the formula a spread of "
            f"{float(widest) * 1000**0.5 / 1.96:.1f} points over bootstrap replicates of the test set; as 1.96 sd it "
            f"means {float(widest) / 1.96:.2f} points"
        )
        number = min(
            c.number for c in cells if sound(c) and (Decimal(c.printed_high) - Decimal(c.printed_low)) / 2 == widest
        )
        yield Flag(kind="implied spread", number=number, cell=None, text=text)


def _of_arms(cells: _Cells) -> Iterator[list[Published]]:
    """Table 2 by dataset and arm, most labels first."""
    rows = [cell for cell in cells if cell.table == "label_efficiency" and cell.printed]
    for key in dict.fromkeys((cell.dataset, cell.arm) for cell in rows):
        yield sorted((c for c in rows if (c.dataset, c.arm) == key), key=lambda cell: -cell.label_fraction)


def _fewer_labels_better(cells: _Cells) -> Iterator[Flag]:
    for rows in _of_arms(cells):
        for more, few in pairwise(rows):
            if Decimal(few.printed) > Decimal(more.printed):
                text = f"{arm_name(few.arm)} {few.printed}, with {percent(more.label_fraction)} {more.printed}"
                yield _flag("fewer labels, better score", few, text)


def _repeated(cells: _Cells) -> Iterator[Flag]:
    """A value and both ends of its interval, to the digit, at two label fractions: hardly by chance."""
    for rows in _of_arms(cells):
        for more, few in pairwise(rows):
            shown = [(c.printed, c.printed_low, c.printed_high) for c in (more, few)]
            if shown[0] == shown[1]:
                text = f"{arm_name(few.arm)} {few.printed} ({few.printed_low}-{few.printed_high}), as at"
                yield _flag("repeated cell", few, f"{text} {percent(more.label_fraction)}")


def _disagreeing(cells: _Cells) -> Iterator[Flag]:
    """Table 4's block 4 is Table 1, and Table 1's supervised column is Table 2 with all labels."""
    first = {(c.dataset, c.arm): c for c in cells if c.table == "linear"}
    for cell in cells:
        again = (cell.table == "probing" and cell.block == 4) or (
            cell.table == "label_efficiency" and cell.arm == "supervised" and cell.label_fraction == 1
        )
        other = first.get((cell.dataset, cell.arm)) if again else None
        if other and (other.printed, other.low, other.high) != (cell.printed, cell.low, cell.high):
            text = f"{arm_name(cell.arm)} {cell.printed}, in Table 1 {other.printed}"
            yield _flag("tables disagree", cell, text)


def _illegible(cells: _Cells) -> Iterator[Flag]:
    for cell in cells:
        if not cell.printed:
            yield _flag("not legible", cell, f"{arm_name(cell.arm)}, {cell.note}")
